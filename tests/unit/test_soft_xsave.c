/* xsave.c: the host's own XSAVE and XRSTOR on a plain buffer say what the guest's memory must look like. */
#include "tests/unit/soft_sys_rig.h"

#define AREA_SIZE 4096
#define IMAGE 0x40000ull /* where the guest saves to */

struct area {
    uint8_t b[AREA_SIZE];
} __attribute__((aligned(64)));

static struct area before, after;
static uint64_t all; /* components under test */

#define HOST_XSAVE(a) __asm__ volatile("xsave64 %0" : "+m"(a) : "a"((uint32_t)all), "d"(0) : "memory")
#define HOST_XRSTOR(a) __asm__ volatile("xrstor64 %0" ::"m"(a), "a"((uint32_t)all), "d"(0) : "memory")

/* Executes with `before` in the host's registers, and catches them in `after`. */
static enum soft_result exec_fpu(const uint8_t *bytes, unsigned n)
{
    struct xinsn x;
    struct area mine;
    unsigned size = soft_code64(rig.cpu) ? 8 : 4;
    static const uint32_t mxcsr = 0x1f80;
    assert_int_equal(soft_decode(bytes, n, size, rig.cpu->rip, &x), 0);
    assert_int_equal(x.in.len, n);
    rig.cpu->exc.pending = false;
    memset(&mine, 0, sizeof mine);
    memset(&after, 0, sizeof after);
    HOST_XSAVE(mine);
    HOST_XRSTOR(before);
    enum soft_result r = soft_system_insn(rig.cpu, &x.in);
    HOST_XSAVE(after);
    HOST_XRSTOR(mine);
    __asm__ volatile("fninit; ldmxcsr %0" ::"m"(mxcsr));
    return r;
}
#define FPU(...) exec_fpu((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
#define FPU_OK(...) assert_int_equal(FPU(__VA_ARGS__), SOFT_OK)
#define FPU_FAULT(vec, ...)                                      \
    do {                                                         \
        assert_int_equal(FPU(__VA_ARGS__), SOFT_FAULT);          \
        assert_fault(vec, 0);                                    \
        assert_memory_equal(after.b + 160, before.b + 160, 256); \
    } while (0)

static void put64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
}
static uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* A valid state with every component in use and different everywhere. */
static void fill_before(void)
{
    memset(&before, 0, sizeof before);
    for (unsigned i = 0; i < AREA_SIZE; i++) before.b[i] = (uint8_t)(rig_random() | 1);
    memset(before.b, 0, 32);
    put64(before.b, 0x0000ffff037full & 0xff00000000037full); /* FCW 37F, all tags in use below */
    before.b[4] = 0xff;
    put64(before.b + 24, 0x1fa0);
    memset(before.b + 512, 0, 64);
    put64(before.b + 512, all);
    for (unsigned i = 0; i < 8; i++) /* the upper 6 bytes of ST slots are reserved */
        memset(before.b + 32 + 16 * i + 10, 0, 6);
}

static int fpu_setup(void **state)
{
    sys_setup(state);
    if (!rig.cpu->cpuid.xcr0_mask) return 0;
    all = rig.cpu->cpuid.xcr0_mask;
    rig.cpu->cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
    rig.cpu->xcr0 = all;
    rig.cpu->gpr[R_RBX] = IMAGE;
    rig.cpu->gpr[R_RAX] = ~0ull;
    rig.cpu->gpr[R_RDX] = ~0ull;
    memset(rig_ram(IMAGE), 0xcc, AREA_SIZE);
    fill_before();
    return 0;
}
#define NEED(bit) \
    if (!all || !(rig.cpu->cpuid.xsave[1][0] >> (bit)&1)) skip()

static void save_and_restore_standard(void **state)
{
    (void)state;
    put64(rig_ram(IMAGE + 512), 0);
    FPU_OK(0x48, 0x0f, 0xae, 0x23); /* xsave64 [rbx] */
    const uint8_t *m = rig_ram(IMAGE);
    assert_int_equal(get64(m + 512), all);
    assert_int_equal(get64(m + 520), 0xcccccccccccccccc); /* XCOMP_BV and software's bytes are left alone */
    assert_int_equal(get64(m + 464), 0xcccccccccccccccc);
    assert_memory_equal(m, after.b, 24);
    assert_memory_equal(m + 32, before.b + 32, 128);
    assert_memory_equal(m + 160, before.b + 160, 256);
    for (unsigned i = 2; i < CPUID_XSAVE; i++)
        if (all >> i & 1)
            assert_memory_equal(m + rig.cpu->cpuid.xsave[i][1], before.b + rig.cpu->cpuid.xsave[i][1],
                                rig.cpu->cpuid.xsave[i][0]);
    struct area saved;
    memcpy(&saved, &before, sizeof saved);
    fill_before(); /* something else is in the registers now */
    memset(rig_ram(IMAGE + 520), 0, 56);
    FPU_OK(0x48, 0x0f, 0xae, 0x2b); /* xrstor64 [rbx] */
    assert_memory_equal(after.b + 32, saved.b + 32, 128 + 256);
    for (unsigned i = 2; i < CPUID_XSAVE; i++)
        if (all >> i & 1)
            assert_memory_equal(after.b + rig.cpu->cpuid.xsave[i][1], saved.b + rig.cpu->cpuid.xsave[i][1],
                                rig.cpu->cpuid.xsave[i][0]);
}

static void save_some(void **state)
{
    (void)state;
    if (!(all & 4)) skip();
    put64(rig_ram(IMAGE + 512), 3);
    rig.cpu->gpr[R_RAX] = 4;
    rig.cpu->gpr[R_RDX] = 0;
    FPU_OK(0x48, 0x0f, 0xae, 0x23);
    const uint8_t *m = rig_ram(IMAGE);
    assert_int_equal(get64(m + 512), 7); /* bits of the others stay */
    assert_int_equal(m[0], 0xcc);
    assert_int_equal(m[160], 0xcc);
    assert_int_equal(get64(m + 24) & 0xffffffff, 0x1fa0); /* MXCSR comes with AVX */
    assert_memory_equal(m + 576, before.b + 576, 256);
}

static void restore_initial(void **state)
{
    (void)state;
    memset(rig_ram(IMAGE), 0, AREA_SIZE);
    put64(rig_ram(IMAGE + 24), 0x1f80);
    put64(rig_ram(IMAGE + 512), 0);
    FPU_OK(0x48, 0x0f, 0xae, 0x2b);
    for (unsigned i = 160; i < 416; i++) assert_int_equal(after.b[i], 0);
    assert_int_equal(after.b[4], 0);
    assert_int_equal(after.b[0] | after.b[1] << 8, 0x37f);
}

static void compacted(void **state)
{
    (void)state;
    NEED(1);
    FPU_OK(0x48, 0x0f, 0xc7, 0x23); /* xsavec64 [rbx] */
    const uint8_t *m = rig_ram(IMAGE);
    assert_int_equal(get64(m + 512), all);
    assert_int_equal(get64(m + 520), all | 1ull << 63);
    assert_memory_equal(m + 160, before.b + 160, 256);
    if (all & 4) assert_memory_equal(m + 576, before.b + 576, 256);
    struct area saved;
    memcpy(&saved, &before, sizeof saved);
    fill_before();
    memset(rig_ram(IMAGE + 528), 0, 48);
    FPU_OK(0x48, 0x0f, 0xae, 0x2b);
    assert_memory_equal(after.b + 160, saved.b + 160, 256);
    for (unsigned i = 2; i < CPUID_XSAVE; i++)
        if (all >> i & 1)
            assert_memory_equal(after.b + rig.cpu->cpuid.xsave[i][1], saved.b + rig.cpu->cpuid.xsave[i][1],
                                rig.cpu->cpuid.xsave[i][0]);
}

static void supervisor_forms(void **state)
{
    (void)state;
    NEED(3);
    memset(rig_ram(IMAGE + 512), 0, 64);
    FPU_OK(0x48, 0x0f, 0xc7, 0x2b); /* xsaves64 */
    assert_int_equal(get64(rig_ram(IMAGE + 520)), all | 1ull << 63);
    FPU_OK(0x48, 0x0f, 0xc7, 0x1b); /* xrstors64 */
    put64(rig_ram(IMAGE + 520), 0); /* the standard form isn't for it */
    FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xc7, 0x1b);
    sys_ring(3);
    FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xc7, 0x2b);
}

static void bad_headers(void **state)
{
    (void)state;
    static const struct {
        unsigned at;
        uint64_t v;
    } t[] = {{512, 1ull << 62},    {512, 1ull << 8}, {520, 1}, {528, 1}, {520, 1ull << 63 | 1ull << 9},
             {520, 1ull << 63 | 1}};
    for (unsigned i = 0; i < sizeof t / sizeof t[0]; i++) {
        memset(rig_ram(IMAGE), 0, AREA_SIZE);
        put64(rig_ram(IMAGE + 24), 0x1f80);
        put64(rig_ram(IMAGE + 512), 3);
        put64(rig_ram(IMAGE + t[i].at), t[i].v);
        FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xae, 0x2b);
    }
    memset(rig_ram(IMAGE), 0, AREA_SIZE);
    put64(rig_ram(IMAGE + 24), 0x80000000); /* MXCSR */
    FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xae, 0x2b);
    rig.cpu->xcr0 = 3;
    put64(rig_ram(IMAGE + 24), 0x1f80);
    put64(rig_ram(IMAGE + 512), 7); /* AVX isn't enabled */
    FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xae, 0x2b);
}

static void conditions(void **state)
{
    (void)state;
    rig.cpu->gpr[R_RBX] = IMAGE + 8;
    FPU_FAULT(EXC_GP, 0x0f, 0xae, 0x23);
    FPU_FAULT(EXC_GP, 0x0f, 0xae, 0x2b);
    FPU_FAULT(EXC_GP, 0x0f, 0xae, 0x03);
    rig.cpu->gpr[R_RBX] = IMAGE;
    rig.cpu->cr0 |= CR0_TS;
    FPU_FAULT(EXC_NM, 0x0f, 0xae, 0x23);
    FPU_FAULT(EXC_NM, 0x0f, 0xae, 0x2b);
    FPU_FAULT(EXC_NM, 0x0f, 0xae, 0x0b);
    rig.cpu->cr0 &= ~(uint64_t)CR0_TS;
    rig.cpu->cr4 &= ~(uint64_t)CR4_OSXSAVE;
    FPU_FAULT(EXC_UD, 0x0f, 0xae, 0x23);
    FPU_FAULT(EXC_UD, 0x0f, 0x01, 0xd0);
    rig.cpu->gpr[R_RBX] = 0x600000;
    assert_int_equal(FPU(0x0f, 0xae, 0x03), SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.vector, EXC_PF);
    assert_int_equal(rig.cpu->exc.cr2, 0x600000);
}

static void fxsave(void **state)
{
    (void)state;
    FPU_OK(0x48, 0x0f, 0xae, 0x03); /* fxsave64 [rbx] */
    const uint8_t *m = rig_ram(IMAGE);
    assert_memory_equal(m + 32, before.b + 32, 128 + 256);
    assert_int_equal(m[464], 0xcc);
    struct area saved;
    memcpy(&saved, &before, sizeof saved);
    fill_before();
    FPU_OK(0x48, 0x0f, 0xae, 0x0b); /* fxrstor64 [rbx] */
    assert_memory_equal(after.b + 32, saved.b + 32, 128 + 256);
    put64(rig_ram(IMAGE + 24), 0xffff0000);
    FPU_FAULT(EXC_GP, 0x48, 0x0f, 0xae, 0x0b);
}

/* Outside 64-bit mode registers 8 .. 15 are neither saved nor touched. */
static void eight_registers_in_32_bit_code(void **state)
{
    (void)state;
    sys_protected32(0);
    rig.cpu->cr4 = CR4_OSXSAVE | CR4_OSFXSR;
    put64(rig_ram(IMAGE + 512), 0);
    FPU_OK(0x0f, 0xae, 0x23);
    const uint8_t *m = rig_ram(IMAGE);
    assert_memory_equal(m + 160, before.b + 160, 128);
    assert_int_equal(m[288], 0xcc);
    struct area saved;
    memcpy(&saved, &before, sizeof saved);
    fill_before();
    memset(rig_ram(IMAGE + 520), 0, 56);
    FPU_OK(0x0f, 0xae, 0x2b);
    assert_memory_equal(after.b + 160, saved.b + 160, 128);
    assert_memory_equal(after.b + 288, before.b + 288, 128);
    if (all & 4) {
        assert_memory_equal(after.b + 576, saved.b + 576, 128);
        assert_memory_equal(after.b + 704, before.b + 704, 128);
    }
    if (all & 0x80) {
        const uint32_t *zmm16 = rig.cpu->cpuid.xsave[7];
        assert_memory_equal(after.b + zmm16[1], before.b + zmm16[1], zmm16[0]);
    }
    put64(rig_ram(IMAGE + 512), 0); /* all initial */
    FPU_OK(0x0f, 0xae, 0x2b);
    for (unsigned i = 160; i < 288; i++) assert_int_equal(after.b[i], 0);
    assert_memory_equal(after.b + 288, before.b + 288, 128);
    for (unsigned i = 576; (all & 4) && i < 704; i++) assert_int_equal(after.b[i], 0);
    fill_before();
    FPU_OK(0x0f, 0xae, 0x0b); /* fxrstor */
    assert_memory_equal(after.b + 288, before.b + 288, 128);
}

static void mxcsr(void **state)
{
    (void)state;
    put64(rig_ram(IMAGE), 0x1f81);
    FPU_OK(0x0f, 0xae, 0x13); /* ldmxcsr [rbx] */
    assert_int_equal(get64(after.b + 24) & 0xffffffff, 0x1f81);
    FPU_OK(0x0f, 0xae, 0x1b); /* stmxcsr [rbx] */
    assert_int_equal(get64(rig_ram(IMAGE)) & 0xffffffff, 0x1fa0);
    put64(rig_ram(IMAGE), 0x10000);
    FPU_FAULT(EXC_GP, 0x0f, 0xae, 0x13);
    rig.cpu->cr0 |= CR0_EM;
    FPU_FAULT(EXC_UD, 0x0f, 0xae, 0x13);
}

static void set_xcr0(uint32_t index, uint64_t v, bool good)
{
    rig.cpu->gpr[R_RCX] = index;
    rig.cpu->gpr[R_RAX] = (uint32_t)v;
    rig.cpu->gpr[R_RDX] = v >> 32;
    if (!good) {
        EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0xd1);
        return;
    }
    EXEC_OK(0x0f, 0x01, 0xd1);
    rig.cpu->gpr[R_RCX] = 0;
    EXEC_OK(0x0f, 0x01, 0xd0);
    assert_int_equal(rig.cpu->gpr[R_RAX] | rig.cpu->gpr[R_RDX] << 32, v);
}

static void xcr0(void **state)
{
    (void)state;
    set_xcr0(0, 1, true);
    set_xcr0(0, 3, true);
    set_xcr0(0, all, true);
    set_xcr0(0, 2, false);
    set_xcr0(0, 5, false);
    set_xcr0(0, 0, false);
    set_xcr0(0, all | 1ull << 9, false);
    set_xcr0(0, all | 1ull << 63, false);
    set_xcr0(0, 0x27, false); /* a part of AVX-512 */
    set_xcr0(1, 3, false);
    rig.cpu->gpr[R_RCX] = 2;
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0xd0);
    sys_ring(3);
    set_xcr0(0, 3, false);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fpu_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(save_and_restore_standard),
        T(save_some),
        T(restore_initial),
        T(compacted),
        T(supervisor_forms),
        T(bad_headers),
        T(conditions),
        T(fxsave),
        T(eight_registers_in_32_bit_code),
        T(mxcsr),
        T(xcr0),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
