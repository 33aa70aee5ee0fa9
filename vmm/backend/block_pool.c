/* Steps on threads: where io_uring is forbidden, and for what it cannot do. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/backend/block_internal.h"

#define POOL_THREADS 8

struct block_pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct block_queue queue;
    unsigned threads, idle, queued;
    bool quit;
    pthread_t thread[POOL_THREADS];
};

static void run_request(struct block *b, struct block_request *r)
{
    struct block_step s;
    int status;
    do {
        block_step_prepare(b, r, &s);
    } while (!block_step_advance(b, r, block_step_run(b, &s), &status));
    block_finish_async(b, r, status);
}

static void *worker(void *ctx)
{
    struct block *b = ctx;
    struct block_pool *p = b->pool;
    pthread_mutex_lock(&p->lock);
    while (!p->quit) {
        struct block_request *r = block_queue_pop(&p->queue);
        if (!r) {
            p->idle++;
            pthread_cond_wait(&p->work, &p->lock);
            p->idle--;
            continue;
        }
        p->queued--;
        pthread_mutex_unlock(&p->lock);
        run_request(b, r);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Signals are the main thread's. */
static bool add_thread(struct block *b)
{
    struct block_pool *p = b->pool;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    bool ok = pthread_create(&p->thread[p->threads], NULL, worker, b) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ok) p->threads++;
    return ok;
}

void block_pool_start(struct block *b, struct block_request *r)
{
    struct block_pool *p = b->pool;
    pthread_mutex_lock(&p->lock);
    block_queue_push(&p->queue, r);
    p->queued++;
    if (p->queued > p->idle && p->threads < POOL_THREADS)
        add_thread(b); /* with fewer threads it takes longer, that is all */
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static void pool_driver_start(struct block *b, struct block_request *r)
{
    int status;
    if (block_file_try_inline(b, r, &status))
        block_finish_inline(b, r, status);
    else
        block_pool_start(b, r);
}

static void pool_driver_close(struct block *b)
{
    block_pool_close(b);
    block_file_close(b);
}

const struct block_driver block_pool_driver = {
    .start = pool_driver_start, .resize = block_file_resize, .close = pool_driver_close};

/* At least one thread must be there: without any nothing would ever finish. */
int block_pool_open(struct block *b, struct nerr *e)
{
    struct block_pool *p = calloc(1, sizeof(*p));
    if (!p) return nerr_set(e, -ENOMEM, "disk %s: out of memory", b->path);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    b->pool = p;
    pthread_mutex_lock(&p->lock);
    bool ok = add_thread(b);
    pthread_mutex_unlock(&p->lock);
    if (!ok) {
        block_pool_close(b);
        return nerr_set(e, -EAGAIN, "disk %s: cannot start a thread for it: %s", b->path, strerror(EAGAIN));
    }
    if (!b->driver) b->driver = &block_pool_driver;
    return 0;
}

void block_pool_close(struct block *b)
{
    struct block_pool *p = b->pool;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->threads; i++) pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
    b->pool = NULL;
}
