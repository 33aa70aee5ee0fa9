/* What a 4 KiB request costs in the block back end alone, without a guest: time by the clock and CPU time of the process, by path.
 *
 *   reap   completed on the submitting thread (block_unplug_reap), as virtio-blk and AHCI do
 *   loop   completed by the event loop's thread, which wakes the submitter
 *
 * Usage: block DIRECTORY [SECONDS PER ROW] */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/backend/block.h"

#define SIZE (64ull << 20)
#define REQUEST 4096

static atomic_uint done_count;

static void done(struct block_request *r, int result)
{
    (void)r;
    if (result) fprintf(stderr, "block: a request failed: %s\n", strerror(-result));
    atomic_fetch_add(&done_count, 1);
}

static void *run_loop(void *ctx)
{
    struct nerr e;
    event_loop_run(ctx, &e);
    return NULL;
}

static uint64_t cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000ull +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000ull;
}

struct row {
    const char *name;
    enum block_cache cache;
    enum block_aio aio;
    enum block_op op;
    bool reap;
    unsigned depth;
};

static void measure(const char *path, const struct row *w, double seconds)
{
    struct nerr e;
    struct block *b;
    pthread_t thread;
    struct event_loop *loop = event_loop_create(&e);
    struct block_config cfg = {.path = path, .format = "raw", .cache = w->cache, .aio = w->aio, .discard = true};
    if (!loop || block_open(&cfg, loop, &b, &e)) {
        printf("%-44s %s\n", w->name, e.text);
        return;
    }
    pthread_create(&thread, NULL, run_loop, loop);
    struct block_request r[32];
    struct iovec iov[32];
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, 32 * REQUEST)) return;
    memset(memory, 1, 32 * REQUEST);
    uint64_t n = 0, seed = 1, start = clock_mono_ns(), cpu = cpu_ns(), end = start + (uint64_t)(seconds * 1e9);
    while (clock_mono_ns() < end) {
        atomic_store(&done_count, 0);
        block_plug(b);
        for (unsigned i = 0; i < w->depth; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            iov[i] = (struct iovec){(char *)memory + i * REQUEST, REQUEST};
            r[i] = (struct block_request){.op = w->op,
                                          .offset = (seed >> 33) % (SIZE / REQUEST) * REQUEST,
                                          .length = REQUEST,
                                          .iov = &iov[i],
                                          .iovs = 1,
                                          .done = done};
            block_submit(b, &r[i]);
        }
        if (w->reap)
            block_unplug_reap(b);
        else
            block_unplug(b);
        while (atomic_load(&done_count) < w->depth) sched_yield();
        n += w->depth;
    }
    double wall = (double)(clock_mono_ns() - start) / (double)n, used = (double)(cpu_ns() - cpu) / (double)n;
    printf("%-44s %9.2f us %9.2f us CPU\n", w->name, wall / 1e3, used / 1e3);
    event_loop_stop(loop);
    pthread_join(thread, NULL);
    block_close(b);
    event_loop_destroy(loop);
    free(memory);
}

int main(int argc, char **argv)
{
    static const struct row rows[] = {
        {"read, page cache, reap", BLOCK_CACHE_WRITEBACK, BLOCK_AIO_AUTO, BLOCK_READ, true, 1},
        {"read, page cache, loop", BLOCK_CACHE_WRITEBACK, BLOCK_AIO_AUTO, BLOCK_READ, false, 1},
        {"read, page cache, reap, 32 at once", BLOCK_CACHE_WRITEBACK, BLOCK_AIO_AUTO, BLOCK_READ, true, 32},
        {"write, page cache, reap", BLOCK_CACHE_WRITEBACK, BLOCK_AIO_AUTO, BLOCK_WRITE, true, 1},
        {"write, page cache, reap, 32 at once", BLOCK_CACHE_WRITEBACK, BLOCK_AIO_AUTO, BLOCK_WRITE, true, 32},
        {"read, O_DIRECT, io_uring", BLOCK_CACHE_NONE, BLOCK_AIO_AUTO, BLOCK_READ, true, 1},
        {"read, O_DIRECT, threads", BLOCK_CACHE_NONE, BLOCK_AIO_THREADS, BLOCK_READ, true, 1},
        {"read, O_DIRECT, io_uring, 32 at once", BLOCK_CACHE_NONE, BLOCK_AIO_AUTO, BLOCK_READ, true, 32},
        {"read, O_DIRECT, threads, 32 at once", BLOCK_CACHE_NONE, BLOCK_AIO_THREADS, BLOCK_READ, true, 32},
    };
    if (argc < 2) {
        fprintf(stderr, "usage: block DIRECTORY [SECONDS]\n");
        return 2;
    }
    char path[4096];
    snprintf(path, sizeof(path), "%s/block-bench.img", argv[1]);
    FILE *f = fopen(path, "w");
    char *page = malloc(1 << 20);
    if (!f || !page) return 1;
    memset(page, 7, 1 << 20);
    for (unsigned i = 0; i < SIZE >> 20; i++) fwrite(page, 1, 1 << 20, f);
    fclose(f);
    free(page);
    printf("%-44s %12s %16s\n", "one 4 KiB request in the back end", "by the clock", "all threads");
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) measure(path, &rows[i], argc > 2 ? atof(argv[2]) : 1);
    unlink(path);
    return 0;
}
