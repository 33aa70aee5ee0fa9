// Double faults: which pairs of exceptions make one (SDM vol. 3, table 6-5), on its IST stack, with error code 0.
#include "kernel.h"

CODE(page_fault, "mov (%rbx), %rax");
CODE(divide, "div %rcx");
CODE(breakpoint, "int3");

static struct ctx c;

static void run(u8 *code, u64 want)
{
    ctx_user(&c, code);
    c.gpr[RBX] = TEST_VA;
    c.gpr[RCX] = 0;
    if (!CHECK_EQ(ctx_run(&c), want) || (want == DF && !CHECK_EQ(c.error, 0)))
        print("    code %p error %lx cr2 %lx\n", (void *)code, c.error, c.cr2);
}

int main(void)
{
    struct idt_gate pf = idt[PF], de = idt[DE], bp = idt[BP];

    /* Contributory after #PF, and #PF after #PF. */
    idt[PF].attr &= 0x7f; /* not present: #NP while delivering #PF */
    run(page_fault, DF);
    idt[PF] = pf;
    idt_set(PF, trap_stubs + 16 * PF, 0, 4);
    tss[0].ist[4] = TEST_VA + 0x10000; /* #PF on a missing stack */
    run(page_fault, DF);
    idt[PF] = pf;

    /* Contributory after contributory. */
    idt[DE].attr &= 0x7f;
    run(divide, DF);
    idt[DE] = de;

    /* #PF after contributory is handled in turn: #DE whose stack is missing gives #PF, and CR2 says where. */
    idt_set(DE, trap_stubs + 16 * DE, 0, 4);
    run(divide, PF);
    CHECK_EQ(c.cr2 & ~0xffful, TEST_VA + 0xf000);
    CHECK_EQ(c.error, PF_W);
    idt[DE] = de;

    /* Benign first: the second is handled in turn. */
    idt[BP].attr &= 0x7f;
    run(breakpoint, NP);
    bool index = !left_out(TCG | LAB, "the index in error codes about the IDT");
    if (index) CHECK_EQ(c.error, BP << 3 | 2);
    idt[BP] = bp;

    /* A gate with a selector that is no code: #GP in delivery, so a double fault after #PF. */
    idt[PF].selector = SEL_KDATA;
    run(page_fault, DF);
    idt[PF] = pf;

    /* A non-canonical IST stack is #SS, contributory. */
    tss[0].ist[4] = 1ul << 63;
    idt_set(PF, trap_stubs + 16 * PF, 0, 4);
    run(page_fault, DF);
    idt[PF] = pf;

    /* An IDT too short for the vector is #GP(vector * 8 + 2). */
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) shorter = {0x81 * 16 - 1, (u64)idt}, whole = {sizeof idt - 1, (u64)idt};
    CODE(int82, "int $0x82");
    __asm__ volatile("lidt %0" ::"m"(shorter) : "memory");
    ctx_user(&c, int82);
    if (index)
        FAULTS(&c, GP, 0x82 << 3 | 2);
    else
        CHECK_EQ(ctx_run(&c), GP);
    __asm__ volatile("lidt %0" ::"m"(whole) : "memory");
    return done();
}
