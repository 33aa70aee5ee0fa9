// Exceptions that an instruction raises by itself: vector, error code, RIP, and no register changed.
#include "kernel.h"

CODE(div_zero, "div %rcx");
CODE(idiv_overflow, "cqo; idiv_here: idiv %rcx");
CODE(div8, "div %cl");
CODE(ud2_, "ud2");
CODE(ud1_, "ud1 %eax, %eax");
CODE(ud0_, ".byte 0x0f, 0xff, 0xc0");
CODE(lock_reg, ".byte 0xf0, 0x01, 0xc8"); /* lock add %ecx, %eax */
CODE(lock_mov, ".byte 0xf0, 0x89, 0x08"); /* lock mov %ecx, (%rax) */
CODE(lock_cmp, ".byte 0xf0, 0x39, 0x08"); /* lock cmp: writes nothing */
CODE(push_es64, ".byte 0x06");            /* not in 64-bit mode */
CODE(daa64, ".byte 0x27");
CODE(too_long,
     ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90, 0x90");
CODE(longest, ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90");
CODE(noncanonical, "mov (%rax), %rcx");
CODE(noncanonical_stack, "push %rcx");
CODE(noncanonical_rbp, "mov (%rbp), %rcx");
CODE(noncanonical_jump, "jmp *%rax");
CODE(noncanonical_ret, "ret");
CODE(movaps_odd, "movaps (%rax), %xmm0");
CODE(user_hlt, "hlt");
CODE(user_cli, "cli");
CODE(user_in, "in $0x80, %al");
CODE(user_cr0, "mov %cr0, %rax");
CODE(user_wrmsr, "wrmsr");
CODE(user_lgdt, "lgdt (%rax)");
CODE(user_invlpg, "invlpg (%rax)");
CODE(bad_msr, "rdmsr");
CODE(bad_wrmsr, "wrmsr");
CODE(bad_cr0, "mov %rax, %cr0");
CODE(bad_cr4, "mov %rax, %cr4");
CODE(cr1, ".byte 0x0f, 0x20, 0xc8");
CODE(int3_, "int3; int3_after: nop");
CODE(int80, "int $0x80; int80_after: nop");
CODE(int_no_dpl, "int $0x30");
CODE(int13, ".byte 0xcd, 13");
CODE(int1_, ".byte 0xf1; int1_after: nop");
LABEL(idiv_here);
LABEL(int3_after);
LABEL(int80_after);
LABEL(int1_after);

static struct ctx c;

static void kernel_fault(u8 *code, u64 vector, u64 rax)
{
    ctx_kernel(&c, code);
    c.gpr[RAX] = rax;
    FAULTS(&c, vector, 0);
}

static void user_gp(u8 *code)
{
    ctx_user(&c, code);
    FAULTS(&c, GP, 0);
}

static void divide(void)
{
    ctx_kernel(&c, div_zero);
    c.gpr[RCX] = 0;
    FAULTS(&c, DE, 0);
    ctx_user(&c, div_zero); /* quotient too large: RDX >= divisor */
    c.gpr[RCX] = c.gpr[RDX];
    FAULTS(&c, DE, 0);
    ctx_user(&c, div8);
    c.gpr[RAX] = 0x1234;
    c.gpr[RCX] = 0x12;
    FAULTS(&c, DE, 0);
    ctx_user(&c, idiv_overflow); /* the most negative number / -1 */
    c.gpr[RAX] = 1ul << 63;
    c.gpr[RCX] = -1ul;
    ctx_run(&c);
    CHECK_EQ(c.vector, DE);
    CHECK_EQ(c.rip, user(idiv_here));
    CHECK_EQ(c.gpr[RAX], 1ul << 63);
    CHECK_EQ(c.gpr[RDX], -1ul);
}

static void undefined(void)
{
    static u8 *const code[] = {ud2_, ud1_, ud0_, lock_reg, lock_mov, lock_cmp, push_es64, daa64};
    bool locks = !left_out(TCG | LAB, "LOCK where it must not be");
    for (unsigned i = 0; i < sizeof code / sizeof *code; i++) {
        if (!locks && (code[i] == lock_mov || code[i] == lock_cmp)) continue;
        ctx_user(&c, code[i]);
        if (!FAULTS(&c, UD, 0)) print("    undefined opcode number %u\n", i);
        kernel_fault(code[i], UD, (u64)ctx_stack);
    }
    kernel_fault(cr1, UD, 0);
    if (!left_out(TCG | LAB, "instructions of 16 bytes"))
        kernel_fault(too_long, GP, 0); /* 16 bytes (SDM vol. 3 6.15, #GP) */
    ctx_kernel(&c, longest);
    COMPLETES(&c);
}

static void bad_control(void)
{
    kernel_fault(bad_cr0, GP, cr0() & ~1ul); /* PG without PE */
    if (!left_out(LAB, "the upper half of CR0")) kernel_fault(bad_cr0, GP, cr0() | 1ul << 32);
    kernel_fault(bad_cr0, GP, (cr0() | 1ul << 29) & ~(1ul << 30)); /* NW without CD */
    kernel_fault(bad_cr4, GP, cr4() & ~0x20ul);                    /* PAE off in long mode */
    kernel_fault(bad_cr4, GP, cr4() | 1ul << 31);
}

static void general_protection(void)
{
    kernel_fault(noncanonical, GP, 0x800000000000ul);
    kernel_fault(noncanonical, GP, 0xffff7ffffffffffful);
    map_page(0x7ffffffff000ul, (u64)page_alloc(), PTE_W);
    kernel_fault(noncanonical, GP, 0x7ffffffffffdul); /* the end of the operand is what's wrong */
    kernel_fault(movaps_odd, GP, (u64)ctx_stack + 8);
    if (!left_out(TCG | LAB, "where a jump to a non-canonical address faults"))
        kernel_fault(noncanonical_jump, GP, 0x1234567812345678ul);
    if (!left_out(TCG, "bad values of CR0 and CR4")) bad_control();
    ctx_kernel(&c, bad_msr);
    c.gpr[RCX] = 0x12345678;
    if (!left_out(TCG, "unknown MSRs")) FAULTS(&c, GP, 0);
    ctx_kernel(&c, bad_wrmsr); /* LSTAR must be canonical */
    c.gpr[RCX] = MSR_LSTAR;
    c.gpr[RDX] = 0x12345678;
    if (!left_out(TCG | LAB, "a non-canonical LSTAR")) FAULTS(&c, GP, 0);
    static u8 *const privileged[] = {user_hlt, user_cli, user_in, user_cr0, user_wrmsr, user_lgdt, user_invlpg};
    for (unsigned i = 0; i < sizeof privileged / sizeof *privileged; i++) user_gp(privileged[i]);
}

/* A stack access by RSP or RBP raises #SS, not #GP. CPL 3, since the kernel's own trap needs a stack. */
static void stack_fault(void)
{
    ctx_user(&c, noncanonical_stack);
    c.gpr[RSP] = 0x800000000000ul;
    c.gpr[RSP] += 8;
    FAULTS(&c, SS, 0);
    ctx_user(&c, noncanonical_rbp);
    c.gpr[RBP] = 1ul << 63;
    FAULTS(&c, SS, 0);
    ctx_user(&c, noncanonical_ret);
    c.gpr[RSP] = 0x800000000000ul;
    FAULTS(&c, SS, 0);
}

/* Traps report the next instruction; software interrupts to a gate without DPL 3 are #GP with the vector. */
static void software_interrupts(void)
{
    ctx_user(&c, int3_);
    CHECK_EQ(ctx_run(&c), BP);
    CHECK_EQ(c.rip, user(int3_after));
    ctx_user(&c, int80);
    CHECK_EQ(ctx_run(&c), 0x80);
    CHECK_EQ(c.rip, user(int80_after));
    ctx_user(&c, int1_); /* no DPL check */
    if (!left_out(TCG | LAB, "INT1 by a user")) {
        CHECK_EQ(ctx_run(&c), DB);
        CHECK_EQ(c.rip, user(int1_after));
    }
    if (left_out(TCG | LAB, "the index in error codes about the IDT")) return;
    ctx_user(&c, int_no_dpl);
    FAULTS(&c, GP, 0x30 << 3 | 2);
    ctx_user(&c, int13);
    FAULTS(&c, GP, 13 << 3 | 2);
    idt[0x82].attr &= 0x7f; /* not present */
    CODE(int82, "int $0x82");
    ctx_user(&c, int82);
    FAULTS(&c, NP, 0x82 << 3 | 2);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    divide();
    undefined();
    general_protection();
    if (!left_out(TCG | LAB, "#SS of non-canonical addresses")) stack_fault();
    software_interrupts();
    return done();
}
