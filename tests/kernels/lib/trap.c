/* IDT, TSS, and what happens on a trap. */
#include "kernel.h"

void trap_init(unsigned cpu);
u64 trap(struct frame *f);
void ctx_enter(struct ctx *c, u64 *save_rsp);

struct idt_gate idt[256] __attribute__((aligned(16)));
struct tss tss[MAX_CPUS] __attribute__((aligned(16)));
u8 ctx_stack[16384] __attribute__((aligned(4096)));

static u8 trap_stack[MAX_CPUS][4][8192] __attribute__((aligned(16))); /* RSP0, IST1, IST2 (NMI), IST3 (#DF) */
static trap_handler *handlers[256];
static struct {
    struct ctx *ctx; /* the context that runs now, or NULL */
    u64 rsp;         /* where ctx_enter() left the stack */
} running[MAX_CPUS];

void on_vector(unsigned vector, trap_handler *fn)
{
    handlers[vector] = fn;
}

void idt_set(unsigned vector, const void *entry, unsigned dpl, unsigned ist)
{
    u64 a = (u64)entry;
    idt[vector] = (struct idt_gate){.offset_low = (u16)a,
                                    .selector = SEL_KCODE,
                                    .ist = (u8)ist,
                                    .attr = (u8)(0x8e | dpl << 5),
                                    .offset_mid = (u16)(a >> 16),
                                    .offset_high = (u32)(a >> 32)};
}

void exceptions_on_ist(bool on)
{
    for (unsigned v = 0; v < 32; v++)
        if (v != NMI && v != DF) idt[v].ist = on ? 1 : 0;
}

static void tss_init(unsigned cpu)
{
    struct tss *t = &tss[cpu];
    u64 base = (u64)t, limit = sizeof *t - 1;
    t->rsp[0] = (u64)trap_stack[cpu][1];
    for (unsigned i = 1; i <= 3; i++) t->ist[i] = (u64)trap_stack[cpu][i] + sizeof trap_stack[0][0];
    memset(t->io_bitmap, 0xff, sizeof t->io_bitmap);
    t->iomap = offsetof(struct tss, io_bitmap);
    gdt[SEL_TSS / 8 + 2 * cpu] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[SEL_TSS / 8 + 2 * cpu + 1] = base >> 32;
}

void trap_init(unsigned cpu)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) idtr = {sizeof idt - 1, (u64)idt};

    if (cpu == 0) {
        for (unsigned v = 0; v < 256; v++) {
            bool from_user = v == BP || v == OF || (v >= 0x80 && v < 0x90);
            idt_set(v, trap_stubs + 16 * v, from_user ? 3 : 0, v == NMI ? 2 : v == DF ? 3 : 0);
        }
    }
    tss_init(cpu);
    __asm__ volatile("ltr %w0; lldt %w1" ::"r"(SEL_TSS + 16 * cpu), "r"(0));
    __asm__ volatile("lidt %0" ::"m"(idtr));
}

unsigned cpu_index(void)
{
    u32 tr;
    __asm__ volatile("str %0" : "=r"(tr));
    return (tr - SEL_TSS) / 16;
}

static void print_frame(const struct frame *f)
{
    static const char *const name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"};
    print("rip %lx cs %lx rflags %lx ss %lx cr2 %lx\n", f->rip, f->cs, f->rflags, f->ss, cr2());
    for (unsigned i = 0; i < 16; i++) print("%s %016lx%s", name[i], f->gpr[i], i % 4 == 3 ? "\n" : "  ");
}

/* Called by trap.S. The stack pointer to return to from ctx_enter(), or 0 to go on where the trap came from. */
u64 trap(struct frame *f)
{
    unsigned cpu = cpu_index();
    struct ctx *c = running[cpu].ctx;

    f->gpr[RSP] = f->rsp;
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return 0;
    }
    if (!c) {
        print_frame(f);
        panic("unexpected vector %lu, error %lx, on CPU %u", f->vector, f->error, cpu);
    }
    running[cpu].ctx = NULL;
    memcpy(c->gpr, f->gpr, sizeof c->gpr);
    c->rip = f->rip;
    c->rflags = f->rflags;
    c->cs = f->cs;
    c->ss = f->ss;
    c->vector = f->vector;
    c->error = f->error;
    if (f->vector == PF) c->cr2 = cr2();
    if (f->vector == DB) c->dr6 = dr6();
    return running[cpu].rsp;
}

static void ctx_init(struct ctx *c, u64 rip, u64 cs, u64 ss, u64 rsp)
{
    memset(c, 0, sizeof *c);
    for (unsigned i = 0; i < 16; i++) c->gpr[i] = 0x0101010101010101ul * (0x10 + i);
    c->rip = rip;
    c->cs = cs;
    c->ss = ss;
    c->gpr[RSP] = rsp;
    c->rflags = 2;
}

void ctx_kernel(struct ctx *c, const void *code)
{
    ctx_init(c, (u64)code, SEL_KCODE, SEL_KDATA, (u64)ctx_stack + sizeof ctx_stack - 64);
}

void ctx_user(struct ctx *c, const void *code)
{
    ctx_init(c, (u64)user(code), SEL_UCODE | 3, SEL_UDATA | 3, (u64)user(ctx_stack) + sizeof ctx_stack - 64);
}

void ctx_user32(struct ctx *c, const void *code, u64 len)
{
    static u8 *pages;
    if (!pages) {
        pages = pages_alloc(4, PAGE);
        for (unsigned i = 0; i < 4; i++) map_page(USER32_CODE + i * PAGE, (u64)pages + i * PAGE, PTE_U | PTE_W);
    }
    memcpy(pages, code, len);
    ctx_init(c, USER32_CODE, SEL_UCODE32 | 3, SEL_UDATA | 3, USER32_STACK - 64);
    for (unsigned i = 0; i < 16; i++) c->gpr[i] = (u32)c->gpr[i];
}

u64 ctx_run(struct ctx *c)
{
    unsigned cpu = cpu_index();
    running[cpu].ctx = c;
    ctx_enter(c, &running[cpu].rsp);
    return c->vector;
}

bool ctx_faults(struct ctx *c, u64 vec, u64 err, u64 loose_flags, const char *file, int line)
{
    struct ctx before = *c;
    ctx_run(c);
    bool ok = check_eq(c->vector, vec, file, line, "vector") && check_eq(c->error, err, file, line, "error code");
    ok &= check_eq(c->rip, before.rip, file, line, "rip of the faulting instruction");
    for (unsigned i = 0; i < 16; i++)
        if (c->gpr[i] != before.gpr[i]) {
            ok = check_eq(c->gpr[i], before.gpr[i], file, line, "a register changed by a faulting instruction");
            print("    it is register %u\n", i);
        }
    u64 exact = ~(FL_RF | loose_flags);
    ok &= check_eq(c->rflags & exact, before.rflags & exact, file, line, "rflags of the faulting instruction");
    ok &= check_eq(c->cs, before.cs, file, line, "cs");
    ok &= check_eq(c->ss, before.ss, file, line, "ss");
    if (!ok) print("    vector %lu error %lx rip %lx cr2 %lx\n", c->vector, c->error, c->rip, c->cr2);
    return ok;
}

bool ctx_completes(struct ctx *c, const char *file, int line)
{
    ctx_run(c);
    if (check_eq(c->vector, END, file, line, "vector of a sequence that should complete")) return true;
    print("    error %lx rip %lx cr2 %lx\n", c->error, c->rip, c->cr2);
    return false;
}
