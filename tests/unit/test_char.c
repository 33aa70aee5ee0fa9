/* Character back ends: pseudo-terminal, socket, file; a front end without room, and ends that come and go. */
#define _GNU_SOURCE
#include "tests/unit/device_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "vmm/backend/char.h"
#include "vmm/backend/unix.h"

struct front {
    pthread_mutex_t lock;
    char got[65536];
    size_t n, room; /* bytes that it still takes */
    atomic_uint writables;
};

static size_t input(void *ctx, const uint8_t *data, size_t len)
{
    struct front *f = ctx;
    pthread_mutex_lock(&f->lock);
    size_t take = len < f->room ? len : f->room;
    memcpy(f->got + f->n, data, take);
    f->n += take;
    f->room -= take;
    pthread_mutex_unlock(&f->lock);
    return take;
}

static void writable(void *ctx)
{
    atomic_fetch_add(&((struct front *)ctx)->writables, 1);
}

static size_t got(struct front *f)
{
    pthread_mutex_lock(&f->lock);
    size_t n = f->n;
    pthread_mutex_unlock(&f->lock);
    return n;
}

static bool wait_got(struct front *f, size_t n)
{
    for (int i = 0; i < 10000 && got(f) < n; i++) sleep_us(500);
    return got(f) == n;
}

static struct chardev *open_char(struct bench *b, struct front *f, enum char_kind kind, const char *path)
{
    struct nerr e;
    struct chardev *c;
    memset(f, 0, sizeof(*f));
    pthread_mutex_init(&f->lock, NULL);
    f->room = sizeof(f->got);
    struct char_config cfg = {.kind = kind, .path = path, .name = "console0"};
    struct char_port port = {.ctx = f, .input = input, .writable = writable};
    if (char_open(&cfg, b->loop, &port, &c, &e)) fail_msg("%s", e.text);
    return c;
}

static void finish(struct bench *b, struct chardev *c)
{
    bench_stop(b);
    char_close(c);
    bench_free(b);
}

/* Writes until somebody at the other end gets it: nobody knows when the loop sees that he came. */
static void write_until_read(struct chardev *c, int fd)
{
    char byte = 0;
    for (int i = 0; i < 10000 && byte != 'x'; i++) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_int_equal(char_write(c, "x", 1), 1);
        if (poll(&p, 1, 1) == 1) assert_int_equal(read(fd, &byte, 1), 1);
    }
    assert_int_equal(byte, 'x');
}

static void drain(int fd)
{
    char buffer[4096];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, 50) == 1 && read(fd, buffer, sizeof(buffer)) > 0) {
    }
}

static void test_pty(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct front f;
    unlink("char-test-link");
    struct chardev *c = open_char(b, &f, CHAR_PTY, "char-test-link");
    assert_int_equal(char_write(c, "nobody", 6), 6); /* into the air */
    for (int round = 0; round < 2; round++) {        /* the terminal may be closed and opened again */
        int fd = open("char-test-link", O_RDWR | O_NOCTTY);
        assert_true(fd >= 0);
        write_until_read(c, fd);
        drain(fd);
        char line[8] = "";
        assert_int_equal(char_write(c, "a\r\nb", 4), 4);
        sleep_us(20000);
        assert_int_equal(read(fd, line, 8), 4);
        assert_string_equal(line, "a\r\nb"); /* raw */
        f.n = 0;
        assert_int_equal(write(fd, "in\x03put\n", 7), 7);
        assert_true(wait_got(&f, 7));
        assert_memory_equal(f.got, "in\x03put\n", 7);
        close(fd);
    }
    finish(b, c);
    assert_int_equal(access("char-test-link", F_OK), -1);
}

static void test_socket(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct front f;
    struct stat s;
    unlink("char-test-socket");
    struct chardev *c = open_char(b, &f, CHAR_SOCKET, "char-test-socket");
    assert_int_equal(stat("char-test-socket", &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    int fd = unix_connect("char-test-socket");
    assert_true(fd >= 0);
    write_until_read(c, fd);
    drain(fd);
    /* A client that reads nothing: not all is taken, and there is word when more is. */
    static uint8_t much[1 << 20];
    size_t taken = char_write(c, much, sizeof(much));
    assert_true(taken < sizeof(much));
    drain(fd);
    assert_true(wait_count(&f.writables, 1));
    /* A front end without room: nothing is lost, even when the client has gone. */
    pthread_mutex_lock(&f.lock);
    f.n = 0;
    f.room = 1000;
    pthread_mutex_unlock(&f.lock);
    memset(much, 'y', 30000);
    assert_int_equal(write(fd, much, 30000), 30000);
    assert_true(wait_got(&f, 1000));
    close(fd);
    sleep_us(20000);
    for (size_t want = 2000; want <= 30000; want += 1000) {
        pthread_mutex_lock(&f.lock);
        f.room = 1000;
        pthread_mutex_unlock(&f.lock);
        char_input_ready(c);
        assert_true(wait_got(&f, want));
    }
    /* The next client. */
    f.room = 100;
    fd = unix_connect("char-test-socket");
    write_until_read(c, fd);
    close(fd);
    finish(b, c);
    assert_int_equal(access("char-test-socket", F_OK), -1);
}

/* Without a descriptor for a client the loop does not spin; and when there is one, the client has waited. */
static void test_no_descriptors(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct front f;
    struct rlimit before, none;
    unlink("char-test-socket");
    struct chardev *c = open_char(b, &f, CHAR_SOCKET, "char-test-socket");
    int fd = unix_connect("char-test-socket");
    assert_true(fd >= 0);
    write_until_read(c, fd);
    close(fd);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "char-test-socket"};
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    clockid_t clock;
    struct timespec start, end;
    assert_int_equal(pthread_getcpuclockid(b->thread, &clock), 0);
    assert_int_equal(clock_gettime(clock, &start), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    sleep_us(500000);
    assert_int_equal(clock_gettime(clock, &end), 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    double used = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    if (used > 0.05) fail_msg("the loop used %.3f s of half a second", used);
    write_until_read(c, fd);
    close(fd);
    finish(b, c);
}

static void test_file(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    struct front f;
    char text[16] = "";
    unlink("char-test-file");
    struct chardev *c = open_char(b, &f, CHAR_FILE, "char-test-file");
    assert_int_equal(char_write(c, "one ", 4), 4);
    assert_int_equal(char_write(c, "two", 3), 3);
    finish(b, c);
    FILE *file = fopen("char-test-file", "r");
    assert_non_null(file);
    assert_int_equal(fread(text, 1, sizeof(text), file), 7);
    assert_string_equal(text, "one two");
    fclose(file);
    unlink("char-test-file");
}

static void test_listen(void **state)
{
    (void)state;
    struct nerr e;
    int a, c;
    char longer[300];
    unlink("char-test-socket");
    assert_int_equal(unix_listen("--x", "char-test-socket", &a, &e), 0);
    assert_true(unix_listen("--x", "char-test-socket", &c, &e) < 0); /* somebody listens */
    assert_non_null(strstr(e.text, "in use"));
    close(a);
    assert_int_equal(unix_listen("--x", "char-test-socket", &a, &e), 0); /* left behind: taken over */
    close(a);
    unlink("char-test-socket");
    FILE *file = fopen("char-test-file", "w");
    fclose(file);
    assert_true(unix_listen("--x", "char-test-file", &a, &e) < 0); /* not ours: left alone */
    assert_int_equal(access("char-test-file", F_OK), 0);
    unlink("char-test-file");
    memset(longer, 'a', sizeof(longer));
    longer[sizeof(longer) - 1] = 0;
    assert_true(unix_listen("--x", longer, &a, &e) < 0);
    assert_true(unix_connect(longer) < 0);
}

static void refused(struct bench *b, enum char_kind kind, const char *path, int code, const char *says)
{
    struct nerr e = {""};
    struct chardev *c;
    struct char_config cfg = {.kind = kind, .path = path, .name = "console0"};
    struct char_port port = {.input = input, .writable = writable};
    errno = 0; /* what no call has set must not be told as the reason */
    assert_int_equal(char_open(&cfg, b->loop, &port, &c, &e), code);
    assert_null(c);
    if (!strstr(e.text, says)) fail_msg("'%s' does not say '%s'", e.text, says);
}

static void test_refused(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    char longer[300];
    memset(longer, 'a', sizeof(longer));
    longer[sizeof(longer) - 1] = 0;
    refused(b, CHAR_PTY, longer, -ENAMETOOLONG, "too long");
    refused(b, CHAR_PTY, "/nonexistent/link", -ENOENT, "/nonexistent/link");
    refused(b, CHAR_FILE, "/nonexistent/file", -ENOENT, "give another file");
    /* A pipe, with a reader or without: nobody waits for one, neither now nor when the guest writes. */
    unlink("char-test-fifo");
    assert_int_equal(mkfifo("char-test-fifo", 0600), 0);
    refused(b, CHAR_FILE, "char-test-fifo", -EINVAL, "is a pipe");
    int fd = open("char-test-fifo", O_RDONLY | O_NONBLOCK);
    refused(b, CHAR_FILE, "char-test-fifo", -EINVAL, "is a pipe");
    close(fd);
    unlink("char-test-fifo");
    bench_stop(b);
    bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pty),  cmocka_unit_test(test_socket), cmocka_unit_test(test_no_descriptors),
        cmocka_unit_test(test_file), cmocka_unit_test(test_listen), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
