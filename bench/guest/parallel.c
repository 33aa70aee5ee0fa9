/* The same four shares of work, in four processes or four threads. Run on 1 and on 4 CPUs to see what more CPUs give. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { WORKERS = 4, ROUNDS = 4 };

static uint64_t share(int worker)
{
    switch (worker) {
    case 0: return bench_sha256(8 << 20);
    case 1: return bench_sort(30000);
    case 2: return bench_hash(250000);
    default: return bench_bytecode(800000);
    }
}

/* Every worker does every share, so that none has less to do; several times, so that it is the work that is measured and not the start. */
static uint64_t shares(int worker)
{
    uint64_t h = 0;

    for (int i = 0; i < ROUNDS * WORKERS; i++) {
        h = bench_mix(h, share((worker + i) % WORKERS));
    }
    return h;
}

static uint64_t run_processes(uint64_t work)
{
    uint64_t *result = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), h = 0;

    (void)work;
    if (result == MAP_FAILED) {
        bench_die("mmap");
    }
    for (int i = 0; i < WORKERS; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            result[i] = shares(i);
            _exit(0);
        }
        if (pid < 0) {
            bench_die("fork");
        }
    }
    for (int i = 0; i < WORKERS; i++) {
        wait(NULL);
    }
    for (int i = 0; i < WORKERS; i++) {
        h = bench_mix(h, result[i]);
    }
    munmap(result, 4096);
    return h;
}

static uint64_t thread_result[WORKERS];

static void *thread_work(void *worker)
{
    int i = (int)(intptr_t)worker;

    thread_result[i] = shares(i);
    return NULL;
}

static uint64_t run_threads(uint64_t work)
{
    pthread_t thread[WORKERS];
    uint64_t h = 0;

    (void)work;
    for (int i = 0; i < WORKERS; i++) {
        if (pthread_create(&thread[i], NULL, thread_work, (void *)(intptr_t)i) != 0) {
            bench_die("pthread_create");
        }
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(thread[i], NULL);
        h = bench_mix(h, thread_result[i]);
    }
    return h;
}

/* Threads that share a counter and a locked list while they compute. */
static struct {
    pthread_mutex_t lock;
    atomic_uint_fast64_t count;
    uint64_t sum;
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *thread_locks(void *worker)
{
    struct bench_random r = {(uint64_t)(intptr_t)worker + 1};

    for (int i = 0; i < 400000; i++) {
        uint64_t v = 0;

        for (int k = 0; k < 60; k++) {
            v ^= bench_next(&r);
        }
        atomic_fetch_add(&shared.count, v & 3);
        if (i % 16 == 0) {
            pthread_mutex_lock(&shared.lock);
            shared.sum += v;
            pthread_mutex_unlock(&shared.lock);
        }
    }
    return NULL;
}

static uint64_t run_locks(uint64_t work)
{
    pthread_t thread[WORKERS];

    (void)work;
    atomic_store(&shared.count, 0);
    shared.sum = 0;
    for (int i = 0; i < WORKERS; i++) {
        if (pthread_create(&thread[i], NULL, thread_locks, (void *)(intptr_t)i) != 0) {
            bench_die("pthread_create");
        }
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(thread[i], NULL);
    }
    return bench_mix(atomic_load(&shared.count), shared.sum);
}

const struct bench bench_parallel[] = {
    {.group = "parallel", .name = "processes", .run = run_processes},
    {.group = "parallel", .name = "threads", .run = run_threads},
    {.group = "parallel", .name = "locks", .run = run_locks},
    {.name = NULL},
};
