// SYSENTER and SYSEXIT, from and to 64-bit and 32-bit code.
#include "kernel.h"

CODE(enter_64, "sysenter");
CODE(exit_64, "sysexitq");
CODE(exit_32, "sysexitl");
CODE(entry, "int $0x81");
CODE(target, "int $0x82");
CODE_BITS(32, enter_32, "sysenter");

static struct ctx c;

/* AMD machines have it in legacy mode only: #UD in long mode. */
static bool in_long_mode(void)
{
    ctx_user(&c, enter_64);
    c.gpr[RSP] = 0x1234;
    return ctx_run(&c) != UD;
}

int main(void)
{
    if (!HAS_1D(11)) {
        skip("SYSENTER");
        return done();
    }
    u64 stack = (u64)ctx_stack + 4096;
    wrmsr(MSR_SYSENTER_CS, SEL_KCODE);
    wrmsr(MSR_SYSENTER_ESP, stack);
    wrmsr(MSR_SYSENTER_EIP, (u64)entry);
    if (!in_long_mode()) {
        skip("SYSENTER in long mode (an AMD CPU)");
        return done();
    }
    ctx_user(&c, enter_64);
    c.rflags |= FL_IF | FL_ZF;
    struct ctx before = c;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.rip, entry + 2);
    CHECK_EQ(c.cs, SEL_KCODE);
    CHECK_EQ(c.ss, SEL_KDATA);
    CHECK_EQ(c.gpr[RSP], stack);
    CHECK_EQ(c.rflags & (FL_IF | FL_ZF), FL_ZF); /* IF is off, the rest stays */
    for (unsigned i = 0; i < 16; i++)
        if (i != RSP) CHECK_EQ(c.gpr[i], before.gpr[i]);

    ctx_user32(&c, enter_32, 2);
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.rip, entry + 2);
    CHECK_EQ(c.cs, SEL_KCODE);
    CHECK_EQ(c.gpr[RSP], stack);

    ctx_kernel(&c, exit_64);
    c.gpr[RDX] = (u64)user(target);
    c.gpr[RCX] = (u64)user(stack);
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.cs, SEL_UCODE | 3);
    CHECK_EQ(c.ss, SEL_UDATA2 | 3);
    CHECK_EQ(c.gpr[RSP], user(stack));

    ctx_user32(&c, target, 2);
    ctx_kernel(&c, exit_32);
    c.gpr[RDX] = USER32_CODE;
    c.gpr[RCX] = USER32_STACK;
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.cs, SEL_UCODE32 | 3);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
    CHECK_EQ(c.rip, USER32_CODE + 2);

    ctx_user(&c, exit_64);
    FAULTS(&c, GP, 0);
    wrmsr(MSR_SYSENTER_CS, 0);
    ctx_user(&c, enter_64);
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, exit_64);
    FAULTS(&c, GP, 0);
    return done();
}
