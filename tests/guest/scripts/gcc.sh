# gcc compiles C at several optimization levels in the guest, and the programs run.
# packages: gcc libc6-dev
# memory: 1G
# limit: 400
cd /tmp || exit 1
cat >t.c <<'END'
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t x = 88172645463325252ull;
static uint64_t rnd(void) { x ^= x << 13; x ^= x >> 7; return x ^= x << 17; }
static int cmp(const void *a, const void *b) { uint64_t p = *(uint64_t *)a, q = *(uint64_t *)b; return (p > q) - (p < q); }
static atomic_long counter;
static void *bump(void *a) { for (int i = 0; i < 20000; i++) atomic_fetch_add(&counter, (long)(intptr_t)a); return NULL; }
static sigjmp_buf env;
static volatile int *volatile nowhere = (int *)8;
static void on_signal(int s) { siglongjmp(env, s); }
static __thread int tls = 5;

int main(void)
{
    static uint64_t v[20000];
    for (int i = 0; i < 20000; i++) v[i] = rnd();
    qsort(v, 20000, sizeof(*v), cmp);
    uint64_t h = 0;
    for (int i = 0; i < 20000; i++) h = h * 31 + v[i];
    printf("qsort %016" PRIx64 "\n", h);
    unsigned __int128 w = 1;
    for (int i = 1; i < 200; i++) w = w * (rnd() | 1) + w / 7;
    printf("int128 %016" PRIx64 "%016" PRIx64 "\n", (uint64_t)(w >> 64), (uint64_t)w);
    double m[24][24], s = 0;
    for (int i = 0; i < 24; i++) for (int j = 0; j < 24; j++) m[i][j] = (double)(rnd() >> 11) / (1ull << 53);
    for (int k = 0; k < 24; k++) for (int i = k + 1; i < 24; i++) {
        double f = m[i][k] / m[k][k];
        for (int j = k; j < 24; j++) m[i][j] = m[i][j] - f * m[k][j];
    }
    for (int i = 0; i < 24; i++) s += log(fabs(m[i][i]));
    printf("lu %.9f\n", s);
    long double l = 0;
    for (int i = 1; i < 1000; i++) l += sinl(i) / i;
    printf("x87 %.17Lg %.15g %.15g\n", l, cbrt(2.0), tgamma(4.5));
    pthread_t t[4];
    for (intptr_t i = 0; i < 4; i++) pthread_create(&t[i], NULL, bump, (void *)(i + 1));
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    printf("atomics %ld\n", (long)counter);
    signal(SIGSEGV, on_signal);
    signal(SIGFPE, on_signal);
    volatile int zero = 0;
    int got = sigsetjmp(env, 1);
    if (!got) *nowhere = 1;
    printf("signal %d\n", got);
    got = sigsetjmp(env, 1);
    if (!got) zero = 10 / zero;
    printf("signal %d\n", got);
    unsigned char code[] = {0x8d, 0x04, 0x37, 0xc3}; /* lea eax,[rdi+rsi]; ret */
    unsigned char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(p, code, sizeof(code));
    int sum = 0;
    for (int i = 0; i < 1000; i++) { p[2] = i & 1 ? 0x37 : 0x3f; sum += ((int (*)(int, int))p)(i, 3); }
    printf("self-modifying %d tls %d\n", sum, tls);
    int st;
    if (!fork()) _exit(strlen("child"));
    wait(&st);
    printf("fork %d\n", WEXITSTATUS(st));
    return 0;
}
END
for level in -O0 -O2 "-O3 -march=x86-64-v2"; do
    gcc -Wall $level -o t t.c -lm -lpthread && ./t >out && echo "gcc $level: $(sha256sum <out | cut -c1-16)"
done
cat out
gcc -O2 -static -o ts t.c -lm -lpthread && ./ts | cmp - out && echo "static: same"
gcc -O2 -S -o t1.s t.c && gcc -O2 -S -o t2.s t.c && cmp t1.s t2.s && echo "compiles the same twice"
dmesg -c >/dev/null # the faults are meant
exit 0
