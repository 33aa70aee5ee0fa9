/* Steps by io_uring: one system call for all that was submitted between plug and unplug.
 *
 * The ring signals the back end's eventfd, which wakes the loop. While we submit, that is switched off: what finishes at once is
 * seen here, and block_unplug_reap() completes it without waking anybody. (The kernel's own eventfd for asynchronous completions
 * only leaves out too much: completions of direct I/O, too, run in the submitting thread's context.) */
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/backend/block_internal.h"

#define RING_DEPTH 128

struct uring {
    struct io_uring ring;
    unsigned busy;            /* in the ring */
    struct block_queue ready; /* not yet in it */
};

static void ring_put(struct block *b, struct block_request *r, const struct block_step *s)
{
    struct io_uring_sqe *q =
        io_uring_get_sqe(&b->uring->ring); /* there is one: busy < RING_DEPTH, and all are submitted */
    int fd = b->file.fd;
    switch (s->kind) {
    case STEP_READ: io_uring_prep_readv2(q, fd, s->iov, s->iovs, s->offset, s->flags); break;
    case STEP_WRITE: io_uring_prep_writev2(q, fd, s->iov, s->iovs, s->offset, s->flags); break;
    case STEP_FSYNC: io_uring_prep_fsync(q, fd, IORING_FSYNC_DATASYNC); break;
    default: io_uring_prep_fallocate(q, fd, s->flags, (off_t)s->offset, (off_t)s->length); break;
    }
    io_uring_sqe_set_data(q, r);
    b->uring->busy++;
}

/* One request's next steps, until one is the host's to do. */
static void begin(struct block *b, struct block_request *r)
{
    struct block_step s;
    int status;
    for (;;) {
        block_step_prepare(b, r, &s);
        if (s.kind == STEP_BLKDISCARD) {
            block_pool_start(b, r);
            return;
        }
        if (s.kind != STEP_NOTHING) {
            ring_put(b, r, &s);
            return;
        }
        if (block_step_advance(b, r, s.error, &status)) {
            block_finished(b, r, status);
            return;
        }
    }
}

static void fill(struct block *b)
{
    struct uring *u = b->uring;
    while (u->busy < RING_DEPTH) {
        struct block_request *r = block_queue_pop(&u->ready);
        if (!r) break;
        begin(b, r);
    }
}

/* Takes what has finished out of the ring. True when a request goes on with another step. */
static bool take(struct block *b)
{
    struct uring *u = b->uring;
    struct io_uring_cqe *c;
    bool more = false;
    while (io_uring_peek_cqe(&u->ring, &c) == 0) {
        struct block_request *r = io_uring_cqe_get_data(c);
        int result = c->res, status;
        io_uring_cqe_seen(&u->ring, c);
        u->busy--;
        if (block_step_advance(b, r, result, &status)) {
            block_finished(b, r, status);
        } else {
            block_queue_push(&u->ready, r);
            more = true;
        }
    }
    return more;
}

static void uring_commit(struct block *b)
{
    struct uring *u = b->uring;
    bool more = u->ready.head;
    while (more || io_uring_sq_ready(&u->ring)) {
        io_uring_cq_eventfd_toggle(&u->ring, false);
        fill(b);
        int n = io_uring_submit(&u->ring);
        io_uring_cq_eventfd_toggle(&u->ring, true);
        __sync_synchronize(); /* whoever finished before saw the flag off: look for it after it is on */
        more = take(b) && u->busy < RING_DEPTH;
        if (n < 0 && n != -EINTR) {
            block_wake(b); /* no memory for the moment: the loop tries again */
            break;
        }
    }
}

static void uring_reap(struct block *b)
{
    if (take(b)) uring_commit(b);
}

static void uring_start(struct block *b, struct block_request *r)
{
    int status;
    if (block_file_try_inline(b, r, &status)) {
        block_finish_inline(b, r, status);
        return;
    }
    pthread_mutex_lock(&b->lock);
    block_queue_push(&b->uring->ready, r);
    bool wake = false;
    if (!b->plugged) {
        uring_commit(b);
        wake = b->finished.head;
    }
    pthread_mutex_unlock(&b->lock);
    if (wake) block_wake(b);
}

static void uring_close(struct block *b)
{
    io_uring_queue_exit(&b->uring->ring);
    free(b->uring);
    b->uring = NULL;
    block_pool_close(b);
    block_file_close(b);
}

const struct block_driver block_uring_driver = {.start = uring_start,
                                                .commit = uring_commit,
                                                .reap = uring_reap,
                                                .resize = block_file_resize,
                                                .close = uring_close};

static bool supported(struct io_uring *ring)
{
    struct io_uring_probe *p = io_uring_get_probe_ring(ring);
    bool ok = p && io_uring_opcode_supported(p, IORING_OP_FALLOCATE) && io_uring_opcode_supported(p, IORING_OP_READV);
    io_uring_free_probe(p);
    /* Without these the caller's iovec would have to outlive the submission, or completions could get lost. */
    return ok && ring->features & IORING_FEAT_SUBMIT_STABLE && ring->features & IORING_FEAT_NODROP;
}

int block_uring_open(struct block *b, struct nerr *e)
{
    struct uring *u = calloc(1, sizeof(*u));
    if (!u) return nerr_set(e, -ENOMEM, "disk %s: out of memory", b->path);
    int r = io_uring_queue_init(RING_DEPTH, &u->ring, IORING_SETUP_CLAMP);
    if (r) {
        free(u);
        return nerr_set(e, r, "disk %s: io_uring is not possible here: %s", b->path, strerror(-r));
    }
    r = supported(&u->ring) ? io_uring_register_eventfd(&u->ring, b->wake_fd) : -ENOSYS;
    if (!r) {
        b->uring = u;
        b->driver = &block_uring_driver;
        if (b->file.device) r = block_pool_open(b, e);
    }
    if (r) {
        io_uring_queue_exit(&u->ring);
        free(u);
        b->uring = NULL;
        b->driver = NULL;
        return nerr_set(e, r, "disk %s: this kernel's io_uring lacks what disks need: %s", b->path, strerror(-r));
    }
    return 0;
}
