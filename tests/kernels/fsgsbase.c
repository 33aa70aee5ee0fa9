// FS and GS bases: MSRs, RDFSBASE and friends, SWAPGS, selector loads, addressing in 64-bit and compatibility mode.
#include "kernel.h"

CODE(rd_fs, "rdfsbase %rax");
CODE(wr_fs, "wrfsbase %rax");
CODE(wr_gs32, "wrgsbase %eax; rdgsbase %rax");
CODE(do_swapgs, "swapgs");
CODE(load_fs, "mov %fs:8(%rbx), %rax");
CODE(load_gs_abs, "mov %gs:0x10, %rax");
CODE(load_gs_a32, "mov %gs:(%ebx), %rax");
CODE(set_fs, "mov %ecx, %fs");
CODE(lea_fs, ".byte 0x64; lea 8(%rbx), %rax");

static struct ctx c;
static u64 data[8] = {10, 11, 12, 13, 14, 15, 16, 17};

int main(void)
{
    u64 base = (u64)data, ubase = (u64)user(data);

    /* Without CR4.FSGSBASE the instructions are #UD. */
    ctx_kernel(&c, rd_fs);
    FAULTS(&c, UD, 0);
    wrmsr(MSR_FS_BASE, base);
    ctx_kernel(&c, load_fs);
    c.gpr[RBX] = 8;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 12);
    ctx_kernel(&c, lea_fs); /* LEA knows no segments */
    c.gpr[RBX] = 0x1000;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 0x1008);
    wrmsr(MSR_GS_BASE, ubase);
    ctx_user(&c, load_gs_abs);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 12);
    /* The base is added after the offset was cut to 32 bits. */
    ctx_user(&c, load_gs_a32);
    c.gpr[RBX] = 0x1234567800000018ul;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 13);
    /* Negative offsets wrap around 64 bits. */
    wrmsr(MSR_FS_BASE, base + 0x100000);
    ctx_kernel(&c, load_fs);
    c.gpr[RBX] = -0x100000ul;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 11);
    /* A base that makes the sum non-canonical. */
    wrmsr(MSR_FS_BASE, 0x7ffffffff000ul);
    ctx_kernel(&c, load_fs);
    c.gpr[RBX] = 0x1000;
    FAULTS(&c, GP, 0);

    /* SWAPGS. */
    wrmsr(MSR_GS_BASE, 0x1111);
    wrmsr(MSR_KERNEL_GS_BASE, 0xffff800000002222ul);
    ctx_kernel(&c, do_swapgs);
    COMPLETES(&c);
    CHECK_EQ(rdmsr(MSR_GS_BASE), 0xffff800000002222ul);
    CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), 0x1111);
    ctx_user(&c, do_swapgs);
    FAULTS(&c, GP, 0);

    /* A selector load replaces the base by the descriptor's 32 bits. */
    gdt[SEL_TEST / 8] = 0x12cff3345678fffful;
    wrmsr(MSR_FS_BASE, 0x7777777777ul);
    ctx_user(&c, set_fs);
    c.gpr[RCX] = SEL_TEST | 3;
    COMPLETES(&c);
    CHECK_EQ(rdmsr(MSR_FS_BASE), 0x12345678);

    if (!HAS_FSGSBASE) {
        skip("FSGSBASE");
        return done();
    }
    set_cr4(cr4() | CR4_FSGSBASE);
    for (int u = 0; u < 2; u++) {
        u ? ctx_user(&c, wr_fs) : ctx_kernel(&c, wr_fs);
        c.gpr[RAX] = ubase + (u64)u;
        COMPLETES(&c);
        CHECK_EQ(rdmsr(MSR_FS_BASE), ubase + (u64)u);
        u ? ctx_user(&c, rd_fs) : ctx_kernel(&c, rd_fs);
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RAX], ubase + (u64)u);
    }
    ctx_user(&c, wr_gs32); /* 32-bit forms zero the upper half */
    c.gpr[RAX] = 0xffffffff87654321ul;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 0x87654321);
    ctx_user(&c, wr_fs);
    c.gpr[RAX] = 1ul << 63;
    if (!left_out(TCG | LAB, "WRFSBASE of a non-canonical base")) FAULTS(&c, GP, 0);
    return done();
}
