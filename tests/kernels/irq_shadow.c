// The instruction after STI, MOV SS and POP SS runs before an interrupt is taken; POPF and IRET have no such shadow; STI;HLT loses no wake-up.
#include "kernel.h"

CODE(after_sti, "sti\n sti_1: nop\n sti_2: nop; nop; nop; nop; cli");
CODE(sti_cli, "sti; cli\n nop; nop");
CODE(after_popf, "pushf; orl $0x200, (%rsp); popf\n popf_1: nop\n popf_2: nop; cli");
CODE(sti_hlt, "sti; hlt\n hlt_next: cli");
CODE(sti_fault, "sti\n fault_here: mov (%rbx), %rax");
LABEL(sti_2);
LABEL(popf_1);
LABEL(hlt_next);
LABEL(fault_here);

static struct ctx c;

static void pend(u8 *code)
{
    ctx_kernel(&c, code);
    apic_ipi(0, 0x44000 | 0x48);
    for (unsigned i = 0; i < 100; i++) pause(); /* it is in the IRR now */
}

int main(void)
{
    apic_enable();
    for (unsigned i = 0; i < 50; i++) { /* also when the code was translated before */
        pend(after_sti);
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, sti_2);
        apic_eoi();

        pend(sti_cli); /* the window has no room for it */
        CHECK_EQ(ctx_run(&c), END);
        ctx_kernel(&c, after_popf);
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, popf_1);
        apic_eoi();

        pend(after_sti); /* IRET with IF: at the first instruction */
        c.rflags |= FL_IF;
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, after_sti);
        apic_eoi();

        pend(sti_hlt); /* HLT is in the shadow: it is reached, and left at once */
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, hlt_next);
        apic_eoi();

        pend(sti_fault); /* the fault comes first; its handler runs with IF off */
        c.gpr[RBX] = TEST_VA;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.rip, fault_here);
        CHECK(c.rflags & FL_IF);
        CHECK_EQ(ctx_run(&c), 0x48); /* going back to it with IF on */
        CHECK_EQ(c.rip, fault_here);
        apic_eoi();
    }
    return done();
}
