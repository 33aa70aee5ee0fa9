/* qcow2 and NBD through a real qemu-storage-daemon: contents, backing files, errors, the daemon's death and ours. */
#define _GNU_SOURCE
#include "block_fixture.h"

#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define KIB 1024ull
#define MIB (KIB << 10)

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(command, sizeof(command), format, ap);
    va_end(ap);
    int status = system(command);
    if (status) fail_msg("'%s' ended with %d", command, status);
}

/* Children of this process, the storage daemons. */
static unsigned children(pid_t *first)
{
    unsigned n = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while ((entry = readdir(proc))) {
        char path[300], text[512] = "";
        snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
        FILE *f = entry->d_name[0] >= '0' && entry->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        if (!f) continue;
        size_t got = fread(text, 1, sizeof(text) - 1, f);
        fclose(f);
        text[got] = 0;
        char *end = strrchr(text, ')');
        char state;
        int parent;
        if (end && sscanf(end + 1, " %c %d", &state, &parent) == 2 && parent == getpid() && state != 'Z') {
            n++;
            if (first) *first = atoi(entry->d_name);
        }
    }
    closedir(proc);
    return n;
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 16);
}

static const struct block_config writable = {.cache = BLOCK_CACHE_WRITEBACK, .discard = true};

static void test_contents(void **state)
{
    (void)state;
    struct disk_rig d;
    disk_rig_init(&d);
    shell("qemu-img create -q -f qcow2 %s 64M", d.path);
    disk_rig_open(&d, writable);
    struct block_info info;
    block_info(d.b, &info);
    assert_int_equal(info.size, 64 * MIB);
    assert_string_equal(info.format, "qcow2");
    assert_true(info.can_write_zeroes);
    /* Larger than a slot, not aligned to anything, and a flush. */
    size_t n = 3 * MIB + 512;
    uint8_t *out = malloc(n), *in = malloc(n);
    fill(out, n, 1);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 512 * 7, out, n), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 512 * 7, in, n), 0);
    assert_memory_equal(in, out, n);
    /* Zeroes of all kinds. */
    assert_int_equal(disk_do(&d, BLOCK_WRITE_ZEROES, MIB, NULL, MIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_DISCARD, 2 * MIB, NULL, 64 * KIB), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, MIB, in, MIB), 0);
    for (size_t i = 0; i < MIB; i++) assert_int_equal(in[i], 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 512 * 7, in, MIB - 512 * 7), 0);
    assert_memory_equal(in, out, MIB - 512 * 7);
    /* What is behind the end. */
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * MIB, in, 512), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * MIB - 512, in, 1024), -EIO);
    assert_int_equal(disk_do(&d, BLOCK_READ, 64 * MIB - 512, in, 512), 0);
    disk_rig_close(&d);
    /* Others see the same, and nothing is wrong with the image. */
    shell("qemu-img check -q -f qcow2 %s", d.path);
    shell("qemu-img convert -f qcow2 -O raw %s %s.raw", d.path, d.path);
    char raw[80];
    snprintf(raw, sizeof(raw), "%s.raw", d.path);
    int fd = open(raw, O_RDONLY);
    assert_int_equal(pread(fd, in, 512, 512 * 7), 512);
    assert_memory_equal(in, out, 512);
    close(fd);
    unlink(raw);
    free(in);
    free(out);
    disk_rig_destroy(&d);
}

/* Many at once, in lanes; every one is read back. */
static void test_many(void **state)
{
    (void)state;
    enum { N = 200 };
    struct disk_rig d;
    struct disk_io *io = calloc(N, sizeof(*io));
    uint8_t *data = malloc(N * 64 * KIB), *back = malloc(N * 64 * KIB);
    fill(data, N * 64 * KIB, 2);
    disk_rig_init(&d);
    shell("qemu-img create -q -f qcow2 %s 64M", d.path);
    struct block_config cfg = writable;
    cfg.cache = BLOCK_CACHE_WRITETHROUGH;
    disk_rig_open(&d, cfg);
    for (unsigned pass = 0; pass < 2; pass++) {
        block_plug(d.b);
        for (unsigned i = 0; i < N; i++)
            disk_io_submit(&d, &io[i], pass ? BLOCK_READ : BLOCK_WRITE, (uint64_t)i * 128 * KIB,
                           (pass ? back : data) + i * 64 * KIB, 64 * KIB);
        block_unplug_reap(d.b);
        if (pass) block_drain(d.b);
        for (unsigned i = 0; i < N; i++) assert_int_equal(disk_io_wait(&io[i]), 0);
    }
    assert_memory_equal(data, back, N * 64 * KIB);
    struct block_stats s;
    block_get_stats(d.b, &s);
    assert_int_equal(s.ops[BLOCK_READ], N);
    assert_int_equal(s.bytes[BLOCK_WRITE], N * 64 * KIB);
    disk_rig_destroy(&d);
    free(io);
    free(data);
    free(back);
}

static void test_backing_file(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t *base = malloc(MIB), *in = malloc(MIB);
    fill(base, MIB, 3);
    disk_rig_init(&d);
    char below[80];
    snprintf(below, sizeof(below), "%s.base", d.path);
    int fd = open(below, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, base, MIB), MIB);
    close(fd);
    shell("qemu-img create -q -f qcow2 -F raw -b $(basename %s) %s", below, d.path);
    /* Who only reads the file below is no hindrance, before or after; who writes it is. */
    struct block *reader, *later;
    struct block_config ro = {.path = below, .format = "raw", .readonly = true}, rw = {.path = below, .format = "raw"};
    assert_int_equal(block_open(&ro, d.loop, &reader, &d.e), 0);
    disk_rig_open(&d, writable);
    assert_int_equal(block_open(&ro, d.loop, &later, &d.e), 0);
    assert_int_equal(block_open(&rw, d.loop, &(struct block *){NULL}, &d.e), -EBUSY);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, in, MIB), 0);
    assert_memory_equal(in, base, MIB);
    memset(in, 0x77, 512);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 512, in, 512), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, in, 2048), 0);
    assert_memory_equal(in, base, 512);
    assert_int_equal(in[512], 0x77);
    assert_memory_equal(in + 1024, base + 1024, 1024);
    disk_rig_close(&d);
    block_close(reader);
    block_close(later);
    /* A writer of QEMU's keeps our readers out, and the other way round. */
    assert_int_equal(block_open(&ro, d.loop, &reader, &d.e), 0);
    assert_int_not_equal(system("qemu-io -f raw -c 'write 0 512' \"$(ls disk-test-*.base)\" >/dev/null 2>&1"), 0);
    block_close(reader);
    /* The file below is as it was. */
    fd = open(below, O_RDONLY);
    assert_int_equal(read(fd, in, MIB), MIB);
    assert_memory_equal(in, base, MIB);
    close(fd);
    unlink(below);
    disk_rig_destroy(&d);
    free(base);
    free(in);
}

static void refused(struct disk_rig *d, struct block_config cfg, const char *says)
{
    struct block *b;
    cfg.path = cfg.path ? cfg.path : d->path;
    assert_true(block_open(&cfg, d->loop, &b, &d->e) < 0);
    assert_null(b);
    if (!strstr(d->e.text, says)) fail_msg("'%s' does not say '%s'", d->e.text, says);
    assert_null(strchr(d->e.text, '\n'));
    assert_int_equal(children(NULL), 0);
}

static void test_errors(void **state)
{
    (void)state;
    struct disk_rig d;
    disk_rig_init(&d);
    /* A header and nothing behind it. */
    int fd = open(d.path, O_WRONLY);
    assert_int_equal(write(fd, "QFI\xfb\0\0\0\3", 8), 8);
    close(fd);
    refused(&d, writable, "qemu-storage-daemon: ");
    /* In use. */
    shell("qemu-img create -q -f qcow2 %s 1M", d.path);
    struct disk_rig other = d;
    disk_rig_open(&d, writable);
    struct block *b;
    struct block_config cfg = writable;
    cfg.path = d.path;
    assert_int_equal(block_open(&cfg, other.loop, &b, &other.e), -EBUSY);
    assert_non_null(strstr(other.e.text, "in use"));
    /* As raw, too: our own lock meets the daemon's. */
    cfg.format = "raw";
    assert_int_equal(block_open(&cfg, other.loop, &b, &other.e), -EBUSY);
    disk_rig_close(&d);
    /* Read-only can be shared, and is. */
    struct block_config ro = writable;
    ro.readonly = true;
    disk_rig_open(&d, ro);
    ro.path = d.path;
    assert_int_equal(block_open(&ro, other.loop, &b, &other.e), 0);
    block_close(b);
    uint8_t sector[512] = {0};
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 0, sector, 512), -EROFS);
    assert_int_equal(disk_do(&d, BLOCK_READ, 0, sector, 512), 0);
    disk_rig_close(&d);
    struct block_config nbd = writable;
    nbd.path = "nbd+unix:///x?socket=/nonexistent/socket";
    refused(&d, nbd, "qemu-storage-daemon: ");
    nbd.path = "nbd:localhost:1";
    refused(&d, nbd, "nbd://");
    char *path = strdup(getenv("PATH"));
    setenv("PATH", "/nonexistent", 1);
    refused(&d, writable, "qemu-system-common");
    setenv("PATH", path, 1);
    free(path);
    disk_rig_destroy(&d);
}

static void test_nbd(void **state)
{
    (void)state;
    struct disk_rig d, image;
    uint8_t out[4096], in[4096];
    fill(out, sizeof(out), 4);
    disk_rig_init(&d);
    disk_rig_init(&image);
    disk_rig_size(&image, MIB);
    char cwd[200], uri[400];
    assert_non_null(getcwd(cwd, sizeof(cwd)));
    unlink(d.path);
    shell("qemu-nbd --fork -f raw -x disk --socket=%s/%s %s/%s", cwd, d.path, cwd, image.path);
    snprintf(uri, sizeof(uri), "nbd+unix:///disk?socket=%s/%s", cwd, d.path);
    struct block_config cfg = writable;
    cfg.path = uri;
    assert_int_equal(block_open(&cfg, d.loop, &d.b, &d.e), 0);
    assert_int_equal(pthread_create(&d.thread, NULL, disk_rig_loop, d.loop), 0);
    assert_int_equal(disk_do(&d, BLOCK_WRITE, 8192, out, 4096), 0);
    assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 8192, in, 4096), 0);
    assert_memory_equal(in, out, 4096);
    disk_rig_destroy(&d);
    /* qemu-nbd ended with its client; the file has it. */
    int fd = open(image.path, O_RDONLY);
    assert_int_equal(pread(fd, in, 4096, 8192), 4096);
    close(fd);
    assert_memory_equal(in, out, 4096);
    disk_rig_destroy(&image);
}

/* The daemon dies: requests fail, in flight and new; nothing hangs. */
static void test_death(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 2; how++) {
        struct disk_rig d;
        disk_rig_init(&d);
        shell("qemu-img create -q -f qcow2 %s 64M", d.path);
        disk_rig_open(&d, writable);
        pid_t pid = 0;
        assert_int_equal(children(&pid), 1);
        uint8_t *data = calloc(16, MIB);
        struct disk_io io[16] = {0};
        kill(pid, SIGSTOP); /* so that they are in flight */
        for (unsigned i = 0; i < 16; i++) disk_io_submit(&d, &io[i], BLOCK_WRITE, i * MIB, data + i * MIB, MIB);
        usleep(20000);
        for (unsigned i = 0; i < 16; i++) assert_int_equal(atomic_load(&io[i].state), 0);
        kill(pid, SIGKILL);
        if (how) block_drain(d.b);
        for (unsigned i = 0; i < 16; i++) assert_int_equal(disk_io_wait(&io[i]), -EIO);
        assert_int_equal(disk_do(&d, BLOCK_READ, 0, data, 512), -EIO);
        assert_int_equal(disk_do(&d, BLOCK_FLUSH, 0, NULL, 0), -EIO);
        disk_rig_destroy(&d);
        free(data);
    }
}

/* An NBD server that stands still. Who drains waits for 2 s; what was in flight has failed then, and what comes later is done when the server
 * goes on, behind what it had. */
static void test_stalled(void **state)
{
    (void)state;
    struct disk_rig d, image;
    uint8_t old[4096], new[4096], in[4096];
    fill(old, sizeof(old), 7);
    fill(new, sizeof(new), 8);
    disk_rig_init(&d);
    disk_rig_init(&image);
    disk_rig_size(&image, MIB);
    char cwd[200], uri[400], pid_file[80];
    assert_non_null(getcwd(cwd, sizeof(cwd)));
    unlink(d.path);
    snprintf(pid_file, sizeof(pid_file), "%s.pid", image.path);
    shell("qemu-nbd --fork --persistent -f raw -x disk --pid-file=%s/%s --socket=%s/%s %s/%s", cwd, pid_file, cwd,
          d.path, cwd, image.path);
    pid_t server = 0;
    FILE *f = fopen(pid_file, "r");
    assert_true(f && fscanf(f, "%d", &server) == 1 && server > 1);
    fclose(f);
    snprintf(uri, sizeof(uri), "nbd+unix:///disk?socket=%s/%s", cwd, d.path);
    struct block_config cfg = writable;
    cfg.path = uri;
    /* It stands still from the start: who has less patience is told sooner. */
    kill(server, SIGSTOP);
    cfg.patience_s = 1;
    uint64_t start = clock_mono_ns();
    assert_int_equal(block_open(&cfg, d.loop, &d.b, &d.e), -ETIMEDOUT);
    assert_non_null(strstr(d.e.text, "the NBD server does not answer"));
    assert_true(clock_mono_ns() - start < 25000000000ull);
    kill(server, SIGCONT);
    cfg.patience_s = 0;
    assert_int_equal(block_open(&cfg, d.loop, &d.b, &d.e), 0);
    assert_int_equal(pthread_create(&d.thread, NULL, disk_rig_loop, d.loop), 0);
    struct disk_io a = {0}, b = {0};
    kill(server, SIGSTOP);
    disk_io_submit(&d, &a, BLOCK_WRITE, 8192, old, 4096);
    start = clock_mono_ns();
    block_drain(d.b);
    assert_int_equal(atomic_load(&a.state), 1);
    assert_int_equal(a.result, -EIO);
    assert_true(clock_mono_ns() - start > 1900000000ull && clock_mono_ns() - start < 20000000000ull);
    disk_io_submit(&d, &b, BLOCK_WRITE, 8192, new, 4096);
    usleep(50000);
    assert_int_equal(atomic_load(&b.state), 0);
    kill(server, SIGCONT);
    assert_int_equal(disk_io_wait(&b), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, 8192, in, 4096), 0);
    assert_memory_equal(in, new, 4096);
    /* And one that never goes on does not keep us from closing. */
    kill(server, SIGSTOP);
    disk_io_submit(&d, &a, BLOCK_READ, 0, in, 4096);
    start = clock_mono_ns();
    disk_rig_close(&d);
    assert_int_equal(a.result, -EIO);
    assert_true(clock_mono_ns() - start < 30000000000ull);
    kill(server, SIGKILL);
    unlink(d.path);
    unlink(pid_file);
    disk_rig_destroy(&d);
    disk_rig_destroy(&image);
}

/* We die by kill -9: the daemon ends, too, and the image can be used again with all that was flushed. */
static void test_our_death(void **state)
{
    (void)state;
    struct disk_rig d;
    uint8_t data[4096], in[4096];
    fill(data, sizeof(data), 5);
    disk_rig_init(&d);
    shell("qemu-img create -q -f qcow2 %s 64M", d.path);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct disk_rig mine = d;
        mine.loop = event_loop_create(&mine.e);
        disk_rig_open(&mine, writable);
        int ok = disk_do(&mine, BLOCK_WRITE, MIB, data, 4096) == 0 && disk_do(&mine, BLOCK_FLUSH, 0, NULL, 0) == 0;
        ssize_t n = write(ready[1], ok ? "y" : "n", 1);
        (void)n;
        pause();
    }
    char answer = 0;
    assert_int_equal(read(ready[0], &answer, 1), 1);
    assert_int_equal(answer, 'y');
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    /* The daemon lets go of the image within moments. */
    struct block_config cfg = writable;
    cfg.path = d.path;
    int r = -EBUSY;
    for (unsigned i = 0; i < 300 && r == -EBUSY; i++) {
        r = block_open(&cfg, d.loop, &d.b, &d.e);
        if (r) usleep(100000);
    }
    if (r) fail_msg("%s", d.e.text);
    assert_int_equal(pthread_create(&d.thread, NULL, disk_rig_loop, d.loop), 0);
    assert_int_equal(disk_do(&d, BLOCK_READ, MIB, in, 4096), 0);
    assert_memory_equal(in, data, 4096);
    disk_rig_destroy(&d);
    close(ready[0]);
    close(ready[1]);
}

static int no_children_left(void **state)
{
    (void)state;
    return (int)children(NULL);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_contents, no_children_left),
        cmocka_unit_test_teardown(test_many, no_children_left),
        cmocka_unit_test_teardown(test_backing_file, no_children_left),
        cmocka_unit_test_teardown(test_errors, no_children_left),
        cmocka_unit_test_teardown(test_nbd, no_children_left),
        cmocka_unit_test_teardown(test_stalled, no_children_left),
        cmocka_unit_test_teardown(test_death, no_children_left),
        cmocka_unit_test_teardown(test_our_death, no_children_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
