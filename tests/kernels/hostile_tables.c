// Page tables, descriptor tables, TSS and stacks where they can't be: in a hole, in the LAPIC, beyond RAM, over the end of the
// address space. The guest gets its exceptions (or nonsense); the machine lives on.
#include "kernel.h"

CODE(load, "mov (%rbx), %rax");
CODE(store, "mov %rax, (%rbx)");
CODE(push_pop, "push %rax; pop %rcx; push %rbx; pop %rdx");
CODE(call_ret, "call 1f; jmp 2f; 1: ret; 2: nop");
CODE(soft_int, "int $0x80");
CODE(bare_handler, "nop");
CODE(load_ds, "mov %ecx, %fs");
CODE(stack_ops, "push %rax; pushfq; popfq; enter $32, $3; leave; lea 64(%rsp), %rsp; xchg %rax, (%rsp)");
CODE(stack_ops_flat, "push %rax; pushfq; popfq; enter $32, $0; leave; lea 64(%rsp), %rsp; xchg %rax, (%rsp)");

static struct ctx c;
static const u64 nowhere[] = {0xd0000000, 0xfee00000, 0xfec00000,        0x80000000,
                              64ul << 20, 1ul << 33,  (1ul << 39) - PAGE};
#define N (sizeof nowhere / sizeof *nowhere)

static void page_tables(void)
{
    for (unsigned level = 2; level <= 3; level++) {
        u64 *e = pte_of(TEST_VA, level), old = *e;
        for (unsigned i = 0; i < N; i++) {
            *e = nowhere[i] | PTE_P | PTE_W | PTE_U;
            set_cr3(cr3());
            for (u64 at = 0; at < 64; at += 8) {
                ctx_kernel(&c, at & 8 ? load : store);
                c.gpr[RBX] = TEST_VA + at * 0x1003;
                u64 v = ctx_run(&c);
                CHECK(v == PF || v == END);
            }
        }
        *e = old;
        set_cr3(cr3());
    }
    /* A PML4 of nothing: no instruction can be fetched, nor an exception delivered. So on a CR3 that has our low half. */
    u64 *own = phys(cr3());
    for (unsigned i = 0; i < N; i++) {
        own[300] = nowhere[i] | 7;
        ctx_kernel(&c, load);
        c.gpr[RBX] = 0xffff960000000000ul;
        u64 v = ctx_run(&c);
        CHECK(v == PF || v == END);
    }
    /* A table that maps itself, and one that is its own large page. */
    own[301] = (u64)own | 7;
    ctx_kernel(&c, load);
    c.gpr[RBX] = 0xffff968000000000ul;
    ctx_run(&c);
    u64 self = 0xffff000000000000ul | 301ul << 39 | 301ul << 30 | 301ul << 21 | 301ul << 12;
    ctx_kernel(&c, load);
    c.gpr[RBX] = self;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], own[0]);
    own[300] = own[301] = 0;
}

static void stacks(void)
{
    u8 *code[] = {push_pop, call_ret, stack_ops};
    if (left_out(ONKVM, "ENTER with frames on MMIO")) code[2] = stack_ops_flat;
    bool delivery = !left_out(ONKVM, "interrupts to a stack on MMIO");
    exceptions_on_ist(true);
    for (unsigned v = 0x80; v < 0x90; v++) idt[v].ist = 1;
    for (unsigned i = 0; i < N; i++) {
        map_page(TEST_VA, nowhere[i], PTE_W | PTE_PCD);
        for (unsigned k = 0; k < 3; k++) {
            ctx_kernel(&c, code[k]);
            c.gpr[RSP] = TEST_VA + 0xe00;
            u64 v = ctx_run(&c);
            bool stepped = v == DB && code[k] == stack_ops_flat; /* POPF of ones sets TF */
            if (!CHECK(stepped || v == END || v == PF || v == GP || v == UD || v == SS))
                print("    vector %lu at %lx, code %u, frame %u\n", v, c.rip, k, i);
        }
        /* Interrupt delivery to such a stack; the handler only comes back by the next trap, which has IST1. */
        if (!delivery) continue;
        tss[0].ist[4] = TEST_VA + 0x800;
        idt_set(0x82, bare_handler, 3, 4);
        CODE(int82, "int $0x82");
        ctx_kernel(&c, int82);
        u64 v = ctx_run(&c);
        CHECK(v == END || v == DF);
    }
    /* Around the ends of the address space. */
    static const u64 edges[] = {
        0, 4, 7, 0x7ffffffffffcul, 0x800000000000ul, 0xffff800000000000ul, 0xffff800000000004ul, -1ul, -4ul};
    for (unsigned i = 0; i < sizeof edges / sizeof *edges; i++)
        for (unsigned k = 0; k < 3; k++) {
            ctx_kernel(&c, code[k]);
            c.gpr[RSP] = edges[i];
            u64 v = ctx_run(&c);
            CHECK(v == SS || v == PF || v == GP || v == END || v == UD);
        }
}

static void descriptor_tables(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) where = {GDT_BYTES - 1, 0}, good;
    __asm__ volatile("sgdt %0" : "=m"(good));
    for (unsigned i = 0; i < N && !left_out(ONKVM, "a GDT on MMIO"); i++) {
        where.base = TEST_VA;
        map_page(TEST_VA, nowhere[i], PTE_W | PTE_PCD);
        u64 v;
        /* IRET and exceptions read the GDT too, so only the one load happens while it is away. */
        __asm__ volatile("lgdt %1; lar %k2, %k0; lgdt %3"
                         : "=r"(v)
                         : "m"(where), "r"((u64)SEL_UDATA), "m"(good)
                         : "cc");
    }
    /* All-ones descriptors. */
    static u64 ones[2] = {-1ul, -1ul};
    memcpy(&gdt[SEL_TEST / 8], ones, 16);
    ctx_kernel(&c, load_ds);
    c.gpr[RCX] = SEL_TEST;
    u64 v = ctx_run(&c);
    CHECK(v == GP || v == END); /* conforming code, readable: it may be loaded */
    ctx_kernel(&c, soft_int);
    struct idt_gate keep = idt[0x80];
    memset(&idt[0x80], 0xff, 16);
    v = ctx_run(&c);
    CHECK(v == GP || v == NP || v == DF);
    idt[0x80] = keep;
    /* An IDT in a hole makes every exception a triple fault (triple_fault.c); a TSS in a hole faults when it's needed. */
    u64 old_low = gdt[SEL_TSS / 8], old_high = gdt[SEL_TSS / 8 + 1];
    for (unsigned i = 0; i < N; i++) {
        map_page(TEST_VA, nowhere[i], PTE_W | PTE_PCD);
        gdt[SEL_TSS / 8] = 0x67 | (TEST_VA & 0xffffff) << 16 | 0x89ul << 40 | (TEST_VA >> 24 & 0xff) << 56;
        gdt[SEL_TSS / 8 + 1] = 0;
        load_tr(SEL_TSS);
        __asm__ volatile("verr %w0" ::"r"(SEL_TSS) : "cc");
        gdt[SEL_TSS / 8] = old_low & ~(2ul << 40);
        gdt[SEL_TSS / 8 + 1] = old_high;
        load_tr(SEL_TSS);
    }
}

int main(void)
{
    page_tables();
    stacks();
    descriptor_tables();
    return done();
}
