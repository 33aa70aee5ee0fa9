/* Control and debug registers, TLB invalidation (SDM vol. 3 2.5, 4.10, 17.2; vol. 2 MOV, LMSW, SMSW, INVLPG, INVPCID). */
#include "vmm/engine/soft/system.h"

#define CR0_KNOWN (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_NOFLUSH (1ull << 63)
#define PHYS_MASK ((1ull << SOFT_PHYS_BITS) - 1)
#define DR6_FIXED 0xffff0ff0ull
#define DR6_WRITABLE 0xe00full
#define DR7_FIXED 0x400ull
#define DR7_WRITABLE 0xffff23ffull
#define DR6_BD (1u << 13)

/* ---- CR0 ---- */

/* PAE page-directory-pointer entries are loaded whenever PAE paging starts or CR3 changes, and their reserved bits are checked
 * then (SDM vol. 3 4.4.1). */
static enum soft_result load_pdptes(struct soft_cpu *cpu, uint64_t cr3)
{
    uint64_t e[4] = {0, 0, 0, 0};
    const struct guest_memory *m = soft_memory(cpu);
    uint64_t at = cr3 & 0xffffffe0u;
    for (unsigned s = 0; m && s < m->slots; s++) {
        uint64_t off = at - m->slot[s].base.v;
        if (off < m->slot[s].size && m->slot[s].size - off >= 32) soft_copy(e, m->slot[s].host + off, 32);
    }
    for (unsigned i = 0; i < 4; i++)
        if ((e[i] & 1) && (e[i] & (0x1e6 | ~PHYS_MASK))) return sys_gp0(cpu);
    for (unsigned i = 0; i < 4; i++) cpu->pdpte[i] = e[i];
    return SOFT_OK;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
}

static bool cr0_invalid(const struct soft_cpu *cpu, uint64_t v)
{
    if (v >> 32) return true;
    if ((v & CR0_PG) && !(v & CR0_PE)) return true;
    if ((v & CR0_NW) && !(v & CR0_CD)) return true;
    bool was = cpu->cr0 & CR0_PG, on = v & CR0_PG;
    if (!was && on && (cpu->efer & EFER_LME)) return !(cpu->cr4 & CR4_PAE) || (cpu->seg[SEG_CS].attr & SEG_ATTR_L);
    if (was && !on) return soft_code64(cpu) || (cpu->cr4 & CR4_PCIDE);
    return false;
}

static enum soft_result write_cr0(struct soft_cpu *cpu, uint64_t v)
{
    if (cr0_invalid(cpu, v)) return sys_gp0(cpu);
    v = (v & CR0_KNOWN) | CR0_ET;
    uint64_t changed = v ^ cpu->cr0;
    if (pae_paging(v, cpu->cr4, cpu->efer) && (changed & (CR0_PG | CR0_CD | CR0_NW))) {
        enum soft_result r = load_pdptes(cpu, cpu->cr3);
        if (r != SOFT_OK) return r;
    }
    cpu->cr0 = v;
    if (changed & CR0_PG) {
        bool lma = (v & CR0_PG) && (cpu->efer & EFER_LME);
        cpu->efer = lma ? cpu->efer | EFER_LMA : cpu->efer & ~(uint64_t)EFER_LMA;
    }
    if (changed & (CR0_PG | CR0_WP | CR0_PE)) soft_tlb_flush_all(cpu);
    soft_update_mode(cpu);
    return SOFT_OK;
}

/* ---- CR3 ---- */

enum soft_result control_write_cr3(struct soft_cpu *cpu, uint64_t v)
{
    bool pcid = cpu->cr4 & CR4_PCIDE, keep = false;
    if (soft_long_mode(cpu)) {
        keep = pcid && (v & CR3_NOFLUSH);
        if (pcid) v &= ~CR3_NOFLUSH;
        if (v & ~PHYS_MASK) return sys_gp0(cpu);
        if (keep && v == cpu->cr3) return SOFT_OK;
    } else {
        v = (uint32_t)v;
        if (pae_paging(cpu->cr0, cpu->cr4, cpu->efer)) {
            enum soft_result r = load_pdptes(cpu, v);
            if (r != SOFT_OK) return r;
        }
    }
    cpu->cr3 = v;
    soft_tlb_switch(cpu, pcid ? (uint32_t)v & 0xfff : 0, keep);
    return SOFT_OK;
}

/* ---- CR4 ---- */

static bool cr4_invalid(const struct soft_cpu *cpu, uint64_t v)
{
    if (v & ~cpu->cpuid.cr4_mask) return true;
    if (soft_long_mode(cpu) && !(v & CR4_PAE)) return true;
    if ((v & CR4_PCIDE) && !(cpu->cr4 & CR4_PCIDE)) return !soft_long_mode(cpu) || (cpu->cr3 & 0xfff);
    return false;
}

static enum soft_result write_cr4(struct soft_cpu *cpu, uint64_t v)
{
    if (cr4_invalid(cpu, v)) return sys_gp0(cpu);
    uint64_t changed = v ^ cpu->cr4;
    uint64_t paging = CR4_PAE | CR4_PSE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    if (pae_paging(cpu->cr0, v, cpu->efer) && (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP))) {
        enum soft_result r = load_pdptes(cpu, cpu->cr3);
        if (r != SOFT_OK) return r;
    }
    cpu->cr4 = v;
    if (changed & (paging | CR4_DE)) soft_tlb_flush_all(cpu); /* DE decides what DR7's R/W field means */
    soft_update_mode(cpu);
    return SOFT_OK;
}

/* ---- CR8: the local APIC's task priority ----
 *
 * Some kernels raise and lower it all the time. Raising it cannot make anything deliverable, so the APIC hears of that only when it is
 * asked about something (soft_tell_cr8()); lowering it no further than what the APIC knows is no news to it either. */

void soft_tell_cr8(struct soft_cpu *cpu)
{
    if (!cpu->cr8.known || cpu->cr8.now == cpu->cr8.told) return;
    soft_fpu_park(cpu);
    cpu->port->set_cr8(cpu->port->ctx, cpu->cr8.now);
    cpu->cr8.told = cpu->cr8.now;
}

static enum soft_result write_cr8(struct soft_cpu *cpu, uint64_t v)
{
    if (v & ~15ull) return sys_gp0(cpu);
    cpu->cr8.now = (uint8_t)v;
    if (cpu->cr8.known && v >= cpu->cr8.told) return SOFT_OK;
    soft_fpu_park(cpu);
    cpu->port->set_cr8(cpu->port->ctx, (uint8_t)v);
    cpu->cr8.told = (uint8_t)v;
    cpu->cr8.known = true;
    cpu->irq_waiting = 0; /* what was masked may be deliverable now: the run loop looks again */
    atomic_fetch_or_explicit(&cpu->exit_request, 1u, memory_order_relaxed);
    return SOFT_OK;
}

static uint64_t read_cr8(struct soft_cpu *cpu)
{
    if (!cpu->cr8.known) {
        soft_fpu_park(cpu);
        cpu->cr8.now = cpu->cr8.told = cpu->port->get_cr8(cpu->port->ctx);
        cpu->cr8.known = true;
    }
    return cpu->cr8.now;
}

static enum soft_result write_cr(struct soft_cpu *cpu, unsigned n, uint64_t v)
{
    switch (n) {
    case 0: return write_cr0(cpu, v);
    case 2: cpu->cr2 = v; return SOFT_OK;
    case 3: return control_write_cr3(cpu, v);
    case 4: return write_cr4(cpu, v);
    case 8: return write_cr8(cpu, v);
    default: return soft_raise(cpu, EXC_UD);
    }
}

static enum soft_result read_cr(struct soft_cpu *cpu, unsigned n, uint64_t *v)
{
    switch (n) {
    case 0: *v = cpu->cr0; return SOFT_OK;
    case 2: *v = cpu->cr2; return SOFT_OK;
    case 3: *v = cpu->cr3; return SOFT_OK;
    case 4: *v = cpu->cr4; return SOFT_OK;
    case 8: *v = read_cr8(cpu); return SOFT_OK;
    default: return soft_raise(cpu, EXC_UD);
    }
}

static bool cr_exists(unsigned n)
{
    return n == 0 || n == 2 || n == 3 || n == 4 || n == 8;
}

static enum soft_result mov_cr(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->code_size == 8 ? 8 : 4;
    bool write = in->op[0].reg_class == RC_CR;
    unsigned n = in->op[write ? 0 : 1].reg, gpr = in->op[write ? 1 : 0].reg & 15;
    if (!cr_exists(n)) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t v = size == 8 ? cpu->gpr[gpr] : (uint32_t)cpu->gpr[gpr];
    enum soft_result r = write ? write_cr(cpu, n, v) : read_cr(cpu, n, &v);
    if (r == SOFT_OK && !write) soft_gpr_write(cpu, gpr, v, size);
    return sys_done_if(cpu, in, r);
}

/* LMSW reaches PE, MP, EM and TS only, and can't clear PE. */
static enum soft_result lmsw(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t v;
    if (sys_privileged(cpu)) return SOFT_FAULT;
    enum soft_result r = operand_read(cpu, in, 0, 2, &v);
    if (r != SOFT_OK) return r;
    uint64_t keep = ~(uint64_t)(CR0_MP | CR0_EM | CR0_TS);
    return sys_done_if(cpu, in, write_cr0(cpu, (cpu->cr0 & keep) | (v & 0xf)));
}

static enum soft_result smsw(struct soft_cpu *cpu, const struct insn *in)
{
    if ((cpu->cr4 & CR4_UMIP) && cpu->cpl) return sys_gp0(cpu);
    unsigned size = in->op[0].kind == OP_REG ? in->op_size : 2;
    return sys_done_if(cpu, in, operand_write(cpu, in, 0, size, cpu->cr0));
}

static enum soft_result clts(struct soft_cpu *cpu, const struct insn *in)
{
    if (sys_privileged(cpu)) return SOFT_FAULT;
    cpu->cr0 &= ~(uint64_t)CR0_TS;
    soft_update_mode(cpu);
    return sys_done(cpu, in);
}

/* ---- debug registers ---- */

/* DR4 and DR5 name DR6 and DR7 while CR4.DE is clear (SDM vol. 3 17.2.2). */
static enum soft_result dr_check(struct soft_cpu *cpu, unsigned *n)
{
    if (*n > 7) return soft_raise(cpu, EXC_UD);
    if (*n == 4 || *n == 5) {
        if (cpu->cr4 & CR4_DE) return soft_raise(cpu, EXC_UD);
        *n += 2;
    }
    if (sys_privileged(cpu)) return SOFT_FAULT;
    if (cpu->dr[7] & DR6_BD) { /* GD is bit 13 as well */
        soft_raise(cpu, EXC_DB);
        cpu->exc.dr6 = DR6_BD;
        return SOFT_FAULT;
    }
    return SOFT_OK;
}

static enum soft_result write_dr(struct soft_cpu *cpu, unsigned n, uint64_t v)
{
    if (n >= 6 && v >> 32) return sys_gp0(cpu);
    uint64_t armed = cpu->dr[7];
    if (n == 6) {
        cpu->dr[6] = (v & DR6_WRITABLE) | DR6_FIXED;
        return SOFT_OK;
    }
    cpu->dr[n] = n == 7 ? (v & DR7_WRITABLE) | DR7_FIXED : v;
    if ((armed | cpu->dr[7]) & 0xff) {
        soft_tlb_flush_all(cpu); /* watched pages must take the slow path, others need not any more */
        soft_update_mode(cpu);
    }
    return SOFT_OK;
}

static enum soft_result mov_dr(struct soft_cpu *cpu, const struct insn *in)
{
    unsigned size = in->code_size == 8 ? 8 : 4;
    bool write = in->op[0].reg_class == RC_DR;
    unsigned n = in->op[write ? 0 : 1].reg, gpr = in->op[write ? 1 : 0].reg & 15;
    enum soft_result r = dr_check(cpu, &n);
    if (r != SOFT_OK) return r;
    if (!write) {
        soft_gpr_write(cpu, gpr, cpu->dr[n], size);
        return sys_done(cpu, in);
    }
    return sys_done_if(cpu, in, write_dr(cpu, n, size == 8 ? cpu->gpr[gpr] : (uint32_t)cpu->gpr[gpr]));
}

/* ---- TLB invalidation ---- */

static enum soft_result invlpg(struct soft_cpu *cpu, const struct insn *in)
{
    if (in->op[0].kind != OP_MEM) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t a = soft_effective_address(cpu, in);
    unsigned seg = in->mem.seg;
    if (!soft_code64(cpu))
        a = (uint32_t)(a + cpu->seg[seg].base);
    else if (seg == SEG_FS || seg == SEG_GS)
        a += cpu->seg[seg].base;
    if (!soft_code64(cpu) || soft_canonical(a)) soft_tlb_flush_page(cpu, GVA(a));
    return sys_done(cpu, in);
}

static enum soft_result invpcid_run(struct soft_cpu *cpu, uint64_t type, const uint64_t d[2])
{
    if (type > 3 || (type < 2 && d[0] >> 12)) return sys_gp0(cpu);
    if (type < 2 && d[0] && !(cpu->cr4 & CR4_PCIDE)) return sys_gp0(cpu);
    if (type == 0 && !soft_canonical(d[1])) return sys_gp0(cpu);
    uint32_t pcid = (uint32_t)d[0], now = cpu->cr4 & CR4_PCIDE ? (uint32_t)cpu->cr3 & 0xfff : 0;
    switch (type) {
    case 0:
        if (pcid == now)
            soft_tlb_flush_page(cpu, GVA(d[1]));
        else
            soft_tlb_forget(cpu, pcid);
        break;
    case 1: soft_tlb_forget(cpu, pcid); break;
    case 2: soft_tlb_flush_all(cpu); break;
    default: soft_tlb_forget(cpu, EVERY_PCID); break;
    }
    return SOFT_OK;
}

static enum soft_result invpcid(struct soft_cpu *cpu, const struct insn *in)
{
    if (in->op[1].kind != OP_MEM) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t a, d[2] = {0, 0}, type = cpu->gpr[in->op[0].reg & 15];
    if (in->code_size != 8) type = (uint32_t)type;
    enum soft_result r = operand_linear(cpu, in, 0, 16, ACC_READ, &a);
    if (r == SOFT_OK) r = soft_load(cpu, GVA(a), d, 16, (enum soft_mmu_idx)cpu->mmu_idx);
    if (r == SOFT_OK) r = invpcid_run(cpu, type, d);
    return sys_done_if(cpu, in, r);
}

enum soft_result control_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        if (in->op[0].kind != OP_REG || in->op[1].kind != OP_REG) return SOFT_NOT_MINE;
        if (in->op[0].reg_class == RC_CR || in->op[1].reg_class == RC_CR) return mov_cr(cpu, in);
        if (in->op[0].reg_class == RC_DR || in->op[1].reg_class == RC_DR) return mov_dr(cpu, in);
        return SOFT_NOT_MINE;
    case ZYDIS_MNEMONIC_LMSW: return lmsw(cpu, in);
    case ZYDIS_MNEMONIC_SMSW: return smsw(cpu, in);
    case ZYDIS_MNEMONIC_CLTS: return clts(cpu, in);
    case ZYDIS_MNEMONIC_INVLPG: return invlpg(cpu, in);
    case ZYDIS_MNEMONIC_INVPCID: return invpcid(cpu, in);
    default: return SOFT_NOT_MINE;
    }
}
