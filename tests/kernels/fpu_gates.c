// Who may use which register file: CR0.TS and EM, CR4.OSFXSR, CR4.OSXSAVE and XCR0, for x87, MMX, SSE and AVX.
#include "kernel.h"

CODE(x87, "fld1; fstp %st(0)");
CODE(mmx, "movq %mm0, %mm1");
CODE(sse, "movaps %xmm0, %xmm1");
CODE(sse_load, "movups (%rbx), %xmm1");
CODE(avx, "vmovaps %ymm0, %ymm1");
CODE(fwait_, "fwait");
CODE(do_xgetbv, "xgetbv");
CODE(do_xsetbv, "xsetbv");
CODE(do_clts, "clts");
CODE(sse_no_fpu, "sfence; prefetchnta (%rbx); movnti %eax, (%rbx)");
CODE(do_fxsave, "fxsave (%rbx)");

static u8 buffer[1024] __attribute__((aligned(64)));
static struct ctx c;

static void expect(u8 *code, u64 vector)
{
    for (int u = 0; u < 2; u++) {
        u ? ctx_user(&c, code) : ctx_kernel(&c, code);
        c.gpr[RBX] = (u64)(u ? user(buffer) : buffer);
        bool ok = vector == END ? COMPLETES(&c) : FAULTS(&c, vector, 0);
        if (!ok) print("    code %p, user %u, cr0 %lx cr4 %lx\n", (void *)code, u, cr0(), cr4());
    }
}

static void set_xcr0(u64 v, u64 vector)
{
    ctx_kernel(&c, do_xsetbv);
    c.gpr[RAX] = (u32)v, c.gpr[RDX] = v >> 32, c.gpr[RCX] = 0;
    vector == END ? COMPLETES(&c) : FAULTS(&c, vector, 0);
}

int main(void)
{
    u64 plain0 = (cr0() | CR0_MP | CR0_NE) & ~(CR0_TS | CR0_EM), plain4 = cr4() & ~(CR4_OSFXSR | CR4_OSXSAVE);
    set_cr0(plain0);
    set_cr4(plain4);
    expect(x87, END);
    expect(sse, UD); /* no OSFXSR */
    expect(sse_load, UD);
    expect(sse_no_fpu, END);
    set_cr4(plain4 | CR4_OSFXSR);
    expect(sse, END);
    expect(mmx, END);

    set_cr0(plain0 | CR0_TS);
    expect(x87, NM);
    expect(mmx, NM);
    expect(sse, NM);
    expect(sse_load, NM);
    expect(fwait_, NM); /* MP and TS */
    expect(do_fxsave, NM);
    expect(sse_no_fpu, END);
    set_cr0((plain0 | CR0_TS) & ~CR0_MP);
    expect(fwait_, END);
    ctx_kernel(&c, do_clts);
    COMPLETES(&c);
    CHECK_EQ(cr0() & CR0_TS, 0);
    set_cr0(plain0);
    expect(x87, END); /* and again, after it was refused */

    set_cr0(plain0 | CR0_EM);
    expect(x87, NM);
    expect(mmx, UD);
    expect(sse, UD);
    set_cr0(plain0);
    expect(sse, END);

    expect(avx, UD); /* no OSXSAVE */
    expect(do_xgetbv, UD);
    if (!HAS_XSAVE || !HAS_AVX) {
        skip("AVX");
        return done();
    }
    if (left_out(LAB, "XSETBV: under KVM it is not seen")) return done();
    set_cr4(plain4 | CR4_OSFXSR | CR4_OSXSAVE);
    xsetbv(0, 1);
    expect(avx, UD);
    expect(sse, END); /* SSE does not ask XCR0 */
    xsetbv(0, 3);
    expect(avx, UD);
    xsetbv(0, 7);
    expect(avx, END);
    set_cr0(plain0 | CR0_TS);
    expect(avx, NM);
    set_cr0(plain0);
    expect(avx, END);
    set_xcr0(5, GP); /* AVX without SSE */
    set_xcr0(6, GP); /* x87 is always on */
    set_xcr0(1ul << 62 | 7, GP);
    CHECK_EQ(xgetbv(0), 7);
    ctx_user(&c, do_xsetbv);
    c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RCX] = 0;
    FAULTS(&c, GP, 0);
    ctx_kernel(&c, do_xsetbv); /* there is only XCR0 */
    c.gpr[RAX] = 7, c.gpr[RDX] = 0, c.gpr[RCX] = 1;
    FAULTS(&c, GP, 0);
    set_cr4(plain4 | CR4_OSFXSR);
    expect(avx, UD);
    return done();
}
