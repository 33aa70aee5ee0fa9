/* virtio-console (1.2, 5.3) with one port: the guest's /dev/hvcN on a character back end. Several consoles are several devices. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <pthread.h>
#include <stdlib.h>

#include "vmm/backend/char.h"
#include "vmm/virtio/devices.h"
#include "vmm/virtio/virtio.h"

enum { RECEIVE, TRANSMIT, QUEUES };
#define QUEUE_SIZE 64
#define SEGMENTS_MAX 64
/* Bytes in one buffer: drivers give a page or so; what takes for ever to write is no output. */
#define OUTPUT_MAX (1u << 20)

struct virtio_console {
    struct virtio_device *virtio;
    struct chardev *chardev;
    /* What the guest writes while the back end takes nothing; the transmit queue's lock. */
    struct virtio_chain *held;
    unsigned held_iov;
    size_t held_off;
};

/* ---- guest to host; the transmit queue's lock ---- */

/* False when the back end is full: it says so when there is room again. */
static bool send(struct virtio_console *d, struct virtio_chain *c)
{
    while (d->held_iov < c->readables) {
        const struct iovec *v = &c->iov[d->held_iov];
        size_t want = v->iov_len - d->held_off;
        size_t n = char_write(d->chardev, (const uint8_t *)v->iov_base + d->held_off, want);
        device_count(&virtio_stats(d->virtio)->bytes_out, n);
        d->held_off += n;
        if (n < want) return false;
        d->held_iov++;
        d->held_off = 0;
    }
    d->held = NULL;
    d->held_iov = 0;
    virtio_push(c, 0);
    return true;
}

static void transmit(struct virtio_console *d, struct virtio_queue *q)
{
    if (d->held && !send(d, d->held)) return;
    while ((d->held = virtio_pop(q))) {
        if (d->held->readable_bytes > OUTPUT_MAX) d->held_iov = d->held->readables; /* dropped */
        if (!send(d, d->held)) return;
    }
}

static void writable(void *ctx)
{
    struct virtio_console *d = ctx;
    virtio_queue_kick(virtio_queue(d->virtio, TRANSMIT));
}

/* ---- host to guest ---- */

static size_t input(void *ctx, const uint8_t *data, size_t len)
{
    struct virtio_console *d = ctx;
    struct virtio_queue *q = virtio_queue(d->virtio, RECEIVE);
    struct virtio_chain *c;
    size_t done = 0;
    virtio_queue_lock(q);
    while (done < len && (c = virtio_pop(q))) {
        size_t n = virtio_write(c, 0, data + done, len - done);
        done += n;
        virtio_push(c, n);
        if (!n) { /* more and more of these would keep us here for ever */
            virtio_broken(d->virtio, "a receive buffer has no room");
            break;
        }
    }
    virtio_flush(q);
    virtio_queue_unlock(q);
    struct device_stats *s = virtio_stats(d->virtio);
    device_count(&s->bytes_in, done);
    device_count(&s->copies, 1);
    device_count(&s->copied, done);
    return done;
}

static void notify(void *dev, struct virtio_queue *q)
{
    struct virtio_console *d = dev;
    if (virtio_queue_index(q) == TRANSMIT)
        transmit(d, q);
    else
        char_input_ready(d->chardev);
}

/* A character for emergencies, without queues: for drivers that have none yet. */
static void config_written(void *dev, unsigned off, unsigned len, uint8_t *config)
{
    struct virtio_console *d = dev;
    (void)len;
    if (off == offsetof(struct virtio_console_config, emerg_wr)) char_write(d->chardev, config + off, 1);
}

static void drop_held(struct virtio_console *d)
{
    struct virtio_queue *q = virtio_queue(d->virtio, TRANSMIT);
    virtio_queue_lock(q);
    if (d->held) virtio_push(d->held, 0);
    d->held = NULL;
    d->held_iov = 0;
    d->held_off = 0;
    virtio_queue_unlock(q);
}

static void reset(void *dev)
{
    drop_held(dev);
}

static void queue_reset(void *dev, struct virtio_queue *q)
{
    if (virtio_queue_index(q) == TRANSMIT) drop_held(dev);
}

static const struct virtio_ops ops = {
    .kind = "virtio-console",
    .id = VIRTIO_ID_CONSOLE,
    .class_code = 0x078000,
    .notify = notify,
    .config_written = config_written,
    .reset = reset,
    .queue_reset = queue_reset,
};

int virtio_console_create(struct pci_bus *b, int slot, const struct virtio_console_options *cfg,
                          struct virtio_console **out, struct nerr *e)
{
    *out = NULL;
    struct virtio_console *d = calloc(1, sizeof(*d));
    if (!d) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    static const struct virtio_queue_desc queues[QUEUES] = {{QUEUE_SIZE, SEGMENTS_MAX, 0},
                                                            {QUEUE_SIZE, SEGMENTS_MAX, 0}};
    static const uint8_t writable_bytes[sizeof(struct virtio_console_config)] = {
        [offsetof(struct virtio_console_config, emerg_wr)] = 1, 1, 1, 1};
    struct virtio_console_config space = {.max_nr_ports = 1};
    struct virtio_desc desc = {.ops = &ops,
                               .dev = d,
                               .name = cfg->name,
                               .features = VIRTIO_BIT(VIRTIO_CONSOLE_F_EMERG_WRITE),
                               .loop = cfg->loop,
                               .queues = QUEUES,
                               .queue = queues,
                               .config = &space,
                               .config_writable = writable_bytes,
                               .config_size = sizeof(space)};
    struct char_config chars = {.kind = cfg->kind, .path = cfg->path, .name = cfg->name};
    struct char_port port = {.ctx = d, .input = input, .writable = writable};
    int r = virtio_pci_create(b, slot, &desc, &d->virtio, e);
    if (!r) r = char_open(&chars, cfg->loop, &port, &d->chardev, e);
    if (r)
        virtio_console_destroy(d);
    else
        *out = d;
    return r;
}

void virtio_console_destroy(struct virtio_console *d)
{
    if (!d) return;
    char_close(d->chardev);
    if (d->virtio && d->held) drop_held(d);
    virtio_destroy(d->virtio);
    free(d);
}
