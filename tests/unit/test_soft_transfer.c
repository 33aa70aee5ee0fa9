/* transfer.c and fastcall.c: far JMP, CALL, RET, IRET, SYSCALL and relatives, in all modes. */
#include "tests/unit/soft_sys_rig.h"

static void push64(uint64_t v)
{
    rig.cpu->gpr[R_RSP] -= 8;
    put_ram(rig.cpu->gpr[R_RSP], v, 8);
}

static void iret_frame(uint64_t rip, uint64_t cs, uint64_t flags, uint64_t rsp, uint64_t ss)
{
    rig.cpu->gpr[R_RSP] = SYS_STACK;
    push64(ss);
    push64(rsp);
    push64(flags);
    push64(cs);
    push64(rip);
}
#define IRETQ 0x48, 0xcf

static void far_pointer(uint64_t off, uint16_t sel, unsigned size)
{
    rig.cpu->gpr[R_RBX] = SYS_DATA;
    put_ram(SYS_DATA, off, size);
    put_ram(SYS_DATA + size, sel, 2);
}

/* ---- IRET ---- */

static void iret_to_user(void **state)
{
    (void)state;
    rig.cpu->nmi_blocked = true;
    rig.cpu->seg[SEG_GS].base = 0x1234;
    iret_frame(0x400000, S_UCODE64 | 3, FL_1 | FL_IF | FL_ZF | FL_IOPL | FL_VM, 0x7fff0000, S_UDATA | 3);
    EXEC_OK(IRETQ);
    assert_int_equal(rig.cpu->rip, 0x400000);
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x7fff0000);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_IF | FL_ZF | FL_IOPL);
    assert_true(rig.cpu->seg[SEG_DS].attr & SEG_ATTR_NULL); /* ring 0's data segments are taken away */
    assert_true(rig.cpu->seg[SEG_GS].attr & SEG_ATTR_NULL);
    assert_int_equal(rig.cpu->seg[SEG_GS].base, 0x1234); /* their bases are not */
    assert_false(rig.cpu->nmi_blocked);
    assert_int_equal(rig.cpu->mmu_idx, MMU_USER);
}

static void iret_to_compat(void **state)
{
    (void)state;
    iret_frame(0xffffffff00401000, S_UCODE32 | 3, FL_1, 0x123456789, S_UDATA | 3);
    EXEC_FAULT(EXC_GP, 0, IRETQ); /* beyond the limit */
    iret_frame(0x401000, S_UCODE32 | 3, FL_1, 0x123456789, S_UDATA | 3);
    EXEC_OK(IRETQ);
    assert_false(soft_code64(rig.cpu));
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x23456789);
}

static void iret_same_ring_pops_stack(void **state)
{
    (void)state;
    iret_frame(0xffffffff81000000, S_CODE64, FL_1, 0x12345, 0);
    EXEC_OK(IRETQ);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x12345);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, 0);
    assert_false(rig.cpu->seg[SEG_DS].attr & SEG_ATTR_NULL);
}

static void iret_faults(void **state)
{
    (void)state;
    iret_frame(0x800000000000, S_CODE64, FL_1, 0, 0);
    EXEC_FAULT(EXC_GP, 0, IRETQ);
    iret_frame(0, 0, FL_1, 0, 0);
    EXEC_FAULT(EXC_GP, 0, IRETQ);
    iret_frame(0, S_DATA, FL_1, 0, 0);
    EXEC_FAULT(EXC_GP, S_DATA, IRETQ);
    iret_frame(0, S_UCODE64, FL_1, 0, 0); /* RPL 0, DPL 3 */
    EXEC_FAULT(EXC_GP, S_UCODE64, IRETQ);
    iret_frame(0, S_UCODE64 | 3, FL_1, 0, 0); /* null SS in ring 3 */
    EXEC_FAULT(EXC_GP, 0, IRETQ);
    iret_frame(0, S_UCODE64 | 3, FL_1, 0, S_DATA);
    EXEC_FAULT(EXC_GP, S_DATA, IRETQ);
    iret_frame(0, 0xc3, FL_1, 0, 0);
    EXEC_FAULT(EXC_GP, 0xc0, IRETQ);
    rig.cpu->rflags |= FL_NT;
    iret_frame(0, S_CODE64, FL_1, 0, 0);
    EXEC_FAULT(EXC_GP, 0, IRETQ);
    rig.cpu->rflags &= ~(uint64_t)FL_NT;
    sys_ring(3);
    iret_frame(0, S_CODE64, FL_1, 0, 0); /* inwards */
    EXEC_FAULT(EXC_GP, S_CODE64, IRETQ);
}

static void iret_user_keeps_if_and_iopl(void **state)
{
    (void)state;
    sys_ring(3);
    soft_set_rflags(rig.cpu, FL_1 | FL_IF);
    iret_frame(0x1000, S_UCODE64 | 3, FL_1 | FL_IOPL | FL_CF, 0x2000, S_UDATA | 3);
    EXEC_OK(IRETQ);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_IF | FL_CF);
}

static void iret_protected(void **state)
{
    (void)state;
    sys_protected32(0);
    uint32_t frame[5] = {0x1234, S_UCODE32 | 3, FL_1 | FL_IF, 0x5678, S_UDATA | 3};
    memcpy(rig_ram(SYS_STACK), frame, sizeof frame);
    EXEC_OK(0xcf);
    assert_int_equal(rig.cpu->rip, 0x1234);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x5678);
    assert_int_equal(rig.cpu->cpl, 3);
    sys_protected32(0);
    rig.cpu->gpr[R_RSP] = SYS_STACK;
    frame[1] = S_CODE32;
    memcpy(rig_ram(SYS_STACK), frame, sizeof frame);
    EXEC_OK(0xcf);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK + 12);
    rig.cpu->gpr[R_RSP] = SYS_STACK;
    frame[2] = FL_1 | FL_VM; /* virtual-8086 mode isn't there */
    memcpy(rig_ram(SYS_STACK), frame, sizeof frame);
    EXEC_FAULT(EXC_GP, 0, 0xcf);
}

static void iret_real(void **state)
{
    (void)state;
    sys_real();
    uint16_t frame[3] = {0x1234, 0x2000, FL_1 | FL_CF | FL_IF};
    memcpy(rig_ram(0x8000), frame, sizeof frame);
    EXEC_OK(0xcf);
    assert_int_equal(rig.cpu->rip, 0x1234);
    assert_int_equal(rig.cpu->seg[SEG_CS].base, 0x20000);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x8006);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_CF | FL_IF);
}

/* ---- far JMP, CALL, RET ---- */

static void jump_direct(void **state)
{
    (void)state;
    far_pointer(0x5000, S_CODE32, 4);
    EXEC_OK(0xff, 0x2b); /* jmp far [rbx] */
    assert_int_equal(rig.cpu->rip, 0x5000);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_CODE32);
    assert_false(soft_code64(rig.cpu));
    EXEC_OK(0xea, 0x00, 0x60, 0x00, 0x00, S_CODE64, 0x00); /* jmp 8:0x6000 */
    assert_true(soft_code64(rig.cpu));
    assert_int_equal(rig.cpu->rip, 0x6000);
    far_pointer(0, 0, 4);
    EXEC_FAULT(EXC_GP, 0, 0xff, 0x2b);
    far_pointer(0, S_DATA, 4);
    EXEC_FAULT(EXC_GP, S_DATA, 0xff, 0x2b);
    far_pointer(0, S_UCODE64 | 3, 4);
    EXEC_FAULT(EXC_GP, S_UCODE64, 0xff, 0x2b);
    far_pointer(0, S_TSS, 4);
    EXEC_FAULT(EXC_GP, S_TSS, 0xff, 0x2b); /* no task switches in long mode */
    *sys_gdt(S_CODE32) &= ~(1ull << 47);
    far_pointer(0, S_CODE32, 4);
    EXEC_FAULT(EXC_NP, S_CODE32, 0xff, 0x2b);
    *sys_gdt(S_CODE64) |= 1ull << 54; /* L and D together */
    far_pointer(0, S_CODE64, 4);
    EXEC_FAULT(EXC_GP, S_CODE64, 0xff, 0x2b);
}

static void near_forms_are_not_ours(void **state)
{
    (void)state;
    rig.cpu->gpr[R_RBX] = SYS_DATA;
    assert_int_equal(EXEC(0xff, 0x23), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0xff, 0x13), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0xc3), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0xff, 0xe0), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0xeb, 0xfe), SOFT_NOT_MINE);
}

static void call_and_return(void **state)
{
    (void)state;
    far_pointer(0x5000, S_CODE64, 4);
    EXEC_OK(0xff, 0x1b); /* call far [rbx]: 32-bit operand size by default */
    assert_int_equal(rig.cpu->rip, 0x5000);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK - 8);
    assert_int_equal(ram32(SYS_STACK - 8), SYS_CODE + 2);
    assert_int_equal(ram32(SYS_STACK - 4), S_CODE64);
    EXEC_OK(0xcb); /* retf */
    assert_int_equal(rig.cpu->rip, SYS_CODE + 2);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK);
}

static void return_outwards(void **state)
{
    (void)state;
    rig.cpu->gpr[R_RSP] = SYS_STACK;
    push64(S_UDATA | 3);
    push64(0x9000);
    push64(0); /* 8 bytes of parameters */
    push64(S_UCODE64 | 3);
    push64(0x401000);
    EXEC_OK(0x48, 0xca, 0x08, 0x00); /* retfq 8 */
    assert_int_equal(rig.cpu->rip, 0x401000);
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x9008);
    assert_true(rig.cpu->seg[SEG_ES].attr & SEG_ATTR_NULL);
}

static void make_gate64(unsigned dpl, uint16_t sel, uint64_t off)
{
    uint64_t lo = (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)(0x8c | dpl << 5) << 40 | (off >> 16 & 0xffff) << 48;
    *sys_gdt(S_GATE) = lo;
    *sys_gdt(S_GATE + 8) = off >> 32;
}

static void call_gate_64(void **state)
{
    (void)state;
    sys_ring(3);
    make_gate64(3, S_CODE64, 0xffffffff80001000);
    far_pointer(0x99, S_GATE, 4); /* the offset is ignored */
    EXEC_OK(0xff, 0x1b);
    assert_int_equal(rig.cpu->rip, 0xffffffff80001000);
    assert_int_equal(rig.cpu->cpl, 0);
    uint64_t sp = SYS_STACK0 - 32;
    assert_int_equal(rig.cpu->gpr[R_RSP], sp);
    assert_int_equal(ram64(sp), SYS_CODE + 2);
    assert_int_equal(ram64(sp + 8), S_UCODE64 | 3);
    assert_int_equal(ram64(sp + 16), SYS_STACK);
    assert_int_equal(ram64(sp + 24), S_UDATA | 3);
    EXEC_OK(0x48, 0xcb); /* and back */
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->rip, SYS_CODE + 2);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK);
}

static void call_gate_errors(void **state)
{
    (void)state;
    sys_ring(3);
    far_pointer(0, S_GATE | 3, 4);
    make_gate64(2, S_CODE64, 0x1000);
    EXEC_FAULT(EXC_GP, S_GATE, 0xff, 0x1b);
    make_gate64(3, S_DATA, 0x1000);
    EXEC_FAULT(EXC_GP, S_DATA, 0xff, 0x1b);
    make_gate64(3, S_CODE32, 0x1000);
    EXEC_FAULT(EXC_GP, S_CODE32, 0xff, 0x1b);
    make_gate64(3, S_CODE64, 0x1000);
    EXEC_FAULT(EXC_GP, S_CODE64, 0xff, 0x2b); /* JMP can't change rings */
    *sys_gdt(S_GATE + 8) = 1ull << 40;
    EXEC_FAULT(EXC_GP, S_GATE, 0xff, 0x1b);
    make_gate64(3, S_CODE64, 0x1000);
    *sys_gdt(S_GATE) &= ~(1ull << 47);
    EXEC_FAULT(EXC_NP, S_GATE, 0xff, 0x1b);
}

static void call_gate_32_with_parameters(void **state)
{
    (void)state;
    sys_protected32(3);
    *sys_gdt(S_GATE) = 0x1000 | (uint64_t)S_CODE32 << 16 | 2ull << 32 | 0xecull << 40;
    put_ram(SYS_STACK, 0xaaaa, 4);
    put_ram(SYS_STACK + 4, 0xbbbb, 4);
    EXEC_OK(0x9a, 0, 0, 0, 0, S_GATE, 0x00);
    assert_int_equal(rig.cpu->cpl, 0);
    uint64_t sp = SYS_STACK0 - 24;
    assert_int_equal(rig.cpu->gpr[R_RSP], sp);
    assert_int_equal(ram32(sp), SYS_CODE + 7);
    assert_int_equal(ram32(sp + 8), 0xaaaa);
    assert_int_equal(ram32(sp + 12), 0xbbbb);
    assert_int_equal(ram32(sp + 16), SYS_STACK);
    EXEC_OK(0xca, 0x08, 0x00); /* retf 8 */
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK + 8);
}

static void real_mode_far(void **state)
{
    (void)state;
    sys_real();
    EXEC_OK(0x9a, 0x34, 0x12, 0x00, 0x20);
    assert_int_equal(rig.cpu->rip, 0x1234);
    assert_int_equal(rig.cpu->seg[SEG_CS].base, 0x20000);
    assert_int_equal(ram16(0x7ffc), 0x1005);
    EXEC_OK(0xcb);
    assert_int_equal(rig.cpu->rip, 0x1005);
    assert_int_equal(rig.cpu->seg[SEG_CS].base, 0);
    rig.cpu->cr0 |= CR0_PE; /* the far jump that enters protected mode */
    rig.cpu->gdt = (struct cpu_table){SYS_GDT, S_LIMIT};
    EXEC_OK(0x66, 0xea, 0x00, 0x00, 0x01, 0x00, S_CODE32, 0x00);
    assert_int_equal(rig.cpu->rip, 0x10000);
    assert_true(rig.cpu->seg[SEG_CS].attr & SEG_ATTR_DB);
}

/* ---- SYSCALL and relatives ---- */

static void syscall_and_sysret(void **state)
{
    (void)state;
    sys_ring(3);
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x05); /* EFER.SCE is clear */
    rig.cpu->efer |= EFER_SCE;
    rig.cpu->star = (uint64_t)S_CODE64 << 32 | (uint64_t)(S_UCODE32 | 3) << 48;
    rig.cpu->lstar = 0xffffffff81000000;
    rig.cpu->sfmask = FL_IF | FL_TF | FL_AC;
    soft_set_rflags(rig.cpu, FL_1 | FL_IF | FL_AC | FL_CF | FL_RF);
    EXEC_OK(0x0f, 0x05);
    assert_int_equal(rig.cpu->rip, 0xffffffff81000000);
    assert_int_equal(rig.cpu->gpr[R_RCX], SYS_CODE + 2);
    assert_int_equal(rig.cpu->gpr[R_R11], FL_1 | FL_IF | FL_AC | FL_CF);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_CF);
    assert_int_equal(rig.cpu->cpl, 0);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_CODE64);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, S_DATA);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK);
    EXEC_OK(0x48, 0x0f, 0x07); /* sysretq */
    assert_int_equal(rig.cpu->rip, SYS_CODE + 2);
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_UCODE64 | 3);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, S_UDATA | 3);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_IF | FL_AC | FL_CF);
    assert_int_equal(rig.cpu->late_db, 0);
    EXEC_FAULT(EXC_GP, 0, 0x48, 0x0f, 0x07); /* ring 3 */
    sys_ring(0);
    rig.cpu->gpr[R_R11] |= FL_TF;
    EXEC_OK(0x48, 0x0f, 0x07);
    assert_int_equal(rig.cpu->late_db, 1u << 14); /* steps at once */
}

static void sysret_to_compat(void **state)
{
    (void)state;
    rig.cpu->efer |= EFER_SCE;
    rig.cpu->star = (uint64_t)(S_UCODE32 | 3) << 48;
    rig.cpu->gpr[R_RCX] = 0x800000401000;
    rig.cpu->gpr[R_R11] = 0xffffffff;
    EXEC_FAULT(EXC_GP, 0, 0x48, 0x0f, 0x07); /* not canonical: still in ring 0 */
    EXEC_OK(0x0f, 0x07);
    assert_int_equal(rig.cpu->rip, 0x401000);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_UCODE32 | 3);
    assert_false(soft_code64(rig.cpu));
    assert_int_equal(soft_get_rflags(rig.cpu) & (FL_VM | FL_RF | 0x8028), 0);
    if (rig.cpu->cpuid.amd) {
        rig.cpu->cstar = 0x7000;
        EXEC_OK(0x0f, 0x05);
        assert_int_equal(rig.cpu->rip, 0x7000);
        assert_true(soft_code64(rig.cpu));
    } else {
        EXEC_FAULT(EXC_UD, 0, 0x0f, 0x05);
    }
}

static void sysenter_and_sysexit(void **state)
{
    (void)state;
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x34);
    rig.cpu->sysenter_cs = S_CODE64;
    rig.cpu->sysenter_esp = SYS_STACK0;
    rig.cpu->sysenter_eip = SYS_HANDLER;
    rig.cpu->if_flag = 1;
    EXEC_OK(0x0f, 0x34);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK0);
    assert_int_equal(rig.cpu->cpl, 0);
    assert_int_equal(rig.cpu->if_flag, 0);
    assert_true(soft_code64(rig.cpu));
    rig.cpu->gpr[R_RDX] = 0x100401000;
    rig.cpu->gpr[R_RCX] = 0x7000;
    EXEC_OK(0x0f, 0x35); /* to 32-bit code */
    assert_int_equal(rig.cpu->rip, 0x401000);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, (S_CODE64 + 16) | 3);
    assert_false(soft_code64(rig.cpu));
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x35);
    sys_ring(0);
    rig.cpu->gpr[R_RDX] = 0x800000000000;
    EXEC_FAULT(EXC_GP, 0, 0x48, 0x0f, 0x35);
    rig.cpu->gpr[R_RDX] = 0x7fffffffffff;
    EXEC_OK(0x48, 0x0f, 0x35);
    assert_int_equal(rig.cpu->rip, 0x7fffffffffff);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, (S_CODE64 + 40) | 3);
}

static void swapgs_and_bases(void **state)
{
    (void)state;
    rig.cpu->seg[SEG_GS].base = 1;
    rig.cpu->kernel_gs_base = 2;
    EXEC_OK(0x0f, 0x01, 0xf8);
    assert_int_equal(rig.cpu->seg[SEG_GS].base, 2);
    assert_int_equal(rig.cpu->kernel_gs_base, 1);
    EXEC_FAULT(EXC_UD, 0, 0xf3, 0x48, 0x0f, 0xae, 0xd8); /* wrgsbase rax: CR4.FSGSBASE is clear */
    rig.cpu->cr4 |= CR4_FSGSBASE;
    rig.cpu->gpr[R_RAX] = 0x7fff12345678;
    EXEC_OK(0xf3, 0x48, 0x0f, 0xae, 0xd8);
    assert_int_equal(rig.cpu->seg[SEG_GS].base, 0x7fff12345678);
    EXEC_OK(0xf3, 0x0f, 0xae, 0xd0); /* wrfsbase eax */
    assert_int_equal(rig.cpu->seg[SEG_FS].base, 0x12345678);
    EXEC_OK(0xf3, 0x48, 0x0f, 0xae, 0xcb); /* rdgsbase rbx */
    assert_int_equal(rig.cpu->gpr[R_RBX], 0x7fff12345678);
    rig.cpu->gpr[R_RAX] = 0x800000000000;
    EXEC_FAULT(EXC_GP, 0, 0xf3, 0x48, 0x0f, 0xae, 0xd0);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0xf8);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(iret_to_user),
        T(iret_to_compat),
        T(iret_same_ring_pops_stack),
        T(iret_faults),
        T(iret_user_keeps_if_and_iopl),
        T(iret_protected),
        T(iret_real),
        T(jump_direct),
        T(near_forms_are_not_ours),
        T(call_and_return),
        T(return_outwards),
        T(call_gate_64),
        T(call_gate_errors),
        T(call_gate_32_with_parameters),
        T(real_mode_far),
        T(syscall_and_sysret),
        T(sysret_to_compat),
        T(sysenter_and_sysexit),
        T(swapgs_and_bases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
