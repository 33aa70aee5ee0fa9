// MMIO operands of many instruction forms. The register under test is the LAPIC timer's initial count (32 bits that read back as
// written); wider operands go to a hole in the address map, where nothing answers: reads are constant, writes vanish.
#include "kernel.h"

#define COUNT (LAPIC + 0x380)
#define HOLE 0xd0000000ul

static struct ctx c;
static const u64 ram_page = TEST_VA, hole_page = TEST_VA + PAGE, ram_page2 = TEST_VA + 2 * PAGE;

/* text with the operand at (%rbx), before: the register, RAX = a, RCX = 5; after: the register and EAX. */
/* clang-format off */
#define FORMS(X)                                                                                                      \
    X(load, "mov (%rbx), %eax", 0x12345678, 0x12345678, 0x12345678)                                                   \
    X(store, "mov %eax, (%rbx)", 1, 0x1000000f, 0x1000000f)                                                           \
    X(store_imm, "movl $0x7654321, (%rbx)", 1, 0x7654321, 0x1000000f)                                                 \
    X(add, "add %eax, (%rbx)", 5, 0x10000014, 0x1000000f)                                                             \
    X(add_load, "add (%rbx), %eax", 5, 5, 0x10000014)                                                                 \
    X(sub, "subl $3, (%rbx)", 5, 2, 0x1000000f)                                                                       \
    X(and, "and %eax, (%rbx)", 0x11, 1, 0x1000000f)                                                                   \
    X(or, "orl $0x100, (%rbx)", 1, 0x101, 0x1000000f)                                                                 \
    X(xor, "lock xorl $0xff, (%rbx)", 0x1f, 0xe0, 0x1000000f)                                                         \
    X(inc, "incl (%rbx)", 8, 9, 0x1000000f)                                                                           \
    X(dec, "lock decl (%rbx)", 8, 7, 0x1000000f)                                                                      \
    X(neg, "negl (%rbx)", 1, 0xffffffff, 0x1000000f)                                                                  \
    X(not, "notl (%rbx)", 1, 0xfffffffe, 0x1000000f)                                                                  \
    X(shl, "shll %cl, (%rbx)", 3, 0x60, 0x1000000f)                                                                   \
    X(ror, "rorl $4, (%rbx)", 0x12, 0x20000001, 0x1000000f)                                                           \
    X(shld, "shldl $8, %eax, (%rbx)", 0x22334455, 0x33445510, 0x1000000f)                                             \
    X(bts, "btsl $7, (%rbx)", 1, 0x81, 0x1000000f)                                                                    \
    X(btr, "btrl %ecx, (%rbx)", 0x21, 1, 0x1000000f)                                                                  \
    X(bt, "btl $4, (%rbx); sbb %eax, %eax", 0x10, 0x10, 0xffffffff)                                                   \
    X(cmp, "cmpl $7, (%rbx); sete %al; movzx %al, %eax", 7, 7, 1)                                                     \
    X(test, "test %eax, (%rbx); setz %al; movzx %al, %eax", 0x10, 0x10, 1)                                            \
    X(xchg, "xchg %eax, (%rbx)", 0x33, 0x1000000f, 0x33)                                                              \
    X(xadd, "xadd %eax, (%rbx)", 0x33, 0x10000042, 0x33)                                                              \
    X(lock_xadd, "lock xadd %eax, (%rbx)", 0x33, 0x10000042, 0x33)                                                    \
    X(cmpxchg, "cmpxchg %ecx, (%rbx)", 0x1000000f, 5, 0x1000000f)                                                     \
    X(cmpxchg_no, "lock cmpxchg %ecx, (%rbx)", 9, 9, 9)                                                               \
    X(movs_from, "mov %rbx, %rsi; lea -64(%rsp), %rdi; movsl; mov -64(%rsp), %eax", 0x77, 0x77, 0x77)                 \
    X(movs_to, "mov %eax, -64(%rsp); lea -64(%rsp), %rsi; mov %rbx, %rdi; movsl", 1, 0x1000000f, 0x1000000f)          \
    X(movs_mmio, "mov %rbx, %rsi; mov %rbx, %rdi; movsl", 0x66, 0x66, 0x1000000f)                                     \
    X(stos, "mov %rbx, %rdi; stosl", 1, 0x1000000f, 0x1000000f)                                                       \
    X(lods, "mov %rbx, %rsi; lodsl", 0x88, 0x88, 0x88)                                                                \
    X(scas, "mov %rbx, %rdi; scasl; setz %al; movzx %al, %eax", 0x1000000f, 0x1000000f, 1)                            \
    X(cmov, "test %eax, %eax; cmovnz (%rbx), %eax", 0x99, 0x99, 0x99)                                                 \
    X(cmov_no, "test %eax, %eax; cmovz (%rbx), %eax", 0x99, 0x99, 0x1000000f)                                         \
    X(imul, "imull $3, (%rbx), %eax", 7, 7, 21)                                                                       \
    X(mul, "mov $2, %eax; mull (%rbx)", 21, 21, 42)                                                                   \
    X(div, "xor %edx, %edx; divl (%rbx)", 0x10, 0x10, 0x1000000)                                                      \
    X(movsx, "movslq (%rbx), %rax; shr $32, %rax", 0x80000000, 0x80000000, 0xffffffff)                                \
    X(movd, "movd (%rbx), %xmm0; movd %xmm0, %eax", 0x4321, 0x4321, 0x4321)                                           \
    X(movd_to, "movd %eax, %xmm0; movd %xmm0, (%rbx)", 1, 0x1000000f, 0x1000000f)                                     \
    X(movss, "movss (%rbx), %xmm0; addss %xmm0, %xmm0; movss %xmm0, (%rbx)", 0x3f800000, 0x40000000, 0x1000000f)      \
    X(cvt, "cvttss2si (%rbx), %eax", 0x41200000, 0x41200000, 10)                                                      \
    X(fild, "fninit; fildl (%rbx); fld1; faddp; fistpl (%rbx)", 41, 42, 0x1000000f)                                   \
    X(mov32_abs, "mov %ebx, %ebx; mov 0(%ebx), %eax", 0x55aa, 0x55aa, 0x55aa)                                         \
    X(indexed, "shr $2, %rbx; mov (, %rbx, 4), %eax", 0x55ab, 0x55ab, 0x55ab)
/* clang-format on */

#define DEFINE(name, text, before, after, eax) CODE(form_##name, text);
FORMS(DEFINE)
#define ENTRY(name, text, before, after, eax) {#name, form_##name, before, after, eax},
static const struct form {
    const char *name;
    u8 *code;
    u32 before, after, eax;
} forms[] = {FORMS(ENTRY)};

static bool is_floating(const u8 *code)
{
    return code == form_movd || code == form_movd_to || code == form_movss || code == form_cvt || code == form_fild;
}

static void registers(void)
{
    apic_write(0x320, 0x10040); /* timer masked */
    bool sse = !left_out(ONKVM, "SSE and x87 on MMIO");
    for (unsigned i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i];
        if (!sse && is_floating(f->code)) continue;
        ctx_kernel(&c, f->code);
        c.gpr[RAX] = 0x1000000f;
        c.gpr[RBX] = COUNT;
        c.gpr[RCX] = 5;
        apic_write(0x380, f->before);
        ctx_run(&c);
        if (!CHECK_EQ(c.vector, END) || !CHECK_EQ(apic_read(0x380), f->after) || !CHECK_EQ((u32)c.gpr[RAX], f->eax))
            print("    %s: rip %lx\n", f->name, c.rip);
    }
}

CODE(hole_load8, "mov (%rbx), %rax");
CODE(hole_store8, "mov %rax, (%rbx)");
CODE(hole_push, "pushq (%rbx); pop %rax");
CODE(hole_pop, "push %rax; popq (%rbx)");
CODE(hole_sse, "movups (%rbx), %xmm0; movq %xmm0, %rax; movups %xmm1, (%rbx)");
CODE(hole_cx16, "mov (%rbx), %rax; mov 8(%rbx), %rdx; mov %rbx, %rsi; lock cmpxchg16b (%rsi); mov (%rsi), %rax");
CODE(hole_fst, "fninit; fldpi; fstpt (%rbx); mov (%rbx), %rax");
CODE(hole_avx, "vmovups (%rbx), %ymm0; vmovq %xmm0, %rax; vmovups %ymm1, (%rbx)");
CODE(hole_fxsave, "fxsave (%rbx); mov (%rbx), %rax");
CODE(hole_lgdt, "sgdt (%rbx); mov (%rbx), %rax");

static void holes(u64 constant)
{
    static u8 *const code[] = {hole_load8, hole_push, hole_sse, hole_cx16, hole_fst, hole_fxsave, hole_lgdt};
    bool wide = !left_out(ONKVM, "CMPXCHG16B, FSTP, FXSAVE and SGDT on MMIO");
    for (unsigned i = 0; i < sizeof code / sizeof *code; i++) {
        if (!wide && (code[i] == hole_cx16 || code[i] == hole_fst || code[i] == hole_fxsave || code[i] == hole_lgdt))
            continue;
        ctx_kernel(&c, code[i]);
        c.gpr[RBX] = hole_page + 0x40;
        if (COMPLETES(&c) && !CHECK_EQ(c.gpr[RAX], constant)) print("    hole form %u\n", i);
    }
    for (u64 at = hole_page + 0x40; at < hole_page + 0x48; at++) { /* every alignment */
        ctx_kernel(&c, hole_load8);
        c.gpr[RBX] = at;
        if (COMPLETES(&c)) CHECK_EQ(c.gpr[RAX], constant);
        ctx_kernel(&c, hole_store8);
        c.gpr[RBX] = at;
        COMPLETES(&c);
        ctx_kernel(&c, hole_pop);
        c.gpr[RBX] = at;
        COMPLETES(&c);
    }
    if (HAS_AVX2 && HAS_XSAVE && !left_out(ONKVM, "AVX on MMIO")) {
        set_cr4(cr4() | CR4_OSXSAVE);
        xsetbv(0, 7);
        ctx_kernel(&c, hole_avx);
        c.gpr[RBX] = hole_page + 0x60;
        if (COMPLETES(&c)) CHECK_EQ(c.gpr[RAX], constant);
    }
}

/* Operands half in RAM, half in the hole; and REP over RAM, hole, RAM. */
static void mixed(u64 constant)
{
    u64 at = hole_page - 4;
    *(u32 *)at = 0x11223344;
    CHECK_EQ(*(volatile u64 *)at, 0x11223344 | constant << 32);
    *(volatile u64 *)at = 0xaabbccddeeff0011ul;
    CHECK_EQ(*(volatile u32 *)at, 0xeeff0011);
    at = ram_page2 - 4;
    *(volatile u64 *)at = 0x8877665544332211ul;
    CHECK_EQ(*(volatile u32 *)ram_page2, 0x88776655);
    CHECK_EQ(*(volatile u64 *)at, 0x8877665500000000ul | (u32)constant);

    memset((void *)ram_page, 0x11, PAGE);
    memset((void *)ram_page2, 0x22, PAGE);
    memset((void *)(ram_page + 100), 0x5a, 2 * PAGE + 100); /* REP STOSB */
    CHECK_EQ(*(u8 *)(ram_page + 99), 0x11);
    CHECK_EQ(*(u8 *)(ram_page + 100), 0x5a);
    CHECK_EQ(*(u8 *)(ram_page2 - PAGE - 1), 0x5a);
    CHECK_EQ(*(u8 *)(ram_page2 + 199), 0x5a);
    CHECK_EQ(*(u8 *)(ram_page2 + 200), 0x22);
    static u8 copy[3 * PAGE];
    memcpy(copy, (void *)(ram_page + 50), 2 * PAGE + 200); /* REP MOVSB */
    CHECK_EQ(copy[49], 0x11);
    CHECK_EQ(copy[50], 0x5a);
    CHECK_EQ(copy[PAGE - 51], 0x5a);
    CHECK_EQ(copy[PAGE - 50], (u8)constant);
    CHECK_EQ(copy[2 * PAGE - 51], (u8)constant);
    CHECK_EQ(copy[2 * PAGE - 50], 0x5a);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    registers();
    u8 *frames = pages_alloc(2, PAGE);
    map_page(ram_page, (u64)frames, PTE_W);
    map_page(hole_page, HOLE, PTE_W | PTE_PCD);
    map_page(ram_page2, (u64)frames + PAGE, PTE_W);
    u64 constant = *(volatile u8 *)hole_page ? -1ul : 0; /* a PC floats to ones; QEMU gives zeros */
    if (!left_out(TCG, "holes read as ones")) CHECK_EQ(constant, -1ul);
    holes(constant);
    mixed(constant);
    return done();
}
