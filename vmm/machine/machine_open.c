/* Disks are opened beside the running machine: a storage server may say nothing for long, and a file system may hang, while timers, console and other
 * clients go on.
 *
 * A disk that is being opened has its place in the list of devices (so its id is taken) and a struct machine_opening, which goes to one of a few threads
 * and comes back through the event loop. The threads stay until the machine's end, since the kernel ends a storage daemon when the thread that
 * started it ends. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "vmm/machine/machine_internal.h"

#define MAX_THREADS 8
#define END_SECONDS 5 /* for what hangs in the host's kernel when the machine ends */

/* With ctl's own patience of 30 s the answer is heard. */
#define PATIENCE_S 20

enum opening_state { OPENING_WAITS, OPENING_RUNS, OPENING_DONE };

struct machine_opening {
    struct machine_opening *next; /* in the list of all */
    enum opening_state state;
    bool left;                     /* the machine has ended without it */
    struct machine_device *device; /* its place */
    struct machine_disk disk;      /* with texts of its own */
    machine_disk_done *done;
    void *ctx;
    struct block_abort abort;
    /* What came of it. */
    struct block *block;
    int result;
    struct nerr e;
};

struct machine_openings {
    pthread_mutex_t lock;
    pthread_cond_t work, changed;
    struct machine_opening *all; /* the oldest first */
    unsigned threads, idle;
    bool ended, quit; /* the run; the machine */
    pthread_t thread[MAX_THREADS];
    struct machine *machine;
    struct event_loop *loop;
};

/* ---- the threads ---- */

static struct machine_opening *next_job(const struct machine_openings *o)
{
    struct machine_opening *x = o->all;
    while (x && x->state != OPENING_WAITS) x = x->next;
    return x;
}

static void finish_some(void *ctx);

static void open_one(struct machine_openings *o, struct machine_opening *x)
{
    x->state = OPENING_RUNS;
    pthread_mutex_unlock(&o->lock);
    int r = block_prepare(&x->disk.block, o->loop, &x->block, &x->e);
    pthread_mutex_lock(&o->lock);
    x->result = r;
    x->state = OPENING_DONE;
    pthread_cond_broadcast(&o->changed);
    while (!o->ended && event_loop_post(o->loop, finish_some, o->machine)) { /* no memory: it will be there later */
        pthread_mutex_unlock(&o->lock);
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        pthread_mutex_lock(&o->lock);
    }
}

static void *worker(void *ctx)
{
    struct machine_openings *o = ctx;
    struct machine_opening *x;
    pthread_mutex_lock(&o->lock);
    while (!o->quit) {
        if ((x = next_job(o))) {
            open_one(o, x);
            continue;
        }
        o->idle++;
        pthread_cond_wait(&o->work, &o->lock);
        o->idle--;
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

/* With the lock. Signals are the main thread's. */
static int add_thread(struct machine_openings *o)
{
    sigset_t all, old;
    if (o->threads == MAX_THREADS) return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&o->thread[o->threads], NULL, worker, o);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!r) o->threads++;
    return o->threads ? 0 : -r; /* with fewer threads it takes longer, that is all */
}

/* ---- the list ---- */

static struct machine_openings *openings(struct machine *m)
{
    struct machine_openings *o = m->openings;
    if (o) return o;
    o = calloc(1, sizeof(*o));
    if (!o) return NULL;
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->work, NULL);
    pthread_cond_init(&o->changed, NULL);
    o->machine = m;
    o->loop = m->loop;
    m->openings = o;
    return o;
}

static void free_opening(struct machine_opening *x)
{
    free((char *)x->disk.block.path);
    free((char *)x->disk.block.format);
    pthread_mutex_destroy(&x->abort.lock);
    free(x);
}

static struct machine_opening *make_opening(const struct machine_disk *disk)
{
    struct machine_opening *x = calloc(1, sizeof(*x));
    if (!x) return NULL;
    x->disk = *disk;
    block_abort_init(&x->abort);
    x->disk.block.abort = &x->abort;
    x->disk.block.patience_s = PATIENCE_S;
    x->disk.block.path = strdup(disk->block.path);
    x->disk.block.format = disk->block.format ? strdup(disk->block.format) : NULL;
    if (x->disk.block.path && (x->disk.block.format || !disk->block.format)) return x;
    free_opening(x);
    return NULL;
}

/* With the lock. */
static void take_out(struct machine_openings *o, struct machine_opening *x)
{
    struct machine_opening **p = &o->all;
    while (*p != x) p = &(*p)->next;
    *p = x->next;
}

static int hand_over(struct machine_openings *o, struct machine_opening *x)
{
    struct machine_opening **p = &o->all;
    pthread_mutex_lock(&o->lock);
    int r = o->idle ? 0 : add_thread(o);
    if (!r) {
        while (*p) p = &(*p)->next;
        *p = x;
        pthread_cond_signal(&o->work);
    }
    pthread_mutex_unlock(&o->lock);
    return r;
}

int machine_open(struct machine *m, const struct machine_disk *disk, struct machine_device *device,
                 machine_disk_done *done, void *ctx, struct nerr *e)
{
    struct machine_openings *o = openings(m);
    struct machine_opening *x = o ? make_opening(disk) : NULL;
    if (!x) return nerr_set(e, -ENOMEM, "disk %s: out of memory", disk->id);
    x->device = device;
    x->done = done;
    x->ctx = ctx;
    int r = hand_over(o, x);
    if (!r) return 0;
    free_opening(x);
    return nerr_set(e, r, "disk %s: cannot start a thread to open it: %s", disk->id, strerror(-r));
}

/* ---- back on the loop's thread ---- */

static bool being_reset(struct machine *m)
{
    pthread_mutex_lock(&m->lock);
    bool yes = m->reset_pending && !m->stopped;
    pthread_mutex_unlock(&m->lock);
    return yes;
}

/* Takes the disk, or what became of it, out of the list: it is the caller's. NULL: none is ready. */
static struct machine_opening *take_ready(struct machine *m)
{
    struct machine_openings *o = m->openings;
    pthread_mutex_lock(&o->lock);
    struct machine_opening *x = o->all;
    while (x && x->state != OPENING_DONE) x = x->next;
    if (x) take_out(o, x);
    pthread_mutex_unlock(&o->lock);
    return x;
}

static void conclude(struct machine_opening *x, int result)
{
    if (result) {
        block_close(x->block);
        *x->device = (struct machine_device){0};
    }
    if (x->done) x->done(x->ctx, x->disk.id, result, &x->e);
    free_opening(x);
}

/* One that comes while the machine is being reset waits for that: the guest finds it then. */
static void finish_some(void *ctx)
{
    struct machine *m = ctx;
    struct machine_opening *x;
    while (m->openings && !being_reset(m) && (x = take_ready(m))) {
        int r = x->result;
        if (!r) r = machine_plug_in(m, &x->disk, x->device, x->block, &x->e);
        conclude(x, r);
    }
}

void machine_openings_go_on(struct machine *m)
{
    finish_some(m);
}

/* ---- the end ---- */

static void abort_all(struct machine_openings *o)
{
    for (struct machine_opening *x = o->all; x; x = x->next) {
        if (x->state == OPENING_WAITS) {
            x->state = OPENING_DONE;
            x->result = -ECANCELED;
        }
        block_abort(&x->abort);
    }
}

static bool any_runs(const struct machine_openings *o)
{
    for (const struct machine_opening *x = o->all; x; x = x->next)
        if (x->state == OPENING_RUNS && !x->left) return true;
    return false;
}

/* What hangs stays with its thread, for the little time that the process has left. */
static void leave(struct machine_opening *x)
{
    nc_warn("disk %s: the host does not finish opening %s; ending without it", x->disk.id, x->disk.block.path);
    x->left = true;
    *x->device = (struct machine_device){0};
    nerr_set(&x->e, -EBUSY, "disk %s: the machine has ended", x->disk.id);
    if (x->done) x->done(x->ctx, x->disk.id, -EBUSY, &x->e);
    x->done = NULL;
}

void machine_openings_abort(struct machine *m)
{
    struct machine_openings *o = m->openings;
    struct machine_opening *x;
    struct timespec until;
    if (!o) return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += END_SECONDS;
    pthread_mutex_lock(&o->lock);
    o->ended = true;
    abort_all(o);
    while (any_runs(o) && pthread_cond_timedwait(&o->changed, &o->lock, &until) == 0) {
    }
    for (x = o->all; x; x = x->next)
        if (x->state == OPENING_RUNS && !x->left) leave(x);
    pthread_mutex_unlock(&o->lock);
    while ((x = take_ready(m))) {
        if (x->left) { /* it came to an end after all */
            block_close(x->block);
            free_opening(x);
            continue;
        }
        nerr_set(&x->e, -EBUSY, "disk %s: the machine has ended", x->disk.id);
        conclude(x, -EBUSY);
    }
}

bool machine_openings_destroy(struct machine *m)
{
    struct machine_openings *o = m->openings;
    if (!o) return true;
    pthread_mutex_lock(&o->lock);
    bool hang = o->all;
    o->quit = true;
    pthread_cond_broadcast(&o->work);
    pthread_mutex_unlock(&o->lock);
    if (hang) return false;
    for (unsigned i = 0; i < o->threads; i++) pthread_join(o->thread[i], NULL);
    pthread_cond_destroy(&o->changed);
    pthread_cond_destroy(&o->work);
    pthread_mutex_destroy(&o->lock);
    free(o);
    m->openings = NULL;
    return true;
}
