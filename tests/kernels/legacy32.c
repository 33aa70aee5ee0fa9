// Protected mode without long mode: the kernel steps back to 32 bits and runs there with paging off, with two-level paging
// (4 KiB and 4 MiB pages), and with PAE, each with a fault handler through a 32-bit IDT; then it comes back to 64-bit mode.
#include "kernel.h"

/* void legacy(u64 cr4, u64 cr3, u64 cr0): one visit. Identity-mapped code below 4 GiB; results in legacy_out. */
__asm__(".pushsection .text.cases, \"ax\", @progbits\n.code64\n"
        ".global legacy\n"
        "legacy:\n"
        "    push %rbx; push %rbp; push %r12\n"
        "    mov %rsp, legacy_rsp(%rip)\n"
        "    mov %edi, legacy_cr4(%rip); mov %esi, legacy_cr3(%rip); mov %edx, legacy_cr0(%rip)\n"
        "    sidt legacy_idt64(%rip)\n"
        "    mov %cr3, %rax; mov %eax, legacy_back_cr3(%rip)\n"
        "    pushq $0x08; lea 1f(%rip), %rax; push %rax; lretq\n" /* compatibility mode */
        ".code32\n"
        "1:  mov $0x18, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; mov $legacy_stack_top, %esp\n"
        "    mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n" /* paging off: long mode is left */
        "    mov $0xc0000080, %ecx; rdmsr; and $~0x100, %eax; wrmsr\n"
        "    mov legacy_cr4, %eax; mov %eax, %cr4\n"
        "    mov legacy_cr3, %eax; mov %eax, %cr3\n"
        "    mov legacy_cr0, %eax; mov %eax, %cr0\n"
        "    jmp 2f\n"
        "2:  lidt legacy_idt32\n"
        "    call legacy_work\n"
        "    mov %cr0, %eax; and $0x7fffffff, %eax; mov %eax, %cr0\n"
        "    mov $0x20, %eax; mov %eax, %cr4\n"
        "    mov legacy_back_cr3, %eax; mov %eax, %cr3\n"
        "    mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax; wrmsr\n"
        "    mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0\n"
        "    ljmp $0x10, $3f\n"
        ".code64\n"
        "3:  mov legacy_rsp(%rip), %rsp; lidt legacy_idt64(%rip)\n"
        "    pop %r12; pop %rbp; pop %rbx; ret\n"
        ".code32\n"
        /* Out: 0: EFER.LMA, 4: sum through paging, 8: what is at the test address, 12: #PF error, 16: CR2, 20: EIP ok,
         * 24: after a store, 28: #PF error of a write to a read-only page, 32: int 0x55 result, 36: LAR/segment check */
        "legacy_work:\n"
        "    mov $0xc0000080, %ecx; rdmsr; and $0x400, %eax; mov %eax, legacy_out\n"
        "    xor %eax, %eax; mov $100, %ecx; 1: add %ecx, %eax; loop 1b; mov %eax, legacy_out + 4\n"
        "    testl $0x80000000, legacy_cr0; jz 9f\n"
        "    mov $0x40000000, %ebx\n"
        "    mov (%ebx), %eax; mov %eax, legacy_out + 8\n"
        "    movl $-1, legacy_error\n"
        "    mov $2f, %edi\n" /* where the handler goes on */
        "legacy_fault: mov 0x5123(%ebx), %eax\n"
        "2:  mov legacy_error, %eax; mov %eax, legacy_out + 12; mov %cr2, %eax; mov %eax, legacy_out + 16\n"
        "    mov legacy_eip, %eax; sub $legacy_fault, %eax; mov %eax, legacy_out + 20\n"
        "    movl $0x77, 4(%ebx); mov 4(%ebx), %eax; mov %eax, legacy_out + 24\n"
        "    mov $3f, %edi; movl $-1, legacy_error\n"
        "    movl $1, 0x1000(%ebx)\n"
        "3:  mov legacy_error, %eax; mov %eax, legacy_out + 28\n"
        "9:  mov $5, %eax; int $0x55; mov %eax, legacy_out + 32\n"
        "    ret\n"
        "legacy_pf: pop legacy_error; pop legacy_eip; push %edi; iret\n"
        "legacy_int55: add $1, %eax; iret\n"
        ".code64\n.popsection\n"
        ".pushsection .data\n.balign 16\n"
        "legacy_rsp: .quad 0\nlegacy_cr4: .long 0\nlegacy_cr3: .long 0\nlegacy_cr0: .long 0\nlegacy_back_cr3: .long 0\n"
        "legacy_error: .long 0\nlegacy_eip: .long 0\n"
        ".global legacy_out, legacy_gates\nlegacy_out: .fill 16, 4, 0\n"
        "legacy_idt64: .word 0; .quad 0\nlegacy_idt32: .word 0x7ff; .long legacy_gates\n"
        ".balign 16\nlegacy_gates: .fill 256, 8, 0\n.skip 4096\nlegacy_stack_top:\n.popsection");
extern volatile u32 legacy_out[16];
extern u64 legacy_gates[256];
extern u8 legacy_pf[], legacy_int55[];
void legacy(u64 new_cr4, u64 new_cr3, u64 new_cr0);

static void gate32(unsigned v, u8 *entry)
{
    u64 a = (u64)entry;
    legacy_gates[v] = (a & 0xffff) | (u64)SEL_KCODE32 << 16 | 0x8eul << 40 | (a >> 16 & 0xffff) << 48;
}

/* What the visits with paging must have seen. `large` tells the page size at the test address. */
static void check_paging(void)
{
    CHECK_EQ(legacy_out[8 / 4], 0x1234abcd);
    CHECK_EQ(legacy_out[12 / 4], 0);
    CHECK_EQ(legacy_out[16 / 4], 0x40005123);
    CHECK_EQ(legacy_out[20 / 4], 0);
    CHECK_EQ(legacy_out[24 / 4], 0x77);
    CHECK_EQ(legacy_out[28 / 4], PF_P | PF_W);
}

static void check_common(void)
{
    CHECK_EQ(legacy_out[0], 0); /* not in long mode */
    CHECK_EQ(legacy_out[1], 5050);
    CHECK_EQ(legacy_out[8], 6);
    memset((void *)legacy_out, 0xff, sizeof legacy_out);
}

int main(void)
{
    gate32(PF, legacy_pf);
    gate32(0x55, legacy_int55);
    u32 *frame = page_alloc(), *read_only = page_alloc();
    frame[0] = 0x1234abcd;

    legacy(0, 0, 0x31); /* no paging */
    check_common();

    /* Two levels: identity by 4 MiB pages, the test page by a table. */
    u32 *pd = page_alloc(), *pt = page_alloc();
    for (u32 i = 0; i < 256; i++) pd[i] = i << 22 | 0x83;
    pd[256] = (u32)(u64)pt | 3;
    pt[0] = (u32)(u64)frame | 3;
    pt[1] = (u32)(u64)read_only | 1;
    legacy(0x10, (u64)pd, 0x80010031);
    check_paging();
    check_common();
    CHECK_EQ(pt[0] & 0x60, 0x60); /* A and D */
    CHECK_EQ(pt[1] & 0x60, 0);    /* the write was refused */
    CHECK_EQ(pd[256] & 0x20, 0x20);

    /* PAE: four PDPTEs, 2 MiB pages. */
    u64 *pdpt = page_alloc(), *pd0 = page_alloc(), *pd1 = page_alloc(), *pt64 = page_alloc();
    for (u64 i = 0; i < 512; i++) pd0[i] = i << 21 | 0x83;
    pdpt[0] = (u64)pd0 | 1;
    pdpt[1] = (u64)pd1 | 1;
    pd1[0] = (u64)pt64 | 3;
    pt64[0] = (u64)frame | 3;
    pt64[1] = (u64)read_only | 1;
    legacy(0x20, (u64)pdpt, 0x80010031);
    check_paging();
    check_common();
    CHECK_EQ(pt64[0] & 0x60, 0x60);
    if (!left_out(TCG | LAB, "a PAE PDPTE gets an A bit")) CHECK_EQ(pdpt[1] & 0x60, 0); /* PDPTEs have no A bit */

    CODE(ok, "mov $1, %eax"); /* 64-bit mode works as before */
    struct ctx c;
    ctx_user(&c, ok);
    COMPLETES(&c);
    return done();
}
