// SYSCALL and SYSRET in 64-bit and compatibility mode: registers, masks, selectors, privilege, what is refused.
#include "kernel.h"

CODE(call_64, "syscall\n call_back: nop");
CODE(entry, "int $0x81");
CODE(ret_64, "sysretq");
CODE(ret_32, "sysretl");
CODE(target, "int $0x82");
CODE_BITS(32, call_32, "syscall");
CODE(round_trip, "mov $100000, %ebx\n 1: syscall\n dec %ebx\n jnz 1b");
CODE(fast_entry, "inc %rax; sysretq");
LABEL(call_back);

static struct ctx c;

int main(void)
{
    pic_mask_all(); /* a firmware's timer would interrupt the user code, whose IF is set */
    wrmsr(MSR_STAR, (u64)SEL_UCODE32 << 48 | (u64)SEL_KCODE << 32);
    wrmsr(MSR_LSTAR, (u64)entry);
    wrmsr(MSR_CSTAR, (u64)entry);
    wrmsr(MSR_SFMASK, FL_IF | FL_DF | FL_CF);

    ctx_user(&c, call_64);
    c.rflags |= FL_CF | FL_ZF | FL_DF;
    struct ctx before = c;
    c.gpr[RSP] = before.gpr[RSP] = (u64)ctx_stack + 4096; /* RSP is not switched: the entry's trap uses it */
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.rip, entry + 2);
    CHECK_EQ(c.cs, SEL_KCODE);
    CHECK_EQ(c.ss, SEL_KDATA);
    CHECK_EQ(c.gpr[RCX], user(call_back));
    CHECK_EQ(c.gpr[R11] & ~FL_RF, FL_CF | FL_ZF | FL_DF | 2);
    if (!left_out(TCG | LAB, "arithmetic flags after SYSCALL")) CHECK_EQ(c.rflags & ~FL_RF, FL_ZF | 2);
    CHECK_EQ(c.gpr[RSP], before.gpr[RSP]);
    for (unsigned i = 0; i < 16; i++)
        if (i != RCX && i != R11) CHECK_EQ(c.gpr[i], before.gpr[i]);

    /* Back: CS and SS from STAR, RFLAGS from R11 but for RF and VM. */
    ctx_kernel(&c, ret_64);
    c.gpr[RCX] = (u64)user(target);
    c.gpr[R11] = 0x3c7fd7 & ~FL_TF & ~FL_NT & ~(3ul << 19);
    c.gpr[RSP] = (u64)user(ctx_stack) + 4096;
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.cs, SEL_UCODE | 3);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
    CHECK_EQ(c.rflags, ((0x3c7fd7 & ~FL_TF & ~FL_NT & ~(3ul << 19)) | 2) & ~FL_RF & ~0x20000ul);
    /* To compatibility mode. */
    ctx_user32(&c, target, 2); /* maps and fills the page below 4 GiB */
    ctx_kernel(&c, ret_32);
    c.gpr[RCX] = 0xabcd00000000ul | USER32_CODE; /* ECX only */
    c.gpr[R11] = 2;
    c.gpr[RSP] = USER32_STACK - 64;
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.cs, SEL_UCODE32 | 3);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
    CHECK_EQ(c.rip, USER32_CODE + 2);

    /* SYSCALL from compatibility mode goes through CSTAR on AMD and is #UD on Intel. */
    ctx_user32(&c, call_32, 2);
    u64 v = ctx_run(&c);
    if (v == UD) {
        CHECK_EQ(c.rip, USER32_CODE);
    } else {
        CHECK_EQ(v, END);
        CHECK_EQ(c.gpr[RCX], USER32_CODE + 2);
    }

    /* Refusals. */
    ctx_user(&c, ret_64);
    FAULTS(&c, GP, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1ul);
    ctx_user(&c, call_64);
    FAULTS(&c, UD, 0);
    ctx_kernel(&c, ret_64);
    FAULTS(&c, UD, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);

    /* Often, with state kept. */
    wrmsr(MSR_LSTAR, (u64)fast_entry);
    ctx_user(&c, round_trip);
    c.gpr[RAX] = 0;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 100000);
    return done();
}
