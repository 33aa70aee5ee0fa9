// 32-bit user code under the 64-bit kernel: instructions that only exist there, 32-bit wrap-around, segments with bases and
// limits, #BR, #OF, and the same exceptions with exact frames.
#include "kernel.h"

static struct ctx c;

/* Defines NAME and how long it is. */
#define CODE32(name, text)                                                             \
    CODE_BITS(32, name, text "\n int $0x81\n .global " #name "_end\n " #name "_end:"); \
    LABEL(name##_end)

CODE32(arith, "mov $0xfffffffe, %eax; add $5, %eax; inc %ecx; dec %edx; lea 4(%ecx,%edx,2), %esi");
CODE32(
    bcd,
    "mov $0x59, %al; add $0x38, %al; daa; mov %eax, %ebx; mov $0x17, %al; aam; mov %eax, %ecx; mov $0x0205, %ax; aad; mov %eax, %edx");
CODE32(
    stack,
    "pusha; mov %esp, %eax; add $32, %esp; push %es; push $0x1234; pushw $0x77; popw %bx; pop %ecx; pop %es; enter $16, $0; leave");
CODE32(popa, "pusha; mov $0, %ebx; mov $0, %edi; popa");
CODE32(bound_ok, "mov $5, %eax; bound %eax, (%ebx)");
CODE32(bound_bad, "bound %eax, (%ebx)");
CODE32(into_of, "mov $0x7fffffff, %eax; add $1, %eax; into");
CODE32(into_no, "xor %eax, %eax; into");
CODE32(
    calls,
    "call 1f; jmp 2f; 1: mov (%esp), %eax; ret; 2: mov $3, %ecx; xor %edx, %edx; 3: inc %edx; loop 3b; jecxz 4f; ud2; 4: nop");
CODE32(lds_, "les (%ebx), %eax; mov %es:(%eax), %ecx");
CODE32(segbase, "mov %ecx, %es; mov %es:(%ebx), %eax");
CODE32(segstore, "mov %ecx, %es; mov %eax, %es:(%ebx)");
CODE32(seg_in, "mov %ecx, %es; mov %es:0x1000, %eax");
CODE32(seg_edge, "mov %ecx, %es; mov %es:0x1001, %eax");
CODE32(wrap, "mov 0x7fffffff(%ebx, %eax), %ecx");
CODE32(strings, "mov %ebx, %edi; mov $8, %ecx; mov $0x41, %al; cld; rep stosb; mov %ebx, %esi; lodsl");
CODE32(addr16, "xor %ebx, %ebx; addr16 lea 0x1234(%bx), %eax");
CODE32(op16, "mov $0x12345678, %eax; add $1, %ax; movw $-1, %cx; shlw $4, %cx; pushfw; popw %dx");
CODE32(div0, "xor %ecx, %ecx; div %ecx");
CODE32(bad_load, "mov (%ebx), %eax");
CODE32(no_rex, "inc %eax; dec %eax; inc %ebx"); /* 0x40.. are INC/DEC here */
CODE32(int80, "int $0x80");
CODE32(sse, "movups (%ebx), %xmm0; paddd %xmm0, %xmm0; movups %xmm0, (%ebx)");
CODE32(far, "ljmp *(%ebx)");
CODE32(lahf_, "mov $0xd5, %ah; sahf; lahf");
CODE32(arpl_, "mov $0x10, %eax; mov $3, %ecx; arpl %cx, %ax; setz %dl");

static u64 run(u8 *code, u8 *end)
{
    struct ctx keep = c;
    ctx_user32(&c, code, (u64)(end - code));
    c.gpr[RBX] = USER32_DATA;
    c.gpr[RAX] = keep.gpr[RAX];
    c.gpr[RCX] = keep.gpr[RCX];
    ctx_run(&c);
    CHECK_EQ(c.cs, SEL_UCODE32 | 3);
    return c.vector;
}
#define RUN(name) (c.gpr[RAX] = c.gpr[RCX] = 0, run(name, name##_end))
#define RUN_CX(name, cx) (c.gpr[RAX] = 0, c.gpr[RCX] = (cx), run(name, name##_end))
#define RUN_AX(name, ax) (c.gpr[RAX] = (ax), c.gpr[RCX] = 0, run(name, name##_end))

static void plain(void)
{
    CHECK_EQ(RUN(arith), END);
    CHECK_EQ(c.gpr[RAX], 3); /* upper halves stay zero */
    CHECK_EQ(c.gpr[RCX], 1);
    CHECK_EQ(RUN(bcd), END);
    CHECK_EQ(c.gpr[RBX] & 0xff, 0x97);
    CHECK_EQ(c.gpr[RCX] & 0xffff, 0x0203);
    CHECK_EQ(c.gpr[RDX] & 0xffff, 25);
    CHECK_EQ(RUN(stack), END);
    CHECK_EQ(c.gpr[RAX], USER32_STACK - 64 - 32);
    CHECK_EQ(c.gpr[RCX], 0x1234);
    CHECK_EQ(c.gpr[RBX] & 0xffff, 0x77);
    CHECK_EQ(c.gpr[RSP], USER32_STACK - 64);
    CHECK_EQ(RUN(popa), END);
    CHECK_EQ(c.gpr[RBX], USER32_DATA);
    CHECK_EQ(c.gpr[RDI], 0x17171717);
    CHECK_EQ(RUN(calls), END);
    CHECK_EQ(c.gpr[RDX], 3);
    CHECK_EQ(RUN(strings), END);
    CHECK_EQ(c.gpr[RAX], 0x41414141);
    CHECK_EQ(c.gpr[RDI], USER32_DATA + 8);
    CHECK_EQ(RUN(addr16), END);
    CHECK_EQ(c.gpr[RAX], 0x1234);
    CHECK_EQ(RUN(op16), END);
    CHECK_EQ(c.gpr[RAX], 0x12345679);
    CHECK_EQ(c.gpr[RCX] & 0xffff, 0xfff0);
    CHECK_EQ(RUN(no_rex), END);
    CHECK_EQ(c.gpr[RBX], USER32_DATA + 1);
    CHECK_EQ(RUN(lahf_), END);
    CHECK_EQ(c.gpr[RAX] >> 8 & 0xff, 0xd7);
    CHECK_EQ(RUN(arpl_), END);
    CHECK_EQ(c.gpr[RAX], 0x13);
    CHECK_EQ(c.gpr[RDX] & 0xff, 1);
    *(u32 *)USER32_DATA = 21;
    CHECK_EQ(RUN(sse), END);
    CHECK_EQ(*(u32 *)USER32_DATA, 42);
}

static void segments(void)
{
    u32 *data = (u32 *)USER32_DATA;
    bool checked = !left_out(TCG | LAB, "limits and types of segments in accesses");
    data[0] = 0xcafe, data[1] = 0xbabe;
    /* Base USER32_DATA - 0x1000, limit 0x1003 bytes. */
    u64 base = USER32_DATA - 0x1000;
    u64 descriptor = 0x1003 | (base & 0xffffff) << 16 | 0x40f3ul << 40 | (base >> 24) << 56;
    gdt[SEL_TEST / 8] = descriptor;
    if (checked) {
        CHECK_EQ(RUN_CX(segbase, SEL_TEST | 3), GP); /* EBX = USER32_DATA is far over the limit */
        CHECK_EQ(c.error, 0);
    }
    CHECK_EQ(RUN_CX(seg_in, SEL_TEST | 3), END);
    CHECK_EQ(c.gpr[RAX], 0xcafe);
    if (checked) CHECK_EQ(RUN_CX(seg_edge, SEL_TEST | 3), GP);     /* its last byte is over */
    gdt[SEL_TEST / 8] = (descriptor & ~(0xful << 40)) | 7ul << 40; /* expand-down: the offsets above the limit */
    if (checked) CHECK_EQ(RUN_CX(seg_in, SEL_TEST | 3), GP);
    gdt[SEL_TEST / 8] = (descriptor & ~(0xful << 40)) | 1ul << 40; /* read-only */
    CHECK_EQ(RUN_CX(seg_in, SEL_TEST | 3), END);
    if (checked) {
        CHECK_EQ(RUN_CX(segstore, SEL_TEST | 3), GP);
        CHECK_EQ(RUN_CX(segbase, 0), GP); /* a null segment can be loaded, not used */
        CHECK_EQ(c.error, 0);
    }
    data[0] = USER32_DATA + 4;
    *(u16 *)&data[1] = SEL_UDATA | 3;
    CHECK_EQ(RUN(lds_), END);
    CHECK_EQ(c.gpr[RCX] & 0xffff, SEL_UDATA | 3);
    /* Offsets wrap at 4 GiB. */
    data[0] = 0x600d;
    CHECK_EQ(RUN_AX(wrap, 0x80000001), END);
    CHECK_EQ(c.gpr[RCX], 0x600d);
    /* A jump to 64-bit code and back is a way out of compatibility mode. */
    CODE(code64, "mov $0x123456789abcdef0, %rax; int $0x81");
    memcpy((void *)(USER32_DATA + 0x100), code64, 16);
    data[0] = USER32_DATA + 0x100;
    *(u16 *)&data[1] = SEL_UCODE | 3;
    ctx_user32(&c, far, (u64)(far_end - far));
    c.gpr[RBX] = USER32_DATA;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.cs, SEL_UCODE | 3);
    CHECK_EQ(c.gpr[RAX], 0x123456789abcdef0ul);
}

static void exceptions(void)
{
    int *bounds = (int *)USER32_DATA;
    bounds[0] = -3, bounds[1] = 10;
    CHECK_EQ(RUN(bound_ok), END);
    CHECK_EQ(RUN_AX(bound_bad, 11), BR);
    CHECK_EQ(c.rip, USER32_CODE);
    CHECK_EQ(RUN_AX(bound_bad, (u32)-4), BR);
    CHECK_EQ(RUN_AX(bound_bad, (u32)-3), END);
    CHECK_EQ(RUN(into_of), OF);
    CHECK_EQ(c.rip, USER32_CODE + 9); /* a trap */
    CHECK_EQ(RUN(into_no), END);
    CHECK_EQ(RUN(div0), DE);
    CHECK_EQ(c.rip, USER32_CODE + 2);
    CHECK_EQ(RUN(int80), 0x80);
    CHECK_EQ(c.rip, USER32_CODE + 2);
    ctx_user32(&c, bad_load, 2);
    c.gpr[RBX] = 0x60000123;
    FAULTS(&c, PF, PF_U);
    CHECK_EQ(c.cr2, 0x60000123);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    plain();
    segments();
    exceptions();
    return done();
}
