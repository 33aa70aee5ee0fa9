// DR0-DR7: instruction breakpoints (faults, RF), data watchpoints (traps), sizes, I/O ones, general detect, DR6 and DR7 rules.
#include "kernel.h"

CODE(code, "nop\n bp_here: add $1, %rax\n bp_next: nop");
CODE(store8, "mov %rax, (%rbx)\n st_next: nop");
CODE(store1, "mov %al, (%rbx)");
CODE(load8, "mov (%rbx), %rax");
CODE(locked8, "lock addq $1, (%rbx)");
CODE(push8, "push %rax");
CODE(movs, "rep movsb\n movs_next: nop");
CODE(sse_store, "movups %xmm0, (%rbx)");
CODE(read_dr7, "mov %dr7, %rax");
CODE(write_dr7, "mov %rax, %dr7");
CODE(read_dr4, ".byte 0x0f, 0x21, 0xe0"); /* mov %dr4, %rax */
CODE(out_port, "out %al, $0x80\n out_next: nop");
LABEL(bp_here);
LABEL(st_next);
LABEL(movs_next);
LABEL(out_next);

enum { EXECUTE, WRITE, IO, ACCESS };
static struct ctx c;
static u8 data[64] __attribute__((aligned(64)));
static u8 two_pages[2 * PAGE] __attribute__((aligned(PAGE)));

static void watch(unsigned n, u64 address, unsigned kind, unsigned length)
{
    if (n == 0) set_dr0(address);
    if (n == 1) set_dr1(address);
    if (n == 3) set_dr3(address);
    u64 len = length == 8 ? 2 : length - 1;
    set_dr7((dr7() & ~(0xful << (16 + 4 * n))) | 2ul << 2 * n | (len << 2 | kind) << (16 + 4 * n) | 0x400);
}

static u64 run(u8 *what, u64 rbx)
{
    set_dr6(0);
    ctx_kernel(&c, what);
    c.gpr[RBX] = rbx;
    return ctx_run(&c);
}

static void instruction_breakpoints(void)
{
    watch(0, (u64)bp_here, EXECUTE, 1);
    ctx_kernel(&c, code);
    c.gpr[RAX] = 1;
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.rip, bp_here); /* a fault: before the instruction */
    CHECK_EQ(c.gpr[RAX], 1);
    CHECK_EQ(c.dr6 & 0xe00f, 1);
    /* Of all faults only this one pushes RF as it was, here 0 (SDM vol. 3 17.3.1.1): a handler that just returns gets
     * the same #DB again, and one that wants to go on sets RF in the image it returns to, as debuggers and Linux do. */
    CHECK_EQ(c.rflags & FL_RF, 0);
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.rip, bp_here);
    CHECK_EQ(c.gpr[RAX], 1);
    c.rflags |= FL_RF;
    CHECK_EQ(ctx_run(&c), END); /* lets it pass, once */
    CHECK_EQ(c.gpr[RAX], 2);
    bool rf = !left_out(TCG | LAB, "RF is good for one instruction");
    if (rf) CHECK_EQ(c.rflags & FL_RF, 0);
    c.rip = (u64)code; /* RF is good for the NOP only, so the breakpoint behind it fires */
    c.rflags |= FL_RF;
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.rip, bp_here);
    CHECK_EQ(c.rflags & FL_RF, 0);
    /* A user alias is another linear address. */
    ctx_user(&c, code);
    CHECK_EQ(ctx_run(&c), END);
    set_dr0((u64)user(bp_here));
    ctx_user(&c, code);
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.rip, user(bp_here));
    /* Disabled: nothing, also when the code ran with the breakpoint before. */
    set_dr7(0x400);
    ctx_user(&c, code);
    CHECK_EQ(ctx_run(&c), END);
    /* In the middle of an instruction: nothing. */
    watch(0, (u64)bp_here + 1, EXECUTE, 1);
    CHECK_EQ(run(code, 0), END);
    set_dr7(0x400);
}

static void data_watchpoints(void)
{
    bool near = !left_out(TCG | LAB, "accesses beside a watchpoint"),
         locked = !left_out(LAB, "watchpoints of locked instructions");
    u64 a = (u64)data + 8;
    watch(1, a, WRITE, 8);
    CHECK_EQ(run(store8, a), DB);
    CHECK_EQ(c.rip, st_next); /* a trap: after the instruction */
    CHECK_EQ(c.dr6 & 0xe00f, 2);
    CHECK_EQ(c.rflags & FL_RF, 0);
    CHECK_EQ(*(u64 *)a, c.gpr[RAX]);
    CHECK_EQ(run(load8, a), END); /* write only */
    CHECK_EQ(run(store1, a + 7), DB);
    CHECK_EQ(run(store1, a + 8), END);
    CHECK_EQ(run(store8, a - 7), DB); /* any overlap counts */
    CHECK_EQ(run(store8, a - 8), END);
    CHECK_EQ(run(sse_store, a - 15), DB);
    CHECK_EQ(run(sse_store, a + 8), END);
    watch(1, a, ACCESS, 4);
    CHECK_EQ(run(load8, a - 5), DB);
    if (near) CHECK_EQ(run(load8, a + 4), END);
    /* Locked operations, also over a page border. */
    watch(1, a + 4, ACCESS, 4);
    if (locked) CHECK_EQ(run(locked8, a), DB);
    if (near) CHECK_EQ(run(locked8, a - 4), END);
    watch(1, a + 4, WRITE, 4);
    CHECK_EQ(run(locked8, a), DB);
    CHECK_EQ(c.dr6 & 0xe00f, 2);
    watch(1, (u64)two_pages + PAGE, WRITE, 1);
    CHECK_EQ(run(locked8, (u64)two_pages + PAGE - 8), END);
    CHECK_EQ(run(locked8, (u64)two_pages + PAGE - 7), DB);
    watch(1, a + 1, WRITE, 1);
    CHECK_EQ(run(store1, a), END);
    CHECK_EQ(run(store1, a + 1), DB);
    /* The stack. */
    watch(3, (u64)ctx_stack + sizeof ctx_stack - 72, WRITE, 8);
    CHECK_EQ(run(push8, 0), DB);
    CHECK_EQ(c.dr6 & 0xe00f, 8);
    set_dr7(0x400);
    /* REP: after the iteration that touched it (it may run some further ones). */
    watch(1, a + 4, WRITE, 1);
    set_dr6(0);
    ctx_kernel(&c, movs);
    c.gpr[RSI] = (u64)data + 32, c.gpr[RDI] = a, c.gpr[RCX] = 10;
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.dr6 & 15, 2);
    CHECK(c.gpr[RCX] <= 5);
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RCX], 0);
    set_dr7(0x400);
    CHECK_EQ(run(store8, a), END);
}

static void io_breakpoint(void)
{
    set_cr4(cr4() | CR4_DE);
    watch(0, 0x80, IO, 1);
    CHECK_EQ(run(out_port, 0), DB);
    CHECK_EQ(c.rip, out_next);
    CHECK_EQ(c.dr6 & 15, 1);
    set_dr7(0x400);
}

static void general_detect(void)
{
    /* Any MOV DR faults, DR6.BD says so, and DR7.GD is off in the handler. */
    set_dr6(0);
    set_dr7(0x2400);
    ctx_kernel(&c, read_dr7);
    CHECK_EQ(ctx_run(&c), DB);
    CHECK_EQ(c.rip, read_dr7);
    CHECK_EQ(c.dr6 & 0xe00f, 0x2000);
    CHECK(c.rflags & FL_RF); /* a fault like all others */
    CHECK_EQ(dr7() & 0x2000, 0);
    set_dr7(0x400);
}

static void register_rules(void)
{
    ctx_kernel(&c, write_dr7); /* upper halves are reserved */
    c.gpr[RAX] = 1ul << 32;
    FAULTS(&c, GP, 0);
    ctx_user(&c, read_dr7);
    FAULTS(&c, GP, 0);
    set_cr4(cr4() | CR4_DE);
    ctx_kernel(&c, read_dr4);
    FAULTS(&c, UD, 0);
    set_cr4(cr4() & ~CR4_DE);
    set_dr6(0);
    u64 alias;
    __asm__ volatile(".byte 0x0f, 0x21, 0xe0" : "=a"(alias)); /* DR4 is DR6 then */
    CHECK_EQ(alias, dr6());
    CHECK_EQ(dr6() & 0xfffffff0ul & ~0xe800ul, 0xffff07f0ul);
    CHECK_EQ(dr7(), 0x400);
    set_dr2(0x123456789abcul);
    CHECK_EQ(dr2(), 0x123456789abcul);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    instruction_breakpoints();
    data_watchpoints();
    if (!left_out(TCG | ONKVM, "I/O breakpoints")) io_breakpoint();
    if (!left_out(TCG | LAB, "general detect")) general_detect();
    register_rules();
    return done();
}
