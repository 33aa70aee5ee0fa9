/* virtio-blk on a real file: requests of every kind and shape, what is refused, configuration, resize. */
#include "tests/unit/virtio_rig.h"

/* devices.h has another struct of this name than the uapi header. */
#define virtio_blk_config blk_space
#include <linux/virtio_blk.h>
#undef virtio_blk_config
#include <pthread.h>
#include <unistd.h>

#include "common/event.h"
#include "vmm/backend/block.h"
#include "vmm/virtio/devices.h"

#define SECTORS 2048u
#define FEATURES_ALL (~(1ull << VIRTIO_F_ACCESS_PLATFORM))

struct disk {
    struct rig *r;
    struct event_loop *loop;
    pthread_t thread;
    struct virtio_blk *blk;
    struct block *block;
    char path[32];
    uint64_t head, data, status, table;
};

static void *run_loop(void *ctx)
{
    struct nerr e;
    event_loop_run(ctx, &e);
    return NULL;
}

static struct disk *disk_new(bool readonly, uint64_t features)
{
    struct nerr e;
    struct disk *d = calloc(1, sizeof(*d));
    d->r = rig_new();
    d->loop = event_loop_create(&e);
    strcpy(d->path, "blk-test-XXXXXX");
    int fd = mkstemp(d->path);
    assert_true(fd >= 0 && ftruncate(fd, SECTORS * 512) == 0);
    close(fd);
    struct block_config b = {.path = d->path, .readonly = readonly, .cache = BLOCK_CACHE_WRITEBACK, .discard = true};
    if (block_open(&b, d->loop, &d->block, &e)) fail_msg("%s", e.text);
    struct virtio_blk_config cfg = {
        .name = "disk0", .loop = d->loop, .block = d->block, .serial = "a-serial-number-of-20", .queues = 2};
    if (virtio_blk_create(d->r->pci, 1, &cfg, &d->blk, &e)) fail_msg("%s", e.text);
    rig_probe(d->r, true);
    features &= rig_offered(d->r);
    assert_true(rig_negotiate(d->r, features | 1ull << VIRTIO_F_VERSION_1));
    for (unsigned n = 0; n < 2; n++) rig_queue_setup(d->r, n, 64, features);
    rig_go(d->r);
    assert_int_equal(rig_status(d->r), 0xf);
    d->head = rig_alloc(d->r, 64);
    d->data = rig_alloc(d->r, 65536);
    d->status = rig_alloc(d->r, 16);
    d->table = rig_alloc(d->r, 16 * 16);
    pthread_create(&d->thread, NULL, run_loop, d->loop);
    return d;
}

static void disk_free(struct disk *d)
{
    event_loop_stop(d->loop);
    pthread_join(d->thread, NULL);
    virtio_blk_destroy(d->blk);
    rig_free(d->r);
    event_loop_destroy(d->loop);
    unlink(d->path);
    free(d);
}

static unsigned status_of(struct disk *d)
{
    return *(uint8_t *)rig_ptr(d->r, d->status);
}

/* A request with these data buffers between header and status; its status. */
static unsigned request_buffers(struct disk *d, uint32_t type, uint64_t sector, const struct rig_buffer *data,
                                unsigned n)
{
    struct rig_buffer b[16];
    struct virtio_blk_outhdr h = {.type = type, .sector = sector};
    struct rig_queue *q = &d->r->q[rand() % 2];
    uint32_t len;
    memcpy(rig_ptr(d->r, d->head), &h, sizeof(h));
    *(uint8_t *)rig_ptr(d->r, d->status) = 0xee;
    b[0] = (struct rig_buffer){d->head, sizeof(h), false};
    memcpy(b + 1, data, n * sizeof(*data));
    b[n + 1] = (struct rig_buffer){d->status, 1, true};
    rig_want_interrupt(d->r, q, true);
    unsigned before = atomic_load(&d->r->msi[q->n + 1]);
    assert_true(rig_add(d->r, q, b, n + 2, rand() % 2 ? d->table : 0) >= 0);
    rig_kick(d->r, q);
    rig_wait_used(d->r, q, &len);
    for (int i = 0; i < 2000 && atomic_load(&d->r->msi[q->n + 1]) == before; i++)
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    assert_int_equal(atomic_load(&d->r->msi[q->n + 1]), before + 1);
    return status_of(d);
}

static unsigned request(struct disk *d, uint32_t type, uint64_t sector, uint32_t len, bool write)
{
    struct rig_buffer b = {d->data, len, write};
    return request_buffers(d, type, sector, &b, len ? 1 : 0);
}

static void read_file(struct disk *d, void *p, size_t n, uint64_t off)
{
    FILE *f = fopen(d->path, "rb");
    assert_non_null(f);
    fseek(f, (long)off, SEEK_SET);
    assert_int_equal(fread(p, 1, n, f), n);
    fclose(f);
}

static void write_then_read(uint64_t features)
{
    struct disk *d = disk_new(false, features);
    static uint8_t want[65536], got[65536];
    uint8_t *data = rig_ptr(d->r, d->data);
    srand(1);
    for (unsigned round = 0; round < 60; round++) {
        unsigned sectors = 1 + (unsigned)rand() % 100, bytes = sectors * 512, n = 0, at = 0;
        uint64_t sector = (uint64_t)rand() % (SECTORS - sectors);
        struct rig_buffer b[8];
        for (unsigned i = 0; i < bytes; i++) want[i] = (uint8_t)rand();
        memcpy(data, want, bytes);
        while (at < bytes) { /* cut anywhere */
            unsigned part = n == 5 ? bytes - at : 1 + (unsigned)rand() % (bytes - at);
            b[n++] = (struct rig_buffer){d->data + at, part, false};
            at += part;
        }
        assert_int_equal(request_buffers(d, VIRTIO_BLK_T_OUT, sector, b, n), VIRTIO_BLK_S_OK);
        read_file(d, got, bytes, sector * 512);
        assert_memory_equal(got, want, bytes);
        memset(data, 0, bytes);
        for (unsigned i = 0; i < n; i++) b[i].write = true;
        assert_int_equal(request_buffers(d, VIRTIO_BLK_T_IN, sector, b, n), VIRTIO_BLK_S_OK);
        assert_memory_equal(data, want, bytes);
    }
    assert_int_equal(request(d, VIRTIO_BLK_T_FLUSH, 0, 0, false), VIRTIO_BLK_S_OK);
    assert_int_equal(rig_status(d->r), 0xf);
    disk_free(d);
}

static void test_data(void **state)
{
    (void)state;
    write_then_read(FEATURES_ALL);
    write_then_read(FEATURES_ALL & ~(1ull << VIRTIO_F_RING_PACKED));
    write_then_read(1ull << VIRTIO_RING_F_INDIRECT_DESC);
}

/* Header, data and status may share buffers, or be cut (1.2, 2.6.4: no layout is promised). */
static void test_layouts(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, 0);
    struct rig_queue *q = &d->r->q[0];
    struct virtio_blk_outhdr h = {.type = VIRTIO_BLK_T_OUT, .sector = 5};
    uint8_t got[512], *data = rig_ptr(d->r, d->data);
    memcpy(data, &h, sizeof(h));
    memset(data + sizeof(h), 0x77, 512);
    struct rig_buffer one[2] = {{d->data, sizeof(h) + 512, false}, {d->status, 1, true}};
    *(uint8_t *)rig_ptr(d->r, d->status) = 0xee;
    rig_add(d->r, q, one, 2, 0);
    rig_kick(d->r, q);
    rig_wait_used(d->r, q, NULL);
    assert_int_equal(status_of(d), VIRTIO_BLK_S_OK);
    read_file(d, got, 512, 5 * 512);
    assert_memory_equal(got, data + sizeof(h), 512);
    h.type = VIRTIO_BLK_T_IN;
    memcpy(rig_ptr(d->r, d->head), &h, sizeof(h));
    memset(data, 0xcc, 1024);
    /* The header in three parts; the status at the end of the data. */
    struct rig_buffer cut[4] = {
        {d->head, 1, false}, {d->head + 1, 10, false}, {d->head + 11, 5, false}, {d->data, 513, true}};
    rig_add(d->r, q, cut, 4, 0);
    rig_kick(d->r, q);
    uint32_t len;
    rig_wait_used(d->r, q, &len);
    assert_int_equal(len, 513);
    assert_memory_equal(data, got, 512);
    assert_int_equal(data[512], VIRTIO_BLK_S_OK);
    assert_int_equal(data[513], 0xcc);
    disk_free(d);
}

static void test_refused(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, FEATURES_ALL);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, SECTORS, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, SECTORS - 1, 1024, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, UINT64_MAX, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, UINT64_MAX / 512, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, SECTORS, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, 0, 100, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, 0, 513, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, 77, 0, 512, true), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, SECTORS - 1, 512, true), VIRTIO_BLK_S_OK);
    assert_int_equal(rig_status(d->r), 0xf);
    /* No room for a status, or no header: nobody can be answered. */
    struct rig_buffer b = {d->head, 16, false}, c[2] = {{d->head, 15, false}, {d->status, 1, true}};
    rig_add(d->r, &d->r->q[0], &b, 1, 0);
    rig_kick(d->r, &d->r->q[0]);
    assert_true(rig_status(d->r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_true(rig_negotiate(d->r, 1ull << VIRTIO_F_VERSION_1));
    rig_queue_setup(d->r, 0, 64, 0);
    rig_go(d->r);
    rig_add(d->r, &d->r->q[0], c, 2, 0);
    rig_kick(d->r, &d->r->q[0]);
    assert_true(rig_status(d->r) & VIRTIO_CONFIG_S_NEEDS_RESET);
    disk_free(d);
}

static void test_readonly(void **state)
{
    (void)state;
    struct disk *d = disk_new(true, FEATURES_ALL);
    assert_true(rig_offered(d->r) & 1ull << VIRTIO_BLK_F_RO);
    assert_false(rig_offered(d->r) & (1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES));
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, 0, 512, true), VIRTIO_BLK_S_OK);
    disk_free(d);
}

static void test_ranges(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, FEATURES_ALL);
    uint8_t got[16 * 512], *data = rig_ptr(d->r, d->data);
    memset(data, 0x11, 16 * 512);
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, 0, 16 * 512, false), VIRTIO_BLK_S_OK);
    /* Two ranges; what is between them stays. */
    struct virtio_blk_discard_write_zeroes w[2] = {{.sector = 2, .num_sectors = 3},
                                                   {.sector = 8, .num_sectors = 8, .flags = 1}};
    memcpy(data, w, sizeof(w));
    assert_int_equal(request(d, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(w), false), VIRTIO_BLK_S_OK);
    read_file(d, got, sizeof(got), 0);
    for (unsigned i = 0; i < 16; i++) assert_int_equal(got[i * 512 + 7], (i >= 2 && i < 5) || i >= 8 ? 0 : 0x11);
    w[0] = (struct virtio_blk_discard_write_zeroes){.sector = 0, .num_sectors = 8};
    memcpy(data, w, sizeof(w[0]));
    assert_int_equal(request(d, VIRTIO_BLK_T_DISCARD, 0, sizeof(w[0]), false), VIRTIO_BLK_S_OK);
    /* Refused whole when one range is wrong. */
    memset(data, 0x11, 16 * 512);
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, 0, 16 * 512, false), VIRTIO_BLK_S_OK);
    w[0] = (struct virtio_blk_discard_write_zeroes){.sector = 0, .num_sectors = 8};
    w[1] = (struct virtio_blk_discard_write_zeroes){.sector = SECTORS - 1, .num_sectors = 2};
    memcpy(data, w, sizeof(w));
    assert_int_equal(request(d, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(w), false), VIRTIO_BLK_S_IOERR);
    read_file(d, got, sizeof(got), 0);
    assert_int_equal(got[0], 0x11);
    w[1] = (struct virtio_blk_discard_write_zeroes){.sector = 1, .num_sectors = 2, .flags = 2};
    memcpy(data, w, sizeof(w));
    assert_int_equal(request(d, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(w), false), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(d, VIRTIO_BLK_T_DISCARD, 0, sizeof(w) - 1, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(d, VIRTIO_BLK_T_DISCARD, 0, 16 * 17, false), VIRTIO_BLK_S_IOERR);
    disk_free(d);
}

static void test_identity(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, FEATURES_ALL);
    memset(rig_ptr(d->r, d->data), 0xcc, 64);
    assert_int_equal(request(d, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES, true), VIRTIO_BLK_S_OK);
    assert_memory_equal(rig_ptr(d->r, d->data), "a-serial-number-of-20", VIRTIO_BLK_ID_BYTES);
    assert_int_equal(((uint8_t *)rig_ptr(d->r, d->data))[VIRTIO_BLK_ID_BYTES], 0xcc);
    assert_int_equal(rig_in(d->r, d->r->config, 8), SECTORS);
    assert_int_equal(rig_in(d->r, d->r->config + offsetof(struct blk_space, num_queues), 2), 2);
    assert_int_equal(rig_in(d->r, d->r->config + offsetof(struct blk_space, blk_size), 4), 512);
    disk_free(d);
}

/* The driver may switch to write-through; a reset switches back. */
static void test_writeback(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, FEATURES_ALL);
    uint64_t wce = d->r->config + offsetof(struct blk_space, wce);
    assert_int_equal(rig_in(d->r, wce, 1), 1);
    rig_out(d->r, wce, 1, 0);
    assert_int_equal(rig_in(d->r, wce, 1), 0);
    assert_int_equal(request(d, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_OK);
    rig_out(d->r, wce, 1, 7);
    assert_int_equal(rig_in(d->r, wce, 1), 1);
    rig_out(d->r, wce, 1, 0);
    rig_set(d->r, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    assert_int_equal(rig_in(d->r, wce, 1), 1);
    disk_free(d);
}

static void test_resize(void **state)
{
    (void)state;
    struct nerr e;
    struct disk *d = disk_new(false, FEATURES_ALL);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, SECTORS, 512, true), VIRTIO_BLK_S_IOERR);
    if (block_resize(d->block, SECTORS * 1024, &e)) fail_msg("%s", e.text);
    virtio_blk_resized(d->blk);
    assert_int_equal(atomic_load(&d->r->msi[0]), 1);
    assert_int_equal(rig_in(d->r, d->r->config, 8), 2 * SECTORS);
    assert_int_equal(request(d, VIRTIO_BLK_T_IN, SECTORS, 512, true), VIRTIO_BLK_S_OK);
    disk_free(d);
}

/* Many at once, with resets of the device in between: nothing is lost, nothing hangs. */
static void test_resets(void **state)
{
    (void)state;
    struct disk *d = disk_new(false, FEATURES_ALL);
    for (unsigned round = 0; round < 30; round++) {
        uint64_t features = (round & 1 ? 1ull << VIRTIO_F_RING_PACKED : 0) | 1ull << VIRTIO_RING_F_EVENT_IDX;
        struct virtio_blk_outhdr h = {.type = VIRTIO_BLK_T_IN, .sector = round};
        uint64_t keep = d->r->alloc;
        assert_true(rig_negotiate(d->r, features | 1ull << VIRTIO_F_VERSION_1));
        rig_queue_setup(d->r, 0, 64, features);
        rig_go(d->r);
        memcpy(rig_ptr(d->r, d->head), &h, sizeof(h));
        struct rig_buffer b[3] = {{d->head, 16, false}, {d->data, 65536, true}, {d->status, 1, true}};
        for (unsigned i = 0; i < 20; i++) assert_true(rig_add(d->r, &d->r->q[0], b, 3, 0) >= 0);
        rig_kick(d->r, &d->r->q[0]);
        if (round % 3 == 0)
            for (unsigned i = 0; i < 20; i++) rig_wait_used(d->r, &d->r->q[0], NULL);
        d->r->alloc = keep;
    }
    disk_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data),      cmocka_unit_test(test_layouts), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_readonly),  cmocka_unit_test(test_ranges),  cmocka_unit_test(test_identity),
        cmocka_unit_test(test_writeback), cmocka_unit_test(test_resize),  cmocka_unit_test(test_resets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
