/* An image under random writes, discards, zeroes, flushes and drains (what a device's reset does), whose process is killed at any moment, compared
 * with a model: every sector holds what was last made durable there, or something that was asked for later. Raw and qcow2, in all cache modes that
 * promise anything; a few rounds each, a hundred with NACELLE_LONG. */
#define _GNU_SOURCE
#include "block_fixture.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define SECTORS 2048u /* 1 MiB */
#define LANES 4u      /* requests in flight; each has sectors of its own, so that order is known */
#define LANE (SECTORS / LANES)
#define MOST_OPS 60000u

enum kind { WRITE, ZERO, DISCARD };

/* What was done, in memory that outlives the process that did it. */
struct op {
    uint16_t sector, count;
    uint8_t kind;
    bool asked, stable;    /* submitted; durable by itself (FUA, or writethrough) and acknowledged */
    uint32_t acknowledged; /* the number of the first flush that would cover it, 0: not acknowledged */
    uint32_t stamp;        /* what a written sector is full of */
};
struct history {
    atomic_uint ops, flushes_begun, flushes_done; /* flush n covers what was acknowledged before it began */
    struct op op[MOST_OPS];
    uint32_t before[SECTORS]; /* what each sector held at the start of the round */
};

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void stamp_sectors(uint32_t *p, unsigned sectors, uint32_t stamp)
{
    for (unsigned i = 0; i < sectors * 128; i++) p[i] = stamp;
}

/* ---- the process that is killed ---- */

static struct op *begin(struct history *h, struct disk_rig *d, struct disk_io *io, unsigned lane, void *data,
                        uint64_t *s, enum block_cache cache)
{
    unsigned n = atomic_load(&h->ops);
    struct op *o = &h->op[n];
    o->count = (uint16_t)(1 + rnd(s) % 32);
    o->sector = (uint16_t)(lane * LANE + rnd(s) % (LANE - o->count));
    o->kind = rnd(s) % 4 ? WRITE : rnd(s) % 2 ? ZERO : DISCARD;
    o->stamp = n + 1 + (uint32_t)(rnd(s) << 20);
    bool fua = o->kind == WRITE && rnd(s) % 5 == 0;
    o->stable = o->kind == WRITE && (fua || cache == BLOCK_CACHE_WRITETHROUGH);
    o->asked = true;
    atomic_store(&h->ops, n + 1);
    if (o->kind == WRITE) stamp_sectors(data, o->count, o->stamp);
    static const enum block_op ops[] = {BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_DISCARD};
    io->r = (struct block_request){.op = ops[o->kind],
                                   .offset = o->sector * 512ull,
                                   .length = o->count * 512ull,
                                   .iov = io->iov,
                                   .iovs = o->kind == WRITE,
                                   .fua = fua,
                                   .may_unmap = rnd(s) % 2,
                                   .done = disk_io_done};
    io->iov[0] = (struct iovec){data, o->count * 512ull};
    atomic_store(&io->state, 0);
    block_submit(d->b, &io->r);
    return o;
}

static void scribble(const char *path, const char *format, enum block_cache cache, struct history *h, uint64_t seed)
{
    struct disk_rig d;
    uint8_t *data[LANES];
    memset(&d, 0, sizeof(d));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    d.loop = event_loop_create(&d.e);
    snprintf(d.path, sizeof(d.path), "%s", path);
    disk_rig_open(&d, (struct block_config){.cache = cache, .discard = true, .format = format});
    for (unsigned i = 0; i < LANES; i++)
        if (posix_memalign((void **)&data[i], 4096, 32 * 512)) _exit(1);
    while (atomic_load(&h->ops) + LANES < MOST_OPS) {
        struct disk_io io[LANES];
        struct op *o[LANES];
        block_plug(d.b);
        for (unsigned i = 0; i < LANES; i++) o[i] = begin(h, &d, &io[i], i, data[i], &seed, cache);
        block_unplug_reap(d.b);
        if (rnd(&seed) % 8 == 0) block_drain(d.b);
        for (unsigned i = 0; i < LANES; i++) {
            if (disk_io_wait(&io[i])) _exit(2);
            o[i]->acknowledged = atomic_load(&h->flushes_begun) + 1;
        }
        if (rnd(&seed) % 4) continue;
        unsigned flush = atomic_fetch_add(&h->flushes_begun, 1) + 1;
        if (disk_do(&d, BLOCK_FLUSH, 0, NULL, 0)) _exit(3);
        atomic_store(&h->flushes_done, flush);
    }
    for (;;) pause();
}

/* ---- the model ---- */

static bool durable(const struct history *h, const struct op *o)
{
    return o->acknowledged && (o->stable || o->acknowledged <= atomic_load(&h->flushes_done));
}

/* Whether `sector` may hold `value`: from its last durable change on, in order, anything that was asked for. What a discard leaves is
 * nobody's promise: zeroes, or what was there. */
static bool allowed(const struct history *h, unsigned sector, uint32_t value)
{
    bool may = value == h->before[sector];
    unsigned n = atomic_load(&h->ops);
    for (unsigned i = 0; i < n; i++) {
        const struct op *o = &h->op[i];
        if (sector < o->sector || sector - o->sector >= o->count) continue;
        uint32_t made = o->kind == WRITE ? o->stamp : 0;
        if (o->kind != DISCARD && durable(h, o)) may = false;
        may |= value == made;
    }
    return may;
}

/* Reads all of it by the back end's own way; gives how many sectors hold what they must not. */
static unsigned compare(struct disk_rig *d, struct history *h, bool keep)
{
    static uint32_t got[SECTORS * 128];
    unsigned wrong = 0;
    assert_int_equal(disk_do(d, BLOCK_READ, 0, got, sizeof(got)), 0);
    for (unsigned s = 0; s < SECTORS; s++) {
        const uint32_t *p = &got[s * 128];
        bool whole = true;
        for (unsigned i = 1; i < 128; i++) whole &= p[i] == p[0];
        if (!whole || !allowed(h, s, p[0])) wrong++;
    }
    for (unsigned s = 0; keep && s < SECTORS; s++) h->before[s] = got[s * 128];
    return wrong;
}

static void new_round(struct history *h)
{
    atomic_store(&h->ops, 0);
    atomic_store(&h->flushes_begun, 0);
    atomic_store(&h->flushes_done, 0);
    memset(h->op, 0, sizeof(h->op));
}

/* The model itself must notice: the sector of a durable write is changed behind its back. */
static void spoil(struct disk_rig *d, const struct history *h)
{
    uint32_t sector[128];
    unsigned n = atomic_load(&h->ops), at = 0;
    bool found = false;
    for (unsigned i = 0; i < n && !found; i++) {
        found = h->op[i].kind == WRITE && durable(h, &h->op[i]);
        at = h->op[i].sector;
    }
    if (!found) fail_msg("nothing was durable after %u operations", n);
    stamp_sectors(sector, 1, 0xfffffffe);
    assert_int_equal(disk_do(d, BLOCK_WRITE, at * 512ull, sector, 512), 0);
}

/* The daemon of a writer that was killed ends in its own time, which may be long on a busy machine, and holds the image's lock until then. */
static void open_after_kill(struct disk_rig *d, struct block_config cfg)
{
    uint64_t end = clock_mono_ns() + 30ull * 1000000000;
    int r;
    cfg.path = d->path;
    while ((r = block_open(&cfg, d->loop, &d->b, &d->e)) == -EBUSY && clock_mono_ns() < end) usleep(50000);
    if (r) fail_msg("%s", d->e.text);
    assert_int_equal(pthread_create(&d->thread, NULL, disk_rig_loop, d->loop), 0);
}

/* With its storage daemon, which then has no moment to put things right: it has a process group of its own. The writer stands still first, so
 * that it cannot see its daemon go. */
static void kill_daemon_of(pid_t writer)
{
    char name[64], list[64] = "";
    int status;
    snprintf(name, sizeof(name), "/proc/%d/task/%d/children", writer, writer);
    assert_int_equal(kill(writer, SIGSTOP), 0);
    assert_true(waitpid(writer, &status, WUNTRACED) == writer && WIFSTOPPED(status));
    int fd = open(name, O_RDONLY);
    assert_true(fd >= 0 && read(fd, list, sizeof(list) - 1) > 0);
    close(fd);
    assert_int_equal(kill((pid_t)strtol(list, NULL, 10), SIGKILL), 0);
}

static void crash_rounds(const char *format, enum block_cache cache, unsigned rounds, uint64_t seed)
{
    struct disk_rig d;
    struct history *h =
        mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(h != MAP_FAILED);
    disk_rig_init(&d);
    if (strcmp(format, "qcow2") == 0) {
        char command[200];
        snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M", d.path);
        assert_int_equal(system(command), 0);
    } else {
        disk_rig_size(&d, SECTORS * 512);
    }
    for (unsigned round = 0; round < rounds; round++) {
        int status;
        new_round(h);
        pid_t pid = fork();
        if (pid == 0) scribble(d.path, format, cache, h, seed + round * 7919 + 1);
        /* Work, not time, is what tells rounds apart: the kill comes after so many operations and flushes, and then a bit. */
        uint64_t end = clock_mono_ns() + 60ull * 1000000000;
        unsigned until = 20 + (unsigned)(rnd(&seed) % 400);
        while ((atomic_load(&h->ops) < until || !atomic_load(&h->flushes_done)) && clock_mono_ns() < end &&
               waitpid(pid, &status, WNOHANG) == 0)
            usleep(100);
        usleep((unsigned)(rnd(&seed) % 1500));
        if (round % 2 && strcmp(format, "qcow2") == 0) kill_daemon_of(pid);
        if (kill(pid, SIGKILL) || waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
            fail_msg("%s, cache mode %d: the writer ended by itself", format, cache);
        open_after_kill(&d, (struct block_config){.cache = BLOCK_CACHE_WRITEBACK, .discard = true, .format = format});
        unsigned wrong = compare(&d, h, false);
        if (wrong)
            fail_msg("%s, cache mode %d, round %u: %u sectors after %u operations", format, cache, round, wrong,
                     atomic_load(&h->ops));
        if (round == 0) {
            spoil(&d, h);
            assert_int_equal(compare(&d, h, false), 1);
        }
        compare(&d, h, true);
        disk_rig_close(&d);
    }
    disk_rig_destroy(&d);
    munmap(h, sizeof(*h));
}

static unsigned rounds(unsigned few)
{
    const char *longer = getenv("NACELLE_LONG");
    return longer && *longer ? 100 : few;
}

static void test_raw(void **state)
{
    (void)state;
    crash_rounds("raw", BLOCK_CACHE_WRITEBACK, rounds(8), 88172645463325252ull);
    crash_rounds("raw", BLOCK_CACHE_WRITETHROUGH, rounds(4), 362436069ull);
    crash_rounds("raw", BLOCK_CACHE_NONE, rounds(4), 521288629ull);
}

static void test_qcow2(void **state)
{
    (void)state;
    if (system("command -v qemu-storage-daemon >/dev/null && command -v qemu-img >/dev/null")) skip();
    crash_rounds("qcow2", BLOCK_CACHE_WRITEBACK, rounds(4), 88675123ull);
    crash_rounds("qcow2", BLOCK_CACHE_WRITETHROUGH, rounds(3), 123456789ull);
    crash_rounds("qcow2", BLOCK_CACHE_NONE, rounds(3), 987654321ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_raw), cmocka_unit_test(test_qcow2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
