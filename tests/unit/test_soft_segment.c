/* segment.c: addresses through segments, segment register loads with all their checks. */
#include "tests/unit/soft_sys_rig.h"

static enum soft_result linear(enum cpu_seg seg, uint64_t off, uint32_t len, enum soft_access acc)
{
    uint64_t a;
    return soft_linear(rig.cpu, seg, off, len, acc, &a);
}

static void linear_64_bit(void **state)
{
    (void)state;
    uint64_t a;
    rig.cpu->seg[SEG_FS].base = 0x5000;
    rig.cpu->seg[SEG_DS].base = 0x7000; /* has no effect */
    assert_int_equal(soft_linear(rig.cpu, SEG_FS, 0x10, 8, ACC_READ, &a), SOFT_OK);
    assert_int_equal(a, 0x5010);
    assert_int_equal(soft_linear(rig.cpu, SEG_DS, 0x10, 8, ACC_WRITE, &a), SOFT_OK);
    assert_int_equal(a, 0x10);
    assert_int_equal(linear(SEG_DS, 0x7ffffffffff8, 8, ACC_READ), SOFT_OK);
    assert_int_equal(linear(SEG_DS, 0x7ffffffffff9, 8, ACC_READ), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    assert_int_equal(linear(SEG_SS, 0x800000000000, 8, ACC_READ), SOFT_FAULT);
    assert_fault(EXC_SS, 0);
    assert_int_equal(linear(SEG_DS, 0xffff7fffffffffff, 1, ACC_READ), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    assert_int_equal(linear(SEG_DS, 0xffff800000000000, 1, ACC_READ), SOFT_OK);
}

static void linear_protected(void **state)
{
    (void)state;
    uint64_t a;
    sys_protected32(0);
    rig.cpu->seg[SEG_DS].base = 0xfffff000;
    assert_int_equal(soft_linear(rig.cpu, SEG_DS, 0x2000, 4, ACC_READ, &a), SOFT_OK);
    assert_int_equal(a, 0x1000);
    rig.cpu->seg[SEG_DS].limit = 0xfff;
    assert_int_equal(linear(SEG_DS, 0xffc, 4, ACC_READ), SOFT_OK);
    assert_int_equal(linear(SEG_DS, 0xffd, 4, ACC_READ), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    rig.cpu->seg[SEG_SS].limit = 0xfff;
    assert_int_equal(linear(SEG_SS, 0xffffffff, 4, ACC_WRITE), SOFT_FAULT);
    assert_fault(EXC_SS, 0);
    sys_load(SEG_ES, S_READONLY);
    assert_int_equal(linear(SEG_ES, 0, 4, ACC_READ), SOFT_OK);
    assert_int_equal(linear(SEG_ES, 0, 4, ACC_WRITE), SOFT_FAULT);
    sys_load(SEG_ES, S_EXECONLY);
    assert_int_equal(linear(SEG_ES, 0, 4, ACC_READ), SOFT_FAULT);
    segment_set_null(&rig.cpu->seg[SEG_ES], 0);
    assert_int_equal(linear(SEG_ES, 0, 4, ACC_READ), SOFT_FAULT);
}

static void linear_expand_down(void **state)
{
    (void)state;
    sys_protected32(0);
    sys_load(SEG_DS, S_EXPAND); /* valid above 0xffff */
    assert_int_equal(linear(SEG_DS, 0xffff, 4, ACC_READ), SOFT_FAULT);
    assert_int_equal(linear(SEG_DS, 0x10000, 4, ACC_READ), SOFT_OK);
    assert_int_equal(linear(SEG_DS, 0xfffffffc, 4, ACC_WRITE), SOFT_OK);
    assert_int_equal(linear(SEG_DS, 0xfffffffd, 4, ACC_WRITE), SOFT_FAULT);
}

static void linear_real(void **state)
{
    (void)state;
    uint64_t a;
    sys_real();
    assert_int_equal(soft_load_segment(rig.cpu, SEG_DS, 0x1234), SOFT_OK);
    assert_int_equal(soft_linear(rig.cpu, SEG_DS, 0xffff, 1, ACC_WRITE, &a), SOFT_OK);
    assert_int_equal(a, 0x12340 + 0xffff);
    assert_int_equal(linear(SEG_DS, 0xffff, 2, ACC_READ), SOFT_FAULT);
    rig.cpu->seg[SEG_DS].limit = 0xffffffff; /* unreal mode survives loads */
    assert_int_equal(soft_load_segment(rig.cpu, SEG_DS, 0x1000), SOFT_OK);
    assert_int_equal(soft_linear(rig.cpu, SEG_DS, 0x100000, 4, ACC_READ, &a), SOFT_OK);
    assert_int_equal(a, 0x110000);
}

static void effective_address(void **state)
{
    (void)state;
    struct insn in = {
        .rip = 0x1000, .len = 7, .addr_size = 8, .mem = {.base = R_RBX, .index = R_RSI, .scale = 4, .disp = -16}};
    rig.cpu->gpr[R_RBX] = 0x100000010;
    rig.cpu->gpr[R_RSI] = 3;
    assert_int_equal(soft_effective_address(rig.cpu, &in), 0x10000000c);
    in.addr_size = 4;
    assert_int_equal(soft_effective_address(rig.cpu, &in), 0xc);
    in.addr_size = 2;
    in.mem = (struct insn_mem){.base = R_RBX, .index = INSN_NOREG, .disp = 0xfff8};
    assert_int_equal(soft_effective_address(rig.cpu, &in), 8);
    in.addr_size = 8;
    in.mem = (struct insn_mem){.base = INSN_RIP, .index = INSN_NOREG, .disp = 0x100};
    assert_int_equal(soft_effective_address(rig.cpu, &in), 0x1107);
}

static void near_jump(void **state)
{
    (void)state;
    assert_int_equal(soft_near_jump(rig.cpu, 0x7fffffffffff, 8), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0x7fffffffffff);
    assert_int_equal(soft_near_jump(rig.cpu, 0x800000000000, 8), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
    sys_protected32(0);
    rig.cpu->seg[SEG_CS].limit = 0xffff;
    assert_int_equal(soft_near_jump(rig.cpu, 0x12345, 2), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0x2345);
    assert_int_equal(soft_near_jump(rig.cpu, 0x12345, 4), SOFT_FAULT);
    assert_fault(EXC_GP, 0);
}

static void load_fault(enum cpu_seg seg, uint16_t sel, unsigned vector, unsigned error)
{
    struct cpu_segment before = rig.cpu->seg[seg];
    assert_int_equal(soft_load_segment(rig.cpu, seg, sel), SOFT_FAULT);
    assert_fault(vector, error);
    assert_memory_equal(&before, &rig.cpu->seg[seg], sizeof before);
}

static void load_data(void **state)
{
    (void)state;
    *sys_gdt(S_DATA) = sys_desc(0x1234567, 0x10, 0xc092); /* not accessed yet */
    assert_int_equal(soft_load_segment(rig.cpu, SEG_ES, S_DATA), SOFT_OK);
    assert_int_equal(rig.cpu->seg[SEG_ES].base, 0x1234567);
    assert_int_equal(rig.cpu->seg[SEG_ES].limit, 0x10fff);
    assert_int_equal(rig.cpu->seg[SEG_ES].attr, 0xc093);
    assert_int_equal(*sys_gdt(S_DATA) >> 40 & 0xff, 0x93);
    load_fault(SEG_ES, S_ABSENT, EXC_NP, S_ABSENT);
    load_fault(SEG_ES, S_EXECONLY, EXC_GP, S_EXECONLY);
    load_fault(SEG_ES, S_TSS, EXC_GP, S_TSS);
    load_fault(SEG_ES, S_DATA | 3, EXC_GP, S_DATA);
    load_fault(SEG_ES, 0xc0, EXC_GP, 0xc0);
    load_fault(SEG_ES, 0x0c, EXC_GP, 0x0c); /* LDT that isn't there */
    load_fault(SEG_CS, S_CODE64, EXC_UD, 0);
    assert_int_equal(soft_load_segment(rig.cpu, SEG_FS, 3), SOFT_OK);
    assert_true(rig.cpu->seg[SEG_FS].attr & SEG_ATTR_NULL);
    assert_int_equal(rig.cpu->seg[SEG_FS].selector, 3);
}

static void load_data_ring3(void **state)
{
    (void)state;
    sys_ring(3);
    load_fault(SEG_DS, S_DATA, EXC_GP, S_DATA);
    assert_int_equal(soft_load_segment(rig.cpu, SEG_DS, S_UDATA), SOFT_OK);
    assert_int_equal(soft_load_segment(rig.cpu, SEG_DS, S_CONFORM | 3), SOFT_OK); /* conforming code is for all */
}

static void load_from_ldt(void **state)
{
    (void)state;
    put_ram(SYS_LDT + 8, sys_desc(0x4000, 0xfffff, 0xc093), 8);
    rig.cpu->ldtr = (struct cpu_segment){.selector = S_LDT, .attr = 0x82, .limit = 0xf, .base = SYS_LDT};
    assert_int_equal(soft_load_segment(rig.cpu, SEG_GS, 0xc), SOFT_OK);
    assert_int_equal(rig.cpu->seg[SEG_GS].base, 0x4000);
    load_fault(SEG_GS, 0x14, EXC_GP, 0x14);
}

static void load_ss(void **state)
{
    (void)state;
    assert_int_equal(soft_load_segment(rig.cpu, SEG_SS, 0), SOFT_OK); /* fine in 64-bit ring 0 */
    load_fault(SEG_SS, 3, EXC_GP, 0);
    load_fault(SEG_SS, S_UDATA | 3, EXC_GP, S_UDATA);
    load_fault(SEG_SS, S_READONLY, EXC_GP, S_READONLY);
    load_fault(SEG_SS, S_ABSENT, EXC_SS, S_ABSENT);
    assert_int_equal(soft_load_segment(rig.cpu, SEG_SS, S_DATA), SOFT_OK);
    sys_ring(3);
    load_fault(SEG_SS, 3, EXC_GP, 0);
    load_fault(SEG_SS, S_UDATA, EXC_GP, S_UDATA);
    sys_protected32(0);
    load_fault(SEG_SS, 0, EXC_GP, 0);
}

static void mov_to_and_from(void **state)
{
    (void)state;
    rig.cpu->gpr[R_RAX] = 0xdead0000 | S_DATA;
    EXEC_OK(0x8e, 0xd0); /* mov ss, eax */
    assert_int_equal(rig.cpu->irq_shadow, SHADOW_MOV_SS);
    assert_int_equal(rig.cpu->rip, SYS_CODE + 2);
    rig.cpu->gpr[R_RBX] = ~0ull;
    EXEC_OK(0x8c, 0xd3); /* mov ebx, ss */
    assert_int_equal(rig.cpu->gpr[R_RBX], S_DATA);
    rig.cpu->gpr[R_RBX] = ~0ull;
    EXEC_OK(0x66, 0x8c, 0xd3); /* mov bx, ss */
    assert_int_equal(rig.cpu->gpr[R_RBX], 0xffffffffffff0000 | S_DATA);
    rig.cpu->gpr[R_RBX] = SYS_DATA;
    put_ram(SYS_DATA, ~0ull, 8);
    EXEC_OK(0x8c, 0x1b); /* mov [rbx], ds: two bytes whatever the operand size */
    assert_int_equal(ram64(SYS_DATA), 0xffffffffffff0000 | S_DATA);
    EXEC_OK(0x0f, 0xa0); /* push fs */
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK - 8);
    EXEC_OK(0x0f, 0xa9); /* pop gs */
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK);
    assert_int_equal(rig.cpu->seg[SEG_GS].selector, rig.cpu->seg[SEG_FS].selector);
    put_ram(SYS_STACK, S_ABSENT, 8);
    EXEC_FAULT(EXC_NP, S_ABSENT, 0x0f, 0xa1); /* pop fs */
}

static void load_far_pointer(void **state)
{
    (void)state;
    rig.cpu->gpr[R_RBX] = SYS_DATA;
    put_ram(SYS_DATA, 0x11223344, 4);
    put_ram(SYS_DATA + 4, S_DATA, 2);
    EXEC_OK(0x0f, 0xb4, 0x03); /* lfs eax, [rbx] */
    assert_int_equal(rig.cpu->gpr[R_RAX], 0x11223344);
    assert_int_equal(rig.cpu->seg[SEG_FS].selector, S_DATA);
    put_ram(SYS_DATA + 4, S_ABSENT, 2);
    rig.cpu->gpr[R_RAX] = 5;
    EXEC_FAULT(EXC_NP, S_ABSENT, 0x0f, 0xb4, 0x03);
    assert_int_equal(rig.cpu->gpr[R_RAX], 5);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(linear_64_bit),     T(linear_protected), T(linear_expand_down), T(linear_real),
        T(effective_address), T(near_jump),        T(load_data),          T(load_data_ring3),
        T(load_from_ldt),     T(load_ss),          T(mov_to_and_from),    T(load_far_pointer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
