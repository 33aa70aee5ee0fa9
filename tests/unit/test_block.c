/* Raw disks on real files: contents against a model, errors, locks, limits of what is accepted. */
#define _GNU_SOURCE
#include "block_fixture.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define KIB 1024ull
#define MIB (KIB << 10)

static const enum block_aio aios[] = {BLOCK_AIO_AUTO, BLOCK_AIO_THREADS};

/* ---- contents ---- */

#define LANES 16
#define LANE (256 * KIB)

struct model {
    uint8_t *data; /* what the disk must hold */
    uint8_t *buffer[LANES];
    struct disk_io io[LANES];
    uint64_t seed;
};

static uint64_t rnd(struct model *m)
{
    m->seed ^= m->seed << 13;
    m->seed ^= m->seed >> 7;
    m->seed ^= m->seed << 17;
    return m->seed;
}

/* One random request in a lane of its own, so that no two at a time touch the same bytes. Reads are checked by finish(). */
static void random_request(struct disk_rig *d, struct model *m, unsigned lane)
{
    uint64_t sectors = 1 + rnd(m) % (rnd(m) % 4 ? 16 : LANE / 512 - 1);
    uint64_t length = sectors * 512;
    uint64_t offset = lane * LANE + rnd(m) % ((LANE - length) / 512 + 1) * 512;
    struct disk_io *io = &m->io[lane];
    uint8_t *p = m->buffer[lane] + (rnd(m) % 3 ? 0 : rnd(m) % 512); /* misaligned now and then */
    unsigned what = rnd(m) % 8;
    enum block_op op = what < 3 ? BLOCK_WRITE : what < 6 ? BLOCK_READ : what < 7 ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD;
    if (op == BLOCK_WRITE) {
        for (uint64_t i = 0; i < length; i++) p[i] = (uint8_t)rnd(m);
        memcpy(m->data + offset, p, length);
    } else if (op == BLOCK_WRITE_ZEROES || op == BLOCK_DISCARD) {
        memset(m->data + offset, 0, length);
    } else {
        memset(p, 0xa5, length);
    }
    /* Data come in several pieces. */
    unsigned pieces = op <= BLOCK_WRITE ? 1 + rnd(m) % 4 : 0;
    uint64_t at = 0;
    for (unsigned i = 0; i < pieces; i++) {
        uint64_t n = i + 1 == pieces ? length - at : (length - at) / 2 / 4 * 4;
        io->iov[i] = (struct iovec){.iov_base = p + at, .iov_len = n};
        at += n;
    }
    io->r = (struct block_request){.op = op,
                                   .offset = offset,
                                   .length = length,
                                   .iov = io->iov,
                                   .iovs = pieces,
                                   .fua = rnd(m) % 8 == 0,
                                   .may_unmap = rnd(m) % 2,
                                   .done = disk_io_done};
    atomic_store(&io->state, 0);
    block_submit(d->b, &io->r);
}

static void finish_request(struct model *m, unsigned lane)
{
    struct disk_io *io = &m->io[lane];
    assert_int_equal(disk_io_wait(io), 0);
    if (io->r.op == BLOCK_READ) assert_memory_equal(io->iov[0].iov_base, m->data + io->r.offset, io->r.length);
}

static void run_model(struct disk_rig *d, struct model *m, unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        block_plug(d->b);
        for (unsigned lane = 0; lane < LANES; lane++) random_request(d, m, lane);
        if (i % 2)
            block_unplug(d->b);
        else
            block_unplug_reap(d->b);
        if (i % 16 == 3) block_drain(d->b);
        for (unsigned lane = 0; lane < LANES; lane++) finish_request(m, lane);
        if (i % 8 == 5) assert_int_equal(disk_do(d, BLOCK_FLUSH, 0, NULL, 0), 0);
    }
}

static void model_init(struct model *m, uint64_t seed)
{
    memset(m, 0, sizeof(*m));
    m->seed = seed;
    m->data = calloc(1, LANES * LANE);
    assert_non_null(m->data);
    for (unsigned i = 0; i < LANES; i++) assert_int_equal(posix_memalign((void **)&m->buffer[i], 4096, LANE + 4096), 0);
}

static void model_free(struct model *m)
{
    free(m->data);
    for (unsigned i = 0; i < LANES; i++) free(m->buffer[i]);
}

/* What the file holds afterwards, read by other means. */
static void compare_file(const struct disk_rig *d, const struct model *m)
{
    uint8_t *got = malloc(LANES * LANE);
    int fd = open(d->path, O_RDONLY);
    assert_int_equal(read(fd, got, LANES * LANE), LANES * LANE);
    assert_memory_equal(got, m->data, LANES * LANE);
    close(fd);
    free(got);
}

/* Short transfers and refusals for the moment, as hosts have them. */
static int flaky(void *ctx, const struct block_request *r, const struct block_step *s)
{
    (void)r;
    unsigned n = atomic_fetch_add((atomic_uint *)ctx, 1);
    if (n % 7 == 0) return -EAGAIN;
    if (n % 11 == 0) return -EINTR;
    if (n % 5 == 0 && s->length > 512) return 512;
    return 0;
}

static void test_model(void **state)
{
    (void)state;
    const enum block_cache caches[] = {BLOCK_CACHE_NONE, BLOCK_CACHE_WRITEBACK, BLOCK_CACHE_WRITETHROUGH,
                                       BLOCK_CACHE_UNSAFE};
    for (unsigned a = 0; a < 2; a++)
        for (unsigned c = 0; c < 4; c++)
            for (unsigned faults = 0; faults < 2; faults++) {
                struct disk_rig d;
                struct model m;
                atomic_uint count = 1;
                disk_rig_init(&d);
                disk_rig_size(&d, LANES * LANE);
                model_init(&m, 88172645463325252ull + a * 100 + c * 10 + faults);
                disk_rig_open(&d,
                              (struct block_config){
                                  .cache = caches[c], .aio = aios[a], .discard = true, .format = c % 2 ? "raw" : NULL});
                if (faults) block_set_fault(d.b, flaky, &count);
                run_model(&d, &m, caches[c] == BLOCK_CACHE_WRITETHROUGH ? 10 : 40);
                disk_rig_close(&d);
                compare_file(&d, &m);
                model_free(&m);
                disk_rig_destroy(&d);
            }
}

/* ---- opening ---- */

static const struct block_config writable = {.cache = BLOCK_CACHE_WRITEBACK, .discard = true};

static void refused(struct disk_rig *d, struct block_config cfg, int code, const char *says)
{
    struct block *b;
    if (!cfg.path) cfg.path = d->path;
    int r = block_open(&cfg, d->loop, &b, &d->e);
    if (r != code) fail_msg("%s: %d instead of %d (%s)", cfg.path, r, code, r ? d->e.text : "no error");
    assert_null(b);
    if (!strstr(d->e.text, says)) fail_msg("'%s' does not say '%s'", d->e.text, says);
    assert_null(strchr(d->e.text, '\n'));
}

static void put_file(const char *path, const char *bytes, size_t n, off_t size)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, bytes, n), n);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

static void test_open_errors(void **state)
{
    (void)state;
    struct disk_rig d;
    disk_rig_init(&d);
    struct block_config cfg = writable;
    refused(&d, cfg, -EINVAL, "empty");
    disk_rig_size(&d, 1000);
    refused(&d, cfg, -EINVAL, "multiple of 512");
    cfg.path = "/nonexistent/disk";
    refused(&d, cfg, -ENOENT, "truncate");
    cfg.path = "/";
    refused(&d, cfg, -EINVAL, "neither");
    cfg.path = "/dev/null";
    refused(&d, cfg, -EINVAL, "neither");
    cfg.path = NULL;
    put_file(d.path, "KDMV", 4, 4096);
    refused(&d, cfg, -EINVAL, "vmdk");
    put_file(d.path, "vhdxfile", 8, 4096);
    refused(&d, cfg, -EINVAL, "vhdx");
    put_file(d.path, "LUKS\xba\xbe", 6, 4096);
    refused(&d, cfg, -EINVAL, "qemu-img convert");
    cfg.format = "raw"; /* then these are the disk's own bytes */
    struct block *b;
    cfg.path = d.path;
    assert_int_equal(block_open(&cfg, d.loop, &b, &d.e), 0);
    block_close(b);
    disk_rig_destroy(&d);
}

static void test_permission(void **state)
{
    (void)state;
    struct disk_rig d;
    disk_rig_init(&d);
    disk_rig_size(&d, 4096);
    chmod(d.path, 0444);
    /* Root may do anything, so the check runs in a child that is not. */
    pid_t pid = fork();
    if (pid == 0) {
        if (geteuid() == 0 && (setgid(65534) || setuid(65534))) _exit(9);
        struct block_config cfg = writable;
        cfg.path = d.path;
        struct nerr e = {""};
        struct block *b;
        struct event_loop *loop = event_loop_create(&e);
        if (block_open(&cfg, loop, &b, &e) != -EACCES || !strstr(e.text, "add ro")) _exit(1);
        cfg.readonly = true;
        if (block_open(&cfg, loop, &b, &e)) _exit(2);
        block_close(b);
        _exit(0);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    disk_rig_destroy(&d);
}

static void test_locks(void **state)
{
    (void)state;
    struct disk_rig d;
    disk_rig_init(&d);
    disk_rig_size(&d, 4096);
    disk_rig_open(&d, writable);
    struct block_config ro = writable;
    ro.readonly = true;
    refused(&d, writable, -EBUSY, "in use");
    refused(&d, ro, -EBUSY, "writes to it");
    disk_rig_close(&d);
    disk_rig_open(&d, ro);
    refused(&d, writable, -EBUSY, "in use");
    struct block *second;
    ro.path = d.path;
    assert_int_equal(block_open(&ro, d.loop, &second, &d.e), 0);
    block_close(second);
    disk_rig_close(&d);
    disk_rig_open(&d, writable); /* nothing is left of the locks */
    disk_rig_destroy(&d);
}

/* ---- requests ---- */

static void test_bounds(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t buffer[4096] = {0};
    disk_rig_init(&d);
    disk_rig_size(&d, 64 * KIB);
    disk_rig_open(&d, writable);
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * KIB - 512, buffer, 512), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * KIB - 512, buffer, 1024), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * KIB, buffer, 512), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, UINT64_MAX - 511, buffer, 1024), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 100, buffer, 512), -EINVAL);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, buffer, 100), -EINVAL);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, UINT64_MAX - 511), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, buffer, 0), 0);
    struct disk_io io = {.result = 1};
    io.r = (struct block_request){.op = BLOCK_READ, .length = 1024, .iov = io.iov, .iovs = 1, .done = disk_io_done};
    io.iov[0] = (struct iovec){buffer, 512}; /* less memory than asked for */
    block_submit(d.b, &io.r);
    assert_int_equal(disk_io_wait(&io), -EINVAL);
    struct block_stats s;
    block_get_stats(d.b, &s);
    assert_int_equal(s.errors, 7);
    assert_int_equal(s.ops[BLOCK_READ], 2);
    assert_int_equal(s.bytes[BLOCK_READ], 512);
    disk_rig_destroy(&d);
}

static void test_readonly(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t buffer[512] = {1};
    disk_rig_init(&d);
    disk_rig_size(&d, 4096);
    struct block_config cfg = writable;
    cfg.readonly = true;
    disk_rig_open(&d, cfg);
    struct block_info info;
    block_info(d.b, &info);
    assert_true(info.readonly);
    assert_false(info.can_discard);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, buffer, 512), -EROFS);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, 512), -EROFS);
    assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 0, NULL, 512), -EROFS);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, buffer, 512), 0);
    assert_int_equal(buffer[0], 0);
    disk_rig_destroy(&d);
}

/* done() on the caller's thread only where the caller asked for it. */
static void test_threads(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t buffer[4096];
    struct disk_io io = {.result = 1};
    disk_rig_init(&d);
    disk_rig_size(&d, 64 * KIB);
    disk_rig_open(&d, writable);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(disk_do(&d, i % 2 ? BLOCK_WRITE : BLOCK_READ, 4096, buffer, 4096), 0);
        block_plug(d.b);
        disk_io_submit(&d, &io, i % 2 ? BLOCK_WRITE : BLOCK_READ, 4096, buffer, 4096);
        block_unplug(d.b);
        assert_int_equal(disk_io_wait(&io), 0);
        assert_true(pthread_equal(io.thread, d.thread));
    }
    /* In the page cache by now: finished before reap returns. */
    unsigned here = 0;
    for (unsigned i = 0; i < 50; i++) {
        block_plug(d.b);
        disk_io_submit(&d, &io, BLOCK_READ, 4096, buffer, 4096);
        assert_int_equal(atomic_load(&io.state), 0); /* not from inside submit */
        block_unplug_reap(d.b);
        if (atomic_load(&io.state) && pthread_equal(io.thread, pthread_self())) here++;
        assert_int_equal(disk_io_wait(&io), 0);
    }
    assert_in_range(here, 45, 50);
    disk_rig_destroy(&d);
}

static void test_direct(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t *buffer = NULL;
    struct block_stats s;
    assert_int_equal(posix_memalign((void **)&buffer, 4096, 8192), 0);
    disk_rig_init(&d);
    disk_rig_size(&d, MIB);
    struct block_config cfg = writable;
    cfg.cache = BLOCK_CACHE_NONE;
    cfg.format = "raw";
    disk_rig_open(&d, cfg);
    memset(buffer, 0x5a, 8192);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 4096, buffer, 4096), 0);
    block_get_stats(d.b, &s);
    assert_int_equal(s.bounced_bytes, 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 4096, buffer + 8, 4096), 0);
    assert_int_equal(buffer[8], 0x5a);
    block_get_stats(d.b, &s);
    /* Where the build's file system has no O_DIRECT nothing needs a bounce buffer. */
    assert_int_equal(s.bounced_bytes, d.b->file.direct ? 4096 : 0);
    disk_rig_destroy(&d);
    free(buffer);
}

static uint64_t blocks(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void test_discard_frees(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t *data = malloc(MIB);
    memset(data, 1, MIB);
    disk_rig_init(&d);
    disk_rig_size(&d, MIB);
    disk_rig_open(&d, writable);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, MIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_in_range(blocks(d.path), MIB, 2 * MIB);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, MIB), 0);
    if (!d.b->file.no_punch) assert_in_range(blocks(d.path), 0, 64 * KIB);
    disk_rig_close(&d);
    /* discard=off: the guest is told that there is none, and one that tries all the same changes nothing. */
    struct block_config cfg = writable;
    cfg.discard = false;
    disk_rig_open(&d, cfg);
    struct block_info info;
    block_info(d.b, &info);
    assert_false(info.can_discard);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, MIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, MIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_in_range(blocks(d.path), MIB, 2 * MIB);
    disk_rig_destroy(&d);
    free(data);
}

/* A raw image that was not called raw must not turn into something that the next start opens as qcow2. */
static void test_guessed_stays_raw(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t head[1024] = "QFI\xfb";
    disk_rig_init(&d);
    disk_rig_size(&d, 64 * KIB);
    disk_rig_open(&d, writable);
    /* The log has one line of it, however often the guest tries. */
    FILE *log = tmpfile();
    int stderr_fd = dup(STDERR_FILENO);
    assert_true(log && dup2(fileno(log), STDERR_FILENO) == STDERR_FILENO);
    for (unsigned i = 0; i < 3; i++) assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, head, 1024), -EPERM);
    dup2(stderr_fd, STDERR_FILENO);
    close(stderr_fd);
    char text[2048] = "";
    assert_true(pread(fileno(log), text, sizeof(text) - 1, 0) > 0);
    fclose(log);
    assert_non_null(strstr(text, "begins a qcow2 image"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 512, head, 512), 0); /* anywhere else it is data */
    memcpy(head, "data", 4);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, head, 1024), 0);
    disk_rig_close(&d);
    struct block_config cfg = writable;
    cfg.format = "raw";
    disk_rig_open(&d, cfg);
    memcpy(head, "QFI\xfb", 4);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, head, 1024), 0);
    disk_rig_destroy(&d);
}

static void test_resize(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t sector[512] = {7};
    struct block_info info;
    disk_rig_init(&d);
    disk_rig_size(&d, 64 * KIB);
    disk_rig_open(&d, writable);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 64 * KIB, sector, 512), -EIO);
    assert_int_equal(block_resize(d.b, 128 * KIB, &d.e), 0);
    block_info(d.b, &info);
    assert_int_equal(info.size, 128 * KIB);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 64 * KIB, sector, 512), 0);
    assert_int_equal(block_resize(d.b, 64 * KIB, &d.e), -EINVAL);
    assert_non_null(strstr(d.e.text, "shrinking"));
    assert_int_equal(block_resize(d.b, 128 * KIB + 100, &d.e), -EINVAL);
    assert_int_equal(disk_do(&d, BLOCK_READ, 128 * KIB - 512, sector, 512), 0);
    disk_rig_destroy(&d);
}

/* ---- errors of the host ---- */

static int always(void *ctx, const struct block_request *r, const struct block_step *s)
{
    (void)s;
    int *error = ctx;
    return r->op == BLOCK_FLUSH ? -EIO : *error;
}

static atomic_uint times, firsts;

static void told(void *ctx, const struct block_error *last, bool first)
{
    assert_ptr_equal(ctx, &times);
    assert_true(last->count && last->error < 0);
    times++;
    firsts += first;
}

static void test_host_errors(void **state)
{
    struct block_error last;
    (void)state;
    for (unsigned a = 0; a < 2; a++) {
        struct disk_rig d;
        uint8_t data[4096] = {0};
        int error = -ENOSPC;
        disk_rig_init(&d);
        disk_rig_size(&d, MIB);
        struct block_config cfg = writable;
        cfg.aio = aios[a];
        disk_rig_open(&d, cfg);
        block_set_fault(d.b, always, &error);
        block_observe_errors(d.b, told, &times);
        times = firsts = 0;
        assert_int_equal(disk_do(&d, BLOCK_WRITE, MIB, data, 4096),
                         -EIO); /* the driver's own mistake is none of the host's */
        block_get_error(d.b, &last);
        assert_int_equal(last.count, 0);
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 8192, data, 4096), -ENOSPC);
        block_get_error(d.b, &last);
        assert_true(last.count == 1 && last.op == BLOCK_WRITE && last.offset == 8192 && last.length == 4096 &&
                    last.error == -ENOSPC);
        assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 0, NULL, 4096), -ENOSPC);
        assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), -EIO);
        error = -EAGAIN; /* for ever: an error in the end, not an endless loop */
        assert_int_equal(disk_do(&d, BLOCK_READ, 0, data, 4096), -EAGAIN);
        error = -EOPNOTSUPP; /* no hole, no zero range: then zeroes are written, which fails the same way here */
        assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 0, NULL, 4096), -EOPNOTSUPP);
        assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, 4096), 0);
        block_set_fault(d.b, NULL, NULL);
        memset(data, 1, 4096);
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, 4096), 0);
        assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 0, NULL, 4096), 0); /* now by writing them */
        assert_int_equal(disk_do(&d, BLOCK_READ, 0, data, 4096), 0);
        for (unsigned i = 0; i < 4096; i++) assert_int_equal(data[i], 0);
        /* Many at once are told of once, and then once more, a second later. */
        unsigned before = times;
        uint64_t start = clock_mono_ns();
        assert_int_equal(firsts, 1);
        error = -ENOSPC;
        block_set_fault(d.b, always, &error);
        for (unsigned i = 0; i < 500; i++) assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, 4096), -ENOSPC);
        while (times < before + 1 && clock_mono_ns() < start + 60000000000ull) usleep(1000);
        assert_in_range(times, before + 1, before + 2 + (clock_mono_ns() - start) / 1000000000);
        assert_int_equal(firsts, 1);
        block_get_error(d.b, &last);
        assert_true(last.count > 500);
        disk_rig_destroy(&d);
    }
}

/* The real thing: a file that may not grow, and one that another process cut off. */
static void test_real_errors(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t data[8192] = {3};
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 64 * KIB;
    for (unsigned a = 0; a < 2; a++) {
        disk_rig_init(&d);
        disk_rig_size(&d, MIB);
        struct block_config cfg = writable;
        cfg.aio = aios[a];
        disk_rig_open(&d, cfg);
        setrlimit(RLIMIT_FSIZE, &limit);
        int first = disk_do(&d, BLOCK_WRITE, 128 * KIB, data, 4096),
            half = disk_do(&d, BLOCK_WRITE, 60 * KIB, data, 8192);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(first, -EFBIG);
        assert_int_equal(half, -EFBIG); /* begun, but not all of it */
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 128 * KIB, data, 4096), 0);
        disk_rig_size(&d, 4096);
        assert_int_equal(disk_do(&d, BLOCK_READ, 128 * KIB, data, 4096), -EIO);
        assert_int_equal(disk_do(&d, BLOCK_READ, 0, data, 8192), -EIO);
        disk_rig_destroy(&d);
    }
}

/* ---- limits ---- */

/* Bytes (or operations) in half a second with `depth` requests in flight. */
static uint64_t pump(struct disk_rig *d, enum block_op op, uint64_t size, unsigned depth, bool count_bytes)
{
    struct disk_io io[8] = {0};
    uint8_t *data = calloc(1, size);
    uint64_t done = 0, start = clock_mono_ns();
    for (unsigned i = 0; i < depth; i++) disk_io_submit(d, &io[i], op, 0, data, size);
    while (clock_mono_ns() < start + 500000000) {
        bool any = false;
        for (unsigned i = 0; i < depth; i++)
            if (atomic_load(&io[i].state)) {
                assert_int_equal(io[i].result, 0);
                done += count_bytes ? size : 1;
                disk_io_submit(d, &io[i], op, 0, data, size);
                any = true;
            }
        if (!any) usleep(100);
    }
    block_drain(d->b); /* goes beyond the limit, and is not counted */
    free(data);
    return done;
}

/* The limit is reached, and kept each time. A busy machine makes it less, so there are several tries for that; the exact test is in
 * simulated time. */
static void assert_rate(struct disk_rig *d, enum block_op op, uint64_t size, unsigned depth, bool count_bytes,
                        uint64_t want)
{
    uint64_t got = 0;
    for (unsigned tries = 0; tries < 20 && got < want * 80 / 100; tries++) {
        usleep(tries ? 300000 : 0); /* the drain's debt */
        got = pump(d, op, size, depth, count_bytes);
        if (got > want * 120 / 100) fail_msg("%llu, limit %llu", (unsigned long long)got, (unsigned long long)want);
    }
    if (got < want * 80 / 100) fail_msg("%llu instead of %llu", (unsigned long long)got, (unsigned long long)want);
}

static void test_limits(void **state)
{
    (void)state;
    struct disk_rig d;
    struct block_limits l = {.read_bps = 8 * MIB};
    disk_rig_init(&d);
    disk_rig_size(&d, 4 * MIB);
    struct block_config cfg = writable;
    cfg.limits = l;
    disk_rig_open(&d, cfg);
    assert_rate(&d, BLOCK_READ, 4096, 8, true, 4 * MIB);
    assert_true(pump(&d, BLOCK_WRITE, 64 * KIB, 8, true) > 6 * MIB); /* not limited */
    l = (struct block_limits){.total_iops = 400};
    assert_int_equal(block_set_limits(d.b, &l, &d.e), 0);
    usleep(300000); /* the drain's debt */
    assert_rate(&d, BLOCK_WRITE, 4096, 4, false, 200);
    /* A request of 1 MiB counts as 16. */
    usleep(300000);
    assert_rate(&d, BLOCK_READ, MIB, 1, false, 200 / 16);
    /* What waits when the limit goes away goes at once. */
    struct disk_io io[3] = {0};
    uint8_t *data = calloc(1, MIB);
    l = (struct block_limits){.write_bps = 1000};
    assert_int_equal(block_set_limits(d.b, &l, &d.e), 0);
    for (unsigned i = 0; i < 3; i++) disk_io_submit(&d, &io[i], BLOCK_WRITE, 0, data, MIB);
    usleep(30000);
    assert_int_equal(atomic_load(&io[2].state), 0);
    struct block_limits now;
    block_get_limits(d.b, &now);
    assert_int_equal(now.write_bps, 1000);
    memset(&l, 0, sizeof(l));
    assert_int_equal(block_set_limits(d.b, &l, &d.e), 0);
    for (unsigned i = 0; i < 3; i++) assert_int_equal(disk_io_wait(&io[i]), 0);
    assert_false(atomic_load(&d.b->limited));
    struct block_stats s;
    block_get_stats(d.b, &s);
    assert_true(s.throttled_ns > 20000000);
    disk_rig_destroy(&d);
    free(data);
}

/* ---- durability ---- */

/* A child writes numbered sectors, flushes, and says what is flushed; it is killed at any moment. Everything acknowledged is in the file. */
static void write_and_tell(const char *path, int out, enum block_cache cache)
{
    struct disk_rig d;
    memset(&d, 0, sizeof(d));
    d.loop = event_loop_create(&d.e);
    snprintf(d.path, sizeof(d.path), "%s", path);
    struct block_config cfg = {.cache = cache, .discard = true};
    disk_rig_open(&d, cfg);
    for (uint64_t n = 1;; n++) {
        struct disk_io io[4] = {0};
        uint64_t data[4][512 / 8];
        block_plug(d.b);
        for (unsigned i = 0; i < 4; i++) {
            for (unsigned k = 0; k < 64; k++) data[i][k] = n;
            disk_io_submit(&d, &io[i], BLOCK_WRITE, ((n * 4 + i) * 8192) % MIB, data[i], 512);
        }
        block_unplug_reap(d.b);
        bool ok = true;
        for (unsigned i = 0; i < 4; i++) ok &= disk_io_wait(&io[i]) == 0;
        if (cache != BLOCK_CACHE_WRITETHROUGH) ok &= disk_do(&d, BLOCK_FLUSH, 0, NULL, 0) == 0;
        if (!ok || write(out, &n, sizeof(n)) != sizeof(n)) _exit(1);
    }
}

static void test_kill(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 6; round++) {
        struct disk_rig d;
        int told[2];
        uint64_t n, last = 0, sector[64];
        disk_rig_init(&d);
        disk_rig_size(&d, MIB);
        assert_int_equal(pipe(told), 0);
        pid_t pid = fork();
        if (pid == 0) write_and_tell(d.path, told[1], round % 2 ? BLOCK_CACHE_WRITETHROUGH : BLOCK_CACHE_WRITEBACK);
        close(told[1]);
        assert_int_equal(read(told[0], &last, sizeof(last)), sizeof(last));
        usleep(3000 + round * 7000);
        kill(pid, SIGKILL);
        while (read(told[0], &n, sizeof(n)) == sizeof(n)) last = n;
        waitpid(pid, NULL, 0);
        close(told[0]);
        disk_rig_open(&d, writable); /* its lock is gone, too */
        for (uint64_t i = last > 30 ? last - 30 : 1; i <= last; i++)
            for (unsigned k = 0; k < 4; k++) {
                assert_int_equal(disk_do(&d, BLOCK_READ, ((i * 4 + k) * 8192) % MIB, sector, 512), 0);
                assert_in_range(sector[0], i, last + 1); /* written again after it was acknowledged: fine */
                assert_int_equal(sector[0], sector[63]);
            }
        disk_rig_destroy(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),         cmocka_unit_test(test_open_errors),
        cmocka_unit_test(test_permission),    cmocka_unit_test(test_locks),
        cmocka_unit_test(test_bounds),        cmocka_unit_test(test_readonly),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_direct),
        cmocka_unit_test(test_discard_frees), cmocka_unit_test(test_guessed_stays_raw),
        cmocka_unit_test(test_resize),        cmocka_unit_test(test_host_errors),
        cmocka_unit_test(test_real_errors),   cmocka_unit_test(test_limits),
        cmocka_unit_test(test_kill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
