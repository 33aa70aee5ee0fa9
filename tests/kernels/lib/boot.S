/* From multiboot's 32-bit entry to 64-bit C, for the boot CPU and for application processors (SDM vol. 3 10.8.5, 9.4).
 *
 * Address map made here (see lib/kernel.h):
 *   0 .. 1 GiB                identity, supervisor (U=0 in the PDPT, so leaves may all say U=1)
 *   1 .. 3 GiB                empty, for map_page()
 *   3 .. 4 GiB                identity, supervisor, uncached: LAPIC, IOAPIC and other MMIO
 *   512 GiB + the above       the same memory again, accessible to user code */
#include "selectors.h"

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .section .text.start, "ax"
    .code32
    .global _start
_start:
    cli
    movl %eax, boot_magic
    movl %ebx, boot_info
    movl $boot_stack_top, %esp
    xorl %edi, %edi
    jmp enter_long

/* Application processors arrive from the real-mode stub below. */
ap_start32:
    movw $SEL_KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %edi
    lock xaddl %edi, next_cpu
    movl %edi, %eax
    shll $14, %eax                   /* 16 KiB of stack each */
    leal ap_stacks(%eax), %esp

/* %edi = index of this CPU, %esp = its stack */
enter_long:
    lgdt gdt_pointer
    movl $(1 << 5), %eax             /* PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx           /* EFER.LME, NXE, SCE */
    movl $((1 << 8) | (1 << 11) | 1), %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax           /* PG WP NE ET MP PE */
    movl %eax, %cr0
    ljmp $SEL_KCODE, $start64

    .code64
start64:
    movw $SEL_KDATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl %edi, %edi
    xorl %ebp, %ebp
    testl %edi, %edi
    jnz 1f
    call start_bsp
1:  call start_ap

/* Copied to AP_STUB; real mode, CS = AP_STUB >> 4. */
    .code16
    .global ap_stub, ap_stub_end
ap_stub:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_stub
    movl $1, %eax
    movl %eax, %cr0
    ljmpl $SEL_KCODE32, $ap_start32
    .align 8
ap_gdt_pointer:
    .word GDT_BYTES - 1
    .long gdt
ap_stub_end:

    .code64
    .data
    .align 4096
    .global boot_pml4
boot_pml4:
    .quad pdpt_kernel + 7, pdpt_user + 7
    .fill 510, 8, 0
pdpt_kernel:
    .quad pd_ram + 3, pd_empty1 + 7, pd_empty2 + 7, pd_mmio + 3
    .fill 508, 8, 0
pdpt_user:
    .quad pd_ram + 7, 0, 0, pd_mmio + 7
    .fill 508, 8, 0
pd_ram:
    .set page, 0
    .rept 512
    .quad page + 0x87                /* 2 MiB, user, writable */
    .set page, page + 0x200000
    .endr
pd_mmio:
    .rept 512                        /* goes on at 1 GiB: the 2 GiB between are added */
    .quad page + 0x80000000 + 0x9f
    .set page, page + 0x200000
    .endr
pd_empty1:
    .fill 512, 8, 0
pd_empty2:
    .fill 512, 8, 0

    .align 16
    .global gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff         /* SEL_KCODE32 */
    .quad 0x00af9b000000ffff         /* SEL_KCODE */
    .quad 0x00cf93000000ffff         /* SEL_KDATA */
    .quad 0x00cffb000000ffff         /* SEL_UCODE32 */
    .quad 0x00cff3000000ffff         /* SEL_UDATA */
    .quad 0x00affb000000ffff         /* SEL_UCODE */
    .quad 0x00cff3000000ffff         /* SEL_UDATA2 */
    .fill GDT_BYTES / 8 - 8, 8, 0    /* SEL_TEST.. and the TSSs */
gdt_pointer:
    .word GDT_BYTES - 1
    .quad gdt

    .global boot_magic, boot_info, next_cpu
boot_magic: .long 0
boot_info:  .long 0
next_cpu:   .long 1

    .bss
    .align 16
    .skip 16384
    .global boot_stack_top
boot_stack_top:
ap_stacks:                           /* CPU n's stack ends at ap_stacks + n * 16 KiB */
    .skip 16384 * MAX_CPUS

    .section .note.GNU-stack, "", @progbits
