/* Selectors of the GDT in boot.S. Their order is what SYSCALL/SYSRET and SYSENTER/SYSEXIT ask for:
 * STAR[47:32] = SEL_KCODE, STAR[63:48] = SEL_UCODE32, SYSENTER_CS = SEL_KCODE. */
#ifndef KERNELS_SELECTORS_H
#define KERNELS_SELECTORS_H

#define SEL_KCODE32 0x08
#define SEL_KCODE 0x10
#define SEL_KDATA 0x18
#define SEL_UCODE32 0x20
#define SEL_UDATA 0x28
#define SEL_UCODE 0x30
#define SEL_UDATA2 0x38
#define SEL_TEST 0x40 /* 0x40..0x7f: eight free entries for tests */
#define SEL_TSS 0x80  /* + 16 * cpu */

#define MAX_CPUS 8
#define GDT_BYTES (0x80 + 16 * MAX_CPUS)

#endif
