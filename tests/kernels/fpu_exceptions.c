// #MF and #XM: pending x87 errors are reported at the next waiting instruction, SIMD errors at once; CR0.NE, CR4.OSXMMEXCPT.
#include "kernel.h"

CODE(x87_div, "fninit; movw $0x37e, (%rbx); fldcw (%rbx); fld1; fchs; fsqrt\n mf_next: nop\n mf_wait: fwait");
CODE(x87_div_then_fninit,
     "fninit; movw $0x37e, (%rbx); fldcw (%rbx); fld1; fchs; fsqrt; fnstsw %ax; fnclex; fld1; fwait");
CODE(x87_store, "fninit; movw $0x37e, (%rbx); fldcw (%rbx); fld1; fchs; fsqrt\n mf_store: fstpl (%rbx)");
CODE(sse_div,
     "movl $0x1d80, (%rbx); ldmxcsr (%rbx); movsd (%rcx), %xmm0; xorpd %xmm1, %xmm1\n xm_here: divsd %xmm1, %xmm0");
CODE(sse_bad_mxcsr, "ldmxcsr (%rbx)");
CODE(sse_mem,
     "movl $0x1d80, (%rbx); ldmxcsr (%rbx); xorpd %xmm1, %xmm1; movsd (%rcx), %xmm0\n xm_mem: divsd 8(%rcx), %xmm0");
LABEL(mf_wait);
LABEL(mf_store);
LABEL(xm_here);
LABEL(xm_mem);

static u64 scratch[4] __attribute__((aligned(16)));
static double numbers[2] __attribute__((aligned(16)));

static struct ctx c;

static void prepare(u8 *code)
{
    ctx_kernel(&c, code);
    c.gpr[RBX] = (u64)scratch;
    c.gpr[RCX] = (u64)numbers;
}

int main(void)
{
    set_cr0((cr0() | CR0_NE | CR0_MP) & ~(CR0_EM | CR0_TS));
    set_cr4(cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    *(u64 *)&numbers[0] = 0x3ff0000000000000ul; /* 1.0 */

    prepare(x87_div);
    CHECK_EQ(ctx_run(&c), MF);
    CHECK_EQ(c.rip, mf_wait);
    prepare(x87_div_then_fninit);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX] & 0x81, 0x81); /* IE and ES were seen */
    prepare(x87_store);
    if (!left_out(TCG | LAB, "x87 errors at FSTP")) {
        CHECK_EQ(ctx_run(&c), MF);
        CHECK_EQ(c.rip, mf_store);
    }
    __asm__ volatile("fninit");

    if (left_out(TCG | LAB, "SIMD exceptions, and reserved bits of MXCSR")) return done();
    prepare(sse_div);
    CHECK_EQ(ctx_run(&c), XM);
    CHECK_EQ(c.rip, xm_here);
    u32 mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    CHECK_EQ(mxcsr, 0x1d84); /* ZE is set, the destination was not written */
    u64 low;
    __asm__ volatile("movq %%xmm0, %0" : "=r"(low));
    CHECK_EQ(low, 0x3ff0000000000000ul);
    prepare(sse_mem);
    CHECK_EQ(ctx_run(&c), XM);
    CHECK_EQ(c.rip, xm_mem);

    /* Without OSXMMEXCPT the same is #UD. */
    set_cr4(cr4() & ~CR4_OSXMMEXCPT);
    prepare(sse_div);
    CHECK_EQ(ctx_run(&c), UD);
    CHECK_EQ(c.rip, xm_here);
    set_cr4(cr4() | CR4_OSXMMEXCPT);

    prepare(sse_bad_mxcsr); /* reserved bits */
    scratch[0] = 0x80000000;
    FAULTS(&c, GP, 0);
    scratch[0] = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(scratch));
    return done();
}
