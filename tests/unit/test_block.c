/* Raw disks on real files: contents against a model, errors, locks, limits of what is accepted. */
#define _GNU_SOURCE
#include "block_fixture.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
