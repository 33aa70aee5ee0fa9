; The guests of tests/cli/run.sh: one per value of GUEST, assembled as flat multiboot images that name their own addresses.
bits 32
org 0x200000
header:
    dd 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
    dd header, header, 0, stack, start
start:
    mov esp, stack

%ifidn GUEST, exit            ; ends with the value in VALUE
    mov al, VALUE
    out 0xf4, al
    jmp $

%elifidn GUEST, hello         ; prints and ends at once
    mov esi, text
.next:
    lodsb
    test al, al
    jz .end
    mov dx, 0x3f8
    out dx, al
    jmp .next
.end:
    mov al, 0
    out 0xf4, al
    jmp $
text: db "hello from the guest", 10, 0

%elifidn GUEST, echo          ; every byte back, 'q' ends
.poll:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz .poll
    mov dx, 0x3f8
    in al, dx
    cmp al, 'q'
    je .end
    out dx, al
    jmp .poll
.end:
    mov al, 0
    out 0xf4, al
    jmp $

%elifidn GUEST, triple        ; no IDT
    lidt [none]
    int3
    jmp $
none: dw 0
    dd 0

%elifidn GUEST, reset
    mov dx, 0xcf9
    mov al, 6
    out dx, al
    jmp $

%elifidn GUEST, second        ; resets once; says so in its second life, which it knows by a byte outside of its image
    mov al, [0x300000]
    mov byte [0x300000], 0x5a
    cmp al, 0x5a
    jne .reset
    mov al, 21
    out 0xf4, al
    jmp $
.reset:
    mov dx, 0xcf9
    mov al, 6
    out dx, al
    jmp $

%elifidn GUEST, off           ; ACPI power-off
    mov dx, 0x604
    mov ax, 0x2000 | (5 << 10)
    out dx, ax
    jmp $

%elifidn GUEST, spin          ; deaf to everything
    mov dx, 0x3f8
    mov al, '.'
    out dx, al
    cli
    jmp $

%elifidn GUEST, halt          ; idle for ever
    mov dx, 0x3f8
    mov al, '.'
    out dx, al
    cli
.again:
    hlt
    jmp .again

%elifidn GUEST, flood         ; writes without end
.poll:
    mov dx, 0x3fd
    in al, dx
    test al, 0x20
    jz .poll
    mov dx, 0x3f8
    mov al, 'f'
    out dx, al
    jmp .poll

%elifidn GUEST, lines         ; 100000 lines, then the end
    mov ecx, 100000
.line:
    mov esi, .text
.next:
    lodsb
    test al, al
    jz .end
    mov bl, al
.poll:
    mov dx, 0x3fd
    in al, dx
    test al, 0x20
    jz .poll
    mov dx, 0x3f8
    mov al, bl
    out dx, al
    jmp .next
.end:
    dec ecx
    jnz .line
    mov al, 0
    out 0xf4, al
    jmp $
.text: db "0123456789", 10, 0
%endif

    times 4096 - ($ - header) db 0
    stack equ $ + 4096
