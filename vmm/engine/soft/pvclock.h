/* KVM's paravirtual clock: the guest learns the TSC's frequency and the time of day from memory that the VMM fills. */
#ifndef NACELLE_SOFT_PVCLOCK_H
#define NACELLE_SOFT_PVCLOCK_H

#include "vmm/engine/soft/soft.h"

/* CPUID 0x40000001 EAX: no delays needed at I/O ports, clock by the new MSRs, clock stable across vCPUs */
#define PVCLOCK_FEATURES (1u << 1 | 1u << 3 | 1u << 24)

/* False: not one of its MSRs. */
bool soft_pvclock_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *v);
bool soft_pvclock_write(struct soft_cpu *cpu, uint32_t msr, uint64_t v);

#endif
