/* What the operating system does for a program: calls, faults, switches, processes, signals, pipes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

static uint64_t run_getppid(uint64_t n)
{
    while (n-- > 0) {
        syscall(SYS_getppid);
    }
    return 0;
}

static uint64_t run_read(uint64_t n)
{
    int fd = open("/dev/zero", O_RDONLY);
    char byte;

    if (fd < 0) {
        bench_die("/dev/zero");
    }
    while (n-- > 0) {
        if (read(fd, &byte, 1) != 1) {
            bench_die("read");
        }
    }
    close(fd);
    return 0;
}

static uint64_t run_stat(uint64_t n)
{
    struct stat s;

    while (n-- > 0) {
        if (stat("/proc/self/status", &s) != 0) {
            bench_die("stat");
        }
    }
    return 0;
}

static uint64_t run_open(uint64_t n)
{
    char path[] = "/tmp/nbench-open-XXXXXX";
    int fd = mkstemp(path);

    if (fd < 0) {
        bench_die("mkstemp");
    }
    close(fd);
    while (n-- > 0) {
        fd = open(path, O_RDONLY);
        if (fd < 0 || close(fd) != 0) {
            bench_die("open");
        }
    }
    unlink(path);
    return 0;
}

static uint64_t run_fault(uint64_t n)
{
    enum { PAGES = 1024 };

    while (n > 0) {
        uint64_t now = n < PAGES ? n : PAGES;
        char *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED) {
            bench_die("mmap");
        }
        madvise(p, PAGES * 4096, MADV_NOHUGEPAGE);
        for (uint64_t i = 0; i < now; i++) {
            p[i * 4096] = 1;
        }
        munmap(p, PAGES * 4096);
        n -= now;
    }
    return 0;
}

/* mmap, one touch, munmap: the shortest life of a mapping. */
static uint64_t run_map(uint64_t n)
{
    while (n-- > 0) {
        char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED) {
            bench_die("mmap");
        }
        *p = 1;
        munmap(p, 4096);
    }
    return 0;
}

static uint64_t run_protect(uint64_t n)
{
    char *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        bench_die("mmap");
    }
    while (n-- > 0) {
        p[4096] = 1;
        mprotect(p, 16384, PROT_READ);
        mprotect(p, 16384, PROT_READ | PROT_WRITE);
    }
    munmap(p, 16384);
    return 0;
}

/* A byte to another process and back: two switches per operation. */
static void ping_pong(int here[2], int there[2], uint64_t n)
{
    char byte = 1;
    pid_t pid = fork();

    if (pid < 0) {
        bench_die("fork");
    }
    if (pid == 0) {
        while (n-- > 0) {
            if (read(here[0], &byte, 1) != 1 || write(there[1], &byte, 1) != 1) {
                _exit(1);
            }
        }
        _exit(0);
    }
    for (uint64_t i = 0; i < n; i++) {
        if (write(here[1], &byte, 1) != 1 || read(there[0], &byte, 1) != 1) {
            bench_die("ping-pong");
        }
    }
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 2; i++) {
        close(here[i]);
        close(there[i]);
    }
}

static uint64_t run_switch(uint64_t n)
{
    int here[2], there[2];

    if (pipe(here) != 0 || pipe(there) != 0) {
        bench_die("pipe");
    }
    ping_pong(here, there, n);
    return 0;
}

static uint64_t run_socket(uint64_t n)
{
    int pair[2], here[2], there[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        bench_die("socketpair");
    }
    here[1] = pair[0], there[0] = dup(pair[0]), here[0] = pair[1], there[1] = dup(pair[1]);
    ping_pong(here, there, n);
    return 0;
}

static uint64_t run_fork(uint64_t n)
{
    while (n-- > 0) {
        pid_t pid = fork();

        if (pid < 0) {
            bench_die("fork");
        }
        if (pid == 0) {
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    return 0;
}

static char true_path[512]; /* beside this program */

static void find_true(void)
{
    ssize_t n = readlink("/proc/self/exe", true_path, sizeof true_path - 8);

    if (n <= 0) {
        bench_die("/proc/self/exe");
    }
    while (n > 0 && true_path[n - 1] != '/') {
        n--;
    }
    strcpy(true_path + n, "ntrue");
}

/* Not inlined: vfork() returns twice, and the caller's loop counter must live in memory through that. */
__attribute__((noinline)) static void start_true(bool copy)
{
    int status;
    pid_t pid = copy ? fork() : vfork();

    if (pid == 0) {
        execl(true_path, "ntrue", NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        bench_die("exec of ntrue");
    }
}

static uint64_t run_exec(uint64_t n)
{
    find_true();
    while (n-- > 0) {
        start_true(false);
    }
    return 0;
}

static uint64_t run_fork_exec(uint64_t n)
{
    find_true();
    while (n-- > 0) {
        start_true(true);
    }
    return 0;
}

static void on_signal(int number)
{
    (void)number;
}

static uint64_t run_signal(uint64_t n)
{
    struct sigaction action = {.sa_handler = on_signal};
    pid_t self = getpid();

    sigaction(SIGUSR1, &action, NULL);
    while (n-- > 0) {
        kill(self, SIGUSR1);
    }
    return 0;
}

static sigjmp_buf fault_return;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(fault_return, 1);
}

/* A protection fault that becomes a signal, as garbage collectors use it. */
static uint64_t run_segv(uint64_t n)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER}, old;
    volatile char *p = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile uint64_t left = n;

    sigaction(SIGSEGV, &action, &old);
    while (left > 0) {
        left--;
        if (sigsetjmp(fault_return, 0) == 0) {
            *p = 1;
            bench_die("a store to an unmapped page went through");
        }
    }
    sigaction(SIGSEGV, &old, NULL);
    munmap((void *)p, 4096);
    return 0;
}

static uint64_t run_pipe(uint64_t n)
{
    enum { CHUNK = 65536 };
    char *chunk = bench_alloc(CHUNK);
    int ends[2];
    pid_t pid;

    if (pipe(ends) != 0) {
        bench_die("pipe");
    }
    pid = fork();
    if (pid == 0) {
        close(ends[1]);
        while (read(ends[0], chunk, CHUNK) > 0) {
        }
        _exit(0);
    }
    close(ends[0]);
    while (n-- > 0) {
        if (write(ends[1], chunk, CHUNK) != CHUNK) {
            bench_die("write to a pipe");
        }
    }
    close(ends[1]);
    waitpid(pid, NULL, 0);
    free(chunk);
    return 0;
}

static uint64_t run_clock(uint64_t n)
{
    struct timespec t;

    while (n-- > 0) {
        clock_gettime(CLOCK_MONOTONIC, &t);
    }
    return 0;
}

#define ROW(n, f)                                                              \
    {                                                                          \
        .group = "system", .name = n, .kind = BENCH_LOOP, .work = 16, .run = f \
    }

const struct bench bench_system[] = {
    ROW("getppid", run_getppid),
    ROW("read-1", run_read),
    ROW("stat", run_stat),
    ROW("open-close", run_open),
    ROW("page-fault", run_fault),
    ROW("mmap-touch-munmap", run_map),
    ROW("mprotect-touch", run_protect),
    ROW("switch-pipe", run_switch),
    ROW("switch-socket", run_socket),
    ROW("fork-exit", run_fork),
    ROW("vfork-exec", run_exec),
    ROW("fork-exec", run_fork_exec),
    ROW("signal", run_signal),
    ROW("segv-signal", run_segv),
    {.group = "system", .name = "pipe-64K", .kind = BENCH_LOOP, .work = 4, .bytes = 65536, .run = run_pipe},
    {.group = "clock", .name = "clock_gettime", .kind = BENCH_LOOP, .work = 64, .run = run_clock},
    {.name = NULL},
};
