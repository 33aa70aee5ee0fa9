/* 32-bit user code under a 64-bit kernel: far more encodings than 64-bit code has. Built as a static i386 glibc
 * program by build32.sh, run by scripts/program32.sh. Everything it prints is the same on any x86. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint32_t seed = 2463534242u;
static __thread int thread_value = 3;
static volatile int counter;
static sigjmp_buf back;
static volatile int *volatile nowhere = (int *)16;

static uint32_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void integers(void)
{
    static uint32_t v[10000];
    for (int i = 0; i < 10000; i++) v[i] = rnd();
    qsort(v, 10000, sizeof(*v), by_value);
    uint64_t h = 1;
    for (int i = 0; i < 10000; i++) h = h * 6364136223846793005ull + v[i] / (v[i % 77] | 1);
    printf("integers %016llx %lld\n", (unsigned long long)h, (long long)h / 1000003);
}

/* Instructions that exist only outside 64-bit mode. */
static void old_instructions(void)
{
    unsigned eax = 0x38, edx;
    __asm__("addb $0x45, %%al; daa" : "+a"(eax)::"cc");
    printf("daa %02x ", eax & 0xff);
    eax = 0x83;
    __asm__("subb $0x38, %%al; das" : "+a"(eax)::"cc");
    printf("das %02x ", eax & 0xff);
    eax = 0x0709;
    __asm__("aad" : "+a"(eax)::"cc");
    printf("aad %u ", eax & 0xff);
    eax = 97;
    __asm__("aam" : "+a"(eax)::"cc");
    printf("aam %04x ", eax & 0xffff);
    __asm__("pushl $0x12345678; pusha; movl 32(%%esp), %%eax; movl %%eax, 28(%%esp); popa; lea 4(%%esp), %%esp"
            : "=a"(edx)::"cc", "memory");
    printf("pusha %x ", edx);
    __asm__("pushl %%ds; popl %%es; movw %%es, %w0" : "=r"(edx));
    printf("es %s\n", (edx & 0xffff) == 0x2b ? "ok" : "differs");
}

static void floats(void)
{
    double s = 0;
    long double l = 0;
    for (int i = 1; i < 2000; i++) {
        s += sin(i) / i;
        l += cosl(i) * logl(i);
    }
    printf("floats %.15g %.18Lg %.15g\n", s, l, pow(1.0001, 10000));
}

static void *threads_work(void *p)
{
    thread_value += (int)(intptr_t)p;
    for (int i = 0; i < 10000; i++) __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    return (void *)(intptr_t)thread_value;
}

static void threads(void)
{
    pthread_t t[4];
    int sum = 0;
    for (intptr_t i = 0; i < 4; i++) pthread_create(&t[i], NULL, threads_work, (void *)i);
    for (int i = 0; i < 4; i++) {
        void *r;
        pthread_join(t[i], &r);
        sum += (int)(intptr_t)r;
    }
    printf("threads %d, thread-local %d %d\n", counter, sum, thread_value);
}

static void on_signal(int number)
{
    siglongjmp(back, number);
}

static void faults(void)
{
    static const int numbers[] = {SIGSEGV, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < 4; i++) signal(numbers[i], on_signal);
    int got = sigsetjmp(back, 1);
    if (!got) *nowhere = 1;
    printf("faults %d", got);
    volatile int zero = 0;
    got = sigsetjmp(back, 1);
    if (!got) zero = 10 / zero;
    printf(" %d", got);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("ud2");
    printf(" %d", got);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("int3");
    printf(" %d", got);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("movl $0x7fffffff, %%eax; addl $1, %%eax; into" ::: "eax", "cc");
    printf(" %d", got);
    got = sigsetjmp(back, 1);
    static const int bounds[2] = {1, 5};
    if (!got) __asm__ volatile("boundl %0, %1" ::"r"(9), "m"(bounds));
    printf(" %d\n", got);
}

/* Both ways into the kernel: int 0x80, and what the vDSO uses on this CPU (SYSENTER or SYSCALL). */
static void system_calls(void)
{
    int pid;
    __asm__ volatile("int $0x80" : "=a"(pid) : "a"(SYS_getpid) : "memory");
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < 1000; i++) syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &b);
    int64_t ns = (b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec;
    int status, pipe_ends[2];
    char text[16] = "";
    if (pipe(pipe_ends)) return;
    if (fork() == 0) {
        if (write(pipe_ends[1], "hello", 6) != 6) _exit(1);
        _exit(42);
    }
    wait(&status);
    ssize_t n = read(pipe_ends[0], text, sizeof(text));
    printf("system calls %s %s, child %d %zd %s\n", pid == getpid() ? "agree" : "differ",
           ns > 0 ? "in time" : "no time", WEXITSTATUS(status), n, text);
}

static void generated_code(void)
{
    uint8_t *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int sum = 0;
    for (int i = 0; i < 500; i++) {
        uint8_t *at = p + 4090 + i % 6;                                           /* over the page's end, too */
        const uint8_t code[] = {0xb8, (uint8_t)i, (uint8_t)(i >> 8), 0, 0, 0xc3}; /* mov eax, i; ret */
        memcpy(at, code, sizeof(code));
        sum += ((int (*)(void))at)();
    }
    printf("generated code %d\n", sum);
}

int main(void)
{
    integers();
    old_instructions();
    floats();
    threads();
    faults();
    system_calls();
    generated_code();
    return 0;
}
