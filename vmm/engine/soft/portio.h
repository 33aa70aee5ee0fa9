/* Port I/O by C code: IN, OUT (portio.c) and INS, OUTS (string.c). */
#ifndef NACELLE_SOFT_PORTIO_H
#define NACELLE_SOFT_PORTIO_H

#include "vmm/engine/soft/soft.h"

/* One item of 1, 2 or 4 bytes, after the permission check (IOPL and the TSS bitmap, #GP(0)).
 * Read: SOFT_OK with the value when the run loop has supplied it (cpu->io), else SOFT_EXIT with nothing changed: execute again then.
 * Write: SOFT_EXIT with VCPU_EXIT_IO in cpu->exit; the item is done, the caller brings registers and RIP up to date before it returns that. */
enum soft_result soft_port_read(struct soft_cpu *cpu, uint16_t port, unsigned size, uint32_t *v);
enum soft_result soft_port_write(struct soft_cpu *cpu, uint16_t port, unsigned size, uint32_t v);

/* The permission check alone: INS and OUTS make it before anything else, even with nothing to do. */
enum soft_result soft_port_check(struct soft_cpu *cpu, uint16_t port, unsigned size);

/* run() calls it on entry with the exit it returned last, now filled by the VMM: keeps the data of a read for when the instruction
 * is executed again. Other exits are ignored. */
void soft_port_complete(struct soft_cpu *cpu, const struct vcpu_exit *exit);

#endif
