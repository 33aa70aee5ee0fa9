/* virtio-blk (1.2, 5.2) over vmm/backend/block.h.
 *
 * A request's data goes between the guest's buffers and the back end directly: the chain's iovec is handed on with the header cut off in
 * front, or the status byte at the end. Requests run in any order; the chain comes back with the status in its last byte. */
#include <errno.h>
#define virtio_blk_config blk_space /* configuration space: devices.h has another struct of that name */
#include <linux/virtio_blk.h>
#undef virtio_blk_config
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/backend/block.h"
#include "vmm/virtio/devices.h"
#include "vmm/virtio/virtio.h"

#define QUEUE_SIZE 256
#define MAX_QUEUES 16
#define SEGMENTS_MAX 254         /* data buffers in a request: two less than a chain's */
#define RANGES_MAX 16            /* discard and write-zeroes: ranges in a request */
#define RANGE_SECTORS (1u << 22) /* in one range: 2 GiB, so that none of them takes for ever */

#define WCE_OFFSET offsetof(struct blk_space, wce)

struct virtio_blk {
    struct virtio_device *virtio;
    struct block *block;
    struct block_info info;
    char serial[VIRTIO_BLK_ID_BYTES];
    _Atomic uint64_t size;  /* bytes */
    _Atomic bool writeback; /* else every write is stable when it completes */
    struct virtio_queue_desc queues[MAX_QUEUES];
};

/* A chain's private part. */
struct blk_request {
    struct block_request r;
    struct virtio_blk *disk;
    struct virtio_chain *chain, *next; /* `next`: of the list of finished ones */
    uint8_t *status;
    bool cut; /* the last writable buffer is one byte short */
    uint8_t ranges, range;
    struct virtio_blk_discard_write_zeroes list[RANGES_MAX];
};

/* What block_unplug_reap() finishes on this thread is pushed together, with one decision about an interrupt. */
static _Thread_local struct {
    struct virtio_blk *disk;    /* this thread is reaping for it */
    struct virtio_blk *plugged; /* notify() of this thread submitted something */
    struct virtio_chain *finished;
} batch;

/* ---- completion ---- */

static struct blk_request *request_of(const struct virtio_chain *c)
{
    return c->priv;
}

/* With the queue's lock. */
static void push(struct virtio_chain *c)
{
    const struct blk_request *b = request_of(c);
    if (b->cut) c->iov[c->readables + c->writables - 1].iov_len++;
    virtio_push(c, c->writable_bytes);
}

static void finish(struct blk_request *b, uint8_t status)
{
    struct virtio_chain *c = b->chain;
    struct virtio_queue *q = c->queue;
    struct device_stats *s = virtio_stats(b->disk->virtio);
    *b->status = status;
    if (status != VIRTIO_BLK_S_OK)
        device_count(&s->errors, 1);
    else if (b->r.op == BLOCK_READ || b->r.op == BLOCK_WRITE)
        device_count(b->r.op == BLOCK_READ ? &s->bytes_in : &s->bytes_out, b->r.length);
    if (batch.disk == b->disk) {
        b->next = batch.finished;
        batch.finished = c;
        return;
    }
    virtio_queue_lock(q);
    push(c);
    virtio_flush(q);
    virtio_queue_unlock(q);
}

static void submit_range(struct blk_request *b);

static void done(struct block_request *r, int result)
{
    struct blk_request *b = (struct blk_request *)r;
    if (!result && b->range < b->ranges) {
        submit_range(b);
        return;
    }
    finish(b, !result ? VIRTIO_BLK_S_OK : result == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR);
}

/* ---- requests; with the queue's lock ---- */

/* Refused before it reached the back end. */
static void answer(struct blk_request *b, uint8_t status)
{
    *b->status = status;
    if (status != VIRTIO_BLK_S_OK) device_count(&virtio_stats(b->disk->virtio)->errors, 1);
    push(b->chain);
}

static bool in_disk(struct virtio_blk *d, uint64_t sector, uint64_t bytes)
{
    uint64_t size = atomic_load(&d->size);
    return sector <= size / BLOCK_SECTOR && bytes <= size - sector * BLOCK_SECTOR;
}

static void plug(struct virtio_blk *d)
{
    if (batch.plugged) return;
    block_plug(d->block);
    batch.plugged = d;
}

static void submit(struct virtio_blk *d, struct blk_request *b)
{
    plug(d);
    block_submit(d->block, &b->r);
}

static void transfer(struct virtio_blk *d, struct blk_request *b, uint64_t sector, const struct iovec *iov, unsigned n,
                     uint64_t bytes)
{
    bool write = b->r.op == BLOCK_WRITE;
    if (bytes % BLOCK_SECTOR || !in_disk(d, sector, bytes) || (write && d->info.readonly)) {
        answer(b, VIRTIO_BLK_S_IOERR);
    } else if (!bytes) {
        answer(b, VIRTIO_BLK_S_OK);
    } else {
        b->r.offset = sector * BLOCK_SECTOR;
        b->r.length = bytes;
        b->r.iov = iov;
        b->r.iovs = n;
        b->r.fua = write && !atomic_load(&d->writeback);
        submit(d, b);
    }
}

/* Cuts the header off the readable part: of buffers that this chain alone uses. */
static void write_data(struct virtio_blk *d, struct blk_request *b, uint64_t sector)
{
    struct virtio_chain *c = b->chain;
    size_t skip = sizeof(struct virtio_blk_outhdr);
    unsigned i = 0;
    while (i < c->readables && skip >= c->iov[i].iov_len) skip -= c->iov[i++].iov_len;
    if (i < c->readables) {
        c->iov[i].iov_base = (uint8_t *)c->iov[i].iov_base + skip;
        c->iov[i].iov_len -= skip;
    }
    b->r.op = BLOCK_WRITE;
    transfer(d, b, sector, c->iov + i, c->readables - i, c->readable_bytes - sizeof(struct virtio_blk_outhdr));
}

static void read_data(struct virtio_blk *d, struct blk_request *b, uint64_t sector)
{
    struct virtio_chain *c = b->chain;
    struct iovec *last = &c->iov[c->readables + c->writables - 1];
    last->iov_len--;
    b->cut = true;
    b->r.op = BLOCK_READ;
    transfer(d, b, sector, virtio_writable(c), c->writables - !last->iov_len, c->writable_bytes - 1);
}

static void submit_range(struct blk_request *b)
{
    const struct virtio_blk_discard_write_zeroes *w = &b->list[b->range++];
    b->r.offset = w->sector * BLOCK_SECTOR;
    b->r.length = (uint64_t)w->num_sectors * BLOCK_SECTOR;
    b->r.may_unmap = w->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    block_submit(b->disk->block, &b->r);
}

/* 5.2.6.2: discard and write-zeroes. All ranges are checked before the first one is touched. */
static void ranges(struct virtio_blk *d, struct blk_request *b, enum block_op op)
{
    struct virtio_chain *c = b->chain;
    uint64_t bytes = c->readable_bytes - sizeof(struct virtio_blk_outhdr);
    uint64_t n = bytes / sizeof(b->list[0]);
    uint8_t status = VIRTIO_BLK_S_OK;
    if (d->info.readonly || !n || n > RANGES_MAX || bytes % sizeof(b->list[0])) {
        answer(b, VIRTIO_BLK_S_IOERR);
        return;
    }
    virtio_read(c, sizeof(struct virtio_blk_outhdr), b->list, (size_t)bytes);
    for (unsigned i = 0; i < n; i++) {
        const struct virtio_blk_discard_write_zeroes *w = &b->list[i];
        uint32_t known = op == BLOCK_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
        if (w->flags & ~known)
            status = VIRTIO_BLK_S_UNSUPP;
        else if (!w->num_sectors || w->num_sectors > RANGE_SECTORS ||
                 !in_disk(d, w->sector, (uint64_t)w->num_sectors * BLOCK_SECTOR))
            status = VIRTIO_BLK_S_IOERR;
    }
    if (status != VIRTIO_BLK_S_OK) {
        answer(b, status);
        return;
    }
    b->r.op = op;
    b->ranges = (uint8_t)n;
    plug(d);
    submit_range(b);
}

static void identify(struct virtio_blk *d, struct blk_request *b)
{
    uint64_t room = b->chain->writable_bytes - 1;
    virtio_write(b->chain, 0, d->serial, room < sizeof(d->serial) ? (size_t)room : sizeof(d->serial));
    answer(b, VIRTIO_BLK_S_OK);
}

static void handle(struct virtio_blk *d, struct virtio_chain *c)
{
    struct blk_request *b = request_of(c);
    struct virtio_blk_outhdr h;
    const struct iovec *last = &c->iov[c->readables + c->writables - 1];
    *b = (struct blk_request){.disk = d, .chain = c, .r.done = done};
    b->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    virtio_read(c, 0, &h, sizeof(h));
    switch (h.type) {
    case VIRTIO_BLK_T_IN: read_data(d, b, h.sector); break;
    case VIRTIO_BLK_T_OUT: write_data(d, b, h.sector); break;
    case VIRTIO_BLK_T_FLUSH:
        b->r.op = BLOCK_FLUSH;
        submit(d, b);
        break;
    case VIRTIO_BLK_T_DISCARD: ranges(d, b, BLOCK_DISCARD); break;
    case VIRTIO_BLK_T_WRITE_ZEROES: ranges(d, b, BLOCK_WRITE_ZEROES); break;
    case VIRTIO_BLK_T_GET_ID: identify(d, b); break;
    default: answer(b, VIRTIO_BLK_S_UNSUPP);
    }
}

/* ---- the device ---- */

static void notify(void *dev, struct virtio_queue *q)
{
    struct virtio_blk *d = dev;
    struct virtio_chain *c;
    while ((c = virtio_pop(q))) {
        if (c->readable_bytes < sizeof(struct virtio_blk_outhdr) || !c->writables) {
            virtio_push(c, 0);
            virtio_broken(d->virtio, "a disk request without a header or without room for its status");
            return;
        }
        handle(d, c);
    }
}

/* done() takes the queue's lock, so finished requests are looked for without it. */
static void notified(void *dev, struct virtio_queue *q)
{
    struct virtio_blk *d = dev;
    if (batch.plugged != d) return;
    batch.plugged = NULL;
    batch.disk = d;
    block_unplug_reap(d->block);
    batch.disk = NULL;
    while (batch.finished) {
        /* Mostly all of them are of this queue. */
        struct virtio_chain **p = &batch.finished;
        q = batch.finished->queue;
        virtio_queue_lock(q);
        while (*p) {
            struct virtio_chain *c = *p;
            if (c->queue != q) {
                p = &request_of(c)->next;
                continue;
            }
            *p = request_of(c)->next;
            push(c);
        }
        virtio_flush(q);
        virtio_queue_unlock(q);
    }
}

static void activate(void *dev)
{
    struct virtio_blk *d = dev;
    uint8_t wce = 1;
    if (virtio_has(d->virtio, VIRTIO_BLK_F_CONFIG_WCE)) virtio_config_get(d->virtio, WCE_OFFSET, &wce, 1);
    /* 5.2.5.2: a driver that does not know of flushes gets stable writes. */
    atomic_store(&d->writeback, wce && virtio_has(d->virtio, VIRTIO_BLK_F_FLUSH));
}

/* With the configuration lock. */
static void config_written(void *dev, unsigned off, unsigned len, uint8_t *config)
{
    struct virtio_blk *d = dev;
    (void)off;
    (void)len;
    config[WCE_OFFSET] = config[WCE_OFFSET] != 0;
    atomic_store(&d->writeback, config[WCE_OFFSET] && virtio_has(d->virtio, VIRTIO_BLK_F_FLUSH));
}

static void reset(void *dev)
{
    struct virtio_blk *d = dev;
    uint8_t on = 1;
    virtio_config_set(d->virtio, WCE_OFFSET, &on, 1);
}

static void drain(void *dev)
{
    block_drain(((struct virtio_blk *)dev)->block);
}

static const struct virtio_ops ops = {
    .kind = "virtio-blk",
    .id = VIRTIO_ID_BLOCK,
    .class_code = 0x010000,
    .activate = activate,
    .notify = notify,
    .notified = notified,
    .config_written = config_written,
    .reset = reset,
    .drain = drain,
};

static uint64_t features(const struct virtio_blk *d, unsigned queues)
{
    uint64_t f = VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) |
                 VIRTIO_BIT(VIRTIO_BLK_F_TOPOLOGY) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                 VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    if (queues > 1) f |= VIRTIO_BIT(VIRTIO_BLK_F_MQ);
    if (d->info.readonly) return f | VIRTIO_BIT(VIRTIO_BLK_F_RO);
    if (d->info.can_discard) f |= VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
    if (d->info.can_write_zeroes) f |= VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    return f;
}

static void fill_config(const struct virtio_blk *d, unsigned queues, struct blk_space *c)
{
    uint32_t block = d->info.logical_block, physical = d->info.physical_block;
    *c = (struct blk_space){
        .capacity = d->info.size / BLOCK_SECTOR,
        .seg_max = SEGMENTS_MAX,
        .blk_size = block,
        .min_io_size = (uint16_t)(physical > block ? physical / block : 1),
        .wce = 1,
        .num_queues = (uint16_t)queues,
        .max_discard_sectors = RANGE_SECTORS,
        .max_discard_seg = RANGES_MAX,
        .discard_sector_alignment = (physical > block ? physical : block) / BLOCK_SECTOR,
        .max_write_zeroes_sectors = RANGE_SECTORS,
        .max_write_zeroes_seg = RANGES_MAX,
        .write_zeroes_may_unmap = 1,
    };
    while ((block << c->physical_block_exp) < physical) c->physical_block_exp++;
}

int virtio_blk_create(struct pci_bus *b, int slot, const struct virtio_blk_config *cfg, struct virtio_blk **out,
                      struct nerr *e)
{
    *out = NULL;
    struct blk_space space;
    uint8_t writable[sizeof(space)] = {[WCE_OFFSET] = 1};
    unsigned queues = cfg->queues < 1 ? 1 : cfg->queues > MAX_QUEUES ? MAX_QUEUES : cfg->queues;
    struct virtio_blk *d = calloc(1, sizeof(*d));
    if (!d) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    d->block = cfg->block;
    block_info(d->block, &d->info);
    atomic_init(&d->size, d->info.size);
    if (cfg->serial) memcpy(d->serial, cfg->serial, strnlen(cfg->serial, sizeof(d->serial)));
    fill_config(d, queues, &space);
    for (unsigned i = 0; i < queues; i++)
        d->queues[i] = (struct virtio_queue_desc){QUEUE_SIZE, SEGMENTS_MAX + 2, sizeof(struct blk_request)};
    struct virtio_desc desc = {.ops = &ops,
                               .dev = d,
                               .name = cfg->name,
                               .features = features(d, queues),
                               .no_packed = cfg->split_ring,
                               .loop = cfg->loop,
                               .queues = queues,
                               .queue = d->queues,
                               .config = &space,
                               .config_writable = writable,
                               .config_size = sizeof(space)};
    int r = virtio_pci_create(b, slot, &desc, &d->virtio, e);
    if (r) {
        free(d);
        return r;
    }
    block_count_into(d->block, virtio_stats(d->virtio));
    *out = d;
    return 0;
}

void virtio_blk_destroy(struct virtio_blk *d)
{
    if (!d) return;
    block_close(d->block); /* what is in flight comes back first */
    virtio_destroy(d->virtio);
    free(d);
}

void virtio_blk_resized(struct virtio_blk *d)
{
    struct block_info info;
    block_info(d->block, &info);
    atomic_store(&d->size, info.size);
    uint64_t sectors = info.size / BLOCK_SECTOR;
    virtio_config_set(d->virtio, offsetof(struct blk_space, capacity), &sectors, sizeof(sectors));
}
