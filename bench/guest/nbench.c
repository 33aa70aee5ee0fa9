/* Runs the rows: as process 1 of a guest (options from the kernel command line) or as a host program. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define LOOP_SECONDS 0.12   /* one repeat of a LOOP row takes at least this long */
#define ROW_SECONDS_MAX 150 /* a row that takes longer has failed */
#define REPEAT_SECONDS 6.0  /* no further repeat once a row has taken this long */

struct options {
    const char *root; /* where the Debian packages are unpacked */
    const char *only; /* regular expression over "group/name" */
    int first;        /* rows before this one (counted among those that `only` takes) are done already */
    int repeats;
    bool pin;
};

static const struct bench *const lists[] = {bench_integer, bench_library, bench_exec,   bench_float,
                                            bench_simd,    bench_rep,     bench_system, bench_parallel};

double bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void bench_die(const char *what)
{
    printf("NOTE %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(3);
}

void *bench_alloc(size_t size)
{
    void *p = calloc(1, size);

    if (p == NULL) {
        bench_die("out of memory");
    }
    return p;
}

uint64_t bench_mix_bytes(uint64_t h, const void *data, size_t size)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < size; i++) {
        h = (h ^ p[i]) * 0x100000001b3ull;
    }
    return h;
}

void bench_text(char *to, size_t size, uint64_t seed)
{
    struct bench_random r = {seed | 1};
    char word[512][12];
    size_t at = 0;

    for (int w = 0; w < 512; w++) {
        int length = 2 + (int)((bench_next(&r) >> 32) % 8);

        for (int i = 0; i < length; i++) {
            word[w][i] = "etaoinshrdlucmfwypvbgkqjxz"[(bench_next(&r) >> 40) % (i % 2 ? 5 : 26)];
        }
        word[w][length] = '\0';
    }
    while (at < size) {
        uint64_t v = bench_next(&r) >> 20;
        const char *w = word[(v & 511) >> ((v >> 9) & 7)];

        while (*w != '\0' && at < size) {
            to[at++] = *w++;
        }
        if (at < size) {
            to[at++] = (v >> 16) % 11 == 0 ? '\n' : ' ';
        }
    }
}

/* ---- one row ---- */

static pid_t exec_start(const struct options *o, const struct bench *b, int out)
{
    char loader[512], libraries[1024], program[512], home[512];
    const char *argv[24];
    int n = 0;
    pid_t pid;

    snprintf(loader, sizeof loader, "%s/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", o->root);
    snprintf(libraries, sizeof libraries, "%s/usr/lib/x86_64-linux-gnu:%s/lib/x86_64-linux-gnu", o->root, o->root);
    snprintf(program, sizeof program, "%s%s", o->root, b->argv[0]);
    snprintf(home, sizeof home, "PYTHONHOME=%s/usr", o->root);
    argv[n++] = loader;
    argv[n++] = "--library-path";
    argv[n++] = libraries;
    argv[n++] = program;
    for (int i = 1; b->argv[i] != NULL && n < 23; i++) {
        argv[n++] = b->argv[i];
    }
    argv[n] = NULL;
    pid = fork();
    if (pid == 0) {
        const char *env[] = {home, "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C", NULL};

        if (chdir(o->root) != 0 || chdir("bench") != 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) {
            _exit(126);
        }
        execve(loader, (char *const *)argv, (char *const *)env);
        _exit(127);
    }
    return pid;
}

static uint64_t exec_run(const struct options *o, const struct bench *b)
{
    static char text[65536];
    char path[] = "/tmp/nbench-XXXXXX";
    int out = mkstemp(path), status = 0;
    ssize_t got;
    pid_t pid;

    if (out < 0) {
        bench_die("cannot make a file in /tmp");
    }
    unlink(path);
    pid = exec_start(o, b, out);
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        bench_die("cannot start a program");
    }
    got = pread(out, text, sizeof text - 1, 0);
    got = got < 0 ? 0 : got;
    if (status != 0) {
        text[got > 200 ? 200 : got] = '\0';
        for (char *p = text; *p != '\0'; p++) {
            *p = *p == '\n' ? ' ' : *p;
        }
        printf("NOTE %s ended with status %#x: %s\n", b->argv[0], (unsigned)status, text);
        fflush(stdout);
        _exit(3);
    }
    close(out);
    return bench_mix_bytes(1, text, (size_t)got);
}

/* As many operations as take LOOP_SECONDS. */
static uint64_t calibrate(const struct bench *b)
{
    uint64_t n = b->work;

    for (;;) {
        double start = bench_now(), took;

        b->run(n);
        took = bench_now() - start;
        if (took >= LOOP_SECONDS) {
            return n;
        }
        n = took < LOOP_SECONDS / 16 ? n * 8 : (uint64_t)((double)n * LOOP_SECONDS * 1.2 / took) + 1;
    }
}

static void row_run(const struct options *o, const struct bench *b)
{
    uint64_t n = b->kind == BENCH_LOOP ? calibrate(b) : b->work, check = 0;
    double best = 0, total = 0, mean;
    int done = 0;

    for (int i = 0; i < o->repeats && total < REPEAT_SECONDS; i++, done++) {
        double start = bench_now(), took;
        uint64_t value = b->kind == BENCH_EXEC ? exec_run(o, b) : b->run(n);

        took = bench_now() - start;
        total += took;
        if (i > 0 && value != check && b->kind != BENCH_LOOP) {
            printf("NOTE %s/%s gives different results in two runs\n", b->group, b->name);
            fflush(stdout);
            _exit(4);
        }
        check = value;
        best = i == 0 || took < best ? took : best;
    }
    mean = total / done;
    if (b->kind != BENCH_LOOP) {
        printf("ROW %s/%s %.6f %.6f s %016llx\n", b->group, b->name, best, mean, (unsigned long long)check);
    } else if (b->bytes != 0) {
        double bytes = (double)n * (double)b->bytes;

        printf("ROW %s/%s %.3f %.3f MB/s -\n", b->group, b->name, bytes / best / 1e6, bytes / mean / 1e6);
    } else {
        printf("ROW %s/%s %.3f %.3f ns -\n", b->group, b->name, best / (double)n * 1e9, mean / (double)n * 1e9);
    }
    fflush(stdout);
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

/* In a process of its own, so that a row that crashes or hangs costs one row. */
static void row(const struct options *o, const struct bench *b)
{
    struct rusage used;
    int status;
    pid_t pid;

    printf("START %s/%s %.6f\n", b->group, b->name, bench_now());
    fflush(stdout);
    if (b->usable != NULL && !b->usable()) {
        printf("SKIP %s/%s this CPU lacks the instructions\n", b->group, b->name);
        fflush(stdout);
        return;
    }
    pid = fork();
    if (pid == 0) {
        alarm(ROW_SECONDS_MAX);
        row_run(o, b);
        exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        status = -1;
    }
    if (status != 0) {
        printf("FAIL %s/%s status %#x\n", b->group, b->name, (unsigned)status);
    }
    getrusage(RUSAGE_CHILDREN, &used);
    printf("CLOCK %.6f %.6f\n", bench_now(), seconds(used.ru_utime) + seconds(used.ru_stime));
    fflush(stdout);
}

static int rows(const struct options *o, bool names_only)
{
    regex_t only;
    int index = 0;

    if (regcomp(&only, o->only, REG_EXTENDED | REG_NOSUB) != 0) {
        fprintf(stderr, "nbench: --only '%s' is no regular expression\n", o->only);
        return 2;
    }
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++) {
        for (const struct bench *b = lists[l]; b->name != NULL; b++) {
            char name[128];

            snprintf(name, sizeof name, "%s/%s", b->group, b->name);
            if (regexec(&only, name, 0, NULL, 0) != 0 || index++ < o->first) {
                continue;
            }
            if (names_only) {
                puts(name);
            } else {
                row(o, b);
            }
        }
    }
    regfree(&only);
    return 0;
}

/* ---- as process 1 ---- */

/* The value of a `key=` word of the kernel command line, or `fallback`. The result lives forever. */
static const char *parameter(const char *line, const char *key, const char *fallback)
{
    const char *at = strstr(line, key);

    return at == NULL ? fallback : strndup(at + strlen(key), strcspn(at + strlen(key), " \n"));
}

static void guest_main(void)
{
    static char line[4096];
    struct options o = {.root = "/r"};
    int fd;

    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/tmp", 0777);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    fd = open("/proc/cmdline", O_RDONLY);
    if (fd < 0 || read(fd, line, sizeof line - 1) <= 0) {
        printf("NOTE cannot read /proc/cmdline\n");
    }
    o.only = parameter(line, "bench.only=", ".");
    o.first = atoi(parameter(line, "bench.first=", "0"));
    o.repeats = atoi(parameter(line, "bench.repeats=", "3"));
    printf("\nREADY %.6f cpus %ld\n", bench_now(), sysconf(_SC_NPROCESSORS_ONLN));
    fflush(stdout);
    rows(&o, false);
    printf("END %.6f\n", bench_now());
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}

int main(int argc, char **argv)
{
    struct options o = {.root = "/", .only = ".", .repeats = 3};
    bool names = false;

    if (getpid() == 1) {
        guest_main();
    }
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (strcmp(argv[i], "--pin") == 0) {
            o.pin = true;
        } else if (strcmp(argv[i], "--names") == 0) {
            names = true;
        } else if (strcmp(argv[i], "--root") == 0) {
            o.root = value, i++;
        } else if (strcmp(argv[i], "--only") == 0) {
            o.only = value, i++;
        } else if (strcmp(argv[i], "--first") == 0) {
            o.first = atoi(value), i++;
        } else if (strcmp(argv[i], "--repeats") == 0) {
            o.repeats = atoi(value), i++;
        } else {
            fprintf(stderr, "usage: nbench [--names] [--pin] [--root DIR] [--only REGEX] [--first N] [--repeats N]\n");
            return 2;
        }
    }
    if (o.pin) { /* to compare with one vCPU */
        cpu_set_t one;

        CPU_ZERO(&one);
        CPU_SET(0, &one);
        sched_setaffinity(0, sizeof one, &one);
    }
    return rows(&o, names);
}
