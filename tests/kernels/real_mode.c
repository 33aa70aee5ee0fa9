// Real mode: an application processor starts in it (SIPI) and does some work there: 16-bit arithmetic, segments, stack, string
// instructions, interrupts through the IVT, unreal mode, exceptions, BCD. It leaves its results in memory and halts.
// RUN: -c 2
#include "kernel.h"

#define STUB 0x9000ul
#define RESULTS 0xa000ul

/* Assembled for offset 0 of segment 0x900. ES = 0xa00 points to the results. */
__asm__(
    ".pushsection .text.cases, \"ax\", @progbits\n.code16\n"
    ".global real_code, real_code_end\n"
    "real_code:\n"
    "    cli\n"
    "    movw %cs, %ax; movw %ax, %ds\n"
    "    movw $0xa00, %ax; movw %ax, %es\n"
    "    movw $0xb00, %ax; movw %ax, %ss; movw $0x800, %sp\n"
    "    movw %cs, %es:0\n" /* 0: CS */
    "    movw $0x7fff, %ax; addw $1, %ax; pushfw; popw %bx; movw %ax, %es:2; movw %bx, %es:4\n"
    "    movw $1000, %ax; movw $1000, %cx; mulw %cx; movw %ax, %es:6; movw %dx, %es:8\n"
    "    movw $0x1234, %dx; movw $0x5678, %ax; movw $0x4321, %cx; divw %cx; movw %ax, %es:10; movw %dx, %es:12\n"
    "    movl $0x12345678, %eax; addl $0x11111111, %eax; movl %eax, %es:14\n" /* 32-bit operands */
    "    movw $0x1111, %ax; pushw %ax; popw %cx; movw %cx, %es:18; movw %sp, %es:20\n"
    "    calll 1f\n" /* 32-bit call: 4 bytes on the stack */
    "    jmp 2f\n"
    "1:  movw %sp, %es:22; retl\n"
    "2:  movw $data_16 - real_code, %si; movw $30, %di; movw $3, %cx; cld; rep movsw\n" /* 30..35 */
    "    movw $0xffff, %bx; movb $0x5a, %es:(%bx)\n" /* the last byte of the segment */
    "    movw $2, %bx; movw $0x10, %si; leaw -3(%bx, %si), %ax; movw %ax, %es:36\n"
    "    movb $0x15, %al; addb $0x27, %al; daa; movb %al, %es:38\n"
    "    movw $0x0709, %ax; aad; movb %al, %es:39\n"
    /* INT 0x60 and a divide error through the IVT, set up by the boot CPU. */
    "    movw $0xbeef, %ax; int $0x60; movw %ax, %es:40\n"
    "    xorw %cx, %cx; movw $1, %ax\n"
    "real_div: divw %cx\n"
    "    movw %bp, %es:42\n" /* set by the handler: offset of the fault */
    "    sti; pushfw; cli; popw %ax; andw $0x200, %ax; movw %ax, %es:44\n"
    /* A far call and return, a far jump. */
    "    lcall *far_16 - real_code\n"
    "    movw %ax, %es:46\n"
    "    ljmpw $0x901, $real_next - real_code - 16\n"
    "real_next: movw %cs, %es:48\n"
    "    movw $0x900, %ax; movw %ax, %ds\n"
    /* LOOP, JCXZ, ENTER and LEAVE (as bytes: assemblers differ on their suffixes), XLAT. */
    "    movw $5, %cx; xorw %ax, %ax\n"
    "3:  addw %cx, %ax; loop 3b; jcxz 4f; movw $0, %ax\n"
    "4:  movw %ax, %es:50\n"
    "    movw %sp, %dx; .byte 0xc8, 8, 0, 0; movw %sp, %cx; .byte 0xc9; subw %sp, %dx; movw %dx, %es:52\n"
    "    movw $table_16 - real_code, %bx; movb $3, %al; xlatb; movb %al, %es:54\n"
    /* Unreal mode: a 4 GiB limit loaded in protected mode stays. */
    "    lgdtl gdt_16 - real_code; movl %cr0, %eax; orb $1, %al; movl %eax, %cr0\n"
    "    movw $8, %bx; movw %bx, %fs; andb $0xfe, %al; movl %eax, %cr0; jmp 5f\n"
    "5:  xorw %bx, %bx; movw %bx, %fs; movl $0x200000, %ebx; movl %fs:(%ebx), %eax; movl %eax, %es:56\n"
    "    smsww %ax; andw $1, %ax; movw %ax, %es:60\n"
    /* Offsets over the limit of a real-mode segment: #GP (13), with SS #SS (12). The handlers leave the offset of the
     * instruction in BP, the vector in CX, and skip DX bytes: it. */
    "    movl $0x12345, %ebx; movw $3, %dx; xorw %bp, %bp; xorw %cx, %cx\n"
    "real_gp: .byte 0x67, 0x8b, 0x03\n" /* mov (%ebx), %ax */
    "    movw %bp, %es:62; movw %cx, %es:68\n"
    "    movw $0xffff, %bx; movw $2, %dx; xorw %bp, %bp; xorw %cx, %cx\n"
    "real_edge: .byte 0x8b, 0x07\n" /* mov (%bx), %ax: its second byte is over the limit */
    "    movw %bp, %es:70; movw %cx, %es:72\n"
    "    movl $0x10000, %ebx; movw $4, %dx; xorw %bp, %bp; xorw %cx, %cx\n"
    "real_ss: .byte 0x36, 0x67, 0x8b, 0x03\n" /* mov %ss:(%ebx), %ax */
    "    movw %bp, %es:74; movw %cx, %es:76\n"
    "    movl $0x600dd00d, %es:64\n"
    "6:  hlt; jmp 6b\n"
    "handler_60: cmpw $0xbeef, %ax; jne 7f; movw $0xcafe, %ax\n"
    "7:  iretw\n"
    "handler_gp: movw $13, %cx; jmp handler_fault\n"
    "handler_ss: movw $12, %cx\n"
    "handler_fault: pushw %bx; movw %sp, %bx; movw %ss:2(%bx), %bp\n" /* the offset saved: of the instruction itself */
    "    cmpw $real_div - real_code, %bp; jne 8f; addw $2, %ss:2(%bx); jmp 9f\n"
    "8:  addw %dx, %ss:2(%bx)\n"
    "9:  popw %bx; iretw\n"
    "far_target: movw $0x7007, %ax; lretw\n"
    ".balign 4\n"
    "data_16: .word 0x1122, 0x3344, 0x5566\n"
    "far_16: .word far_target - real_code, 0x900\n"
    "table_16: .byte 9, 8, 7, 6, 5\n"
    ".balign 8\n"
    "gdt_16: .word 15; .long gdt_16_table\n"
    "real_code_end:\n"
    ".code64\n.popsection\n"
    ".pushsection .data\n.balign 8\ngdt_16_table: .quad 0, 0x00cf93000000ffff\n"
    ".global handler_60_at, handler_fault_at, handler_gp_at, handler_ss_at, div_at, gp_at, edge_at, ss_at\n"
    "handler_60_at: .word handler_60 - real_code\nhandler_fault_at: .word handler_fault - real_code\n"
    "handler_gp_at: .word handler_gp - real_code\nhandler_ss_at: .word handler_ss - real_code\n"
    "div_at: .word real_div - real_code\n"
    /* CS is 0x901 there, not 0x900 as before the far jump: the offsets are 16 less. */
    "gp_at: .word real_gp - real_code - 16\nedge_at: .word real_edge - real_code - 16\n"
    "ss_at: .word real_ss - real_code - 16\n.popsection");
extern u8 real_code[], real_code_end[];
extern u16 handler_60_at, handler_fault_at, handler_gp_at, handler_ss_at, div_at, gp_at, edge_at, ss_at;

static u16 word(unsigned at)
{
    return *(volatile u16 *)(RESULTS + at);
}

int main(void)
{
    u32 *ivt = phys(0);
    __asm__ volatile("" : "+r"(ivt));
    memset(phys(RESULTS), 0, 0x1000);
    memcpy(phys(STUB), real_code, (size_t)(real_code_end - real_code));
    for (unsigned v = 0; v < 32; v++) ivt[v] = 0x9000000u | handler_fault_at;
    ivt[GP] = 0x9000000u | handler_gp_at;
    ivt[SS] = 0x9000000u | handler_ss_at;
    ivt[0x60] = 0x9000000u | handler_60_at;
    *(volatile u32 *)0x200000 = 0xfee1dead;
    apic_enable();
    smp_sipi(1, STUB >> 12);
    for (unsigned i = 0; i < 5000 && *(volatile u32 *)(RESULTS + 64) != 0x600dd00d; i++) delay_us(1000);

    CHECK_EQ(*(volatile u32 *)(RESULTS + 64), 0x600dd00d);
    CHECK_EQ(word(0), 0x900);
    CHECK_EQ(word(2), 0x8000);
    CHECK_EQ(word(4) & FL_ARITH, FL_OF | FL_SF | FL_AF | FL_PF);
    CHECK_EQ(word(6) | word(8) << 16, 1000000);
    CHECK_EQ(word(10), 0x12345678 / 0x4321);
    CHECK_EQ(word(12), 0x12345678 % 0x4321);
    CHECK_EQ(word(14) | word(16) << 16, 0x23456789);
    CHECK_EQ(word(18), 0x1111);
    CHECK_EQ(word(20), 0x800);
    CHECK_EQ(word(22), 0x800 - 4);
    CHECK(word(30) == 0x1122 && word(32) == 0x3344 && word(34) == 0x5566);
    CHECK_EQ(*(volatile u8 *)(RESULTS + 0xffff), 0x5a);
    CHECK_EQ(word(36), 15);
    CHECK_EQ(word(38) & 0xff, 0x42);
    CHECK_EQ(word(38) >> 8, 79);
    CHECK_EQ(word(40), 0xcafe);
    CHECK_EQ(word(42), div_at);
    CHECK_EQ(word(44), 0x200);
    CHECK_EQ(word(46), 0x7007);
    CHECK_EQ(word(48), 0x901);
    CHECK_EQ(word(50), 15);
    CHECK_EQ(word(52), 0);
    CHECK_EQ(word(54) & 0xff, 6);
    CHECK_EQ(word(56) | (u32)word(58) << 16, 0xfee1dead);
    CHECK_EQ(word(60), 0);
    if (left_out(TCG | LAB, "limits of segments in accesses")) return done();
    CHECK_EQ(word(62), gp_at);
    CHECK_EQ(word(68), GP);
    CHECK_EQ(word(70), edge_at);
    CHECK_EQ(word(72), GP);
    CHECK_EQ(word(74), ss_at);
    CHECK_EQ(word(76), SS);
    return done();
}
