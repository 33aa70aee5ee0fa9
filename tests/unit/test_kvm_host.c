/* What the KVM engine says about hosts of all kinds, and which engine --engine auto takes on them. */
#include "cli/cli.h"
#include "kvm_fake.h"

static struct nerr err;

static void wants(const char *text)
{
    if (!strstr(err.text, text)) fail_msg("'%s' does not say '%s'", err.text, text);
    assert_null(strchr(err.text, '\n'));
}

static void test_open(void **state)
{
    (void)state;
    static const struct {
        int error;
        const char *says;
    } cases[] = {
        {ENOENT, "load kvm_intel or kvm_amd"}, {ENXIO, "load kvm_intel"}, {EACCES, "to the group kvm"},
        {EPERM, "to the group kvm"},           {EMFILE, "Too many open"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fake.open_error = cases[i].error;
        assert_int_equal(engine_kvm.probe(false, &err), -cases[i].error);
        wants(cases[i].says);
    }
    assert_int_equal(fake.opened, 0);
}

static void test_version(void **state)
{
    (void)state;
    fake.version = 13;
    assert_int_equal(engine_kvm.probe(false, &err), -ENOTSUP);
    wants("version 13");
    fake.version = 12;
    fake.fail_request = KVM_GET_API_VERSION;
    fake.fail_error = ENOTTY;
    assert_true(engine_kvm.probe(false, &err) < 0);
    wants("no KVM");
    fake.fail_request = 0;
    assert_int_equal(engine_kvm.probe(false, &err), 0);
    assert_int_equal(fake.opened, fake.closed);
}

static struct guest_memory memory;

static int create(unsigned vcpus, struct engine **g)
{
    struct engine_config cfg = {.memory = &memory, .vcpus = vcpus};
    return engine_kvm.create(&cfg, g, &err);
}

static void test_capabilities(void **state)
{
    (void)state;
#define CAP(name)   \
    {               \
        name, #name \
    }
    static const struct {
        int cap;
        const char *name;
    } needed[] = {CAP(KVM_CAP_USER_MEMORY),
                  CAP(KVM_CAP_SET_TSS_ADDR),
                  CAP(KVM_CAP_SET_IDENTITY_MAP_ADDR),
                  CAP(KVM_CAP_EXT_CPUID),
                  CAP(KVM_CAP_IRQCHIP),
                  CAP(KVM_CAP_IRQ_ROUTING),
                  CAP(KVM_CAP_IRQFD),
                  CAP(KVM_CAP_IOEVENTFD),
                  CAP(KVM_CAP_SIGNAL_MSI),
                  CAP(KVM_CAP_MP_STATE),
                  CAP(KVM_CAP_VCPU_EVENTS),
                  CAP(KVM_CAP_DEBUGREGS),
                  CAP(KVM_CAP_XSAVE),
                  CAP(KVM_CAP_XCRS),
                  CAP(KVM_CAP_ADJUST_CLOCK),
                  CAP(KVM_CAP_TSC_DEADLINE_TIMER),
                  CAP(KVM_CAP_IMMEDIATE_EXIT)};
#undef CAP
    for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        struct engine *g;
        fake.missing_cap = needed[i].cap;
        assert_int_equal(engine_kvm.probe(false, &err), -ENOTSUP);
        wants(needed[i].name);
        assert_int_equal(create(1, &g), -ENOTSUP); /* --engine kvm does not probe first */
        wants(needed[i].name);
    }
    assert_int_equal(fake.opened, fake.closed);
}

/* ---- speed ---- */

static int runs_fast(struct fake_vcpu *v, unsigned run)
{
    (void)run;
    v->run->exit_reason = KVM_EXIT_IO;
    return 0;
}

/* Uses up CPU time and never gets there. */
static int runs_slowly(struct fake_vcpu *v, unsigned run)
{
    (void)run;
    for (volatile unsigned i = 0; i < 3000000; i++) {
    }
    v->regs.rcx = 19990;
    return -EINTR;
}

/* The first touches of memory are slow, then it runs. */
static int warms_up(struct fake_vcpu *v, unsigned run)
{
    return run < 1 ? runs_slowly(v, run) : runs_fast(v, run);
}

static int does_not_run(struct fake_vcpu *v, unsigned run)
{
    (void)run;
    v->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    return 0;
}

static void test_speed(void **state)
{
    (void)state;
    fake.on_run = runs_fast;
    assert_int_equal(engine_kvm.probe(true, &err), 0);
    fake.on_run = runs_slowly;
    fake.runs = 0;
    assert_int_equal(engine_kvm.probe(true, &err), -ENOTSUP);
    wants("emulates guest code");
    wants("times slower");
    assert_true(fake.runs < 100);
    fake.on_run = does_not_run;
    assert_true(engine_kvm.probe(true, &err) < 0);
    wants("does not run 64-bit code");
    assert_int_equal(engine_kvm.probe(false, &err), 0); /* who wants it anyway gets it */
    /* kvm, vm and vcpu were closed each time. */
    assert_int_equal(fake.closed, fake.opened + 2 * 3);
}

static void test_warm_up(void **state)
{
    (void)state;
    /* A busy machine may take all of the time that the probe has. Not always. */
    fake.on_run = warms_up;
    for (unsigned i = 0; i < 50; i++) {
        fake.runs = 0;
        if (engine_kvm.probe(true, &err) == 0) return;
    }
    fail_msg("%s", err.text);
}

static void test_probe_failures(void **state)
{
    (void)state;
    static const unsigned long requests[] = {KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_CREATE_VCPU,
                                             KVM_GET_VCPU_MMAP_SIZE, KVM_SET_SREGS};
    fake.on_run = runs_fast;
    fake.fail_error = ENOMEM;
    for (unsigned i = 0; i < 5; i++) {
        fake.fail_request = requests[i];
        assert_int_equal(engine_kvm.probe(true, &err), -ENOMEM);
        wants("KVM cannot create a");
    }
    fake.fail_request = KVM_CREATE_VM;
    fake.fail_error = EBUSY;
    assert_int_equal(engine_kvm.probe(true, &err), -EBUSY);
    wants("another hypervisor");
}

/* ---- the command line's choice ---- */

static void test_choice(void **state)
{
    (void)state;
    const struct engine_ops *ops;
    struct nerr why;
    fake.on_run = runs_fast;
    assert_int_equal(cli_pick_engine("auto", &ops, &why, &err), 0);
    assert_ptr_equal(ops, &engine_kvm);
    assert_string_equal(why.text, "");
    fake.on_run = runs_slowly;
    assert_int_equal(cli_pick_engine("auto", &ops, &why, &err), 0);
    assert_ptr_equal(ops, &engine_soft);
    err = why;
    wants("engine soft, since KVM emulates");
    assert_int_equal(cli_pick_engine("kvm", &ops, &why, &err), 0);
    assert_ptr_equal(ops, &engine_kvm);
    fake.open_error = EACCES;
    assert_int_equal(cli_pick_engine("auto", &ops, &why, &err), 0);
    assert_ptr_equal(ops, &engine_soft);
    assert_int_equal(cli_pick_engine("kvm", &ops, &why, &err), -EACCES);
    wants("--engine kvm: no permission");
    wants("--engine soft");
}

/* ---- creation ---- */

static void test_limits(void **state)
{
    (void)state;
    struct engine *g;
    assert_int_equal(create(5, &g), -EINVAL);
    wants("--cpus: 5 vCPUs are not possible; this host's KVM allows 1 to 4");
    assert_int_equal(create(0, &g), -EINVAL);
    fake.fail_request = KVM_SET_USER_MEMORY_REGION;
    fake.fail_error = ENOMEM;
    assert_int_equal(create(1, &g), -ENOMEM);
    wants("--memory");
    assert_int_equal(create(1, &g), -ENOMEM);
    fake.fail_request = KVM_CREATE_VCPU;
    assert_int_equal(create(1, &g), 0);
    struct vcpu *v;
    assert_int_equal(engine_kvm.vcpu_create(g, 0, NULL, &v, &err), -ENOMEM);
    wants("fewer --cpus");
    assert_int_equal(engine_kvm.vcpu_create(g, 1, NULL, &v, &err), -EINVAL);
    engine_kvm.destroy(g);
}

/* Whatever ioctl fails, creation says so and leaves nothing open. */
static void test_creation_failures(void **state)
{
    (void)state;
    static const unsigned long vm[] = {KVM_CREATE_VM,          KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR,
                                       KVM_CREATE_IRQCHIP,     KVM_SET_GSI_ROUTING,       KVM_GET_SUPPORTED_CPUID,
                                       KVM_GET_MSR_INDEX_LIST, KVM_GET_VCPU_MMAP_SIZE};
    static const unsigned long vcpu[] = {KVM_SET_CPUID2, KVM_SET_SREGS, KVM_SET_REGS,        KVM_SET_DEBUGREGS,
                                         KVM_SET_XSAVE,  KVM_SET_MSRS,  KVM_SET_VCPU_EVENTS, KVM_SET_MP_STATE};
    struct engine *g;
    struct vcpu *v;
    fake.fail_error = EIO;
    for (unsigned i = 0; i < 8; i++) {
        fake.fail_request = vm[i];
        err.text[0] = 0;
        assert_true(create(1, &g) < 0);
        assert_true(err.text[0]);
    }
    for (unsigned i = 0; i < 8; i++) {
        fake.fail_request = vcpu[i];
        err.text[0] = 0;
        assert_int_equal(create(1, &g), 0);
        assert_int_equal(engine_kvm.vcpu_create(g, 0, NULL, &v, &err), -EIO);
        assert_true(err.text[0]);
        engine_kvm.destroy(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAKE_TEST(test_open),   FAKE_TEST(test_version), FAKE_TEST(test_capabilities),
        FAKE_TEST(test_speed),  FAKE_TEST(test_warm_up), FAKE_TEST(test_probe_failures),
        FAKE_TEST(test_choice), FAKE_TEST(test_limits),  FAKE_TEST(test_creation_failures),
    };
    struct nerr e;
    if (guest_memory_create(&memory, 16 << 20, &e)) return 1;
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    guest_memory_destroy(&memory);
    return r;
}
