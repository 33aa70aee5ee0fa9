/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions (SDM vol. 2; AMD APM vol. 3 for SYSCALL in legacy and
 * compatibility mode). SYSENTER works in long mode whatever the vendor: AMD's #UD there is nothing a guest relies on. */
#include "vmm/engine/soft/system.h"

#define SYSRET_FLAGS 0x3c7fd7ull /* what SYSRET takes from R11 (SDM vol. 2 SYSRET) */

static void set_ring(struct soft_cpu *cpu, uint16_t cs, uint32_t cs_attr, uint16_t ss, unsigned cpl)
{
    segment_set_flat(&cpu->seg[SEG_CS], cs, cs_attr, cpl);
    segment_set_flat(&cpu->seg[SEG_SS], ss, ATTR_DATA, cpl);
    cpu->cpl = (uint8_t)cpl;
}

/* SYSCALL and SYSRET trap for single-stepping when TF is set at their end, other instructions when it was at the beginning. */
static void step_by_new_flags(struct soft_cpu *cpu)
{
    cpu->no_step_trap = true;
    if (cpu->rflags & FL_TF) cpu->late_db |= 1u << 14;
}

/* AMD only: EIP is in STAR, RFLAGS isn't saved nor masked but for IF and RF. */
static enum soft_result syscall_legacy(struct soft_cpu *cpu, const struct insn *in)
{
    uint16_t cs = (uint16_t)(cpu->star >> 32) & ~3u;
    cpu->gpr[R_RCX] = (uint32_t)(in->rip + in->len);
    cpu->rip = (uint32_t)cpu->star;
    set_ring(cpu, cs, ATTR_CODE32, (uint16_t)(cs + 8), 0);
    soft_set_rflags(cpu, soft_get_rflags(cpu) & ~(uint64_t)(FL_IF | FL_RF | FL_VM));
    soft_update_mode(cpu);
    return SOFT_OK;
}

static enum soft_result do_syscall(struct soft_cpu *cpu, const struct insn *in)
{
    bool code64 = soft_code64(cpu);
    if (!(cpu->efer & EFER_SCE) || !soft_protected(cpu) || (!code64 && !cpu->cpuid.amd)) return soft_raise(cpu, EXC_UD);
    if (!soft_long_mode(cpu)) return syscall_legacy(cpu, in);
    uint64_t flags = soft_get_rflags(cpu), next = in->rip + in->len;
    uint16_t cs = (uint16_t)(cpu->star >> 32) & ~3u;
    cpu->gpr[R_RCX] = code64 ? next : (uint32_t)next;
    cpu->gpr[R_R11] = flags & ~(uint64_t)FL_RF;
    cpu->rip = code64 ? cpu->lstar : cpu->cstar;
    set_ring(cpu, cs, ATTR_CODE64, (uint16_t)(cs + 8), 0);
    soft_set_rflags(cpu, flags & ~(cpu->sfmask | FL_RF));
    step_by_new_flags(cpu);
    soft_update_mode(cpu);
    return SOFT_OK;
}

static bool sysret_64(const struct insn *in)
{
    return in->code_size == 8 && in->op_size == 8;
}

static enum soft_result do_sysret(struct soft_cpu *cpu, const struct insn *in)
{
    bool code64 = soft_code64(cpu);
    if (!(cpu->efer & EFER_SCE) || !soft_protected(cpu) || (!code64 && !cpu->cpuid.amd)) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    bool to64 = sysret_64(in);
    /* Faulting here, still in ring 0, is Intel's choice; a guest that is safe there is safe everywhere. */
    if (to64 && !soft_canonical(cpu->gpr[R_RCX])) return sys_gp0(cpu);
    uint16_t base = (uint16_t)(cpu->star >> 48);
    uint16_t cs = (uint16_t)((to64 ? base + 16 : base) | 3), ss = (uint16_t)((base + 8) | 3);
    uint64_t flags = soft_get_rflags(cpu) | FL_IF;
    if (soft_long_mode(cpu)) flags = (cpu->gpr[R_R11] & SYSRET_FLAGS) & ~(uint64_t)(FL_RF | FL_VM);
    cpu->rip = to64 ? cpu->gpr[R_RCX] : (uint32_t)cpu->gpr[R_RCX];
    set_ring(cpu, cs, to64 ? ATTR_CODE64 : ATTR_CODE32, ss, 3);
    soft_set_rflags(cpu, flags);
    step_by_new_flags(cpu);
    soft_update_mode(cpu);
    return SOFT_OK;
}

static enum soft_result do_sysenter(struct soft_cpu *cpu)
{
    uint16_t cs = (uint16_t)cpu->sysenter_cs & ~3u;
    if (!soft_protected(cpu) || !cs) return sys_gp0(cpu);
    bool lm = soft_long_mode(cpu);
    cpu->gpr[R_RSP] = lm ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
    cpu->rip = lm ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
    set_ring(cpu, cs, lm ? ATTR_CODE64 : ATTR_CODE32, (uint16_t)(cs + 8), 0);
    soft_set_rflags(cpu, soft_get_rflags(cpu) & ~(uint64_t)(FL_IF | FL_RF | FL_VM));
    soft_update_mode(cpu);
    return SOFT_OK;
}

static enum soft_result do_sysexit(struct soft_cpu *cpu, const struct insn *in)
{
    uint16_t base = (uint16_t)cpu->sysenter_cs & ~3u;
    if (!soft_protected(cpu) || !base) return sys_gp0(cpu);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    bool to64 = sysret_64(in);
    uint64_t rip = cpu->gpr[R_RDX], rsp = cpu->gpr[R_RCX];
    if (to64 && !(soft_canonical(rip) && soft_canonical(rsp))) return sys_gp0(cpu);
    uint16_t cs = (uint16_t)((base + (to64 ? 32 : 16)) | 3);
    cpu->rip = to64 ? rip : (uint32_t)rip;
    cpu->gpr[R_RSP] = to64 ? rsp : (uint32_t)rsp;
    set_ring(cpu, cs, to64 ? ATTR_CODE64 : ATTR_CODE32, (uint16_t)(cs + 8), 3);
    soft_update_mode(cpu);
    return SOFT_OK;
}

static enum soft_result do_swapgs(struct soft_cpu *cpu, const struct insn *in)
{
    if (!soft_code64(cpu)) return soft_raise(cpu, EXC_UD);
    if (sys_privileged(cpu)) return SOFT_FAULT;
    uint64_t old = cpu->seg[SEG_GS].base;
    cpu->seg[SEG_GS].base = cpu->kernel_gs_base;
    cpu->kernel_gs_base = old;
    return sys_done(cpu, in);
}

static enum soft_result base_insn(struct soft_cpu *cpu, const struct insn *in, enum cpu_seg seg, bool write)
{
    if (!soft_code64(cpu) || !(cpu->cr4 & CR4_FSGSBASE)) return soft_raise(cpu, EXC_UD);
    unsigned size = in->op_size == 8 ? 8 : 4, reg = in->op[0].reg & 15;
    if (!write) {
        soft_gpr_write(cpu, reg, cpu->seg[seg].base, size);
        return sys_done(cpu, in);
    }
    uint64_t v = size == 8 ? cpu->gpr[reg] : (uint32_t)cpu->gpr[reg];
    if (!soft_canonical(v)) return sys_gp0(cpu);
    cpu->seg[seg].base = v;
    return sys_done(cpu, in);
}

enum soft_result fastcall_insn(struct soft_cpu *cpu, const struct insn *in)
{
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL: return do_syscall(cpu, in);
    case ZYDIS_MNEMONIC_SYSRET: return do_sysret(cpu, in);
    case ZYDIS_MNEMONIC_SYSENTER: return do_sysenter(cpu);
    case ZYDIS_MNEMONIC_SYSEXIT: return do_sysexit(cpu, in);
    case ZYDIS_MNEMONIC_SWAPGS: return do_swapgs(cpu, in);
    case ZYDIS_MNEMONIC_RDFSBASE: return base_insn(cpu, in, SEG_FS, false);
    case ZYDIS_MNEMONIC_RDGSBASE: return base_insn(cpu, in, SEG_GS, false);
    case ZYDIS_MNEMONIC_WRFSBASE: return base_insn(cpu, in, SEG_FS, true);
    case ZYDIS_MNEMONIC_WRGSBASE: return base_insn(cpu, in, SEG_GS, true);
    default: return SOFT_NOT_MINE;
    }
}
