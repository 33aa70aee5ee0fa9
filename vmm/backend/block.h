/* Block back ends: what a disk controller (virtio-blk, AHCI, ...) asks, whoever does it (io_uring on a file or block device; a
 * vhost-user-blk daemon). Requests are asynchronous; every accepted request completes exactly once.
 *
 * Threads: functions may be called from any thread; calls for one back end are serialised inside. Completions (done) come on the event loop's
 * thread, and on a thread that is inside block_unplug_reap() or block_drain(): never from inside block_submit() or block_unplug(), errors found
 * at once included. done() may take the device's lock, so hold none that it takes around reap, drain and close. */
#ifndef NACELLE_VMM_BLOCK_H
#define NACELLE_VMM_BLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

struct device_stats;
struct event_loop;
struct block;

#define BLOCK_SECTOR 512u

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES, BLOCK_OPS };

enum block_cache {
    BLOCK_CACHE_NONE,         /* O_DIRECT where the file allows it; flush = fdatasync */
    BLOCK_CACHE_WRITEBACK,    /* host page cache; flush = fdatasync */
    BLOCK_CACHE_WRITETHROUGH, /* every write is on stable storage when it completes */
    BLOCK_CACHE_UNSAFE,       /* flushes do nothing: for scratch disks only */
};

/* How requests reach the host. */
enum block_aio {
    BLOCK_AIO_AUTO,    /* io_uring, or threads where the host's kernel or its seccomp filter forbids that */
    BLOCK_AIO_URING,   /* an error where it is forbidden */
    BLOCK_AIO_THREADS, /* a small pool of threads */
};

/* Bytes per second and operations per second; 0 is "no limit". A request counts as one operation per started 64 KiB, so that its
 * size evades neither kind; flushes count as nothing, discards as one operation without bytes. */
struct block_limits {
    uint64_t read_bps, write_bps, total_bps;
    uint64_t read_iops, write_iops, total_iops;
};

#define BLOCK_PATIENCE_S 30u

/* With it another thread can end a block_prepare() that waits for a storage server. It outlives that call. */
struct block_abort {
    pthread_mutex_t lock; /* all fields are the back end's */
    int sock;
    bool aborted;
};

struct block_config {
    const char *path; /* file, block device, or nbd: URI */
    bool readonly;
    enum block_cache cache;
    enum block_aio aio;
    bool discard;       /* unmap on discard (default true by the option parser) */
    const char *format; /* "raw", "qcow2", or NULL: probe; a raw image is never reinterpreted later */
    struct block_limits limits;
    /* Seconds, up to BLOCK_PATIENCE_S, that opening may wait for an answer of a storage server; 0: all of them. */
    unsigned patience_s;
    struct block_abort *abort; /* or NULL */
};

struct block_info {
    uint64_t size;           /* bytes, multiple of BLOCK_SECTOR */
    uint32_t logical_block;  /* bytes: smallest request */
    uint32_t physical_block; /* bytes: requests of at least this, aligned, are fast */
    bool readonly, can_discard, can_write_zeroes;
    const char *format; /* static string */
};

struct block_stats {
    uint64_t ops[BLOCK_OPS], bytes[BLOCK_OPS], errors /* refused ones among them */, throttled_ns,
        bounced_bytes; /* copies for alignment */
};

/* The host failed a request; what the driver asked for wrongly is not among these. */
struct block_error {
    enum block_op op;
    uint64_t offset, length; /* bytes */
    int error;               /* negative errno */
    uint64_t count;          /* of all of them up to this one; 0: there was none */
};

/* One request. Owned by the caller, untouched by it between submit and done(). Offsets and lengths in bytes, multiples of
 * BLOCK_SECTOR, checked here: -EINVAL (no such multiple, or iov does not sum up), -EIO (behind the end), -EROFS, -ENOTSUP (no such operation). The
 * iovec points into guest memory that stays mapped. */
struct block_request {
    enum block_op op;
    uint64_t offset, length; /* length: sum of iov for READ/WRITE; 0 for FLUSH */
    const struct iovec *iov;
    unsigned iovs;
    bool fua;                                          /* WRITE: stable before done */
    bool may_unmap;                                    /* WRITE_ZEROES: holes are fine */
    void (*done)(struct block_request *r, int result); /* 0 or negative errno */
    uint64_t private_[10];                             /* the back end's own */
};

/* Opens and locks the image: against every other user when writable, against writers when read-only. */
int block_open(const struct block_config *cfg, struct event_loop *loop, struct block **out, struct nerr *e);
/* The same in two steps. The first does all that may take long, on any thread; only block_start() and block_close() may follow it. That thread must live
 * until block_close(): the kernel ends a storage daemon when the thread that started it ends. The second is short and fails only without memory;
 * block_close() is then the caller's, too. On the loop's thread, or while the loop does not run. */
int block_prepare(const struct block_config *cfg, struct event_loop *loop, struct block **out, struct nerr *e);
int block_start(struct block *b, struct nerr *e);
void block_abort_init(struct block_abort *a);
/* [any] A block_prepare() that has it fails soon, now or when it begins; one that waits in the host's kernel (a file system that hangs) does
 * not hear of it. */
void block_abort(struct block_abort *a);
/* Drains first. Only from the loop's thread, or while the loop does not run. NULL is fine. */
void block_close(struct block *b);
void block_info(const struct block *b, struct block_info *out);
void block_submit(struct block *b, struct block_request *r);
/* Several submits between plug and unplug go to the host in one system call. Nestable; every unplug sends what there is. */
void block_plug(struct block *b);
void block_unplug(struct block *b);
/* The same, and then runs done() of what has finished by now (a read that hit the host's page cache, a small write into it) on this thread:
 * no thread is woken for it. For devices whose done() may run on any thread. */
void block_unplug_reap(struct block *b);
/* Waits until nothing is in flight (reset, pause); done() of all of it has returned then. Requests held back by a limit go at once, as
 * debts. The caller sees to it that nobody submits meanwhile. Not from inside done(). A daemon from which nothing comes for 2 s is not waited
 * for: its requests end with -EIO, perhaps done and perhaps not, and later ones start when it has answered. A file's are waited for as
 * long as it takes, since the host's kernel has the guest's memory. */
void block_drain(struct block *b);
/* Waits up to `deadline` (clock_mono_ns()), and gives nothing up; false: something is still in flight, because the host does not answer. */
bool block_drain_until(struct block *b, uint64_t deadline);
/* A file grows; a block device's new size is taken over. Shrinking is refused: -EINVAL. */
int block_resize(struct block *b, uint64_t size, struct nerr *e);
/* While it runs: the new limits hold for what waits already. All zeroes: none. */
int block_set_limits(struct block *b, const struct block_limits *l, struct nerr *e);
void block_get_limits(const struct block *b, struct block_limits *l);
void block_get_stats(const struct block *b, struct block_stats *s);
const char *block_op_name(enum block_op op); /* "read", "write", "flush", "discard", "write-zeroes" */
void block_get_error(const struct block *b, struct block_error *last);
/* Called on the loop's thread when requests have failed, with the last of them: at most once a second, `first` the first time. One observer, before the
 * first request. */
void block_observe_errors(struct block *b, void (*fn)(void *ctx, const struct block_error *last, bool first),
                          void *ctx);
/* Counts copies of data there. Before the first request; `s` outlives the requests. */
void block_count_into(struct block *b, struct device_stats *s);

#endif
