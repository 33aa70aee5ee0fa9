/* The public side of the block back ends: checks, limits, finished requests, statistics. */
#define _GNU_SOURCE
#include "vmm/backend/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/backend/block_internal.h"

#define ERROR_PAUSE_NS 1000000000ull /* between two times that somebody is told of errors */

void block_queue_push(struct block_queue *q, struct block_request *r)
{
    block_private(r)->next = NULL;
    if (q->head)
        block_private(q->tail)->next = r;
    else
        q->head = r;
    q->tail = r;
}

struct block_request *block_queue_pop(struct block_queue *q)
{
    struct block_request *r = q->head;
    if (r) q->head = block_private(r)->next;
    return r;
}

/* ---- finished requests ---- */

void block_wake(struct block *b)
{
    uint64_t one = 1;
    ssize_t n = write(b->wake_fd, &one, sizeof(one));
    (void)n; /* it fails only when the counter is full, and then the loop will look */
}

const char *block_op_name(enum block_op op)
{
    static const char *const name[BLOCK_OPS] = {"read", "write", "flush", "discard", "write-zeroes"};
    return op < BLOCK_OPS ? name[op] : "request";
}

/* With the lock. A disk without room fails thousands of requests in a second: who listens hears of it once. */
static void note_error(struct block *b, const struct block_request *r, int result)
{
    b->error = (struct block_error){
        .op = r->op, .offset = r->offset, .length = r->length, .error = result, .count = b->error.count + 1};
    if (!b->on_error || b->error_waits) return;
    b->error_waits = true;
    event_timer_arm(&b->error_timer, b->error_told ? b->error_told + ERROR_PAUSE_NS : 0, 0);
}

static void tell_error(void *ctx)
{
    struct block *b = ctx;
    pthread_mutex_lock(&b->lock);
    struct block_error last = b->error;
    bool first = !b->error_told;
    b->error_told = clock_mono_ns();
    b->error_waits = false;
    pthread_mutex_unlock(&b->lock);
    b->on_error(b->on_error_ctx, &last, first);
}

void block_observe_errors(struct block *b, void (*fn)(void *ctx, const struct block_error *last, bool first), void *ctx)
{
    pthread_mutex_lock(&b->lock);
    b->on_error = fn;
    b->on_error_ctx = ctx;
    pthread_mutex_unlock(&b->lock);
}

void block_get_error(const struct block *b, struct block_error *last)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&b->lock;
    pthread_mutex_lock(lock);
    *last = b->error;
    pthread_mutex_unlock(lock);
}

void block_finished(struct block *b, struct block_request *r, int result)
{
    block_private(r)->result = result;
    if (result) {
        b->stats.errors++;
        if (!block_private(r)->refused) note_error(b, r, result);
    } else {
        b->stats.ops[r->op]++;
        b->stats.bytes[r->op] += r->length;
    }
    block_queue_push(&b->finished, r);
}

void block_finish_inline(struct block *b, struct block_request *r, int result)
{
    pthread_mutex_lock(&b->lock);
    block_finished(b, r, result);
    bool wake = !b->plugged;
    pthread_mutex_unlock(&b->lock);
    if (wake) block_wake(b);
}

void block_finish_async(struct block *b, struct block_request *r, int result)
{
    pthread_mutex_lock(&b->lock);
    block_finished(b, r, result);
    pthread_mutex_unlock(&b->lock);
    block_wake(b);
}

/* Runs done() of everything that has finished. Without the lock. */
static void deliver(struct block *b)
{
    for (;;) {
        pthread_mutex_lock(&b->lock);
        if (b->driver->reap) b->driver->reap(b);
        struct block_request *r = b->finished.head;
        b->finished.head = NULL;
        if (r && b->driver->commit) b->driver->commit(b); /* there is room for more now */
        pthread_mutex_unlock(&b->lock);
        if (!r) return;
        unsigned n = 0;
        while (r) {
            struct block_request *next = block_private(r)->next; /* the request may be gone after done() */
            r->done(r, block_private(r)->result);
            r = next;
            n++;
        }
        pthread_mutex_lock(&b->lock);
        b->pending -= n;
        if (!b->pending) pthread_cond_broadcast(&b->changed);
        pthread_mutex_unlock(&b->lock);
    }
}

static void on_wake(void *ctx, uint32_t events)
{
    (void)events;
    struct block *b = ctx;
    uint64_t count;
    ssize_t n = read(b->wake_fd, &count, sizeof(count));
    (void)n;
    pthread_mutex_lock(&b->lock);
    if (b->driver->reap) b->driver->reap(b);
    if (b->driver->commit) b->driver->commit(b);
    pthread_mutex_unlock(&b->lock);
    deliver(b);
}

/* ---- limits ---- */

static unsigned direction(const struct block_request *r)
{
    return r->op == BLOCK_READ ? LIMIT_READ : LIMIT_WRITE;
}

static bool limitable(const struct block_request *r)
{
    return r->op != BLOCK_FLUSH;
}

static uint64_t longer(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Nanoseconds until a request of this direction may pass. */
static uint64_t limits_wait(struct block *b, unsigned kind, uint64_t now)
{
    uint64_t own = longer(limiter_wait(&b->bps[kind], now), limiter_wait(&b->iops[kind], now));
    uint64_t total = longer(limiter_wait(&b->bps[LIMIT_TOTAL], now), limiter_wait(&b->iops[LIMIT_TOTAL], now));
    return longer(own, total);
}

static void limits_charge(struct block *b, const struct block_request *r, uint64_t now)
{
    uint64_t bytes = r->op == BLOCK_DISCARD ? 0 : r->length;
    uint64_t ops = bytes ? (bytes + BLOCK_OP_BYTES - 1) / BLOCK_OP_BYTES : 1;
    unsigned kinds[2] = {direction(r), LIMIT_TOTAL};
    for (unsigned i = 0; i < 2; i++) {
        limiter_charge(&b->bps[kinds[i]], bytes, now);
        limiter_charge(&b->iops[kinds[i]], ops, now);
    }
}

/* The next waiting request that may go, charged; NULL when none may, with *wait until one will (0: nobody waits). */
static struct block_request *limits_next(struct block *b, uint64_t now, uint64_t *wait)
{
    *wait = 0;
    for (unsigned i = 0; i < 2; i++) {
        unsigned kind = b->writes_first ? LIMIT_WRITE - i : LIMIT_READ + i;
        if (!b->waiting[kind].head) continue;
        uint64_t w = b->draining ? 0 : limits_wait(b, kind, now);
        if (w) {
            if (!*wait || w < *wait) *wait = w;
            continue;
        }
        struct block_request *r = block_queue_pop(&b->waiting[kind]);
        limits_charge(b, r, now);
        b->stats.throttled_ns += now - block_private(r)->since;
        b->writes_first = kind == LIMIT_READ;
        return r;
    }
    return NULL;
}

/* Starts what the limits let pass, and arms the timer for the rest. */
static void run_waiting(struct block *b)
{
    struct block_queue go = {NULL, NULL};
    uint64_t wait, now = clock_mono_ns();
    struct block_request *r;
    pthread_mutex_lock(&b->lock);
    while ((r = limits_next(b, now, &wait))) block_queue_push(&go, r);
    b->wake_at = wait ? now + wait : 0;
    if (wait) event_timer_arm(&b->timer, b->wake_at, 0);
    pthread_mutex_unlock(&b->lock);
    if (!go.head) return;
    block_plug(b);
    while ((r = block_queue_pop(&go))) b->driver->start(b, r);
    block_unplug(b);
}

static void on_timer(void *ctx)
{
    run_waiting(ctx);
}

/* True when the request waits now. */
static bool limits_hold(struct block *b, struct block_request *r)
{
    if (!limitable(r)) return false;
    pthread_mutex_lock(&b->lock);
    unsigned kind = direction(r);
    uint64_t now = clock_mono_ns();
    uint64_t wait = 0;
    bool behind = b->waiting[kind].head;
    if (!behind && !b->draining) wait = limits_wait(b, kind, now);
    bool hold = behind || wait;
    if (hold) {
        block_private(r)->since = now;
        block_queue_push(&b->waiting[kind], r);
        if (!behind && (!b->wake_at || b->wake_at > now + wait)) {
            b->wake_at = now + wait;
            event_timer_arm(&b->timer, b->wake_at, 0);
        }
    } else {
        limits_charge(b, r, now);
    }
    pthread_mutex_unlock(&b->lock);
    return hold;
}

int block_set_limits(struct block *b, const struct block_limits *l, struct nerr *e)
{
    (void)e; /* every combination makes sense: total together with read or write holds both */
    const uint64_t bps[LIMIT_KINDS] = {l->read_bps, l->write_bps, l->total_bps};
    const uint64_t iops[LIMIT_KINDS] = {l->read_iops, l->write_iops, l->total_iops};
    bool any = false;
    uint64_t now = clock_mono_ns();
    pthread_mutex_lock(&b->lock);
    b->limits = *l;
    for (unsigned k = 0; k < LIMIT_KINDS; k++) {
        limiter_set(&b->bps[k], &(struct limiter_rate){.avg = bps[k]}, now);
        limiter_set(&b->iops[k], &(struct limiter_rate){.avg = iops[k]}, now);
        any |= bps[k] || iops[k];
    }
    /* While anything waits, whoever comes must queue behind it. */
    atomic_store(&b->limited, any || b->waiting[0].head || b->waiting[1].head);
    pthread_mutex_unlock(&b->lock);
    run_waiting(b);
    if (!any) {
        pthread_mutex_lock(&b->lock);
        if (!b->waiting[0].head && !b->waiting[1].head) atomic_store(&b->limited, false);
        pthread_mutex_unlock(&b->lock);
    }
    return 0;
}

void block_get_limits(const struct block *b, struct block_limits *l)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&b->lock;
    pthread_mutex_lock(lock);
    *l = b->limits;
    pthread_mutex_unlock(lock);
}

/* ---- submission ---- */

static int check_request(const struct block *b, const struct block_request *r)
{
    if (r->op >= BLOCK_OPS) return -ENOTSUP;
    if (r->op == BLOCK_FLUSH) return 0;
    if (r->op != BLOCK_READ && b->info.readonly) return -EROFS;
    if (r->offset % BLOCK_SECTOR || r->length % BLOCK_SECTOR) return -EINVAL;
    uint64_t size = __atomic_load_n(&b->info.size, __ATOMIC_ACQUIRE);
    if (r->length > size || r->offset > size - r->length) return -EIO;
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < r->iovs; i++)
            if (__builtin_add_overflow(sum, r->iov[i].iov_len, &sum)) return -EINVAL;
        if (sum != r->length) return -EINVAL;
    }
    return 0;
}

void block_submit(struct block *b, struct block_request *r)
{
    memset(r->private_, 0, sizeof(struct block_private));
    int err = check_request(b, r);
    pthread_mutex_lock(&b->lock);
    b->pending++;
    pthread_mutex_unlock(&b->lock);
    if (err || (!r->length && r->op != BLOCK_FLUSH)) {
        block_private(r)->refused = true;
        block_finish_inline(b, r, err);
        return;
    }
    if (atomic_load_explicit(&b->limited, memory_order_relaxed) && limits_hold(b, r)) return;
    b->driver->start(b, r);
}

void block_plug(struct block *b)
{
    pthread_mutex_lock(&b->lock);
    b->plugged++;
    pthread_mutex_unlock(&b->lock);
}

/* Sends what is gathered. True when something has finished that nobody was woken for. */
static bool unplug(struct block *b)
{
    pthread_mutex_lock(&b->lock);
    b->plugged--;
    if (b->driver->commit) b->driver->commit(b);
    bool finished = b->finished.head;
    pthread_mutex_unlock(&b->lock);
    return finished;
}

void block_unplug(struct block *b)
{
    if (unplug(b)) block_wake(b);
}

void block_unplug_reap(struct block *b)
{
    if (unplug(b)) deliver(b);
}

/* ---- drain ---- */

/* How long a drain waits without anything coming back. */
#define DRAIN_PATIENCE_NS 2000000000ull

static void wait_changed(struct block *b)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    pthread_cond_timedwait(&b->changed, &b->lock, &t);
}

struct patience {
    uint64_t since; /* the last progress */
    unsigned pending;
    bool lost;
};

/* With the lock, after each look. */
static void grow_impatient(struct block *b, struct patience *p)
{
    uint64_t now = clock_mono_ns();
    if (b->pending != p->pending) p->since = now;
    p->pending = b->pending;
    if (p->lost || now - p->since < DRAIN_PATIENCE_NS) return;
    p->lost = true;
    if (b->driver->abandon)
        b->driver->abandon(b);
    else
        nc_warn("disk %s: the host takes long over %u requests; waiting for them", b->path, b->pending);
}

static bool drain(struct block *b, uint64_t deadline, struct patience *patience)
{
    pthread_mutex_lock(&b->lock);
    b->draining = true;
    pthread_mutex_unlock(&b->lock);
    run_waiting(b);
    /* The loop's thread may be this one, or not running: we look ourselves, and often, since the host tells only the loop. */
    for (;;) {
        pthread_mutex_lock(&b->lock);
        if (b->driver->commit) b->driver->commit(b);
        pthread_mutex_unlock(&b->lock);
        deliver(b);
        pthread_mutex_lock(&b->lock);
        bool idle = !b->pending;
        if (!idle && !b->finished.head) {
            wait_changed(b);
            if (patience) grow_impatient(b, patience);
        }
        bool end = idle || clock_mono_ns() >= deadline;
        if (end) b->draining = false;
        pthread_mutex_unlock(&b->lock);
        if (end) return idle;
    }
}

bool block_drain_until(struct block *b, uint64_t deadline)
{
    return drain(b, deadline, NULL);
}

void block_drain(struct block *b)
{
    drain(b, UINT64_MAX, &(struct patience){.since = clock_mono_ns()});
}

/* ---- life ---- */

static int create(struct block *b, const struct block_config *cfg, struct event_loop *loop, struct nerr *e)
{
    b->loop = loop;
    b->device = &b->own_device;
    b->cache = cfg->cache;
    b->discard = cfg->discard;
    b->file.fd = b->wake_fd = -1;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    b->path = strdup(cfg->path);
    if (!b->path) return nerr_set(e, -ENOMEM, "disk: out of memory");
    b->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (b->wake_fd < 0) return nerr_set(e, -errno, "disk %s: eventfd: %s", b->path, strerror(errno));
    event_timer_init(&b->timer, loop, on_timer, b);
    event_timer_init(&b->error_timer, loop, tell_error, b);
    b->timer_made = true;
    return 0;
}

int block_prepare(const struct block_config *cfg, struct event_loop *loop, struct block **out, struct nerr *e)
{
    *out = NULL;
    struct block *b = calloc(1, sizeof(*b));
    if (!b) return nerr_set(e, -ENOMEM, "disk %s: out of memory", cfg->path);
    int r = create(b, cfg, loop, e);
    if (!r) r = block_open_driver(b, cfg, e);
    if (r) {
        block_close(b);
        return r;
    }
    b->limits = cfg->limits;
    *out = b;
    return 0;
}

int block_start(struct block *b, struct nerr *e)
{
    int r = b->driver->watch ? b->driver->watch(b, e) : 0;
    if (!r) r = event_fd_add(b->loop, b->wake_fd, EPOLLIN, on_wake, b, e);
    if (r) return r;
    b->watched = true;
    struct block_limits limits = b->limits;
    return block_set_limits(b, &limits, e);
}

int block_open(const struct block_config *cfg, struct event_loop *loop, struct block **out, struct nerr *e)
{
    int r = block_prepare(cfg, loop, out, e);
    if (!*out) return r;
    r = block_start(*out, e);
    if (!r) return 0;
    block_close(*out);
    *out = NULL;
    return r;
}

void block_close(struct block *b)
{
    if (!b) return;
    if (b->driver) block_drain(b);
    if (b->watched) event_fd_remove(b->loop, b->wake_fd);
    if (b->timer_made) event_timer_destroy(&b->timer);
    if (b->timer_made) event_timer_destroy(&b->error_timer);
    if (b->driver) b->driver->close(b);
    if (b->wake_fd >= 0) close(b->wake_fd);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    free(b->path);
    free(b);
}

void block_info(const struct block *b, struct block_info *out)
{
    *out = b->info;
    out->size = __atomic_load_n(&b->info.size, __ATOMIC_ACQUIRE);
}

int block_resize(struct block *b, uint64_t size, struct nerr *e)
{
    if (size % BLOCK_SECTOR || !size)
        return nerr_set(e, -EINVAL, "disk %s: a size of %llu bytes is not possible; give a multiple of %u", b->path,
                        (unsigned long long)size, BLOCK_SECTOR);
    return b->driver->resize(b, size, e);
}

void block_get_stats(const struct block *b, struct block_stats *s)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&b->lock;
    pthread_mutex_lock(lock);
    *s = b->stats;
    s->bounced_bytes = atomic_load(&b->bounced);
    pthread_mutex_unlock(lock);
}

void block_count_into(struct block *b, struct device_stats *s)
{
    b->device = s;
}

void block_set_fault(struct block *b, block_fault_fn *fn, void *ctx)
{
    pthread_mutex_lock(&b->lock);
    b->fault_ctx = ctx;
    b->fault = fn;
    pthread_mutex_unlock(&b->lock);
}
