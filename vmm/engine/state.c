/* The architectural start states of a CPU, the same for all engines (SDM vol. 3, table 10-1 and 9.4.4). */
#include <string.h>

#include "vmm/engine/engine.h"

static struct cpu_segment real_mode_segment(uint16_t selector, uint64_t base, uint32_t type)
{
    return (struct cpu_segment){
        .selector = selector, .attr = SEG_ATTR_P | SEG_ATTR_S | type, .limit = 0xffff, .base = base};
}

/* x87 and SSE as after RESET: FCW 0040H, FSW 0, all registers +0.0 (so the abridged tags are "valid"), MXCSR 1F80H. */
static void reset_fpu(uint8_t *xsave)
{
    static const uint8_t fcw[2] = {0x40, 0x00}, mxcsr[4] = {0x80, 0x1f, 0, 0}, mxcsr_mask[4] = {0xff, 0xff, 0, 0};
    memset(xsave, 0, CPU_XSAVE_SIZE);
    memcpy(xsave, fcw, sizeof(fcw));
    xsave[4] = 0xff;
    memcpy(xsave + 24, mxcsr, sizeof(mxcsr));
    memcpy(xsave + 28, mxcsr_mask, sizeof(mxcsr_mask));
    xsave[512] = 3; /* XSTATE_BV: x87 and SSE are in the image, the rest is in its initial state */
}

void cpu_state_reset(struct cpu_state *s)
{
    memset(s, 0, sizeof(*s));
    s->gpr[2] = 0x600; /* EDX: a family-6 signature */
    s->rip = 0xfff0;
    s->rflags = 2;
    for (unsigned i = 0; i < SEG_COUNT; i++) s->seg[i] = real_mode_segment(0, 0, 3); /* data, read/write, accessed */
    s->seg[SEG_CS] = real_mode_segment(0xf000, 0xffff0000, 0xb);                     /* code, readable, accessed */
    s->tr = (struct cpu_segment){.attr = SEG_ATTR_P | 0xb, .limit = 0xffff};         /* busy 32-bit TSS */
    s->ldtr = (struct cpu_segment){.attr = SEG_ATTR_P | 0x2, .limit = 0xffff};       /* LDT */
    s->gdt.limit = 0xffff;
    s->idt.limit = 0xffff;
    s->cr0 = 0x60000010;
    s->xcr0 = 1;
    s->dr[6] = 0xffff0ff0;
    s->dr[7] = 0x400;
    s->pat = 0x0007040600070406ull;
    reset_fpu(s->xsave);
}

void cpu_state_sipi(struct cpu_state *s, uint8_t vector)
{
    cpu_state_reset(s);
    s->rip = 0;
    s->seg[SEG_CS].selector = (uint16_t)(vector << 8);
    s->seg[SEG_CS].base = (uint64_t)vector << 12;
}
