// Operands of many instruction forms at every offset over a page boundary whose two pages are not neighbours in RAM, then with
// the second page, then both, being the test device's memory behind MMIO: the result is compared with the same instruction on an
// aligned operand in RAM. And with a read-only second page nothing may be written.
#include "kernel.h"

static struct ctx c;
static u8 reference[128] __attribute__((aligned(64)));
static const u64 edge = TEST_VA + PAGE;
static bool few;                 /* offsets only: where MMIO takes too long */
#define MMIO_MEMORY 0xff000000ul /* 64 KiB */
static u8 image[64], start_image[64], vectors[4][64] __attribute__((aligned(64)));

/* `name`, operand size in bytes, whether it writes memory, text with the operand at (%rbx). */
/* clang-format off */
#define FORMS(X)                                                                                                      \
    X(mov_load, 8, 0, "mov (%rbx), %rax")                                                                             \
    X(mov_store, 8, 1, "mov %rax, (%rbx)")                                                                            \
    X(mov_store2, 2, 1, "mov %ax, (%rbx)")                                                                            \
    X(mov_imm, 4, 1, "movl $0x12345678, (%rbx)")                                                                      \
    X(movzx, 2, 0, "movzwl (%rbx), %eax")                                                                             \
    X(movsx, 4, 0, "movslq (%rbx), %rax")                                                                             \
    X(movbe_, 8, 0, "bswap %rax; xor (%rbx), %rax")                                                                   \
    X(add, 8, 1, "add %rax, (%rbx)")                                                                                  \
    X(adc, 4, 1, "stc; adc %eax, (%rbx)")                                                                             \
    X(sub2, 2, 1, "sub %ax, (%rbx)")                                                                                  \
    X(inc, 8, 1, "incq (%rbx)")                                                                                       \
    X(neg, 4, 1, "negl (%rbx)")                                                                                       \
    X(not_, 8, 1, "notq (%rbx)")                                                                                      \
    X(shl, 8, 1, "shlq %cl, (%rbx)")                                                                                  \
    X(rcr, 4, 1, "clc; rcrl %cl, (%rbx)")                                                                             \
    X(shld, 8, 1, "shld %cl, %rax, (%rbx)")                                                                           \
    X(bts, 8, 1, "btsq $37, (%rbx)")                                                                                  \
    X(bt, 4, 0, "btl $19, (%rbx)")                                                                                    \
    X(btc_reg, 16, 0, "mov $66, %eax; btc %eax, (%rbx); mov $-1, %rax; btcq %rax, 8(%rbx)")                                         \
    X(xchg, 8, 1, "xchg %rax, (%rbx)")                                                                                \
    X(lock_xadd, 8, 1, "lock xadd %rax, (%rbx)")                                                                      \
    X(lock_or, 4, 1, "lock orl $0x10101, (%rbx)")                                                                     \
    X(cmpxchg, 8, 1, "mov (%rbx), %rax; lock cmpxchg %rdx, (%rbx)")                                                   \
    X(cmpxchg_no, 8, 1, "lock cmpxchg %rdx, (%rbx)")                                                                  \
    X(cmpxchg8b, 8, 1, "mov (%rbx), %eax; mov 4(%rbx), %edx; push %rbx; mov %rbx, %rsi; mov $5, %ebx; lock cmpxchg8b (%rsi); pop %rbx") \
    X(mul, 8, 0, "mulq (%rbx)")                                                                                       \
    X(imul, 4, 0, "imul (%rbx), %eax")                                                                                \
    X(div, 8, 0, "xor %edx, %edx; orb $1, (%rbx); divq (%rbx)")                                                       \
    X(cmov, 8, 0, "test %rax, %rax; cmovz (%rbx), %rax")                                                              \
    X(push, 8, 0, "pushq (%rbx); pop %rax")                                                                           \
    X(pop, 8, 1, "push %rcx; popq (%rbx)")                                                                            \
    X(movs_from, 8, 0, "mov %rbx, %rsi; lea -64(%rsp), %rdi; movsq; mov -64(%rsp), %rax")                             \
    X(movs_to, 8, 1, "mov %rbx, %rdi; lea vectors(%rip), %rsi; movsq")                                                \
    X(stos, 4, 1, "mov %rbx, %rdi; stosl")                                                                            \
    X(lods, 8, 0, "mov %rbx, %rsi; lodsq")                                                                            \
    X(scas, 4, 0, "mov %rbx, %rdi; scasl")                                                                            \
    X(cmps, 8, 0, "mov %rbx, %rdi; lea vectors(%rip), %rsi; cmpsq")                                                   \
    X(fld, 8, 0, "fninit; fldl (%rbx); fstpl -64(%rsp); mov -64(%rsp), %rax")                                         \
    X(fstp, 10, 1, "fninit; fldpi; fstpt (%rbx)")                                                                     \
    X(fild, 8, 0, "fninit; fildll (%rbx); fistpll -64(%rsp); mov -64(%rsp), %rax")                                    \
    X(fnstenv, 28, 1, "fninit; fnstenv (%rbx)")                                                                       \
    X(movups_st, 16, 1, "movups %xmm1, (%rbx)")                                                                       \
    X(movups_ld, 16, 0, "movups (%rbx), %xmm2; movq %xmm2, %rax")                                                     \
    X(movdqu, 16, 1, "movdqu %xmm3, (%rbx)")                                                                          \
    X(movss, 4, 1, "movss %xmm1, (%rbx)")                                                                             \
    X(movhps, 8, 1, "movhps %xmm1, (%rbx)")                                                                           \
    X(cvt, 8, 0, "cvttsd2si (%rbx), %rax")                                                                            \
    X(addsd, 8, 0, "xorps %xmm2, %xmm2; addsd (%rbx), %xmm2; movq %xmm2, %rax")                                                           \
    X(mmx, 8, 1, "movq %mm1, (%rbx)")                                                                                 \
    X(stmxcsr, 4, 1, "stmxcsr (%rbx)")                                                                                \
    X(movnti, 8, 1, "movnti %rax, (%rbx)")                                                                            \
    X(sldt, 2, 1, "sldt (%rbx)")                                                                                      \
    X(smsw, 2, 1, "smsw (%rbx)")                                                                                      \
    X(sidt, 10, 1, "sidt (%rbx)")                                                                                     \
    X(mov_seg, 2, 1, "mov %ss, (%rbx)")                                                                               \
    X(call_mem, 8, 0, "lea 1f(%rip), %rax; mov %rax, (%rbx); call *(%rbx); 1: pop %rax; xor %eax, %eax; mov %rax, (%rbx)")
#define AVX_FORMS(X)                                                                                                  \
    X(vmovups_st, 32, 1, "vmovups %ymm1, (%rbx)")                                                                     \
    X(vmovups_ld, 32, 0, "vmovups (%rbx), %ymm2; vmovq %xmm2, %rax")                                                  \
    X(vpaddb, 32, 0, "vpaddb (%rbx), %ymm3, %ymm4; vmovq %xmm4, %rax")                                                \
    X(vbroadcast, 8, 0, "vbroadcastsd (%rbx), %ymm4; vmovq %xmm4, %rax")                                              \
    X(vextract, 16, 1, "vextractf128 $1, %ymm3, (%rbx)")                                                              \
    X(vmaskmov, 32, 1, "vmaskmovps %ymm3, %ymm1, (%rbx)")
/* clang-format on */

#define DEFINE(name, size, writes, text) CODE(form_##name, text);
FORMS(DEFINE)
AVX_FORMS(DEFINE)
#define ENTRY(name, size, writes, text) {#name, form_##name, size, writes},
static const struct form {
    const char *name;
    u8 *code;
    u32 size;
    bool writes;
} forms[] = {FORMS(ENTRY)}, avx_forms[] = {AVX_FORMS(ENTRY)};

static void fill(void)
{
    for (unsigned i = 0; i < 64; i++) start_image[i] = (u8)(i * 37 + 11);
}

static void put(u64 at)
{
    memcpy((void *)at, start_image, 64);
}

static void run(const struct form *f, u64 at)
{
    ctx_kernel(&c, f->code);
    c.gpr[RBX] = at;
    c.gpr[RCX] = 5;
    c.gpr[RDX] = 0x7777;
    ctx_run(&c);
}

static void try(const struct form *f, bool avx, const char *layout, bool read_only)
{
    u64 aligned = (u64)reference;
    put(aligned);
    run(f, aligned);
    struct ctx want = c;
    memcpy(image, (void *)aligned, 64);
    CHECK_EQ(want.vector, END);
    for (u64 before = 0; before <= f->size; before += few ? f->size / 4 + 1 : 1) {
        u64 at = edge - before;
        put(at);
        run(f, at);
        bool ok = CHECK_EQ(c.vector, END) && CHECK_EQ(c.gpr[RAX], want.gpr[RAX]) && CHECK_EQ(c.gpr[RDX], want.gpr[RDX]);
        u64 defined = f->code == form_mul || f->code == form_imul ? FL_CF | FL_OF : FL_ARITH;
        if (f->code != form_div) ok &= CHECK_EQ(c.rflags & defined, want.rflags & defined);
        ok &= memcmp((void *)at, image, 64) == 0 || CHECK(!"memory as with an aligned operand");
        if (!ok) {
            print("    %s, %s, %lu bytes before the boundary\n", f->name, layout, before);
            return;
        }
    }
    /* The instruction that writes is the form's first one with its operand: skip forms that prepare it first. */
    if (!f->writes || avx || !read_only) return;
    u64 at = edge - 1;
    put(at);
    *pte_of(edge, 1) &= ~PTE_W;
    invlpg(edge);
    run(f, at);
    if (!CHECK_EQ(c.vector, PF) || !CHECK_EQ(c.cr2, edge) || !CHECK_EQ(c.error, PF_P | PF_W) ||
        !CHECK(memcmp((void *)at, start_image, 64) == 0))
        print("    %s, second page read-only\n", f->name);
    *pte_of(edge, 1) |= PTE_W;
    invlpg(edge);
}

CODE(movaps_form, "movaps (%rbx), %xmm2");
CODE(paddd_form, "paddd (%rbx), %xmm2");
CODE(movntdq_form, "movntdq %xmm1, (%rbx)");

/* Forms that want alignment insist on it on every path. */
static void aligned_forms(const char *layout)
{
    static u8 *const code[] = {movaps_form, paddd_form, movntdq_form};
    for (unsigned i = 0; i < 3; i++)
        for (u64 at = edge - 24; at < edge + 32; at += 8) {
            ctx_kernel(&c, code[i]);
            c.gpr[RBX] = at;
            if (!(at % 16 ? FAULTS(&c, GP, 0) : COMPLETES(&c))) print("    %s, at %lx\n", layout, at);
        }
}

static void vectors_on(void)
{
    __asm__ volatile("movups %0, %%xmm1; movups %1, %%xmm3; movq %0, %%mm1" ::"m"(vectors[0]), "m"(vectors[1]));
}

static bool in_kvms_emulator(const struct form *f)
{
    static u8 *const not [] = {form_fld, form_fstp,  form_fild, form_fnstenv, form_movss, form_movhps,
                               form_cvt, form_addsd, form_mmx,  form_stmxcsr, form_sidt};
    for (unsigned i = 0; i < sizeof not / sizeof *not ; i++)
        if (f->code == not [i]) return false;
    return true;
}

/* All forms, with these frames behind TEST_VA and TEST_VA + PAGE. */
static void all_forms(u64 low, u64 high, const char *layout, bool read_only)
{
    bool mmio = !read_only, emulated = !mmio || !left_out(ONKVM, "SSE, x87 and other forms on MMIO");
    map_page(TEST_VA, low, PTE_W);
    map_page(edge, high, PTE_W);
    for (unsigned i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (!emulated && mmio && !in_kvms_emulator(&forms[i])) continue;
        vectors_on();
        try(&forms[i], false, layout, read_only);
    }
    if (emulated) aligned_forms(layout);
    if (!(cr4() & CR4_OSXSAVE)) return;
    __asm__ volatile("vmovups %0, %%ymm1; vmovups %1, %%ymm3" ::"m"(vectors[0]), "m"(vectors[1]));
    __asm__ volatile("vpcmpeqb %ymm1, %ymm1, %ymm1"); /* mask: all lanes */
    for (unsigned i = 0; i < sizeof avx_forms / sizeof *avx_forms; i++) try(&avx_forms[i], true, layout, false);
}

/* ---- what only shows on a page border ---- */

CODE(load16, "movups (%rbx), %xmm2; movq %xmm2, %rax");
CODE(load8, "mov (%rbx), %rax");
CODE(store8, "mov %rax, (%rbx)");
CODE(store16, "movups %xmm1, (%rbx)");
CODE(add8, "add %rax, (%rbx)");
static const struct {
    u8 *code;
    u32 size;
    bool reads, writes;
} plain[] = {{load16, 16, true, false},
             {load8, 8, true, false},
             {store8, 8, false, true},
             {store16, 16, false, true},
             {add8, 8, true, true}};

static bool reads_first; /* wrong, as QEMU's CPU does it: add8's faults report a read */

static u64 cross(unsigned n, u64 before)
{
    ctx_kernel(&c, plain[n].code);
    c.gpr[RBX] = edge - before;
    return ctx_run(&c);
}

/* The fault is that of the first byte that cannot be accessed, and nothing is written; the code has run with both pages there before. */
static void missing_pages(const char *layout)
{
    for (unsigned n = 0; n < sizeof plain / sizeof *plain; n++)
        for (unsigned first = 0; first < 3; first++) { /* the first page missing, the second, both */
            u64 low = *pte_of(TEST_VA, 1), high = *pte_of(edge, 1), at = edge - 5;
            put(edge - 32);
            CHECK_EQ(cross(n, 5), END);
            put(edge - 32);
            memcpy(image, (void *)(edge - 32), 64);
            if (first != 1) *pte_of(TEST_VA, 1) = 0;
            if (first != 0) *pte_of(edge, 1) = 0;
            invlpg(TEST_VA);
            invlpg(edge);
            bool ok = CHECK_EQ(cross(n, 5), PF) && CHECK_EQ(c.cr2, first == 1 ? edge : at) &&
                      CHECK_EQ(c.error, plain[n].writes && !(plain[n].reads && reads_first) ? PF_W : 0);
            *pte_of(TEST_VA, 1) = low;
            *pte_of(edge, 1) = high;
            invlpg(TEST_VA);
            invlpg(edge);
            ok &= CHECK(memcmp((void *)(edge - 32), image, 64) == 0);
            if (!ok) print("    form %u, %s, missing %u\n", n, layout, first);
        }
}

/* Both pages get their accessed bits, those written their dirty bits, also when only one lacks them. */
static void accessed_dirty(const char *layout)
{
    for (unsigned n = 0; n < sizeof plain / sizeof *plain; n++)
        for (unsigned without = 1; without < 4; without++) {
            CHECK_EQ(cross(n, 3), END);
            for (unsigned i = 0; i < 2; i++) {
                u64 va = TEST_VA + i * PAGE;
                if (without & 1u << i) *pte_of(va, 1) &= ~(PTE_A | PTE_D);
                invlpg(va);
            }
            CHECK_EQ(cross(n, 3), END);
            u64 want = PTE_A | (plain[n].writes ? PTE_D : 0), got = *pte_of(TEST_VA, 1) & *pte_of(edge, 1);
            bool clean = plain[n].writes || !(without & 1) || !(*pte_of(TEST_VA, 1) & PTE_D);
            if (!CHECK_EQ(got & want, want) || !CHECK(clean)) print("    form %u, %s\n", n, layout);
        }
}

/* A function at the start of the second page, changed by a store that begins in the first. */
static void code_behind(const char *layout)
{
    u8 *code = (u8 *)edge;
    static const u8 returns[] = {0xb8, 1, 0, 0, 0, 0xc3}; /* mov $1, %eax; ret */
    memcpy(code, returns, sizeof returns);
    for (u32 v = 1; v < 50; v++) {
        for (unsigned again = 0; again < 2; again++) CHECK_EQ(((u32(*)(void))edge)(), v);
        ctx_kernel(&c, store8); /* ... mov $v+1, low two bytes */
        c.gpr[RBX] = edge - 5;
        c.gpr[RAX] = 0xb8ul << 40 | (u64)(v + 1) << 48;
        if (!CHECK_EQ(ctx_run(&c), END)) return;
        if (!CHECK_EQ(((u32(*)(void))edge)(), v + 1)) {
            print("    %s\n", layout);
            return;
        }
    }
}

/* A loop over an array of unaligned vectors: sums as of its bytes, whatever else a site has met before. */
CODE(sum_loop,
     "pxor %xmm0, %xmm0; 1: movups (%rbx), %xmm2; paddq %xmm2, %xmm0; movups 7(%rbx), %xmm3; pxor %xmm3, %xmm0;"
     "mov %rax, (%rdi); mov (%rbx), %rax; add $16, %rbx; add $8, %rdi; dec %rcx; jnz 1b; movq %xmm0, %rdx");

static void loops(const char *layout)
{
    u8 *flat = (u8 *)pages_alloc(2, PAGE);
    u64 seed = 5, digest[2], rdx[2];
    for (unsigned round = 0; round < 40; round++) {
        for (unsigned i = 0; i < 2; i++) {
            u64 base = i ? TEST_VA : (u64)flat, r = seed;
            for (unsigned k = 0; k < 2 * PAGE / 8; k++) ((u64 *)base)[k] = random64(&r);
            ctx_kernel(&c, sum_loop);
            c.gpr[RBX] = base + round;
            c.gpr[RDI] = base + PAGE - 100 + round * 3;
            c.gpr[RCX] = 500;
            c.gpr[RAX] = 7;
            CHECK_EQ(ctx_run(&c), END);
            rdx[i] = c.gpr[RDX] + c.gpr[RAX];
            digest[i] = 0;
            for (unsigned k = 0; k < 2 * PAGE / 8; k++) digest[i] = digest[i] * 31 + ((u64 *)base)[k];
        }
        seed += 2;
        if (!CHECK_EQ(rdx[1], rdx[0]) || !CHECK_EQ(digest[1], digest[0])) {
            print("    %s, round %u\n", layout, round);
            return;
        }
    }
}

static void borders(u64 low, u64 high, const char *layout)
{
    all_forms(low, high, layout, true);
    missing_pages(layout);
    accessed_dirty(layout);
    code_behind(layout);
    loops(layout);
}

int main(void)
{
    u64 frames = (u64)pages_alloc(3, PAGE);
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    fill();
    memcpy(vectors, "abcdefghijklmnopqrstuvwxyz0123456789", 36);
    memset(vectors[1], 0xc0, 64);
    if (HAS_AVX2 && HAS_XSAVE && left_out(LAB, "XSETBV: under KVM it is not seen")) {
    } else if (HAS_AVX2 && HAS_XSAVE) {
        set_cr4(cr4() | CR4_OSXSAVE);
        xsetbv(0, 7);
    } else {
        skip("AVX2");
    }
    reads_first = left_out(TCG | LAB, "faults of instructions that read and write");
    borders(frames + 2 * PAGE, frames, "RAM and RAM");
    borders(frames, frames + PAGE, "neighbours in RAM");
    few = left_out(LAB, "most offsets on MMIO, since they take minutes");
    *(volatile u32 *)MMIO_MEMORY = 0x12345678;
    if (*(volatile u32 *)MMIO_MEMORY == 0x12345678) {
        all_forms(frames, MMIO_MEMORY, "RAM and MMIO", false);
        if (!few) all_forms(MMIO_MEMORY + 3 * PAGE, frames, "MMIO and RAM", false);
        all_forms(MMIO_MEMORY + 2 * PAGE, MMIO_MEMORY, "MMIO and MMIO", false);
    } else {
        skip("memory behind MMIO");
    }
    return done();
}
