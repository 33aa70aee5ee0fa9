// #AC: CR0.AM, RFLAGS.AC and CPL 3 together; error code 0; #GP of aligned SSE forms comes before it; #PF too.
#include "kernel.h"

CODE(load8, "mov (%rbx), %rax");
CODE(load4, "mov (%rbx), %eax");
CODE(load2, "mov (%rbx), %ax");
CODE(load1, "mov (%rbx), %al");
CODE(store8, "mov %rax, (%rbx)");
CODE(push8, "push %rax");
CODE(locked, "lock add %eax, (%rbx)");
CODE(unaligned_sse, "movups (%rbx), %xmm0");
CODE(aligned_sse, "movaps (%rbx), %xmm0");

static struct ctx c;
static u8 data[64] __attribute__((aligned(64)));

static bool checked;

static bool faults(u8 *code, u64 offset)
{
    ctx_user(&c, code);
    c.gpr[RBX] = (u64)user(data) + offset;
    c.rflags |= FL_AC;
    return checked ? FAULTS(&c, AC, 0) : COMPLETES(&c);
}

static bool completes(u8 *code, u64 offset)
{
    ctx_user(&c, code);
    c.gpr[RBX] = (u64)user(data) + offset;
    c.rflags |= FL_AC;
    return COMPLETES(&c);
}

int main(void)
{
    checked = !left_out(TCG | LAB, "alignment checks");
    set_cr4(cr4() | CR4_OSFXSR);
    completes(load8, 1); /* CR0.AM is off */
    set_cr0(cr0() | CR0_AM);
    for (u64 i = 0; i < 9; i++) {
        (i % 8 ? faults : completes)(load8, i);
        (i % 8 ? faults : completes)(store8, i);
        (i % 4 ? faults : completes)(load4, i);
        (i % 4 ? faults : completes)(locked, i);
        (i % 2 ? faults : completes)(load2, i);
        completes(load1, i);
    }
    completes(unaligned_sse, 16);
    ctx_user(&c, push8);
    c.gpr[RSP] -= 4;
    c.rflags |= FL_AC;
    if (checked) FAULTS(&c, AC, 0);
    ctx_user(&c, aligned_sse);
    c.gpr[RBX] = (u64)user(data) + 4;
    c.rflags |= FL_AC;
    FAULTS(&c, GP, 0);

    ctx_user(&c, load8); /* no AC flag */
    c.gpr[RBX] = (u64)user(data) + 1;
    COMPLETES(&c);
    ctx_kernel(&c, load8); /* CPL 0 */
    c.gpr[RBX] = (u64)data + 1;
    c.rflags |= FL_AC;
    COMPLETES(&c);
    CHECK(c.rflags & FL_AC);
    set_cr0(cr0() & ~CR0_AM);
    completes(load8, 1);
    return done();
}
