/* Trap entry for all 256 vectors, and the switch into and out of a context under test (struct ctx). */
#include "selectors.h"

    .text
    .set vector, 0
    .align 16
    .global trap_stubs
trap_stubs:                          /* 16 bytes each */
    .rept 256
    .align 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    pushq $0
    .endif
    pushq $vector
    jmp trap_entry
    .set vector, vector + 1
    .endr

trap_entry:
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rbp
    push $0                          /* RSP's place: trap() fills it */
    push %rbx
    push %rdx
    push %rcx
    push %rax
    cld
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    call trap                        /* the stack to leave on, or 0: return to what was interrupted */
    test %rax, %rax
    jnz ctx_leave
    mov %rbx, %rsp
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    pop %rbp                         /* RSP's place */
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    add $16, %rsp
    iretq

/* void ctx_enter(struct ctx *c, uint64_t *save_rsp): IRET into `c`; comes back when it traps. */
    .global ctx_enter
ctx_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushf
    mov %rsp, (%rsi)
    mov $SEL_UDATA | 3, %eax         /* data segments that 32-bit code of any ring may use */
    mov %eax, %ds
    mov %eax, %es
    push 152(%rdi)                   /* SS */
    push 32(%rdi)                    /* RSP */
    push 136(%rdi)                   /* RFLAGS */
    push 144(%rdi)                   /* CS */
    push 128(%rdi)                   /* RIP */
    mov (%rdi), %rax
    mov 8(%rdi), %rcx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rbx
    mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 56(%rdi), %rdi
    .global ctx_iret
ctx_iret:
    iretq
ctx_leave:
    mov %rax, %rsp
    popf
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .section .note.GNU-stack, "", @progbits
