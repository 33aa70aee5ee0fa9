// Stacks of interrupt delivery in 64-bit mode: RSP0 on a change of privilege, IST always, alignment to 16, IRET back to it;
// interrupt and trap gates; NT and nesting.
#include "kernel.h"

CODE(soft_int, "int $0x80\n int_back: int $0x81");
CODE(fault, "mov (%rbx), %rax");
LABEL(int_back);

static struct frame seen;
static u64 handler_rsp, handler_flags;
static struct ctx c;

static void handler(struct frame *f)
{
    seen = *f;
    handler_rsp = (u64)f + sizeof *f; /* where the CPU began to push */
    __asm__ volatile("pushfq; pop %0" : "=r"(handler_flags));
}

static void skip_load(struct frame *f)
{
    handler(f);
    f->rip += 3;
}

static void run(bool from_user, u64 misalign, u64 flags)
{
    from_user ? ctx_user(&c, soft_int) : ctx_kernel(&c, soft_int);
    c.gpr[RSP] -= misalign;
    c.rflags |= flags;
    if (COMPLETES(&c)) CHECK_EQ(seen.rip, from_user ? user(int_back) : int_back);
}

int main(void)
{
    u64 rsp0 = tss[0].rsp[0], ist1 = tss[0].ist[1];
    on_vector(0x80, handler);

    run(true, 3, FL_IF | FL_CF);
    CHECK_EQ(handler_rsp, rsp0);
    CHECK_EQ(handler_flags & FL_IF, 0); /* an interrupt gate clears IF */
    CHECK_EQ(seen.rflags & FL_IF, FL_IF);
    CHECK_EQ(c.rflags & FL_IF, FL_IF); /* and IRET brings it back */
    CHECK_EQ(seen.ss, SEL_UDATA | 3);
    CHECK_EQ(c.gpr[RSP], (u64)user(ctx_stack) + sizeof ctx_stack - 67);

    run(false, 3, 0); /* same privilege: this stack, aligned down to 16 (SDM vol. 3 6.14.2) */
    CHECK_EQ(handler_rsp, ((u64)ctx_stack + sizeof ctx_stack - 67) & ~15ul);
    CHECK_EQ(seen.rsp, (u64)ctx_stack + sizeof ctx_stack - 67);
    CHECK_EQ(c.gpr[RSP], seen.rsp);

    idt[0x80].ist = 1;
    for (int u = 0; u < 2; u++) {
        run(u, 0, 0);
        CHECK_EQ(handler_rsp, ist1);
        CHECK_EQ(c.gpr[RSP], seen.rsp);
    }
    tss[0].ist[1] -= 5; /* IST stacks are aligned as well */
    run(false, 0, 0);
    CHECK_EQ(handler_rsp, (ist1 - 5) & ~15ul);
    tss[0].ist[1] = ist1;
    idt[0x80].ist = 0;

    /* SS after a change of privilege is null with RPL = CPL. */
    u64 ss;
    run(true, 0, 0);
    __asm__ volatile("mov %%ss, %0" : "=r"(ss));
    CHECK_EQ(ss, 0); /* ctx_run() came back from the INT $END without reloading it */

    idt[0x80].attr |= 1; /* trap gate: IF stays */
    run(true, 0, FL_IF);
    CHECK_EQ(handler_flags & FL_IF, FL_IF);
    idt[0x80].attr &= ~1;

    run(true, 0, FL_NT); /* NT and TF are cleared in the handler, not in the saved flags */
    CHECK_EQ(handler_flags & FL_NT, 0);
    CHECK_EQ(seen.rflags & FL_NT, FL_NT);

    /* A fault whose handler skips the instruction, many times, from user mode, on an IST stack. */
    on_vector(PF, skip_load);
    idt[PF].ist = 1;
    for (unsigned i = 0; i < 1000; i++) {
        ctx_user(&c, fault);
        c.gpr[RBX] = TEST_VA + i;
        COMPLETES(&c);
        CHECK_EQ(cr2(), TEST_VA + i);
        CHECK_EQ(handler_rsp, ist1);
    }
    return done();
}
