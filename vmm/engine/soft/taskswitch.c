/* Hardware task switches through 32-bit TSSs (SDM vol. 3 7.2, 7.3). Old 32-bit kernels catch double faults with a task
 * gate; nothing else uses them, so 16-bit TSSs are refused (#TS) and the T flag (#DB on switch) isn't looked at. */
#include "vmm/engine/soft/system.h"

/* 32-bit TSS (SDM vol. 3 figure 7-2), by word. */
enum {
    TSS_LINK = 0,
    TSS_CR3 = 7,
    TSS_EIP = 8,
    TSS_EFLAGS = 9,
    TSS_GPR = 10,
    TSS_ES = 18,
    TSS_LDT = 24,
    TSS_WORDS = 26,
};
#define TSS_SAVED_FROM TSS_EIP
#define TSS_SAVED_TO TSS_LDT /* EIP .. GS are written when a task is left */
#define TSS_MIN_LIMIT 0x67u

static enum soft_result ts_error(struct soft_cpu *cpu, uint16_t sel, uint32_t ext)
{
    return soft_raise_err(cpu, EXC_TS, (sel & ~3u) | ext);
}

static enum soft_result check_tss(struct soft_cpu *cpu, uint16_t sel, enum task_source src, uint32_t ext,
                                  struct soft_desc *d)
{
    bool back = src == TASK_IRET;
    uint8_t vector = back ? EXC_TS : EXC_GP;
    uint32_t err = (sel & ~3u) | ext;
    if (sel & 4 || selector_is_null(sel)) return soft_raise_err(cpu, vector, err);
    enum soft_result r = desc_read(cpu, sel, vector, ext, d);
    if (r != SOFT_OK) return r;
    unsigned want = back ? TYPE_TSS_BUSY : TYPE_TSS;
    if ((d->attr & SEG_ATTR_S) || desc_type(d) != want) return soft_raise_err(cpu, vector, err);
    if (!desc_present(d)) return soft_raise_err(cpu, EXC_NP, err);
    return d->limit < TSS_MIN_LIMIT ? ts_error(cpu, sel, ext) : SOFT_OK;
}

static enum soft_result save_old(struct soft_cpu *cpu, enum task_source src)
{
    uint32_t w[TSS_WORDS];
    uint64_t flags = soft_get_rflags(cpu);
    if (src == TASK_IRET) flags &= ~(uint64_t)FL_NT;
    w[TSS_EIP] = (uint32_t)cpu->rip;
    w[TSS_EFLAGS] = (uint32_t)flags;
    for (unsigned i = 0; i < 8; i++) w[TSS_GPR + i] = (uint32_t)cpu->gpr[i];
    for (unsigned i = 0; i < SEG_COUNT; i++) w[TSS_ES + i] = cpu->seg[i].selector;
    return soft_store_sys(cpu, cpu->tr.base + TSS_SAVED_FROM * 4, w + TSS_SAVED_FROM,
                          (TSS_SAVED_TO - TSS_SAVED_FROM) * 4);
}

static enum soft_result mark_busy(struct soft_cpu *cpu, enum task_source src, struct soft_desc *next)
{
    enum soft_result r = SOFT_OK;
    if (src == TASK_JMP || src == TASK_IRET) {
        struct soft_desc old;
        r = desc_read(cpu, cpu->tr.selector, EXC_TS, 0, &old);
        if (r == SOFT_OK) r = desc_clear_type(cpu, &old, 2);
    }
    if (r == SOFT_OK && src != TASK_IRET) r = desc_set_type(cpu, next, 2);
    return r;
}

/* ---- the incoming task: from here on faults belong to it ---- */

static enum soft_result load_ldt(struct soft_cpu *cpu, uint16_t sel)
{
    struct soft_desc d;
    segment_set_null(&cpu->ldtr, sel);
    if (selector_is_null(sel)) return SOFT_OK;
    if (sel & 4) return ts_error(cpu, sel, 0);
    enum soft_result r = desc_read(cpu, sel, EXC_TS, 0, &d);
    if (r != SOFT_OK) return r;
    if ((d.attr & SEG_ATTR_S) || desc_type(&d) != TYPE_LDT || !desc_present(&d)) return ts_error(cpu, sel, 0);
    segment_set(&cpu->ldtr, sel, &d);
    return SOFT_OK;
}

static enum soft_result load_cs(struct soft_cpu *cpu, uint16_t sel)
{
    struct soft_desc d;
    if (selector_is_null(sel)) return ts_error(cpu, sel, 0);
    enum soft_result r = desc_read(cpu, sel, EXC_TS, 0, &d);
    if (r != SOFT_OK) return r;
    unsigned rpl = sel & 3u, dpl = desc_dpl(&d);
    if (!desc_is_code(&d) || (desc_conforming(&d) ? dpl > rpl : dpl != rpl)) return ts_error(cpu, sel, 0);
    if (!desc_present(&d)) return soft_raise_err(cpu, EXC_NP, sel & ~3u);
    r = desc_set_type(cpu, &d, TYPE_ACCESSED);
    if (r != SOFT_OK) return r;
    segment_set(&cpu->seg[SEG_CS], sel, &d);
    cpu->cpl = (uint8_t)rpl;
    return SOFT_OK;
}

static enum soft_result load_stack(struct soft_cpu *cpu, uint16_t sel)
{
    struct soft_desc d;
    if (selector_is_null(sel)) return ts_error(cpu, sel, 0);
    enum soft_result r = stack_segment_check(cpu, sel, cpu->cpl, EXC_TS, 0, &d);
    if (r == SOFT_OK) segment_set(&cpu->seg[SEG_SS], sel, &d);
    return r;
}

/* A data segment that doesn't fit is #TS here, where MOV would say #GP. */
static enum soft_result load_data(struct soft_cpu *cpu, enum cpu_seg seg, uint16_t sel)
{
    enum soft_result r = soft_load_segment(cpu, seg, sel);
    if (r == SOFT_FAULT && cpu->exc.vector == EXC_GP) cpu->exc.vector = EXC_TS;
    return r;
}

static void load_registers(struct soft_cpu *cpu, const uint32_t *w, enum task_source src)
{
    static const uint32_t known = FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_AC | FL_ID;
    uint64_t flags = w[TSS_EFLAGS] & known;
    if (src == TASK_CALL || src == TASK_GATE) flags |= FL_NT;
    cpu->rip = w[TSS_EIP];
    for (unsigned i = 0; i < 8; i++) cpu->gpr[i] = w[TSS_GPR + i];
    /* All selectors are in place before any is checked, as a handler would find them. */
    for (unsigned i = 0; i < SEG_COUNT; i++) segment_set_null(&cpu->seg[i], (uint16_t)w[TSS_ES + i]);
    cpu->cpl = w[TSS_ES + SEG_CS] & 3;
    soft_set_rflags(cpu, flags);
    cpu->cr0 |= CR0_TS;
    cpu->dr[7] &= ~0x155ull; /* local breakpoints end with the task (SDM vol. 3 17.2.4) */
}

static enum soft_result load_segments(struct soft_cpu *cpu, const uint32_t *w)
{
    static const uint8_t order[4] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    enum soft_result r = load_ldt(cpu, (uint16_t)w[TSS_LDT]);
    if (r == SOFT_OK) r = load_cs(cpu, (uint16_t)w[TSS_ES + SEG_CS]);
    if (r == SOFT_OK) r = load_stack(cpu, (uint16_t)w[TSS_ES + SEG_SS]);
    for (unsigned i = 0; i < 4 && r == SOFT_OK; i++)
        r = load_data(cpu, (enum cpu_seg)order[i], (uint16_t)w[TSS_ES + order[i]]);
    return r;
}

static enum soft_result enter_new(struct soft_cpu *cpu, const uint32_t *w, enum task_source src)
{
    enum soft_result r = SOFT_OK;
    if (cpu->cr0 & CR0_PG) r = control_write_cr3(cpu, w[TSS_CR3]);
    load_registers(cpu, w, src);
    if (r == SOFT_OK) r = load_segments(cpu, w);
    soft_update_mode(cpu);
    if (r != SOFT_OK) return r;
    if (cpu->rip > cpu->seg[SEG_CS].limit) return sys_gp0(cpu);
    return SOFT_OK;
}

enum soft_result task_switch(struct soft_cpu *cpu, uint16_t sel, enum task_source src, uint32_t ext, bool has_error,
                             uint32_t error)
{
    struct soft_desc d;
    uint32_t w[TSS_WORDS];
    enum soft_result r = check_tss(cpu, sel, src, ext, &d);
    if (r == SOFT_OK) r = soft_load_sys(cpu, d.base, w, sizeof w);
    if (r == SOFT_OK) r = save_old(cpu, src);
    if (r == SOFT_OK) r = mark_busy(cpu, src, &d);
    uint16_t link = cpu->tr.selector;
    if (r == SOFT_OK && (src == TASK_CALL || src == TASK_GATE)) r = soft_store_sys(cpu, d.base + TSS_LINK, &link, 2);
    if (r != SOFT_OK) return r;
    d.attr |= 2;
    segment_set(&cpu->tr, sel, &d);
    r = enter_new(cpu, w, src);
    if (r == SOFT_OK && has_error) r = stack_push(cpu, error, 4);
    return r;
}
