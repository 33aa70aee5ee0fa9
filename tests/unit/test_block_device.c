/* Disks on a real block device, a loop device over a small file: size, sectors of 512 and 4096 bytes past the page cache, discards, locks, growing, a
 * device whose medium ends early, and file systems that are really full. Skipped where neither can be made; the lab runs it, too. */
#define _GNU_SOURCE
#include "block_fixture.h"

#include <sched.h>
#include <sys/mount.h>

#define KIB 1024ull
#define MIB (KIB << 10)

static char below[64], device[64];

static bool output(char *text, int room, const char *format, const char *argument)
{
    char command[200];
    snprintf(command, sizeof(command), format, argument);
    FILE *p = popen(command, "r");
    if (!p) return false;
    if (!fgets(text, room, p)) text[0] = 0;
    text[strcspn(text, "\n")] = 0;
    return pclose(p) == 0;
}

/* A loop device of 4 MiB. A busy machine may take the number that was free from under us: tried again. */
static void device_new(const char *options)
{
    char format[100];
    snprintf(format, sizeof(format), "losetup -f --show %s %%s 2>/dev/null", options);
    snprintf(below, sizeof(below), "device-test-XXXXXX");
    int fd = mkstemp(below);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    close(fd);
    device[0] = 0;
    for (unsigned i = 0; i < 5 && !device[0]; i++)
        if (!output(device, sizeof(device), format, below)) device[0] = 0;
    if (!device[0]) {
        unlink(below);
        skip();
    }
}

static void device_free(void)
{
    char text[64];
    output(text, sizeof(text), "losetup -d %s", device);
    unlink(below);
}

static void rig_open(struct disk_rig *d, struct block_config cfg)
{
    memset(d, 0, sizeof(*d));
    d->loop = event_loop_create(&d->e);
    assert_non_null(d->loop);
    snprintf(d->path, sizeof(d->path), "%s", device);
    disk_rig_open(d, cfg);
}

static void rig_close(struct disk_rig *d)
{
    disk_rig_close(d);
    event_loop_destroy(d->loop);
}

static const struct block_config plain = {.cache = BLOCK_CACHE_NONE, .discard = true, .format = "raw"};

static void contents(unsigned sector)
{
    struct disk_rig d;
    struct block_info info;
    uint8_t *buffer = NULL, back[8192];
    assert_int_equal(posix_memalign((void **)&buffer, 4096, 64 * KIB), 0);
    for (unsigned aio = BLOCK_AIO_AUTO; aio <= BLOCK_AIO_THREADS; aio += BLOCK_AIO_THREADS) {
        struct block_config cfg = plain;
        cfg.aio = (enum block_aio)aio;
        rig_open(&d, cfg);
        block_info(d.b, &info);
        assert_int_equal(info.size, 4 * MIB);
        assert_int_equal(info.logical_block, 512);
        assert_true(d.b->file.device);
        /* Past the page cache only where the guest's sectors are no smaller than the device's. */
        if (sector > 512) assert_false(d.b->file.direct);
        memset(buffer, (int)(0x11 + aio), 64 * KIB);
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 4 * MIB - 64 * KIB, buffer, 64 * KIB), 0);
        /* Memory of any alignment. */
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 512, buffer + 1, 512), 0);
        assert_int_equal(disk_do(&d, BLOCK_READ, 512, back, 512), 0);
        assert_memory_equal(back, buffer + 1, 512);
        assert_int_equal(disk_do(&d, BLOCK_READ, 4 * MIB - 4096, back + 3, 4096), 0);
        assert_memory_equal(back + 3, buffer, 4096);
        assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 4 * MIB, buffer, 512), -EIO);
        /* Zeroes of less than the device's sector, too. */
        assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 4 * MIB - 32768 + 512, NULL, 1024), 0);
        assert_int_equal(disk_do(&d, BLOCK_READ, 4 * MIB - 32768, back, 4096), 0);
        for (unsigned i = 0; i < 4096; i++) assert_int_equal(back[i], i >= 512 && i < 1536 ? 0 : 0x11 + aio);
        assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, 4 * MIB - 8192, NULL, 4096), 0);
        assert_int_equal(disk_do(&d, BLOCK_READ, 4 * MIB - 8192, back, 8192), 0);
        for (unsigned i = 0; i < 8192; i++) assert_int_equal(back[i], i < 4096 ? 0 : 0x11 + aio);
        rig_close(&d);
    }
    free(buffer);
}

static void test_contents(void **state)
{
    (void)state;
    device_new("");
    contents(512);
    device_free();
    device_new("-b 4096");
    contents(4096);
    device_free();
}

static uint64_t used(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* A discard reaches what lies below the device. */
static void test_discard(void **state)
{
    (void)state;
    struct disk_rig d;
    struct block_info info;
    uint8_t *data = malloc(MIB);
    device_new("");
    rig_open(&d, plain);
    block_info(d.b, &info);
    memset(data, 1, MIB);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, MIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_true(used(below) >= MIB);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, MIB), 0);
    if (info.can_discard && !d.b->file.no_punch) assert_true(used(below) <= 64 * KIB);
    rig_close(&d);
    device_free();
    free(data);
}

static void test_lock_and_readonly(void **state)
{
    (void)state;
    struct disk_rig d;
    struct block *other;
    uint8_t sector[512] = {1};
    device_new("");
    rig_open(&d, plain);
    struct block_config cfg = plain;
    cfg.path = device;
    assert_true(block_open(&cfg, d.loop, &other, &d.e) < 0);
    assert_non_null(strstr(d.e.text, "use"));
    rig_close(&d);
    cfg.readonly = true;
    rig_open(&d, cfg);
    assert_int_equal(block_open(&cfg, d.loop, &other, &d.e), 0); /* readers share it */
    block_close(other);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, sector, 512), 0);
    assert_true(disk_do(&d, BLOCK_WRITE, 0, sector, 512) < 0);
    rig_close(&d);
    device_free();
}

static void test_resize(void **state)
{
    (void)state;
    struct disk_rig d;
    struct block_info info;
    uint8_t sector[512] = {9};
    char text[64];
    device_new("");
    rig_open(&d, plain);
    assert_int_equal(block_resize(d.b, 6 * MIB, &d.e), -EINVAL); /* the device must grow first */
    assert_int_equal(truncate(below, 6 * MIB), 0);
    assert_true(output(text, sizeof(text), "losetup -c %s", device));
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 5 * MIB, sector, 512), -EIO);
    assert_int_equal(block_resize(d.b, 6 * MIB, &d.e), 0);
    block_info(d.b, &info);
    assert_int_equal(info.size, 6 * MIB);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 5 * MIB, sector, 512), 0);
    assert_int_equal(block_resize(d.b, 4 * MIB, &d.e), -EINVAL);
    /* The medium ends early now: an error there (older kernels' loop devices read zeroes), and the rest goes on. */
    assert_int_equal(truncate(below, MIB), 0);
    int r = disk_do(&d, BLOCK_READ, 5 * MIB, sector, 512);
    assert_true(r == -EIO || r == 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, sector, 512), 0);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 4096, sector, 512), 0);
    rig_close(&d);
    device_free();
}

/* ---- a file system that is full ---- */

static uint64_t take_all(const char *path)
{
    static const char block[4096] = "x";
    uint64_t n = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    while (write(fd, block, sizeof(block)) == (ssize_t)sizeof(block)) n += sizeof(block);
    close(fd);
    return n;
}

static void full_disk(enum block_cache cache, enum block_aio aio)
{
    struct disk_rig d;
    uint8_t data[8192];
    memset(data, 0x77, sizeof(data));
    memset(&d, 0, sizeof(d));
    d.loop = event_loop_create(&d.e);
    snprintf(d.path, sizeof(d.path), "full-test-mount/disk");
    int fd = open(d.path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 8 * MIB), 0);
    close(fd);
    disk_rig_open(&d, (struct block_config){.cache = cache, .aio = aio, .discard = true, .format = "raw"});
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, data, 8192), 0);
    assert_true(take_all("full-test-mount/filler") > MIB);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(disk_do(&d, BLOCK_WRITE, MIB + i * 8192, data, 8192), -ENOSPC);
        assert_int_equal(disk_do(&d, BLOCK_READ, 0, data, 8192), 0);
        assert_int_equal(data[0], 0x77);
        assert_int_equal(disk_do(&d, BLOCK_WRITE, 4096, data, 4096), 0); /* it has that room already */
        assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    }
    /* A guest that gives something back has room for something else. */
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 0, NULL, 8192), 0);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 2 * MIB, data, 4096), 0);
    assert_int_equal(unlink("full-test-mount/filler"), 0);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, MIB, data, 8192), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    disk_rig_destroy(&d);
}

static void test_full(void **state)
{
    (void)state;
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) skip();
    assert_true(mkdir("full-test-mount", 0700) == 0 || errno == EEXIST);
    if (mount("full-test", "full-test-mount", "tmpfs", 0, "size=3m")) {
        rmdir("full-test-mount");
        skip();
    }
    for (unsigned aio = BLOCK_AIO_AUTO; aio <= BLOCK_AIO_THREADS; aio += BLOCK_AIO_THREADS) {
        full_disk(BLOCK_CACHE_WRITEBACK, (enum block_aio)aio);
        full_disk(BLOCK_CACHE_WRITETHROUGH, (enum block_aio)aio);
    }
    assert_int_equal(umount2("full-test-mount", MNT_DETACH), 0);
    rmdir("full-test-mount");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contents), cmocka_unit_test(test_discard), cmocka_unit_test(test_lock_and_readonly),
        cmocka_unit_test(test_resize),   cmocka_unit_test(test_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
