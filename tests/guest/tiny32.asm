; A 32-bit program without a C library: write(1, ...), far jumps between 32-bit and 64-bit code as the
; kernel's descriptors allow them, exit(0). nasm -f elf32, ld -m elf_i386.
bits 32
section .data
hello: db "32-bit code writes", 10
hello_size equ $ - hello
wide: db "64-bit code reached by a far jump", 10
wide_size equ $ - wide
section .text
global _start
_start:
    mov eax, 4
    mov ebx, 1
    mov ecx, hello
    mov edx, hello_size
    int 0x80
    cmp eax, hello_size
    jne bad
    jmp 0x33:in64        ; Linux's 64-bit user code segment
bits 64
in64:
    mov rax, 0x123456789abcdef0
    mov rbx, rax
    shr rbx, 32
    cmp ebx, 0x12345678
    jne $
    mov eax, 1           ; 64-bit write
    mov edi, 1
    mov esi, wide
    mov edx, wide_size
    syscall
%ifdef FAR_RETURN
    push 0x23            ; back to Linux's 32-bit user code segment
    lea rax, [rel in32]
    push rax
    retfq
%else                    ; QEMU 7.2's emulation faults on a far return in user mode, its stack reads ignore SMAP's rules
    jmp far dword [rel back]
back: dd in32
      dw 0x23
%endif
bits 32
in32:
    mov eax, 1
    xor ebx, ebx
    int 0x80
bad:
    mov eax, 1
    mov ebx, 9
    int 0x80
section .note.GNU-stack
