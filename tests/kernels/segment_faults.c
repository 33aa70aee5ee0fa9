// #TS, #NP, #SS and #GP with selector error codes, from segment loads, LTR, LLDT, IRET; LAR, LSL, VERR, VERW.
#include "kernel.h"

CODE(load_ds, "mov %ecx, %ds");
CODE(load_ss, "mov %ecx, %ss");
CODE(load_fs, "mov %ecx, %fs");
CODE(load_cs, ".byte 0x8e, 0xc9");
CODE(do_ltr, "ltr %cx");
CODE(do_lldt, "lldt %cx");
CODE(do_iret, "iretq");
CODE(pop_fs, "pop %fs");
CODE(lss, "lss (%rbx), %eax");

#define T(n) (SEL_TEST + 8 * (n))
#define DATA 0x00cf93000000fffful
#define NOT_PRESENT(d) ((d) & ~(1ul << 47))
#define DPL3(d) ((d) | 3ul << 45)

static struct ctx c;

static void kernel(u8 *code, u64 selector, u64 vector, u64 error)
{
    ctx_kernel(&c, code);
    c.gpr[RCX] = selector;
    if (!FAULTS(&c, vector, error)) print("    selector %lx\n", selector);
}

static void from_user(u8 *code, u64 selector, u64 vector, u64 error)
{
    ctx_user(&c, code);
    c.gpr[RCX] = selector;
    if (!FAULTS(&c, vector, error)) print("    selector %lx, user\n", selector);
}

static void loads(void)
{
    gdt[T(0) / 8] = NOT_PRESENT(DATA);
    gdt[T(1) / 8] = DATA;
    gdt[T(2) / 8] = 0x00cf91000000fffful; /* read-only */
    gdt[T(3) / 8] = 0x00cf99000000fffful; /* execute-only */
    kernel(load_ds, T(0), NP, T(0));
    kernel(load_ss, T(0), SS, T(0));
    kernel(load_ss, T(2), GP, T(2));
    kernel(load_ds, T(3), GP, T(3));
    kernel(load_ds, GDT_BYTES, GP, GDT_BYTES);     /* over the limit */
    kernel(load_ds, GDT_BYTES | 1, GP, GDT_BYTES); /* error codes carry no RPL... */
    kernel(load_ds, 4, GP, 4);                     /* ...but TI; there is no LDT */
    kernel(load_ds, SEL_TSS, GP, SEL_TSS);         /* a system descriptor */
    kernel(load_ss, SEL_UDATA | 3, GP, SEL_UDATA); /* RPL is not CPL */
    kernel(load_cs, SEL_KCODE, UD, 0);
    from_user(load_ds, T(1), GP, T(1)); /* DPL 0 */
    from_user(load_ss, 0, GP, 0);       /* null SS at CPL 3 */
    from_user(load_ss, SEL_KDATA, GP, SEL_KDATA);
    ctx_kernel(&c, load_ss); /* null SS is good at CPL 0 in 64-bit mode */
    c.gpr[RCX] = 0;
    COMPLETES(&c);
    ctx_user(&c, load_ds);
    c.gpr[RCX] = 3; /* null selectors of any RPL */
    COMPLETES(&c);
    CHECK_EQ(gdt[T(1) / 8] >> 40 & 1, 1);
    gdt[T(1) / 8] = DATA & ~(1ul << 40); /* a load sets the accessed bit */
    ctx_kernel(&c, load_fs);
    c.gpr[RCX] = T(1);
    COMPLETES(&c);
    CHECK_EQ(gdt[T(1) / 8] >> 40 & 1, 1);
    /* POP FS that faults leaves RSP alone. */
    ctx_kernel(&c, pop_fs);
    *(u64 *)c.gpr[RSP] = T(0);
    FAULTS(&c, NP, T(0));
    static struct {
        u32 offset;
        u16 selector;
    } __attribute__((packed)) far = {0x1234, T(0)};
    ctx_kernel(&c, lss);
    c.gpr[RBX] = (u64)&far;
    FAULTS(&c, SS, T(0));
}

static void system_segments(void)
{
    if (!left_out(TCG | LAB, "LTR of a null selector"))
        kernel(do_ltr, 0, GP, 0);         /* there the traps after it are lost */
    kernel(do_ltr, SEL_TSS, GP, SEL_TSS); /* busy */
    kernel(do_ltr, SEL_KDATA, GP, SEL_KDATA);
    gdt[T(4) / 8] = NOT_PRESENT(gdt[SEL_TSS / 8] & ~(2ul << 40));
    gdt[T(5) / 8] = gdt[SEL_TSS / 8 + 1];
    kernel(do_ltr, T(4), NP, T(4));
    kernel(do_lldt, SEL_KDATA, GP, SEL_KDATA);
    kernel(do_lldt, SEL_KDATA | 4, GP, SEL_KDATA | 4); /* must be in the GDT */
    from_user(do_ltr, T(4), GP, 0);
    /* An LDT that works: descriptor 0 of it. */
    static u64 ldt[2] = {DPL3(DATA), 0};
    u64 base = (u64)ldt;
    gdt[T(4) / 8] = 15 | (base & 0xffffff) << 16 | 0x82ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[T(5) / 8] = base >> 32;
    ctx_kernel(&c, do_lldt);
    c.gpr[RCX] = T(4);
    COMPLETES(&c);
    ctx_user(&c, load_fs);
    c.gpr[RCX] = 7;
    COMPLETES(&c);
    from_user(load_fs, 15, GP, 12); /* the second entry is null-typed: no data segment */
    from_user(load_fs, 23, GP, 20); /* over the LDT's limit */
    ctx_kernel(&c, do_lldt);
    c.gpr[RCX] = 0;
    COMPLETES(&c);
    from_user(load_fs, 7, GP, 4);
    __asm__ volatile("mov %0, %%fs" ::"r"(0));
}

/* An IRET frame on the context's stack. */
static void iret(u64 cs, u64 ss, u64 rip, u64 flags, u64 vector, u64 error)
{
    ctx_kernel(&c, do_iret);
    u64 *f = (u64 *)c.gpr[RSP] - 5;
    f[0] = rip, f[1] = cs, f[2] = flags, f[3] = (u64)user(ctx_stack) + 4096, f[4] = ss;
    c.gpr[RSP] = (u64)f;
    if (!FAULTS(&c, vector, error)) print("    iret to cs %lx ss %lx\n", cs, ss);
}

static void irets(void)
{
    u64 rip = (u64)user(do_iret);
    gdt[T(0) / 8] = NOT_PRESENT(0x00affb000000fffful); /* user code */
    gdt[T(1) / 8] = NOT_PRESENT(DPL3(DATA));
    gdt[T(6) / 8] = 0x00effb000000fffful; /* L and D both */
    iret(0, SEL_UDATA | 3, rip, 2, GP, 0);
    iret(SEL_KDATA, SEL_KDATA, rip, 2, GP, SEL_KDATA);
    iret(SEL_UCODE, SEL_KDATA, rip, 2, GP, SEL_UCODE); /* DPL 3 is not RPL 0 */
    iret(T(0) | 3, SEL_UDATA | 3, rip, 2, NP, T(0));
    iret(SEL_UCODE | 3, 0, rip, 2, GP, 0); /* null SS for CPL 3 */
    iret(SEL_UCODE | 3, SEL_KDATA | 3, rip, 2, GP, SEL_KDATA);
    iret(SEL_UCODE | 3, SEL_UDATA, rip, 2, GP, SEL_UDATA); /* RPL 0 */
    if (!left_out(TCG | LAB, "IRET to a bad place faults at the IRET")) {
        iret(T(6) | 3, SEL_UDATA | 3, rip, 2, GP, T(6));
        iret(SEL_UCODE | 3, SEL_UDATA | 3, 1ul << 63, 2, GP, 0); /* non-canonical RIP */
    }
    ctx_kernel(&c, do_iret); /* NT in 64-bit mode */
    c.rflags |= FL_NT;
    FAULTS(&c, GP, 0);
}

static void lar_lsl(void)
{
    u64 v = 0;
    bool z;
    __asm__ volatile("lar %2, %0" : "+r"(v), "=@ccz"(z) : "r"((u64)SEL_UCODE));
    CHECK(z);
    CHECK_EQ(v & 0xf0ff00, 0xa0fb00); /* bits 16..19 are undefined */
    __asm__ volatile("lsl %2, %0" : "+r"(v), "=@ccz"(z) : "r"((u64)SEL_UDATA));
    CHECK(z);
    CHECK_EQ(v, 0xffffffff);
    __asm__ volatile("lar %2, %0" : "+r"(v), "=@ccz"(z) : "r"((u64)GDT_BYTES));
    CHECK(!z);
    CHECK_EQ(v, 0xffffffff);
    __asm__ volatile("lsl %2, %0" : "+r"(v), "=@ccz"(z) : "r"((u64)0));
    CHECK(!z);
    __asm__ volatile("lsl %2, %0" : "+r"(v), "=@ccz"(z) : "r"((u64)SEL_TSS));
    CHECK(z);
    CHECK_EQ(v, sizeof(struct tss) - 1);
    __asm__ volatile("verr %w1" : "=@ccz"(z) : "r"(SEL_KDATA));
    CHECK(z);
    __asm__ volatile("verw %w1" : "=@ccz"(z) : "r"(SEL_KDATA));
    CHECK(z);
    __asm__ volatile("verw %w1" : "=@ccz"(z) : "r"(SEL_KCODE));
    CHECK(!z);
    __asm__ volatile("verr %w1" : "=@ccz"(z) : "r"(SEL_TSS));
    CHECK(!z);
}

/* The one #TS that 64-bit mode has left: a TSS too small to hold the stack pointer that is needed. */
static void invalid_tss(void)
{
    CODE(int80, "int $0x80");
    u64 old = gdt[SEL_TSS / 8];
    gdt[SEL_TSS / 8] = (old & ~0x2000000fffful) | 11; /* RSP0 is in, IST1 is not */
    load_tr(SEL_TSS);
    idt[0x80].ist = 1;
    ctx_user(&c, int80);
    FAULTS(&c, TS, SEL_TSS);
    gdt[SEL_TSS / 8] = old & ~(2ul << 40);
    load_tr(SEL_TSS);
}

int main(void)
{
    loads();
    system_segments();
    irets();
    lar_lsl();
    invalid_tss();
    return done();
}
