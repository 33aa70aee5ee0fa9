/* Disks in formats and behind protocols of others (qcow2 with its backing files, NBD): a qemu-storage-daemon serves them, and we drive its
 * vhost-user-blk device as a guest's driver would (virtio 1.2, 5.2, split ring).
 *
 * The memory shared with the daemon holds the ring and a slot per request, nothing of the guest's: data are copied in and out. That
 * costs 0.1 us per 4 KiB, and keeps guest memory private (anonymous, huge pages) and out of another process's reach.
 *
 * A daemon that ends takes with it what it had not flushed, which the guest was told is written. So it is not started again behind
 * the guest's back: every request fails from then on, as with a disk that was pulled. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "vmm/backend/block_internal.h"
#include "vmm/backend/storage_daemon.h"
#include "vmm/backend/vhost_user.h"

#define SLOTS 64
#define SLOT_DATA (512u << 10) /* larger requests go in pieces */
#define RING_SIZE 256          /* a power of two; three descriptors a slot */
#define DESCS 3
#define END_SECONDS 10 /* for what it still has to write */
#define STALLED_END_SECONDS 2
#define BUSY_TRIES 3
#define BUSY_WAIT_NS 300000000
_Static_assert(SLOTS *DESCS <= RING_SIZE, "every slot has its descriptors");

struct slot_head { /* shared */
    struct virtio_blk_outhdr header;
    struct virtio_blk_discard_write_zeroes range;
    uint8_t status;
};

struct area { /* shared; the daemon may write anywhere into it at any time */
    struct vring_desc desc[RING_SIZE];
    struct {
        uint16_t flags, idx, ring[RING_SIZE];
    } avail;
    struct {
        uint16_t flags, idx;
        struct vring_used_elem ring[RING_SIZE];
    } used __attribute__((aligned(64)));
    struct slot_head head[SLOTS];
    uint8_t data[SLOTS][SLOT_DATA] __attribute__((aligned(4096)));
};

struct block_daemon {
    struct storage_daemon process;
    struct area *area;
    int memfd, kick;
    bool watched, dead;
    bool stalled, aborted; /* it did not answer when it was opened; that was not waited for */
    uint16_t avail_idx, used_idx;
    struct block_request *slot[SLOTS]; /* who is in it */
    bool orphan[SLOTS];                /* nobody waits any more for what is in it */
    unsigned busy, orphans;            /* slots; orphans are busy, too */
    struct block_queue ready;
    uint32_t max_discard, max_zeroes; /* sectors in a request */
    bool has_zeroes;
};

/* ---- requests into slots; with the lock held ---- */

static uint32_t chunk(uint64_t left, uint64_t most)
{
    return (uint32_t)(left < most ? left : most);
}

/* Fills the slot's header and data; the data descriptor's length, with *from_daemon for a read. */
static uint32_t fill_slot(struct block *b, unsigned i, struct block_request *r, bool *from_daemon)
{
    struct block_daemon *d = b->daemon;
    struct block_private *p = block_private(r);
    struct slot_head *h = &d->area->head[i];
    uint64_t left = r->length - p->pos, sector = (r->offset + p->pos) / BLOCK_SECTOR;
    uint32_t n = chunk(left, SLOT_DATA), type = VIRTIO_BLK_T_FLUSH, data = 0;
    *from_daemon = false;
    if (p->stage == STAGE_FLUSH || r->op == BLOCK_FLUSH) {
        sector = 0;
        n = 0;
    } else if (r->op == BLOCK_READ) {
        type = VIRTIO_BLK_T_IN;
        *from_daemon = true;
        data = n;
    } else if (r->op == BLOCK_WRITE || p->stage == STAGE_ZERO_FILL) {
        type = VIRTIO_BLK_T_OUT;
        data = n;
        if (r->op == BLOCK_WRITE) {
            block_copy_iov(r, p->pos, d->area->data[i], n, true);
            block_count_copy(b, n);
        } else {
            memset(d->area->data[i], 0, n);
        }
    } else {
        bool discard = r->op == BLOCK_DISCARD;
        n = chunk(left, (uint64_t)(discard ? d->max_discard : d->max_zeroes) * BLOCK_SECTOR);
        type = discard ? VIRTIO_BLK_T_DISCARD : VIRTIO_BLK_T_WRITE_ZEROES;
        h->range = (struct virtio_blk_discard_write_zeroes){
            .sector = htole64(sector),
            .num_sectors = htole32(n / BLOCK_SECTOR),
            .flags = htole32(!discard && r->may_unmap && b->discard ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0)};
        sector = 0;
        data = sizeof(h->range);
    }
    h->header = (struct virtio_blk_outhdr){.type = htole32(type), .sector = htole64(sector)};
    h->status = 0xff;
    p->bounce_len = n;
    return data;
}

static uint64_t shared_address(const struct block_daemon *d, const void *p)
{
    return (uint64_t)((const uint8_t *)p - (const uint8_t *)d->area);
}

static void set_desc(struct block_daemon *d, unsigned at, const void *p, uint32_t len, uint16_t flags)
{
    d->area->desc[at] = (struct vring_desc){.addr = htole64(shared_address(d, p)),
                                            .len = htole32(len),
                                            .flags = htole16(flags),
                                            .next = htole16((uint16_t)(at + 1))};
}

static void start_slot(struct block *b, unsigned i, struct block_request *r)
{
    struct block_daemon *d = b->daemon;
    bool from_daemon;
    uint32_t data = fill_slot(b, i, r, &from_daemon);
    struct slot_head *h = &d->area->head[i];
    unsigned at = i * DESCS, n = at;
    bool range = data == sizeof(h->range);
    set_desc(d, n++, &h->header, sizeof(h->header), VRING_DESC_F_NEXT);
    if (data)
        set_desc(d, n++, range ? (void *)&h->range : (void *)d->area->data[i], data,
                 VRING_DESC_F_NEXT | (from_daemon ? VRING_DESC_F_WRITE : 0));
    set_desc(d, n, &h->status, 1, VRING_DESC_F_WRITE);
    d->slot[i] = r;
    d->busy++;
    d->area->avail.ring[d->avail_idx++ % RING_SIZE] = htole16((uint16_t)at);
}

static void daemon_commit(struct block *b)
{
    struct block_daemon *d = b->daemon;
    uint16_t before = d->avail_idx;
    struct block_request *r;
    if (d->dead) {
        while ((r = block_queue_pop(&d->ready))) block_finished(b, r, -EIO);
        return;
    }
    if (d->orphans) return; /* an old write that is done late must not undo a new one */
    for (unsigned i = 0; i < SLOTS && d->ready.head && d->busy < SLOTS; i++)
        if (!d->slot[i]) start_slot(b, i, block_queue_pop(&d->ready));
    if (d->avail_idx == before) return;
    __atomic_store_n(&d->area->avail.idx, htole16(d->avail_idx), __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the daemon's flag is read after it can have seen the index */
    if (__atomic_load_n(&d->area->used.flags, __ATOMIC_RELAXED) & htole16(VRING_USED_F_NO_NOTIFY)) return;
    uint64_t one = 1;
    ssize_t n = write(d->kick, &one, sizeof(one));
    (void)n;
}

/* ---- and out of them ---- */

static void again(struct block *b, struct block_request *r, enum block_stage stage)
{
    block_private(r)->stage = (uint8_t)stage;
    block_queue_push(&b->daemon->ready, r);
}

static void slot_done(struct block *b, unsigned i)
{
    struct block_daemon *d = b->daemon;
    struct block_request *r = d->slot[i];
    struct block_private *p = block_private(r);
    uint8_t status = __atomic_load_n(&d->area->head[i].status, __ATOMIC_RELAXED);
    d->slot[i] = NULL;
    d->busy--;
    if (status == VIRTIO_BLK_S_UNSUPP && r->op == BLOCK_DISCARD) {
        block_finished(b, r, 0); /* advice that cannot be followed */
    } else if (status == VIRTIO_BLK_S_UNSUPP && r->op == BLOCK_WRITE_ZEROES && p->stage == STAGE_MAIN) {
        again(b, r, STAGE_ZERO_FILL);
    } else if (status != VIRTIO_BLK_S_OK) {
        block_finished(b, r, -EIO);
    } else if (p->stage == STAGE_FLUSH || r->op == BLOCK_FLUSH) {
        block_finished(b, r, 0);
    } else {
        if (r->op == BLOCK_READ) {
            block_copy_iov(r, p->pos, d->area->data[i], p->bounce_len, false);
            block_count_copy(b, p->bounce_len);
        }
        p->pos += p->bounce_len;
        if (p->pos < r->length)
            again(b, r, p->stage);
        else if (r->op != BLOCK_READ && block_stable_when_done(b, r))
            again(b, r, STAGE_FLUSH);
        else
            block_finished(b, r, 0);
    }
}

static void fail_slots(struct block *b)
{
    struct block_daemon *d = b->daemon;
    for (unsigned i = 0; i < SLOTS; i++)
        if (d->slot[i]) {
            block_finished(b, d->slot[i], -EIO);
            d->slot[i] = NULL;
            d->orphan[i] = true;
            d->orphans++;
        }
}

/* What the daemon has is a copy, so that it may keep it while we go on. */
static void daemon_abandon(struct block *b)
{
    struct block_daemon *d = b->daemon;
    struct block_request *r;
    if (!d->orphans) /* said once each time that it stands still */
        nc_warn("disk %s: %u requests were not answered for 2 s; they are not waited for", b->path, b->pending);
    fail_slots(b);
    while ((r = block_queue_pop(&d->ready))) block_finished(b, r, -EIO);
}

static void orphan_done(struct block_daemon *d, unsigned i)
{
    d->orphan[i] = false;
    d->orphans--;
    d->busy--;
}

/* Everything in flight fails; with the lock held. */
static void give_up(struct block *b, const char *why)
{
    struct block_daemon *d = b->daemon;
    char text[256];
    if (d->dead) return;
    d->dead = true;
    storage_daemon_complaint(&d->process, text, sizeof(text));
    nc_error("disk %s: %s%s%s; its requests fail from now on", b->path, why, *text ? ": " : "", text);
    fail_slots(b);
    daemon_commit(b);
}

static bool connection_ended(const struct block_daemon *d)
{
    struct pollfd p = {.fd = d->process.sock, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void daemon_reap(struct block *b)
{
    struct block_daemon *d = b->daemon;
    uint16_t end = le16toh(__atomic_load_n(&d->area->used.idx, __ATOMIC_ACQUIRE));
    bool any = false;
    while (d->used_idx != end && !d->dead) {
        uint32_t id = le32toh(d->area->used.ring[d->used_idx++ % RING_SIZE].id);
        unsigned i = id / DESCS;
        if (id % DESCS || i >= SLOTS || (!d->slot[i] && !d->orphan[i])) {
            give_up(b, "qemu-storage-daemon broke its ring");
            return;
        }
        if (d->orphan[i])
            orphan_done(d, i);
        else
            slot_done(b, i);
        any = true;
    }
    if (any) daemon_commit(b);
    /* While somebody waits for the last request, the loop may not be there to see the daemon's end. */
    if (b->draining && connection_ended(d)) give_up(b, "qemu-storage-daemon has ended");
}

static void daemon_start(struct block *b, struct block_request *r)
{
    pthread_mutex_lock(&b->lock);
    if (r->op == BLOCK_WRITE_ZEROES && !b->daemon->has_zeroes) block_private(r)->stage = STAGE_ZERO_FILL;
    bool nothing = r->op == BLOCK_DISCARD && !b->info.can_discard;
    bool was_finished = b->finished.head;
    if (nothing)
        block_finished(b, r, 0);
    else
        block_queue_push(&b->daemon->ready, r);
    if (!b->plugged) daemon_commit(b);
    bool wake = !b->plugged && b->finished.head && !was_finished;
    pthread_mutex_unlock(&b->lock);
    if (wake) block_wake(b);
}

/* The daemon sends nothing after the set-up: whatever comes on its connection is its end. */
static void on_end(void *ctx, uint32_t events)
{
    struct block *b = ctx;
    (void)events;
    event_fd_modify(b->loop, b->daemon->process.sock, 0);
    event_fd_remove(b->loop, b->daemon->process.sock);
    pthread_mutex_lock(&b->lock);
    b->daemon->watched = false;
    give_up(b, "qemu-storage-daemon has ended");
    pthread_mutex_unlock(&b->lock);
    block_wake(b);
}

/* ---- life ---- */

static void daemon_close(struct block *b)
{
    struct block_daemon *d = b->daemon;
    if (!d) return;
    if (d->watched) event_fd_remove(b->loop, d->process.sock);
    storage_daemon_stop(&d->process, d->aborted ? 0 : d->stalled || d->orphans ? STALLED_END_SECONDS : END_SECONDS);
    if (d->area) munmap(d->area, sizeof(*d->area));
    if (d->memfd >= 0) close(d->memfd);
    if (d->kick >= 0) close(d->kick);
    free(d);
    b->daemon = NULL;
}

static int daemon_resize(struct block *b, uint64_t size, struct nerr *e)
{
    (void)size;
    return nerr_set(e, -ENOTSUP,
                    "disk %s: only raw images change their size while in use; end the machine and use "
                    "'qemu-img resize'",
                    b->path);
}

static int daemon_watch(struct block *b, struct nerr *e)
{
    int r = event_fd_add(b->loop, b->daemon->process.sock, EPOLLIN, on_end, b, e);
    b->daemon->watched = !r;
    return r;
}

const struct block_driver block_daemon_driver = {.start = daemon_start,
                                                 .commit = daemon_commit,
                                                 .reap = daemon_reap,
                                                 .abandon = daemon_abandon,
                                                 .watch = daemon_watch,
                                                 .resize = daemon_resize,
                                                 .close = daemon_close};

static int share_memory(struct block *b, struct block_daemon *d, struct nerr *e)
{
    d->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->memfd = memfd_create("nacelle-disk", MFD_CLOEXEC);
    if (d->kick < 0 || d->memfd < 0 || ftruncate(d->memfd, sizeof(*d->area)))
        return nerr_set(e, -errno, "disk %s: cannot make shared memory: %s", b->path, strerror(errno));
    void *p = mmap(NULL, sizeof(*d->area), PROT_READ | PROT_WRITE, MAP_SHARED, d->memfd, 0);
    if (p == MAP_FAILED) return nerr_set(e, -errno, "disk %s: cannot map shared memory: %s", b->path, strerror(errno));
    d->area = p;
    madvise(p, sizeof(*d->area), MADV_DONTDUMP);
    return 0;
}

static int negotiate(struct block *b, struct block_daemon *d, unsigned patience_s, uint64_t *accepted, struct nerr *e)
{
    const uint64_t wanted = VHOST_USER_PROTOCOL_FEATURES | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_BLK_F_FLUSH |
                            1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES | 1ull << VIRTIO_BLK_F_RO |
                            1ull << VIRTIO_BLK_F_BLK_SIZE;
    int sock = d->process.sock;
    uint64_t offered = 0, protocol = 0;
    int r = vhost_user_init(sock, patience_s ? patience_s : BLOCK_PATIENCE_S, e);
    if (!r) r = vhost_user_get_features(sock, &offered, e);
    *accepted = offered & wanted;
    if (!r && !(offered & VHOST_USER_PROTOCOL_FEATURES))
        r = nerr_set(e, -EPROTO, "disk %s: qemu-storage-daemon is too old", b->path);
    if (!r) r = vhost_user_get_protocol_features(sock, &protocol, e);
    if (!r && !(protocol & VHOST_USER_CONFIG_SPACE))
        r = nerr_set(e, -EPROTO, "disk %s: qemu-storage-daemon is too old", b->path);
    if (!r) r = vhost_user_set_protocol_features(sock, VHOST_USER_CONFIG_SPACE, e);
    if (!r) r = vhost_user_set_owner(sock, e);
    if (!r) r = vhost_user_set_features(sock, *accepted, e);
    return r;
}

static int take_info(struct block *b, struct block_daemon *d, const struct block_config *cfg, const char *format,
                     uint64_t features, struct nerr *e)
{
    struct virtio_blk_config c;
    memset(&c, 0, sizeof(c));
    int r = vhost_user_get_config(d->process.sock, &c, offsetof(struct virtio_blk_config, unused1), e);
    if (r) return r;
    uint64_t sectors = le64toh(c.capacity);
    if (!sectors || sectors > UINT64_MAX / BLOCK_SECTOR)
        return nerr_set(e, -EINVAL, "disk %s: a size of %llu sectors is not possible", b->path,
                        (unsigned long long)sectors);
    d->max_discard = le32toh(c.max_discard_sectors);
    d->max_zeroes = le32toh(c.max_write_zeroes_sectors);
    d->has_zeroes = features & 1ull << VIRTIO_BLK_F_WRITE_ZEROES && d->max_zeroes;
    bool discard = features & 1ull << VIRTIO_BLK_F_DISCARD && d->max_discard;
    b->info = (struct block_info){.size = sectors * BLOCK_SECTOR,
                                  .logical_block = BLOCK_SECTOR,
                                  .physical_block = 4096,
                                  .readonly = cfg->readonly,
                                  .can_discard = cfg->discard && !cfg->readonly && discard,
                                  .can_write_zeroes = !cfg->readonly,
                                  .format = strcmp(format, "qcow2") == 0 ? "qcow2" : "raw"};
    return 0;
}

static int start_ring(struct block *b, struct block_daemon *d, struct nerr *e)
{
    struct vhost_user_ring ring = {.size = RING_SIZE,
                                   .desc = d->area->desc,
                                   .avail = &d->area->avail,
                                   .used = &d->area->used,
                                   .kick = d->kick,
                                   .call = b->wake_fd};
    int r = vhost_user_memory(d->process.sock, d->memfd, d->area, sizeof(*d->area), e);
    if (!r) r = vhost_user_start_ring(d->process.sock, &ring, e);
    return r;
}

/* Errors of the connection name neither disk nor cure; and what the daemon itself says about the image is better than that it has gone. */
static int explain(struct block *b, struct block_daemon *d, int r, struct nerr *e)
{
    char text[400];
    struct nerr cause = *e;
    bool nbd = strncmp(b->path, "nbd", 3) == 0;
    if (strncmp(cause.text, "vhost-user", strlen("vhost-user")) != 0) return r;
    storage_daemon_complaint(&d->process, text, sizeof(text));
    if (strstr(text, "\" lock"))
        return nerr_set(e, -EBUSY,
                        "disk %s: it is in use by another virtual machine or program; end that, or give both "
                        "the disk with ro",
                        b->path);
    if (*text) return nerr_set(e, -EIO, "disk %s: qemu-storage-daemon: %s", b->path, text);
    if (r == -ECONNRESET)
        return nerr_set(e, -ENOENT,
                        "disk %s: qemu-storage-daemon, which qcow2 and nbd need, cannot be run; install "
                        "the package qemu-system-common, or give a raw image",
                        b->path);
    if (r == -ETIMEDOUT)
        return nerr_set(e, r, "disk %s: %s; check %s", b->path,
                        nbd ? "the NBD server does not answer" : "the image cannot be opened in time",
                        nbd ? "that it runs and that this host reaches it" : "the storage that it is on");
    return nerr_set(e, r, "disk %s: %s; another version of qemu-storage-daemon may do better", b->path, cause.text);
}

void block_abort_init(struct block_abort *a)
{
    pthread_mutex_init(&a->lock, NULL);
    a->sock = -1;
    a->aborted = false;
}

void block_abort(struct block_abort *a)
{
    pthread_mutex_lock(&a->lock);
    a->aborted = true;
    if (a->sock >= 0) shutdown(a->sock, SHUT_RDWR); /* whoever waits there sees the end of the connection */
    pthread_mutex_unlock(&a->lock);
}

/* From now on `sock` (-1: nothing) is what an abort shuts down. False: aborted. */
static bool abortable(const struct block_config *cfg, int sock)
{
    struct block_abort *a = cfg->abort;
    if (!a) return true;
    pthread_mutex_lock(&a->lock);
    a->sock = sock;
    bool go_on = !a->aborted;
    pthread_mutex_unlock(&a->lock);
    return go_on;
}

static int set_up(struct block *b, const struct block_config *cfg, const char *format, struct nerr *e)
{
    struct block_daemon *d = b->daemon;
    uint64_t features = 0;
    int r = abortable(cfg, d->process.sock) ? 0 : -ECANCELED;
    if (!r) r = negotiate(b, d, cfg->patience_s, &features, e);
    if (!r) r = take_info(b, d, cfg, format, features, e);
    if (!r) r = start_ring(b, d, e);
    d->stalled = r == -ETIMEDOUT;
    d->aborted = !abortable(cfg, -1);
    if (!d->aborted) return r ? explain(b, d, r, e) : 0;
    return nerr_set(e, -ECANCELED, "disk %s: nobody waits for it any more", b->path);
}

static int open_once(struct block *b, const struct block_config *cfg, const char *format, struct nerr *e)
{
    struct block_daemon *d = calloc(1, sizeof(*d));
    if (!d) return nerr_set(e, -ENOMEM, "disk %s: out of memory", b->path);
    d->memfd = d->kick = -1;
    d->process = (struct storage_daemon){.sock = -1, .messages = -1};
    b->daemon = d;
    int r = share_memory(b, d, e);
    if (!r) r = storage_daemon_start(cfg, format, &d->process, e);
    if (!r) r = set_up(b, cfg, format, e);
    if (r) {
        daemon_close(b);
        return r;
    }
    b->driver = &block_daemon_driver;
    return 0;
}

int block_daemon_open(struct block *b, const struct block_config *cfg, const char *format, struct nerr *e)
{
    int r = open_once(b, cfg, format, e);
    /* The daemon of a VMM that was killed a moment ago may still be on its way out. */
    for (unsigned i = 0; r == -EBUSY && i < BUSY_TRIES; i++) {
        nanosleep(&(struct timespec){.tv_nsec = BUSY_WAIT_NS}, NULL);
        r = open_once(b, cfg, format, e);
    }
    return r;
}
