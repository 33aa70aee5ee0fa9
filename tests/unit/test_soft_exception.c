/* exception.c and taskswitch.c: delivery through the IVT, 32-bit and 64-bit IDTs; stacks, error codes, double and triple faults. */
#include "tests/unit/soft_sys_rig.h"

/* What a 64-bit delivery pushed. */
struct frame64 {
    uint64_t rip, cs, flags, rsp, ss;
};

static struct frame64 frame_at(uint64_t sp)
{
    struct frame64 f;
    memcpy(&f, rig_ram(sp), sizeof f);
    return f;
}

static enum soft_result raise(uint8_t vector, bool has_error, uint32_t error)
{
    rig.cpu->exc = (struct soft_exception){.pending = true, .vector = vector, .has_error = has_error, .error = error};
    return soft_deliver_exception(rig.cpu);
}

static void long_same_ring(void **state)
{
    (void)state;
    sys_gate(EXC_GP, S_CODE64, 0xffff800000031000, TYPE_INT, 0, 0);
    rig.cpu->gpr[R_RSP] = SYS_STACK + 5; /* aligned down */
    soft_set_rflags(rig.cpu, FL_1 | FL_IF | FL_TF | FL_NT | FL_CF | FL_AC);
    rig.cpu->irq_shadow = 1;
    assert_int_equal(raise(EXC_GP, true, 0x18), SOFT_OK);
    uint64_t sp = SYS_STACK - 48;
    assert_int_equal(rig.cpu->gpr[R_RSP], sp);
    assert_int_equal(ram64(sp), 0x18);
    struct frame64 f = frame_at(sp + 8);
    assert_int_equal(f.rip, SYS_CODE);
    assert_int_equal(f.cs, S_CODE64);
    assert_int_equal(f.flags, FL_1 | FL_IF | FL_TF | FL_NT | FL_CF | FL_AC | FL_RF);
    assert_int_equal(f.rsp, SYS_STACK + 5);
    assert_int_equal(f.ss, S_DATA);
    assert_int_equal(rig.cpu->rip, 0xffff800000031000);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_CF | FL_AC);
    assert_int_equal(rig.cpu->irq_shadow, 0);
    assert_false(rig.cpu->exc.pending);
}

static void long_from_user(void **state)
{
    (void)state;
    sys_ring(3);
    sys_gate(EXC_UD, S_CODE64, SYS_HANDLER, TYPE_TRAP, 0, 0);
    soft_set_rflags(rig.cpu, FL_1 | FL_IF);
    assert_int_equal(raise(EXC_UD, false, 0), SOFT_OK);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK0 - 40);
    struct frame64 f = frame_at(SYS_STACK0 - 40);
    assert_int_equal(f.cs, S_UCODE64 | 3);
    assert_int_equal(f.ss, S_UDATA | 3);
    assert_int_equal(f.rsp, SYS_STACK);
    assert_int_equal(rig.cpu->cpl, 0);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_CODE64);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, 0);
    assert_true(rig.cpu->seg[SEG_SS].attr & SEG_ATTR_NULL);
    assert_true(rig.cpu->if_flag); /* trap gate */
    assert_int_equal(rig.cpu->mmu_idx, MMU_KERNEL);
}

static void long_ist(void **state)
{
    (void)state;
    sys_gate(EXC_NMI, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 1);
    assert_int_equal(soft_deliver_interrupt(rig.cpu, EXC_NMI), SOFT_OK);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_IST1 - 40);
    assert_true(rig.cpu->nmi_blocked);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, S_DATA); /* the ring did not change */
    assert_int_equal(frame_at(SYS_IST1 - 40).flags & FL_RF, 0);
}

static void conforming_handler(void **state)
{
    (void)state;
    sys_ring(3);
    sys_gate(0x40, S_CONFORM, SYS_HANDLER, TYPE_INT, 0, 0);
    assert_int_equal(soft_deliver_interrupt(rig.cpu, 0x40), SOFT_OK);
    assert_int_equal(rig.cpu->cpl, 3);
    assert_int_equal(rig.cpu->seg[SEG_CS].selector, S_CONFORM | 3);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK - 40);
}

static void software_interrupts(void **state)
{
    (void)state;
    sys_ring(3);
    sys_gate(0x80, S_CODE64, SYS_HANDLER, TYPE_INT, 3, 0);
    EXEC_OK(0xcd, 0x80);
    assert_int_equal(frame_at(SYS_STACK0 - 40).rip, SYS_CODE + 2);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
    sys_ring(3);
    rig.cpu->rip = SYS_CODE;
    sys_gate(0x80, S_CODE64, SYS_HANDLER, TYPE_INT, 2, 0);
    EXEC_FAULT(EXC_GP, 0x80 * 8 + 2, 0xcd, 0x80);
    sys_gate(EXC_BP, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, EXC_BP * 8 + 2, 0xcc);
    sys_gate(EXC_DB, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_OK(0xf1); /* INT1 asks for no DPL */
    assert_int_equal(frame_at(SYS_STACK0 - 40).rip, SYS_CODE + 1);
}

static void gate_errors(void **state)
{
    (void)state;
    rig.cpu->rip = SYS_CODE;
    sys_gate(0x40, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    put_ram(SYS_IDT + 0x40 * 16 + 5, 0x0e, 1);
    EXEC_FAULT(EXC_NP, 0x40 * 8 + 2, 0xcd, 0x40);
    put_ram(SYS_IDT + 0x40 * 16 + 5, 0x85, 1);
    EXEC_FAULT(EXC_GP, 0x40 * 8 + 2, 0xcd, 0x40);
    rig.cpu->idt.limit = 0x40 * 16 + 14;
    EXEC_FAULT(EXC_GP, 0x40 * 8 + 2, 0xcd, 0x40);
    rig.cpu->idt.limit = 0xfff;
    sys_gate(0x40, 0, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, 0, 0xcd, 0x40);
    sys_gate(0x40, S_DATA, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, S_DATA, 0xcd, 0x40);
    sys_gate(0x40, S_CODE32, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, S_CODE32, 0xcd, 0x40);
    sys_gate(0x40, S_UCODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, S_UCODE64, 0xcd, 0x40);
    sys_gate(0x40, S_CODE64, 0x800000000000, TYPE_INT, 0, 0);
    EXEC_FAULT(EXC_GP, 0, 0xcd, 0x40);
}

/* An exception whose gate is absent becomes #NP with the EXT bit, a #NP after #GP a double fault. */
static void nested_errors(void **state)
{
    (void)state;
    sys_gate(EXC_NP, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    assert_int_equal(raise(EXC_UD, false, 0),
                     SOFT_OK); /* benign first: the #GP for the missing gate is served on its own */
    assert_int_equal(rig.exit.kind, 0);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER + 0x100);
}

static void interrupt_without_gate(void **state)
{
    (void)state;
    sys_gate(EXC_GP, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    assert_int_equal(soft_deliver_interrupt(rig.cpu, 0x50), SOFT_OK);
    assert_int_equal(ram64(SYS_STACK - 48), 0x50 * 8 + 3); /* EXT and IDT */
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
}

static void double_faults(void **state)
{
    (void)state;
    sys_gate(EXC_DF, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    assert_int_equal(raise(EXC_GP, true, 0), SOFT_OK); /* #GP, then #GP for its missing gate */
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
    assert_int_equal(ram64(SYS_STACK - 48), 0);
    rig.cpu->rip = SYS_CODE;
    rig.cpu->gpr[R_RSP] = 0x600000; /* not mapped: #PF while a #PF is delivered */
    sys_gate(EXC_PF, S_CODE64, SYS_HANDLER + 16, TYPE_INT, 0, 0);
    sys_gate(EXC_DF, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 1);
    rig.cpu->exc =
        (struct soft_exception){.pending = true, .vector = EXC_PF, .has_error = true, .error = 2, .cr2 = 0x777000};
    assert_int_equal(soft_deliver_exception(rig.cpu), SOFT_OK);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
    assert_in_range(rig.cpu->cr2, 0x5ff000, 0x5fffff);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_IST1 - 48);
}

/* #GP first, #PF second: served one after the other (SDM vol. 3 table 6-5). */
static void contributory_then_page_fault(void **state)
{
    (void)state;
    sys_gate(EXC_GP, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    sys_gate(EXC_PF, S_CODE64, SYS_HANDLER + 16, TYPE_INT, 0, 1);
    rig.cpu->gpr[R_RSP] = 0x600000;
    assert_int_equal(raise(EXC_GP, true, 0), SOFT_OK);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER + 16);
    assert_in_range(rig.cpu->cr2, 0x5ff000, 0x5fffff);
}

static void triple_fault(void **state)
{
    (void)state;
    rig.cpu->idt.limit = 0;
    assert_int_equal(raise(EXC_UD, false, 0), SOFT_EXIT);
    assert_int_equal(rig.exit.kind, VCPU_EXIT_SHUTDOWN);
    assert_int_equal(rig.cpu->rip, SYS_CODE);
    rig.exit.kind = VCPU_EXIT_HLT;
    assert_int_equal(soft_deliver_interrupt(rig.cpu, 0x30), SOFT_EXIT);
    assert_int_equal(rig.exit.kind, VCPU_EXIT_SHUTDOWN);
}

static void tss_problems(void **state)
{
    (void)state;
    sys_ring(3);
    sys_gate(EXC_TS, S_CODE64, SYS_HANDLER + 16, TYPE_INT, 0, 1);
    sys_gate(0x40, S_CODE64, SYS_HANDLER, TYPE_INT, 3, 0);
    rig.cpu->tr.limit = 10;
    EXEC_FAULT(EXC_TS, S_TSS, 0xcd, 0x40);
    rig.cpu->tr.limit = 0x167;
    put_ram(SYS_TSS + 4, 0x8000000000000000, 8);
    EXEC_FAULT(EXC_SS, 0, 0xcd, 0x40);
}

static void debug_exception(void **state)
{
    (void)state;
    sys_gate(EXC_DB, S_CODE64, SYS_HANDLER, TYPE_INT, 0, 0);
    rig.cpu->dr[6] = 0xffff0ff3;
    rig.cpu->dr[7] = 0x2400;
    rig.cpu->exc = (struct soft_exception){.pending = true, .vector = EXC_DB, .is_trap_db = true, .dr6 = 1u << 14};
    assert_int_equal(soft_deliver_exception(rig.cpu), SOFT_OK);
    assert_int_equal(rig.cpu->dr[6], 0xffff4ff0);
    assert_int_equal(rig.cpu->dr[7], 0x400);
    assert_int_equal(frame_at(SYS_STACK - 40).flags & FL_RF, 0);
}

static void protected_inter_ring(void **state)
{
    (void)state;
    sys_protected32(3);
    sys_gate(EXC_GP, S_CODE32, SYS_HANDLER, TYPE_INT, 0, 0);
    soft_set_rflags(rig.cpu, FL_1 | FL_IF);
    assert_int_equal(raise(EXC_GP, true, 0x33), SOFT_OK);
    uint64_t sp = SYS_STACK0 - 24;
    assert_int_equal(rig.cpu->gpr[R_RSP], sp);
    assert_int_equal(ram32(sp), 0x33);
    assert_int_equal(ram32(sp + 4), SYS_CODE);
    assert_int_equal(ram32(sp + 8), S_UCODE32 | 3);
    assert_int_equal(ram32(sp + 12), FL_1 | FL_IF | FL_RF);
    assert_int_equal(ram32(sp + 16), SYS_STACK);
    assert_int_equal(ram32(sp + 20), S_UDATA | 3);
    assert_int_equal(rig.cpu->seg[SEG_SS].selector, S_DATA);
    assert_int_equal(rig.cpu->cpl, 0);
    assert_int_equal(rig.cpu->if_flag, 0);
}

static void protected_stack_errors(void **state)
{
    (void)state;
    sys_protected32(3);
    sys_gate(0x40, S_CODE32, SYS_HANDLER, TYPE_INT, 3, 0);
    put_ram(SYS_TSS + 8, 0, 2);
    EXEC_FAULT(EXC_TS, 0, 0xcd, 0x40);
    put_ram(SYS_TSS + 8, S_UDATA | 3, 2);
    EXEC_FAULT(EXC_TS, S_UDATA, 0xcd, 0x40);
    put_ram(SYS_TSS + 8, S_ABSENT, 2);
    EXEC_FAULT(EXC_SS, S_ABSENT, 0xcd, 0x40);
    put_ram(SYS_TSS + 8, S_DATA16, 2);
    put_ram(SYS_TSS + 4, 0x10000, 4); /* 16-bit stack: SP = 0 wraps to the top, the upper half of ESP stays */
    EXEC_OK(0xcd, 0x40);
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x1ffec);
    assert_int_equal(ram32(0xffec), SYS_CODE + 2);
}

static void protected_16_bit_gate(void **state)
{
    (void)state;
    sys_protected32(0);
    sys_gate(0x40, S_CODE32, 0x12345678, TYPE_TRAP16, 0, 0);
    assert_int_equal(soft_deliver_interrupt(rig.cpu, 0x40), SOFT_OK);
    assert_int_equal(rig.cpu->rip, 0x5678);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK - 6);
    assert_int_equal(ram16(SYS_STACK - 4), S_CODE32);
}

static void real_mode(void **state)
{
    (void)state;
    sys_real();
    put_ram(0x21 * 4, 0x1234, 2);
    put_ram(0x21 * 4 + 2, 0xf000, 2);
    soft_set_rflags(rig.cpu, FL_1 | FL_IF | FL_ZF);
    EXEC_OK(0xcd, 0x21);
    assert_int_equal(rig.cpu->rip, 0x1234);
    assert_int_equal(rig.cpu->seg[SEG_CS].base, 0xf0000);
    assert_int_equal(ram16(0x7ffa), 0x1002);
    assert_int_equal(ram16(0x7ffe), FL_1 | FL_IF | FL_ZF);
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_ZF);
    assert_int_equal(raise(EXC_GP, true, 0), SOFT_OK); /* no error code */
    assert_int_equal(rig.cpu->gpr[R_RSP], 0x7ff4);
    rig.cpu->idt.limit = 0x10;
    assert_int_equal(soft_deliver_interrupt(rig.cpu, 8), SOFT_EXIT);
    assert_int_equal(rig.exit.kind, VCPU_EXIT_SHUTDOWN);
}

/* ---- task gates ---- */

#define TSS2 0x15000ull

static void make_task(void)
{
    sys_protected32(0);
    *sys_gdt(S_TSS2) = sys_desc(TSS2, 0x67, 0x0089);
    *sys_gdt(S_TSS) = sys_desc(SYS_TSS, 0x67, 0x008b);
    put_ram(TSS2 + 0x20, SYS_HANDLER, 4);
    put_ram(TSS2 + 0x24, FL_1, 4);
    put_ram(TSS2 + 0x28, 0xabcd, 4); /* EAX */
    put_ram(TSS2 + 0x38, SYS_STACK0, 4);
    static const uint16_t sel[6] = {S_DATA, S_CODE32, S_DATA, S_DATA, 0, S_UDATA};
    for (unsigned i = 0; i < 6; i++) put_ram(TSS2 + 0x48 + 4 * i, sel[i], 4);
    sys_gate(EXC_DF, S_TSS2, 0, TYPE_TASK_GATE, 0, 0);
}

static void task_gate(void **state)
{
    (void)state;
    make_task();
    rig.cpu->gpr[R_RAX] = 0x1111;
    assert_int_equal(raise(EXC_DF, true, 0), SOFT_OK);
    assert_int_equal(rig.cpu->rip, SYS_HANDLER);
    assert_int_equal(rig.cpu->gpr[R_RAX], 0xabcd);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK0 - 4); /* the error code */
    assert_int_equal(rig.cpu->tr.selector, S_TSS2);
    assert_int_equal(ram16(TSS2), S_TSS);
    assert_int_equal(ram32(SYS_TSS + 0x20), SYS_CODE);
    assert_int_equal(ram32(SYS_TSS + 0x28), 0x1111);
    assert_true(rig.cpu->rflags & FL_NT);
    assert_true(rig.cpu->cr0 & CR0_TS);
    assert_int_equal(*sys_gdt(S_TSS2) >> 40 & 15, 11);
    rig.cpu->gpr[R_RSP] += 4;
    EXEC_OK(0xcf); /* IRET with NT: back */
    assert_int_equal(rig.cpu->rip, SYS_CODE);
    assert_int_equal(rig.cpu->gpr[R_RAX], 0x1111);
    assert_int_equal(rig.cpu->tr.selector, S_TSS);
    assert_int_equal(*sys_gdt(S_TSS2) >> 40 & 15, 9);
    assert_int_equal(ram32(TSS2 + 0x20), SYS_HANDLER + 1);
}

static void task_errors(void **state)
{
    (void)state;
    make_task();
    sys_gate(0x40, S_TSS2, 0, TYPE_TASK_GATE, 0, 0);
    *sys_gdt(S_TSS2) = sys_desc(TSS2, 0x67, 0x008b);
    EXEC_FAULT(EXC_GP, S_TSS2, 0xcd, 0x40); /* busy */
    *sys_gdt(S_TSS2) = sys_desc(TSS2, 0x66, 0x0089);
    EXEC_FAULT(EXC_TS, S_TSS2, 0xcd, 0x40);
    *sys_gdt(S_TSS2) = sys_desc(TSS2, 0x67, 0x0009);
    EXEC_FAULT(EXC_NP, S_TSS2, 0xcd, 0x40);
    *sys_gdt(S_TSS2) = sys_desc(TSS2, 0x67, 0x0089);
    put_ram(TSS2 + 0x4c, S_DATA, 4);
    assert_int_equal(EXEC(0xcd, 0x40), SOFT_FAULT); /* the new task faults: bad CS */
    assert_fault(EXC_TS, S_DATA);
    assert_int_equal(rig.cpu->tr.selector, S_TSS2);
}

static int nested_setup(void **state)
{
    int r = sys_setup(state);
    sys_gate(EXC_GP, S_CODE64, SYS_HANDLER + 0x100, TYPE_INT, 0, 0);
    return r;
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(long_same_ring),
        T(long_from_user),
        T(long_ist),
        T(conforming_handler),
        T(software_interrupts),
        T(gate_errors),
        cmocka_unit_test_setup_teardown(nested_errors, nested_setup, rig_teardown),
        T(interrupt_without_gate),
        T(double_faults),
        T(contributory_then_page_fault),
        T(triple_fault),
        T(tss_problems),
        T(debug_exception),
        T(protected_inter_ring),
        T(protected_stack_errors),
        T(protected_16_bit_gate),
        T(real_mode),
        T(task_gate),
        T(task_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
