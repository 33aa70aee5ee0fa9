// RFLAGS.TF: one #DB with DR6.BS after each instruction, and the instructions where that is special.
#include "kernel.h"

CODE(plain, "nop; add $1, %rax\n step_2: jmp 1f\n ud2\n 1: mov %rax, %rbx\n step_4: nop");
CODE(rep_movs, "rep movsb\n rep_end: nop");
CODE(mov_ss, "mov %ecx, %ss\n after_ss: nop\n after_ss2: nop");
CODE(pushf_popf, "pushfq\n pushed: pop %rax\n popped: nop");
CODE(do_syscall, "syscall\n sys_back: nop");
CODE(sys_entry, "swapgs_nop: nop; int $0x81");
CODE(faulting, "mov (%rbx), %rax");
CODE(do_sysret, "sysretq");
CODE(icebp, ".byte 0xf1");
CODE(set_tf, "pushfq; orl $0x100, (%rsp); popfq\n tf_1: nop\n tf_2: nop");
LABEL(step_2);
LABEL(step_4);
LABEL(rep_end);
LABEL(after_ss2);
LABEL(pushed);
LABEL(popped);
LABEL(sys_back);
LABEL(tf_2);

static struct ctx c;
static u64 last_dr6;

/* Goes on from where the last #DB left off. */
static u64 step(void)
{
    set_dr6(0);
    u64 v = ctx_run(&c);
    last_dr6 = c.dr6;
    return v;
}

static void expect_step(void *rip, int line)
{
    check_eq(step(), DB, __FILE__, line, "vector of a step");
    check_eq(last_dr6 & 0xe00f, 0x4000, __FILE__, line, "DR6");
    check_eq(c.rip, (u64)rip, __FILE__, line, "rip after a step");
    CHECK(c.rflags & FL_TF);
}
#define STEP(rip) expect_step(rip, __LINE__)

/* In user and kernel mode alike. */
static void one_by_one(void)
{
    for (int u = 0; u < 2; u++) {
        u ? ctx_user(&c, plain) : ctx_kernel(&c, plain);
        u64 bias = u ? USER_ALIAS : 0;
        c.rflags |= FL_TF;
        c.gpr[RAX] = 4;
        STEP(plain + 1 + bias);
        STEP(step_2 + bias);
        CHECK_EQ(c.gpr[RAX], 5);
        STEP(step_4 - 3 + bias);
        STEP(step_4 + bias);
        CHECK_EQ(c.gpr[RBX], 5);
        STEP(step_4 + 1 + bias);
        CHECK_EQ(step(), END); /* INT n: the handler starts with TF off, and there is no step after it */
        CHECK(c.rflags & FL_TF);
    }
}

/* After each iteration (SDM vol. 3 17.3.1.4: repeated instructions trap between iterations). */
static void repeated(void)
{
    static char from[5] = "abcd", to[5];
    ctx_kernel(&c, rep_movs);
    c.gpr[RSI] = (u64)from, c.gpr[RDI] = (u64)to, c.gpr[RCX] = 4;
    c.rflags |= FL_TF;
    for (u64 left = 3; left > 0; left--) {
        STEP(rep_movs);
        CHECK_EQ(c.gpr[RCX], left);
        CHECK_EQ(c.gpr[RDI], (u64)to + 4 - left);
    }
    STEP(rep_end);
    CHECK_EQ(c.gpr[RCX], 0);
    CHECK(memcmp(from, to, 4) == 0);
}

static void delayed(void)
{
    /* MOV SS holds the trap back by one instruction. */
    ctx_kernel(&c, mov_ss);
    c.gpr[RCX] = SEL_KDATA;
    c.rflags |= FL_TF;
    STEP(after_ss2);

    /* PUSHF stores TF as it is. */
    ctx_kernel(&c, pushf_popf);
    c.rflags |= FL_TF;
    STEP(pushed);
    STEP(popped);
    CHECK_EQ(c.gpr[RAX] & FL_TF, FL_TF);

    /* POPF that sets TF: the next instruction is the first to trap. */
    ctx_kernel(&c, set_tf);
    CHECK_EQ(step(), DB);
    CHECK_EQ(c.rip, tf_2);

    /* A fault comes instead of the step, with TF in the saved flags. */
    ctx_user(&c, faulting);
    c.gpr[RBX] = TEST_VA;
    c.rflags |= FL_TF;
    FAULTS(&c, PF, PF_U);
}

static void system_calls(void)
{
    /* SYSCALL with TF masked by SFMASK: no trap on the way in; SYSRET with TF set in R11 steps the next instruction. */
    wrmsr(MSR_STAR, (u64)SEL_UCODE32 << 48 | (u64)SEL_KCODE << 32);
    wrmsr(MSR_LSTAR, (u64)sys_entry);
    wrmsr(MSR_SFMASK, FL_TF | FL_IF);
    ctx_user(&c, do_syscall);
    c.rflags |= FL_TF;
    CHECK_EQ(step(), END);
    CHECK_EQ(c.gpr[RCX], user(sys_back));
    CHECK_EQ(c.gpr[R11] & FL_TF, FL_TF);
    CHECK_EQ(c.rflags & FL_TF, 0);
    /* Not masked: the trap comes at the entry, in kernel mode. */
    wrmsr(MSR_SFMASK, FL_IF);
    ctx_user(&c, do_syscall);
    c.rflags |= FL_TF;
    c.gpr[RSP] = (u64)ctx_stack + 8192; /* the kernel goes on with this stack */
    CHECK_EQ(step(), DB);
    CHECK_EQ(c.rip, sys_entry);
    CHECK_EQ(c.cs & 3, 0);

    /* SYSRET that sets TF: the trap comes at once, before the first user instruction. */
    ctx_kernel(&c, do_sysret);
    c.gpr[RCX] = (u64)user(plain);
    c.gpr[R11] = FL_TF | 2;
    c.gpr[RSP] = (u64)user(ctx_stack) + 8192;
    CHECK_EQ(step(), DB);
    CHECK_EQ(c.rip, user(plain));
    CHECK_EQ(last_dr6 & 0x4000, 0x4000);
}

int main(void)
{
    one_by_one();
    repeated();
    delayed();
    system_calls();
    /* ICEBP shares the vector but not BS. */
    if (left_out(TCG | LAB, "INT1 in kernel mode")) return done();
    ctx_kernel(&c, icebp);
    CHECK_EQ(step(), DB);
    CHECK_EQ(last_dr6 & 0x4000, 0);
    CHECK_EQ(c.rip, icebp + 1);
    return done();
}
