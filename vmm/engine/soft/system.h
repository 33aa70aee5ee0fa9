/* What the files behind soft_system_insn() share (private to engine/soft/). Handlers return as soft.h says; a group function returns
 * SOFT_NOT_MINE for mnemonics of other groups. On SOFT_OK they have set RIP themselves. FPU-free rule of soft.h. */
#ifndef NACELLE_SOFT_SYSTEM_H
#define NACELLE_SOFT_SYSTEM_H

#include "vmm/engine/soft/segment.h"

/* Highest CPL 0 or #GP(0): `if (sys_privileged(cpu)) return SOFT_FAULT;` */
static inline bool sys_privileged(struct soft_cpu *cpu)
{
    if (!cpu->cpl) return false;
    soft_raise_err(cpu, EXC_GP, 0);
    return true;
}
static inline enum soft_result sys_gp0(struct soft_cpu *cpu)
{
    return soft_raise_err(cpu, EXC_GP, 0);
}
static inline enum soft_result sys_done(struct soft_cpu *cpu, const struct insn *in)
{
    soft_advance(cpu, in);
    return SOFT_OK;
}
static inline enum soft_result sys_done_if(struct soft_cpu *cpu, const struct insn *in, enum soft_result r)
{
    return r == SOFT_OK ? sys_done(cpu, in) : r;
}
/* Position of the (first) opcode byte in in->bytes: after legacy prefixes and REX. */
unsigned sys_opcode_at(const struct insn *in);

/* Groups of instructions. */
enum soft_result control_insn(struct soft_cpu *cpu, const struct insn *in); /* control.c: CR, DR, LMSW, INVLPG .. */
enum soft_result descriptor_insn(struct soft_cpu *cpu,
                                 const struct insn *in); /* protect.c: LGDT .. LTR, LAR, VERR .. */
enum soft_result transfer_insn(struct soft_cpu *cpu,
                               const struct insn *in); /* transfer.c: far JMP/CALL/RET, IRET, INT */
enum soft_result fastcall_insn(struct soft_cpu *cpu,
                               const struct insn *in); /* fastcall.c: SYSCALL .. SYSEXIT, SWAPGS, FS/GS base */
enum soft_result msr_insn(struct soft_cpu *cpu,
                          const struct insn *in); /* msr.c: RDMSR, WRMSR, RDTSC(P), RDPID, RDPMC */
enum soft_result cpuid_insn(struct soft_cpu *cpu, const struct insn *in); /* cpuid.c */
enum soft_result xsave_insn(struct soft_cpu *cpu, const struct insn *in); /* xsave.c */

/* exception.c */
enum sys_int_kind { SYS_INT_N, SYS_INT_TRAP /* INT3, INTO: DPL checked too */, SYS_INT_ICEBP /* INT1: no DPL check */ };
/* INT n and its short forms: delivers at once, RIP after the instruction is what the handler returns to. On SOFT_FAULT RIP
 * still is at the instruction. */
enum soft_result sys_software_interrupt(struct soft_cpu *cpu, const struct insn *in, uint8_t vector,
                                        enum sys_int_kind kind);
/* The MMU index that pushes at privilege level `cpl` use. */
enum soft_mmu_idx sys_stack_idx(const struct soft_cpu *cpu, unsigned cpl);
/* SS:ESP (or RSP) for `cpl` from the TSS; #TS(TR) when it isn't within the limit. */
enum soft_result sys_tss_stack(struct soft_cpu *cpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint32_t *esp);
enum soft_result sys_tss_stack64(struct soft_cpu *cpu, unsigned offset, uint32_t ext, uint64_t *rsp);
/* Room for `size` bytes below `sp` on stack segment `ss`: the new stack pointer and its linear address. #SS(err). */
enum soft_result sys_frame(struct soft_cpu *cpu, const struct cpu_segment *ss, uint64_t *sp, uint32_t size,
                           uint32_t err, uint64_t *linear);

/* taskswitch.c: hardware task switches of 32-bit protected mode (SDM vol. 3 7.3). */
enum task_source { TASK_JMP, TASK_CALL, TASK_GATE, TASK_IRET };
/* To the TSS that `sel` names; the current task's saved EIP is cpu->rip. `error` is pushed on the new task's stack if has_error. */
enum soft_result task_switch(struct soft_cpu *cpu, uint16_t sel, enum task_source src, uint32_t ext, bool has_error,
                             uint32_t error);

/* control.c: also used by the task switch. */
enum soft_result control_write_cr3(struct soft_cpu *cpu, uint64_t v);

/* cpuid.c: live view of one leaf, as the CPUID instruction sees it. */
void cpuid_query(const struct soft_cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t out[4]);

/* MSRs (msr.c). False: #GP. */
bool msr_read(struct soft_cpu *cpu, uint32_t n, uint64_t *v);
bool msr_write(struct soft_cpu *cpu, uint32_t n, uint64_t v);
/* Those without a field in struct cpu_state, as far as they differ from their reset value: how many. `out` has room for CPU_MAX_MSRS. */
unsigned soft_get_msrs(struct soft_cpu *cpu, struct cpu_msr *out);
/* All others go back to their reset value. The index of the first that is unknown or refused, or n. */
unsigned soft_set_msrs(struct soft_cpu *cpu, const struct cpu_msr *in, unsigned n);

#endif
