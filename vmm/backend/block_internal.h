/* Private header of the block back ends.
 *
 *   block.c        the public functions: checks, limits, queues of finished requests, statistics
 *   block_open.c   which driver an image needs
 *   block_file.c   raw files and block devices: opening, locking, and one step of a request as data
 *   block_uring.c  runs steps by io_uring
 *   block_pool.c   runs steps on threads
 *   block_daemon.c formats and protocols of others, by a qemu-storage-daemon that vhost_user.c talks to
 *
 * A request becomes one or more steps (a bounce buffer's worth; what a short read left; the flush behind a discard). */
#ifndef NACELLE_VMM_BLOCK_INTERNAL_H
#define NACELLE_VMM_BLOCK_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/event.h"
#include "vmm/backend/block.h"
#include "vmm/bus/device_stats.h"
#include "vmm/backend/limiter.h"

#define BLOCK_BOUNCE (256u << 10)  /* bytes of a request that are copied at a time */
#define BLOCK_INLINE (64u << 10)   /* requests up to this many bytes are tried on the caller's thread */
#define BLOCK_OP_BYTES (64u << 10) /* limits count one operation per this many bytes begun */

/* What the back end keeps in a request. */
struct block_private {
    struct block_request *next; /* in one of the queues */
    void *bounce;               /* aligned copy of [pos, pos + bounce_len) */
    struct iovec *rest;         /* what is left of the caller's iovec after a short transfer */
    struct iovec one;           /* the bounce buffer, as an iovec that outlives a system call */
    uint64_t pos;               /* bytes done */
    uint64_t since;             /* when it began to wait for a limit */
    uint32_t bounce_len;
    int32_t result;
    uint8_t stage;   /* enum block_stage */
    uint8_t retries; /* after EAGAIN and EINTR */
    bool refused;    /* it made no sense: the host has not seen it */
};
_Static_assert(sizeof(struct block_private) <= sizeof(((struct block_request *)0)->private_), "grow private_");

static inline struct block_private *block_private(struct block_request *r)
{
    return (struct block_private *)(void *)r->private_;
}

struct block_queue {
    struct block_request *head, *tail;
};
void block_queue_push(struct block_queue *q, struct block_request *r);
struct block_request *block_queue_pop(struct block_queue *q);

/* One thing to ask of the host. */
enum block_stage {
    STAGE_MAIN,
    STAGE_ZERO_FILL /* fallocate could not */,
    STAGE_FLUSH /* behind what must be stable */
};
enum step_kind { STEP_READ, STEP_WRITE, STEP_FSYNC, STEP_FALLOCATE, STEP_BLKDISCARD, STEP_NOTHING };
struct block_step {
    enum step_kind kind;
    int flags; /* RWF_*, FALLOC_FL_* */
    uint64_t offset, length;
    const struct iovec *iov;
    unsigned iovs;
    int error; /* STEP_NOTHING: its result */
};

struct block_driver {
    /* Takes a checked request; block_finished() it sooner or later. Any thread, without the lock. */
    void (*start)(struct block *b, struct block_request *r);
    /* With the lock held: sends what start() gathered. */
    void (*commit)(struct block *b);
    /* With the lock held: block_finished() for what the host has finished. */
    void (*reap)(struct block *b);
    /* With the lock held: block_finished() at once for all that the host keeps us waiting for, whose memory nobody touches from then on. NULL
     * where the host has the guest's memory itself. */
    void (*abandon)(struct block *b);
    /* What the loop shall watch besides wake_fd. Loop's thread; NULL: nothing. */
    int (*watch)(struct block *b, struct nerr *e);
    int (*resize)(struct block *b, uint64_t size, struct nerr *e);
    /* Nothing is in flight. */
    void (*close)(struct block *b);
};

struct block_file {
    int fd;
    bool device;                    /* a block device */
    bool direct;                    /* O_DIRECT */
    bool guessed;                   /* nobody said that it is raw: the guest must not make it something else */
    _Atomic bool told;              /* that the guest tried */
    uint32_t mem_align;             /* of buffers, for O_DIRECT */
    _Atomic bool no_punch, no_zero; /* the file system cannot */
    _Atomic uint64_t slow_until;    /* ns: small writes go asynchronously until then, since they blocked */
    _Atomic uint64_t watch_until;   /* ns: whether they sleep is looked at until then, since one took long */
};

/* Tests make requests fail: returns 0, or a negative errno as the step's result, or n > 0 to shorten a transfer to n bytes. */
typedef int block_fault_fn(void *ctx, const struct block_request *r, const struct block_step *s);

enum { LIMIT_READ, LIMIT_WRITE, LIMIT_TOTAL, LIMIT_KINDS };

struct block {
    const struct block_driver *driver;
    struct event_loop *loop;
    struct block_info info;
    enum block_cache cache;
    bool discard;
    char *path;

    pthread_mutex_t lock; /* all below but the driver's own; done() is called without it */
    pthread_cond_t changed;
    int wake_fd;      /* eventfd in the loop: something finished */
    bool watched;     /* it is there: block_start() */
    unsigned plugged; /* between plug and unplug */
    unsigned pending; /* accepted, done() has not returned */
    struct block_queue finished;
    struct block_stats stats;
    _Atomic uint64_t bounced;                /* bytes; without the lock */
    struct device_stats *device, own_device; /* the controller's counters; own_device until block_count_into() */

    _Atomic bool limited;
    bool draining;
    struct block_limits limits;
    struct limiter bps[LIMIT_KINDS], iops[LIMIT_KINDS];
    struct block_queue waiting[2]; /* reads, writes */
    bool writes_first;             /* whose turn it is */
    uint64_t wake_at;              /* when the timer goes off; 0: it is not armed */
    struct event_timer timer;
    bool timer_made;

    struct block_error error; /* the last one */
    void (*on_error)(void *ctx, const struct block_error *last, bool first);
    void *on_error_ctx;
    struct event_timer error_timer;
    uint64_t error_told; /* when it went off last; 0: never */
    bool error_waits;    /* it is armed */

    struct block_file file;
    struct uring *uring;
    struct block_pool *pool;
    struct block_daemon *daemon;
    block_fault_fn *fault;
    void *fault_ctx;
};

/* ---- block.c ---- */
/* The lock is held / is taken. The caller sees to it that somebody looks at the finished queue. */
void block_finished(struct block *b, struct block_request *r, int result);
/* On the submitter's thread, inside block_submit(). */
void block_finish_inline(struct block *b, struct block_request *r, int result);
/* From a thread of the driver's own: wakes the loop. */
void block_finish_async(struct block *b, struct block_request *r, int result);
void block_wake(struct block *b);
void block_set_fault(struct block *b, block_fault_fn *fn, void *ctx);

/* ---- block_open.c ---- */
int block_open_driver(struct block *b, const struct block_config *cfg, struct nerr *e);

/* ---- block_file.c ---- */
int block_file_open(struct block *b, const struct block_config *cfg, struct nerr *e);
void block_file_close(struct block *b);
int block_file_resize(struct block *b, uint64_t size, struct nerr *e);
/* The request's next step. */
void block_step_prepare(struct block *b, struct block_request *r, struct block_step *s);
/* The step ended with `result` (bytes, or negative errno). True when the request is done, with *status for done(). */
bool block_step_advance(struct block *b, struct block_request *r, int64_t result, int *status);
/* Runs one step on this thread. */
int64_t block_step_run(struct block *b, const struct block_step *s);
/* Small requests that will not block, here and now. */
bool block_file_try_inline(struct block *b, struct block_request *r, int *status);
/* Copies between the request's memory from `pos` on and a flat buffer. */
void block_copy_iov(const struct block_request *r, uint64_t pos, uint8_t *flat, uint64_t len, bool to_flat);
/* It did so for the guest. */
static inline void block_count_copy(struct block *b, uint64_t bytes)
{
    device_count(&b->device->copies, 1);
    device_count(&b->device->copied, bytes);
}
/* Writethrough, or FUA. */
bool block_stable_when_done(const struct block *b, const struct block_request *r);
/* Compares the head of an image with magic numbers: "raw", "qcow2", or the name of something that we do not take. */
const char *block_probe(const uint8_t *head, size_t len);

/* ---- block_uring.c, block_pool.c, block_daemon.c ---- */
int block_uring_open(struct block *b, struct nerr *e); /* -ENOSYS, -EPERM ... where it is forbidden */
extern const struct block_driver block_uring_driver, block_pool_driver, block_daemon_driver;
int block_pool_open(struct block *b, struct nerr *e);
void block_pool_start(struct block *b, struct block_request *r);
void block_pool_close(struct block *b);
int block_daemon_open(struct block *b, const struct block_config *cfg, const char *format, struct nerr *e);

#endif
