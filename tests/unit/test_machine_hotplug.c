/* Disks that come and go in a machine whose vCPU does what the test says: the scripted engine carries out one access after the other, while the machine
 * runs on a thread of its own. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/event.h"
#include "tests/unit/tiny_kernel.h"
#include "vmm/bus/pci.h"
#include "vmm/engine/fake/fake.h"
#include "vmm/machine/machine_control.h"
#include "vmm/machine/machine_internal.h"
#include "vmm/platform/platform.h"

#define SLOTS PLATFORM_SLOTS_BASE
#define PATIENCE_NS (60ull * 1000000000)

static char dir[64], kernel[96], image[3][96];
static struct nerr err;

/* ---- a vCPU that takes orders ---- */

enum { IDLE, ORDERED, DONE };
static struct {
    atomic_int state;
    atomic_int hang; /* 1: stay where you are, 2: it does, 0: go on */
    struct vcpu_exit exit;
    struct fake_step step[3];
} cpu;

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void wait_for(atomic_int *what, int value)
{
    uint64_t until = clock_mono_ns() + PATIENCE_NS;
    while (atomic_load(what) != value) {
        if (clock_mono_ns() > until) fail_msg("nothing happens any more");
        nap();
    }
}

/* Step 0: looks for an order. It returns often, so that the machine can park this vCPU. */
static void look(void *ctx, unsigned vcpu)
{
    (void)ctx;
    for (int asked = 1; atomic_load(&cpu.hang); asked = 1) {
        atomic_compare_exchange_strong(&cpu.hang, &asked, 2);
        nap();
    }
    if (atomic_load(&cpu.state) != ORDERED) {
        nap();
        fake_jump(vcpu, 0);
        return;
    }
    cpu.step[1].exit = cpu.exit;
}

static void carried_out(void *ctx, unsigned vcpu, const struct vcpu_exit *x)
{
    (void)ctx;
    (void)vcpu;
    cpu.exit = *x;
    atomic_store(&cpu.state, DONE);
}

static void again(void *ctx, unsigned vcpu)
{
    (void)ctx;
    fake_jump(vcpu, 0);
}

/* Returns what was read, of 32 bits. */
static uint32_t order(struct fake_step s)
{
    uint32_t v;
    cpu.exit = s.exit;
    atomic_store(&cpu.state, ORDERED);
    wait_for(&cpu.state, DONE);
    memcpy(&v, cpu.exit.kind == VCPU_EXIT_IO ? cpu.exit.io.data : cpu.exit.mmio.data, 4);
    atomic_store(&cpu.state, IDLE);
    return v;
}

static uint32_t in32(uint16_t port)
{
    return order(fake_in(port, 4, NULL, NULL));
}

static void out32(uint16_t port, uint32_t v)
{
    order(fake_out(port, 4, v));
}

static uint32_t config(unsigned slot, unsigned reg)
{
    struct pci_layout l;
    pci_layout_init(&l, 16 << 20, 0);
    return order(fake_load(l.ecam_base + ((uint64_t)slot << 15) + reg, 4, NULL, NULL));
}

/* ---- the machine ---- */

static struct {
    struct machine *m;
    pthread_t thread;
    int status;
    atomic_int gone; /* disks that the observer heard of */
    char last[32];
} run;

static void gone(void *ctx, const char *id)
{
    (void)ctx;
    snprintf(run.last, sizeof(run.last), "%s", id);
    run.gone++;
}

static struct machine_disk disk(const char *id, unsigned n)
{
    struct machine_disk d = {.block = {.path = image[n], .format = "raw"}};
    snprintf(d.id, sizeof(d.id), "%s", id);
    return d;
}

static void create(const struct machine_disk *disks, unsigned n)
{
    struct machine_config c = {.name = "test",
                               .kernel = kernel,
                               .memory = 16 << 20,
                               .cpus = 2,
                               .engine = &engine_fake,
                               .debug_exit_port = MACHINE_NO_DEBUG_EXIT,
                               .disks = disks,
                               .ndisks = n};
    fake_script_clear();
    memset(&cpu, 0, sizeof(cpu));
    memset(&run, 0, sizeof(run));
    cpu.step[0] = fake_do(look, NULL);
    cpu.step[1] = fake_in(0x80, 1, carried_out, NULL);
    cpu.step[2] = fake_do(again, NULL);
    fake_script(0, cpu.step, 3);
    if (machine_create(&c, &run.m, &err)) fail_msg("%s", err.text);
    machine_disk_observe(run.m, gone, NULL, NULL);
}

static void *run_machine(void *arg)
{
    run.status = machine_run(run.m);
    return arg;
}

static void start(void)
{
    assert_int_equal(pthread_create(&run.thread, NULL, run_machine, NULL), 0);
}

static void end(void)
{
    machine_stop(run.m, 0);
    pthread_join(run.thread, NULL);
    machine_destroy(run.m);
}

/* ---- calls on the loop's thread ---- */

struct call {
    const struct machine_disk *add;
    const char *id; /* to remove, or to ask for; all NULL: only to be there */
    bool state;
    int result;
    struct nerr e;
    atomic_int done;
};

static void added(void *ctx, const char *id, int result, const struct nerr *e)
{
    struct call *c = ctx;
    assert_true(id[0]);
    c->result = result;
    if (result) c->e = *e;
    atomic_store(&c->done, 1);
}

static void on_loop(void *ctx)
{
    struct call *c = ctx;
    if (c->add) {
        c->result = machine_disk_add(run.m, c->add, added, c, &c->e);
        if (!c->result) return; /* the rest comes later */
    } else if (c->state)
        c->result = (int)machine_disk_state(run.m, c->id);
    else if (c->id)
        c->result = machine_disk_remove(run.m, c->id, &c->e);
    atomic_store(&c->done, 1);
}

static int do_call(struct call *c)
{
    assert_int_equal(event_loop_post(machine_loop(run.m), on_loop, c), 0);
    wait_for(&c->done, 1);
    err = c->e;
    return c->result;
}

static int add(const char *id, unsigned n)
{
    struct machine_disk d = disk(id, n);
    return do_call(&(struct call){.add = &d});
}

static int ask(const char *id)
{
    return do_call(&(struct call){.id = id});
}

static enum machine_disk_state state_of(const char *id)
{
    return (enum machine_disk_state)do_call(&(struct call){.id = id, .state = true});
}

static bool locked(unsigned n)
{
    struct block_config c = {.path = image[n], .format = "raw"};
    struct event_loop *l = event_loop_create(&err);
    struct block *b;
    assert_non_null(l);
    bool r = block_open(&c, l, &b, &err);
    if (!r) block_close(b);
    event_loop_destroy(l);
    return r;
}

/* ---- tests ---- */

#define VIRTIO_BLK 0x10421af4u
#define NOBODY 0xffffffffu

static void test_come_and_go(void **state)
{
    (void)state;
    struct machine_disk base = disk("base", 0);
    create(&base, 1);
    start();
    /* Slot 1 has the disk from the start, 2 the entropy device. */
    assert_int_equal(config(1, 0), VIRTIO_BLK);
    for (int round = 1; round <= 5; round++) {
        if (add("hot", 1)) fail_msg("%s", err.text);
        assert_int_equal(state_of("hot"), MACHINE_DISK_HERE);
        assert_int_equal(config(3, 0), VIRTIO_BLK);
        assert_int_equal(config(3, 0x10), 0); /* BARs are the system's to place */
        assert_true(locked(1));
        assert_int_equal(in32(SLOTS), 1u << 3);
        assert_int_equal(in32(PLATFORM_GPE_BASE) & 0xffff, 1u << PLATFORM_GPE_SLOTS);
        out32(SLOTS, 1u << 3);
        assert_int_equal(in32(SLOTS), 0);
        assert_int_equal(ask("hot"), 0);
        assert_int_equal(ask("hot"), 0); /* once more is fine */
        assert_int_equal(state_of("hot"), MACHINE_DISK_ASKED);
        assert_int_equal(in32(SLOTS + 4), 1u << 3);
        assert_int_equal(config(3, 0), VIRTIO_BLK); /* until the guest lets go */
        assert_int_equal(run.gone, round - 1);
        out32(SLOTS + 8, 1u << 3);
        assert_int_equal(config(3, 0), NOBODY);
        wait_for(&run.gone, round);
        assert_string_equal(run.last, "hot");
        assert_int_equal(state_of("hot"), MACHINE_DISK_NONE);
        assert_int_equal(in32(SLOTS + 4), 0);
        assert_false(locked(1));
    }
    /* One from the start goes as well, without having been asked for. */
    out32(SLOTS + 8, 1u << 1);
    wait_for(&run.gone, 6);
    assert_string_equal(run.last, "base");
    assert_false(locked(0));
    assert_int_equal(add("base", 1), 0);
    assert_int_equal(config(1, 0), VIRTIO_BLK);
    end();
    assert_false(locked(1));
}

static void test_refusals(void **state)
{
    (void)state;
    struct machine_disk d[2] = {disk("base", 0), disk("slow", 1)};
    d[1].model = MACHINE_DISK_AHCI;
    create(d, 2);
    start();
    assert_int_equal(add("base", 2), -EEXIST);
    assert_non_null(strstr(err.text, "base"));
    assert_int_equal(add("slow", 2), -EEXIST);
    assert_int_equal(add("rng0", 2), -EEXIST);
    assert_true(add("other", 0) < 0); /* locked by this very machine */
    assert_non_null(strstr(err.text, image[0]));
    /* A serial that another has. */
    struct machine_disk same = disk("same", 2);
    strcpy(same.serial, "S");
    assert_int_equal(do_call(&(struct call){.add = &same}), 0);
    strcpy(same.id, "same2");
    assert_int_equal(do_call(&(struct call){.add = &same}), -EEXIST);
    assert_non_null(strstr(err.text, "serial S"));
    assert_int_equal(ask("same"), 0);
    out32(SLOTS + 8, 1u << 4);
    wait_for(&run.gone, 1);
    struct machine_disk none = disk("none", 0), ahci = disk("ahci", 2);
    none.block.path = "/nonexistent/file";
    ahci.model = MACHINE_DISK_AHCI;
    assert_int_equal(do_call(&(struct call){.add = &none}), -ENOENT);
    assert_int_equal(do_call(&(struct call){.add = &ahci}), -ENOTSUP);
    assert_false(locked(2));
    assert_int_equal(ask("nobody"), -ENOENT);
    assert_int_equal(ask(""), -ENOENT);
    assert_int_equal(ask("rng0"), -ENOENT);
    assert_int_equal(ask("slow"), -ENOTSUP);
    assert_int_equal(state_of("rng0"), MACHINE_DISK_NONE);
    assert_int_equal(in32(SLOTS) | in32(SLOTS + 4), 0);
    /* The guest ejects all there is: what must stay stays (bridge, controller, entropy). */
    out32(SLOTS + 8, ~(1u << 1));
    out32(SLOTS + 8, ~(1u << 1));
    assert_int_not_equal(config(0, 0), NOBODY);
    assert_int_equal(config(1, 0), VIRTIO_BLK);
    assert_int_not_equal(config(2, 0), NOBODY);
    assert_int_not_equal(config(3, 0), NOBODY);
    assert_int_equal(config(4, 0), NOBODY);
    /* An id of ours for a disk without one. */
    assert_int_equal(add("", 2), 0);
    assert_int_equal(state_of("disk0"), MACHINE_DISK_HERE);
    end();
}

static void test_full(void **state)
{
    (void)state;
    create(NULL, 0);
    start();
    /* 30 slots beside the bridge and the entropy device; read-only, so that they share their image. */
    for (unsigned i = 0; i < 31; i++) {
        struct machine_disk d = disk("", 0);
        d.block.readonly = true;
        int r = do_call(&(struct call){.add = &d});
        assert_int_equal(r, i < 30 ? 0 : -ENOSPC);
    }
    assert_int_equal(config(31, 0), VIRTIO_BLK);
    out32(SLOTS + 8, NOBODY);
    wait_for(&run.gone, 30);
    for (unsigned i = 2; i < 32; i++) assert_int_equal(config(i, 0), NOBODY);
    assert_int_not_equal(config(1, 0), NOBODY);
    end();
}

static void wait_reset(void)
{
    uint64_t until = clock_mono_ns() + PATIENCE_NS;
    struct fake_record r;
    do {
        nap();
        fake_record(0, &r);
        assert_true(clock_mono_ns() < until);
    } while (r.states_set < 2 || machine_state(run.m) != MACHINE_RUNNING);
}

static void test_reset(void **state)
{
    (void)state;
    create(NULL, 0);
    start();
    assert_int_equal(add("stays", 0), 0);
    assert_int_equal(add("goes", 1), 0);
    assert_int_equal(ask("goes"), 0);
    assert_int_equal(config(3, 0), VIRTIO_BLK);
    machine_reset(run.m);
    wait_reset();
    wait_for(&run.gone, 1);
    assert_string_equal(run.last, "goes");
    assert_false(locked(1));
    assert_int_equal(config(2, 0), VIRTIO_BLK);
    assert_int_not_equal(config(2, 0x20) & ~0xfu, 0); /* placed, as by firmware */
    assert_int_equal(config(3, 0), NOBODY);
    assert_int_equal(in32(SLOTS) | in32(SLOTS + 4), 0); /* the next system looks by itself */
    assert_int_equal(in32(PLATFORM_GPE_BASE), 0);
    end();
}

/* Before the vCPUs run there is nobody to ask. */
static void test_before_the_run(void **state)
{
    (void)state;
    struct machine_disk base = disk("base", 0), hot = disk("hot", 1);
    create(&base, 1);
    struct call adding = {.add = &hot}, never = {.add = &hot};
    assert_int_equal(machine_disk_add(run.m, &hot, added, &adding, &err), 0);
    assert_int_equal(machine_disk_remove(run.m, "base", &err), 0);
    start();
    wait_for(&run.gone, 1);
    wait_for(&adding.done, 1);
    assert_int_equal(adding.result, 0);
    assert_string_equal(run.last, "base");
    assert_int_equal(config(1, 0), VIRTIO_BLK); /* it has taken that one's place */
    assert_int_equal(config(3, 0), NOBODY);
    end();
    create(&base, 1);
    assert_int_equal(machine_disk_add(run.m, &hot, added, &never, &err), 0);
    assert_int_equal(machine_disk_remove(run.m, "base", &err), 0);
    machine_destroy(run.m); /* never ran */
    assert_int_equal(never.done, 1);
    assert_int_equal(never.result, -EBUSY);
    assert_false(locked(0) || locked(1));
}

/* ---- servers that take their time ---- */

static char server_path[96], uri[200];
static int server = -1;

/* Takes connections and says nothing. */
static void start_silent_server(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(server_path, sizeof(server_path), "%s/server", dir);
    snprintf(uri, sizeof(uri), "nbd+unix:///x?socket=%s", server_path);
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", server_path);
    server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(server >= 0);
    assert_int_equal(bind(server, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(server, 64), 0);
}

static void end_silent_server(void)
{
    close(server);
    unlink(server_path);
}

static void wait_connected(void)
{
    struct pollfd p = {.fd = server, .events = POLLIN};
    if (poll(&p, 1, (int)(PATIENCE_NS / 1000000)) != 1) fail_msg("qemu-storage-daemon does not connect");
}

static void test_silent_server(void **state)
{
    (void)state;
    struct machine_disk d = disk("slow", 0), many[20];
    struct call slow = {.add = &d}, others[20];
    start_silent_server();
    d.block.path = uri;
    create(NULL, 0);
    start();
    assert_int_equal(event_loop_post(machine_loop(run.m), on_loop, &slow), 0);
    wait_connected();
    /* Loop and vCPU go on. (One look of theirs takes far less; this holds on a host that is busy with other things, too.) */
    for (unsigned i = 0; i < 200; i++) {
        uint64_t before = clock_mono_ns();
        assert_int_equal(state_of("slow"), MACHINE_DISK_NONE);
        assert_int_equal(config(2, 0), NOBODY);
        assert_true(clock_mono_ns() - before < 2000000000);
    }
    /* Its id is taken, and nothing can be asked of it. */
    assert_int_equal(add("slow", 1), -EEXIST);
    assert_non_null(strstr(err.text, "being opened"));
    assert_int_equal(ask("slow"), -EBUSY);
    assert_non_null(strstr(err.text, "being opened"));
    /* Others come and go, and the machine can be reset. */
    assert_int_equal(add("hot", 1), 0);
    assert_int_equal(config(2, 0), VIRTIO_BLK);
    assert_int_equal(ask("hot"), 0);
    machine_reset(run.m);
    wait_reset();
    wait_for(&run.gone, 1);
    assert_int_equal(add("", 1), 0);
    assert_int_equal(state_of("disk0"), MACHINE_DISK_HERE);
    /* More than there are threads for them: the rest waits. */
    for (unsigned i = 0; i < 20; i++) {
        many[i] = disk("", 0);
        many[i].block.path = uri;
        others[i] = (struct call){.add = &many[i]};
        assert_int_equal(event_loop_post(machine_loop(run.m), on_loop, &others[i]), 0);
    }
    assert_int_equal(state_of("disk0"), MACHINE_DISK_HERE); /* behind them */
    assert_int_equal(slow.done, 0);
    /* The end does not wait for any of it, and every one is answered. */
    uint64_t before = clock_mono_ns();
    end();
    assert_true(clock_mono_ns() - before < 10000000000);
    assert_int_equal(slow.done, 1);
    assert_int_equal(slow.result, -EBUSY);
    assert_non_null(strstr(slow.e.text, "has ended"));
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(others[i].done, 1);
        assert_int_equal(others[i].result, -EBUSY);
    }
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no daemon is left */
    assert_int_equal(errno, ECHILD);
    assert_false(locked(1));
    end_silent_server();
}

struct with_reset {
    struct call call;
    bool reset_first;
};

static void add_and_reset(void *ctx)
{
    struct with_reset *x = ctx;
    if (x->reset_first) machine_reset(run.m);
    on_loop(&x->call);
    if (!x->reset_first) machine_reset(run.m);
}

/* A disk that is opened while the machine is being reset is there afterwards. */
static void test_open_in_reset(void **state)
{
    (void)state;
    create(NULL, 0);
    start();
    for (int i = 1; i <= 20; i++) {
        struct machine_disk d = disk("hot", 1);
        struct with_reset x = {.call = {.add = &d}, .reset_first = i % 2};
        assert_int_equal(event_loop_post(machine_loop(run.m), add_and_reset, &x), 0);
        wait_for(&x.call.done, 1);
        if (x.call.result) fail_msg("%s", x.call.e.text);
        assert_int_equal(config(2, 0), VIRTIO_BLK);
        assert_int_equal(ask("hot"), 0);
        out32(SLOTS + 8, 1u << 2);
        wait_for(&run.gone, i);
    }
    end();
    assert_false(locked(1));
}

/* A vCPU that sits in a host call: what needs it to stop says so, and is done when it is asked again. */
static void pause_on_loop(void *ctx)
{
    struct call *c = ctx;
    bool idle;
    c->result = machine_pause(run.m, &idle, &c->e);
    if (!c->result) c->result = machine_resume(run.m, &c->e);
    atomic_store(&c->done, 1);
}

static int pause_call(void)
{
    struct call c = {.id = NULL};
    assert_int_equal(event_loop_post(machine_loop(run.m), pause_on_loop, &c), 0);
    wait_for(&c.done, 1);
    err = c.e;
    return c.result;
}

static void test_hung_vcpu(void **state)
{
    (void)state;
    create(NULL, 0);
    start();
    assert_int_equal(add("old", 0), 0);
    run.m->park_patience_ns = 100000000;
    atomic_store(&cpu.hang, 1);
    wait_for(&cpu.hang, 2);
    assert_int_equal(add("hot", 1), -EAGAIN);
    assert_non_null(strstr(err.text, "does not stop"));
    assert_false(locked(1));
    assert_int_equal(state_of("hot"), MACHINE_DISK_NONE);
    assert_int_equal(pause_call(), -EAGAIN);
    assert_int_equal(machine_state(run.m), MACHINE_RUNNING);
    /* All goes on afterwards. */
    atomic_store(&cpu.hang, 0);
    run.m->park_patience_ns = PATIENCE_NS;
    assert_int_equal(pause_call(), 0);
    assert_int_equal(add("hot", 1), 0);
    assert_int_equal(config(3, 0), VIRTIO_BLK);
    end();
}

/* A guest that ejects all the time while the user adds, asks and resets; at the end some are on their way out. */
static void *hostile(void *arg)
{
    atomic_bool *stop = arg;
    for (unsigned i = 0; !*stop; i++) {
        out32(SLOTS + 8, i % 7 ? 1u << i % 32 : NOBODY);
        out32(SLOTS + i % 12 - i % 4, i * 0x10101);
        (void)config(i % 32, 0);
    }
    return NULL;
}

static void test_storm(void **state)
{
    (void)state;
    atomic_bool stop = false;
    pthread_t guest;
    create(NULL, 0);
    start();
    assert_int_equal(pthread_create(&guest, NULL, hostile, &stop), 0);
    unsigned added = 0;
    for (unsigned i = 0; i < 300; i++) {
        char id[16];
        snprintf(id, sizeof(id), "d%u", i % 3);
        if (i % 4 == 3)
            ask(id);
        else
            added += add(id, i % 3) == 0;
        /* Between two calls of the loop's, as a user's would be; the guest's orders wait meanwhile. */
        if (i % 50 == 49) machine_reset(run.m);
    }
    assert_true(added > 3);
    stop = true;
    pthread_join(guest, NULL);
    end();
    for (unsigned n = 0; n < 3; n++) assert_false(locked(n));
}

/* ---- set-up ---- */

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/nacelle-test-hotplug-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
    int r = tiny_kernel_write(kernel);
    for (unsigned i = 0; i < 3 && !r; i++) {
        snprintf(image[i], sizeof(image[i]), "%s/disk%u", dir, i);
        int fd = open(image[i], O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        r = ftruncate(fd, 1 << 20); /* of -1: fails as well */
        if (fd >= 0) close(fd);
    }
    return r;
}

static int teardown(void **state)
{
    (void)state;
    unlink(kernel);
    for (unsigned i = 0; i < 3; i++) unlink(image[i]);
    rmdir(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_come_and_go),   cmocka_unit_test(test_refusals),       cmocka_unit_test(test_full),
        cmocka_unit_test(test_reset),         cmocka_unit_test(test_before_the_run), cmocka_unit_test(test_storm),
        cmocka_unit_test(test_silent_server), cmocka_unit_test(test_open_in_reset),  cmocka_unit_test(test_hung_vcpu),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
