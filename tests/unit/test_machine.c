/* The machine with the scripted engine: routing, sleep and wake-up, start of application processors, every way a run ends. */
#include <cjson/cJSON.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/event.h"
#include "tests/unit/tiny_kernel.h"
#include "vmm/engine/fake/fake.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/machine_control.h"
#include "vmm/platform/platform.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define DEBUG_PORT 0xf4
#define LAPIC 0xfee00000u

static char kernel[64], stats_file[64];
static struct nerr err;

/* ---- a console that remembers ---- */
static struct {
    char text[4096];
    size_t len, accept; /* accept: bytes taken per call */
} sink;

static size_t take(void *ctx, const uint8_t *data, size_t len)
{
    (void)ctx;
    if (len > sink.accept) len = sink.accept;
    if (len > sizeof(sink.text) - 1 - sink.len) len = sizeof(sink.text) - 1 - sink.len;
    memcpy(sink.text + sink.len, data, len);
    sink.len += len;
    return len;
}

static struct machine_config config(unsigned cpus)
{
    memset(&sink, 0, sizeof(sink));
    sink.accept = sizeof(sink.text);
    fake_script_clear();
    return (struct machine_config){.name = "test",
                                   .kernel = kernel,
                                   .memory = 16 << 20,
                                   .cpus = cpus,
                                   .engine = &engine_fake,
                                   .debug_exit_port = DEBUG_PORT,
                                   .console = {.output = take}};
}

static struct machine *create(const struct machine_config *c)
{
    struct machine *m = NULL;
    if (machine_create(c, &m, &err)) fail_msg("%s", err.text);
    return m;
}

static int run_to_end(const struct machine_config *c)
{
    struct machine *m = create(c);
    int status = machine_run(m);
    assert_int_equal(machine_state(m), MACHINE_STOPPED);
    machine_destroy(m);
    return status;
}

/* ---- helpers for scripts ---- */
static uint64_t seen;

static void keep_io(void *ctx, unsigned vcpu, const struct vcpu_exit *x)
{
    (void)ctx;
    (void)vcpu;
    seen = 0;
    memcpy(&seen, x->io.data, x->io.size);
}

static void keep_mmio(void *ctx, unsigned vcpu, const struct vcpu_exit *x)
{
    (void)ctx;
    (void)vcpu;
    seen = 0;
    memcpy(&seen, x->mmio.data, x->mmio.len);
}

static void wait_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

struct later {
    pthread_t thread;
    struct machine *m;
    unsigned ms;
    int status;
    uint64_t cpu_ns; /* spent by the process while it slept */
};

static uint64_t process_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *stop_later(void *arg)
{
    struct later *l = arg;
    wait_ms(50); /* let everything start */
    uint64_t before = process_cpu_ns();
    wait_ms(l->ms);
    l->cpu_ns = process_cpu_ns() - before;
    machine_stop(l->m, l->status);
    return NULL;
}

/* ---- tests ---- */

static void test_debug_exit(void **state)
{
    (void)state;
    for (unsigned v = 0; v < 4; v++) {
        struct machine_config c = config(1);
        struct fake_step s[] = {fake_out(DEBUG_PORT, 1, v)};
        fake_script(0, s, COUNT(s));
        assert_int_equal(run_to_end(&c), v << 1 | 1);
    }
}

static void test_serial(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {fake_out(PLATFORM_COM1_PORT, 1, 'o'), fake_out(PLATFORM_COM1_PORT, 1, 'k'),
                            fake_out(DEBUG_PORT, 4, 0)};
    fake_script(0, s, COUNT(s));
    assert_int_equal(run_to_end(&c), 1);
    assert_string_equal(sink.text, "ok"); /* though the run ended right behind it */
    c = config(1);
    sink.accept = 1;
    fake_script(0, s, COUNT(s));
    assert_int_equal(run_to_end(&c), 1);
    assert_string_equal(sink.text, "ok");
}

static void test_blocked_console(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {fake_out(PLATFORM_COM1_PORT, 1, 'x'), fake_out(DEBUG_PORT, 1, 0)};
    fake_script(0, s, COUNT(s));
    sink.accept = 0;
    uint64_t start = clock_mono_ns();
    assert_int_equal(run_to_end(&c), 1);
    assert_true(clock_mono_ns() - start < 8000000000ull);
    assert_int_equal(sink.len, 0);
}

static void test_reads(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    uint64_t nowhere, lapic_version, many[2];
    struct fake_step s[] = {
        fake_in(0x5678, 4, keep_io, NULL),
        fake_load(LAPIC + 0x30, 4, keep_mmio, NULL),
        fake_load(0xd0000000, 8, keep_mmio, NULL),
        fake_in(0x5678, 2, keep_io, NULL),
    };
    uint64_t *const want[] = {&nowhere, &lapic_version, &many[0], &many[1]};
    for (unsigned i = 0; i < COUNT(s); i++) { /* one run each, since `seen` holds one value */
        struct fake_step one[] = {s[i], fake_out(DEBUG_PORT, 1, 0)};
        c = config(1);
        fake_script(0, one, COUNT(one));
        assert_int_equal(run_to_end(&c), 1);
        *want[i] = seen;
    }
    assert_int_equal(nowhere, 0xffffffff);
    assert_int_equal(lapic_version & 0xf0, 0x10);
    assert_true(many[0] == UINT64_MAX);
    assert_int_equal(many[1], 0xffff);
}

static void test_string_io(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {fake_out(PLATFORM_COM1_PORT, 1, 0), fake_out(DEBUG_PORT, 1, 0)};
    s[0].exit.io.count = 5;
    memcpy(s[0].exit.io.data, "hello", 5);
    fake_script(0, s, COUNT(s));
    assert_int_equal(run_to_end(&c), 1);
    assert_string_equal(sink.text, "hello");
}

/* One-shot LAPIC timer: enable, vector 0x40, divide by 1, 20 ms. */
static void test_halt_wakes(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {
        fake_store(LAPIC + 0xf0, 4, 0x1ff),     fake_store(LAPIC + 0x3e0, 4, 0xb), fake_store(LAPIC + 0x320, 4, 0x40),
        fake_store(LAPIC + 0x380, 4, 20000000), fake_exit(VCPU_EXIT_HLT),          fake_out(DEBUG_PORT, 1, 3),
    };
    fake_script(0, s, COUNT(s));
    struct machine *m = create(&c);
    uint64_t start = clock_mono_ns();
    assert_int_equal(machine_run(m), 7);
    uint64_t took = clock_mono_ns() - start;
    struct fake_record r;
    fake_record(0, &r);
    assert_int_equal(r.last_vector, 0x40);
    assert_true(took >= 20000000);
    assert_true(took < 5000000000ull);
    assert_true(r.runs < 100); /* it slept and did not spin */
    machine_destroy(m);
}

static void test_idle_is_cheap(void **state)
{
    (void)state;
    struct machine_config c = config(4); /* three of them wait for SIPI */
    struct later l = {.ms = 500, .status = 9};
    l.m = create(&c);
    pthread_create(&l.thread, NULL, stop_later, &l);
    assert_int_equal(machine_run(l.m), 9);
    pthread_join(l.thread, NULL);
    machine_destroy(l.m);
    assert_true(l.cpu_ns < l.ms * 1000000ull * 3 / 100);
}

static void ap_has_not_run(void *ctx, unsigned vcpu)
{
    (void)ctx;
    (void)vcpu;
    struct fake_record r;
    wait_ms(20);
    fake_record(1, &r);
    assert_int_equal(r.runs, 0);
}

static void test_sipi(void **state)
{
    (void)state;
    struct machine_config c = config(2);
    struct fake_step bsp[] = {
        fake_do(ap_has_not_run, NULL),          fake_store(LAPIC + 0x310, 4, 1u << 24),
        fake_store(LAPIC + 0x300, 4, 0x4500), /* INIT */
        fake_do(ap_has_not_run, NULL),          fake_store(LAPIC + 0x310, 4, 1u << 24),
        fake_store(LAPIC + 0x300, 4, 0x469f),                                         /* SIPI, vector 0x9f */
        fake_store(LAPIC + 0x310, 4, 1u << 24), fake_store(LAPIC + 0x300, 4, 0x4655), /* a second one is ignored */
    };
    struct fake_step ap[] = {fake_load(LAPIC + 0x20, 4, keep_mmio, NULL), fake_out(DEBUG_PORT, 1, 2)};
    fake_script(0, bsp, COUNT(bsp));
    fake_script(1, ap, COUNT(ap));
    struct machine *m = create(&c);
    assert_int_equal(machine_run(m), 5);
    assert_int_equal(seen >> 24, 1); /* its own LAPIC, not the other's */
    struct fake_record r;
    fake_record(1, &r);
    assert_int_equal(r.states_set, 1);
    assert_int_equal(r.state->seg[SEG_CS].base, 0x9f000);
    assert_int_equal(r.state->seg[SEG_CS].selector, 0x9f00);
    assert_int_equal(r.state->rip, 0);
    machine_destroy(m);
}

static void test_triple_fault(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {fake_exit(VCPU_EXIT_SHUTDOWN), fake_out(DEBUG_PORT, 1, 1)};
    c.no_reboot = true;
    fake_script(0, s, COUNT(s));
    assert_int_equal(run_to_end(&c), 4);
    c = config(1); /* with reboot: the second step runs in the machine's second life */
    fake_script(0, s, COUNT(s));
    struct machine *m = create(&c);
    assert_int_equal(machine_run(m), 3);
    struct fake_record r;
    fake_record(0, &r);
    assert_int_equal(r.states_set, 2);
    machine_destroy(m);
}

static void test_engine_failure(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct fake_step s[] = {fake_exit(VCPU_EXIT_FAIL)};
    strcpy(s[0].exit.fail, "made to fail");
    fake_script(0, s, COUNT(s));
    assert_int_equal(run_to_end(&c), 5);
}

static struct machine *scribbled;

static void scribble(void *ctx, unsigned vcpu)
{
    (void)ctx;
    (void)vcpu;
    memset(guest_memory_ptr(machine_memory(scribbled), GPA(0), 4 << 20, true), 0xdd, 4 << 20);
}

static void test_reset(void **state)
{
    (void)state;
    struct machine_config c = config(3);
    struct fake_step s[] = {
        fake_do(scribble, NULL), fake_out(PLATFORM_RESET_PORT, 1, 6), fake_out(PLATFORM_COM1_PORT, 1, '2'),
        fake_do(scribble, NULL), fake_out(PLATFORM_RESET_PORT, 1, 6), fake_out(DEBUG_PORT, 1, 10),
    };
    fake_script(0, s, COUNT(s));
    struct machine *m = scribbled = create(&c);
    uint8_t *before = malloc(0x3000);
    memcpy(before, guest_memory_ptr(machine_memory(m), GPA(TINY_KERNEL_AT), 0x3000, false), 0x3000);
    assert_int_equal(machine_run(m), 21);
    struct fake_record r;
    fake_record(0, &r);
    assert_int_equal(r.states_set, 3);
    assert_memory_equal(guest_memory_ptr(machine_memory(m), GPA(TINY_KERNEL_AT), 0x3000, false), before, 0x3000);
    assert_string_equal(sink.text, "2");
    free(before);
    machine_destroy(m);
    c = config(3);
    c.no_reboot = true;
    fake_script(0, s + 1, 1);
    assert_int_equal(run_to_end(&c), 0);
}

/* ---- paused, reset meanwhile, resumed: the loop's thread looks what comes next ---- */
static struct {
    struct machine *m;
    struct event_timer timer;
    unsigned phase, since, states;
} paused;

static void pause_step(void *ctx)
{
    (void)ctx;
    struct fake_record r;
    bool idle;
    fake_record(0, &r);
    paused.since++;
    switch (paused.phase) {
    case 0:
        if (!r.halted) return;
        if (machine_pause(paused.m, &idle, &err)) fail_msg("%s", err.text);
        machine_reset(paused.m);
        break;
    case 1: /* long enough for a TSC that did not come along to be seen */
        if (paused.since < 5 || machine_state(paused.m) != MACHINE_PAUSED) return;
        paused.states = r.states_set;
        if (machine_resume(paused.m, &err)) fail_msg("%s", err.text);
        break;
    case 2:
        if (r.states_set < paused.states + 2) return; /* what resuming sets, and then what the boot processor loads */
        machine_stop(paused.m, 9);
        break;
    default: return;
    }
    paused.phase++;
    paused.since = 0;
}

static void test_reset_paused(void **state)
{
    (void)state;
    struct machine_config c = config(3);
    struct fake_record r[3];
    memset(&paused, 0, sizeof(paused));
    paused.m = create(&c);
    event_timer_init(&paused.timer, machine_loop(paused.m), pause_step, NULL);
    event_timer_arm(&paused.timer, clock_mono_ns() + 10000000, 10000000);
    assert_int_equal(machine_run(paused.m), 9);
    for (unsigned i = 0; i < 3; i++) fake_record(i, &r[i]);
    assert_true((int64_t)r[0].state->tsc_offset < 0);
    assert_true(r[0].state->tsc_offset == r[1].state->tsc_offset && r[1].state->tsc_offset == r[2].state->tsc_offset);
    event_timer_destroy(&paused.timer);
    machine_destroy(paused.m);
}

/* Resets from outside, while vCPUs run, halt, or stand in a reset. */
static void *reset_often(void *arg)
{
    struct later *l = arg;
    for (unsigned i = 0; i < 50; i++) {
        machine_reset(l->m);
        if (i % 3 == 0) wait_ms(1);
    }
    wait_ms(50);
    machine_stop(l->m, l->status);
    return NULL;
}

static void test_reset_storm(void **state)
{
    (void)state;
    static struct fake_step busy[2000];
    struct machine_config c = config(2);
    for (unsigned i = 0; i < COUNT(busy); i++)
        busy[i] = i % 2 ? fake_out(0x80, 1, i & 0xff) : fake_exit(VCPU_EXIT_PAUSE);
    fake_script(0, busy, COUNT(busy));
    struct later l = {.status = 11};
    l.m = create(&c);
    pthread_create(&l.thread, NULL, reset_often, &l);
    assert_int_equal(machine_run(l.m), 11);
    pthread_join(l.thread, NULL);
    machine_destroy(l.m);
}

static void test_first_status_wins(void **state)
{
    (void)state;
    struct machine_config c = config(1);
    struct machine *m = create(&c);
    machine_stop(m, 42); /* before it even runs */
    machine_stop(m, 43);
    assert_int_equal(machine_run(m), 42);
    machine_destroy(m);
}

static void test_bad_config(void **state)
{
    (void)state;
    struct machine *m;
    for (unsigned i = 0; i < 9; i++) {
        struct machine_config c = config(1);
        switch (i) {
        case 0: c.memory = 0; break;
        case 1: c.memory = (16 << 20) + 1; break;
        case 2: c.memory = UINT64_MAX & ~4095ull; break;
        case 3: c.cpus = 0; break;
        case 4: c.cpus = MACHINE_MAX_CPUS + 1; break;
        case 5: c.debug_exit_port = 0x10000; break;
        case 6: c.debug_exit_port = PLATFORM_COM1_PORT; break; /* taken */
        case 7: c.kernel = "/nonexistent"; break;
        case 8: c.initrd = "/nonexistent"; break;
        }
        strcpy(err.text, "");
        assert_true(machine_create(&c, &m, &err) < 0);
        assert_null(m);
        assert_true(err.text[0] != 0);
    }
}

static void test_stats(void **state)
{
    (void)state;
    struct machine_config c = config(2);
    struct fake_step s[] = {fake_out(0x80, 1, 1), fake_out(0x80, 1, 2), fake_out(DEBUG_PORT, 1, 0)};
    fake_script(0, s, COUNT(s));
    struct machine *m = create(&c);
    assert_int_equal(machine_run(m), 1);
    assert_int_equal(machine_stats_json(m, stats_file, &err), 0);
    assert_true(machine_stats_json(m, "/nonexistent/file", &err) < 0);
    char *table = NULL;
    size_t len;
    FILE *f = open_memstream(&table, &len);
    machine_stats_print(m, f);
    fclose(f);
    assert_non_null(strstr(table, "exits: io"));
    free(table);
    machine_destroy(m);
    static char text[65536];
    f = fopen(stats_file, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = 0;
    fclose(f);
    cJSON *o = cJSON_Parse(text);
    assert_non_null(o);
    assert_string_equal(cJSON_GetObjectItem(o, "engine")->valuestring, "fake");
    assert_int_equal(cJSON_GetObjectItem(o, "status")->valueint, 1);
    cJSON *v = cJSON_GetObjectItem(o, "vcpus");
    assert_int_equal(cJSON_GetArraySize(v), 2);
    cJSON *x = cJSON_GetObjectItem(cJSON_GetArrayItem(v, 0), "exits");
    assert_int_equal(cJSON_GetObjectItem(x, "io")->valueint, 3);
    cJSON_Delete(o);
}

static int setup(void **state)
{
    (void)state;
    snprintf(kernel, sizeof(kernel), "/tmp/nacelle-test-machine-%ld", (long)getpid());
    snprintf(stats_file, sizeof(stats_file), "/tmp/nacelle-test-stats-%ld", (long)getpid());
    return tiny_kernel_write(kernel);
}

static int teardown(void **state)
{
    (void)state;
    unlink(kernel);
    unlink(stats_file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_debug_exit),      cmocka_unit_test(test_serial),
        cmocka_unit_test(test_blocked_console), cmocka_unit_test(test_reads),
        cmocka_unit_test(test_string_io),       cmocka_unit_test(test_halt_wakes),
        cmocka_unit_test(test_idle_is_cheap),   cmocka_unit_test(test_sipi),
        cmocka_unit_test(test_triple_fault),    cmocka_unit_test(test_engine_failure),
        cmocka_unit_test(test_reset),           cmocka_unit_test(test_reset_paused),
        cmocka_unit_test(test_reset_storm),     cmocka_unit_test(test_first_status_wins),
        cmocka_unit_test(test_bad_config),      cmocka_unit_test(test_stats),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
