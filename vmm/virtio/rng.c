/* virtio-rng (1.2, 5.4): buffers filled with the host's entropy, as fast as a limit allows. */
#include <errno.h>
#include <linux/virtio_ids.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/backend/limiter.h"
#include "vmm/virtio/devices.h"
#include "vmm/virtio/virtio.h"

#define QUEUE_SIZE 64
#define SEGMENTS_MAX 64
#define CHUNK 4096u /* bytes for a buffer, however long it is: the driver asks again */

struct virtio_rng {
    struct virtio_device *virtio;
    struct limiter limiter; /* the queue's lock */
    struct event_timer timer;
};

static void timer(void *ctx)
{
    struct virtio_rng *d = ctx;
    virtio_queue_kick(virtio_queue(d->virtio, 0));
}

static void fill(struct virtio_rng *d, struct virtio_chain *c, uint64_t now)
{
    uint8_t bytes[CHUNK];
    size_t want = c->writable_bytes < CHUNK ? (size_t)c->writable_bytes : CHUNK;
    ssize_t got = want ? getrandom(bytes, want, 0) : 0;
    size_t n = got > 0 ? virtio_write(c, 0, bytes, (size_t)got) : 0;
    struct device_stats *s = virtio_stats(d->virtio);
    device_count(&s->bytes_in, n);
    device_count(&s->copies, 1);
    device_count(&s->copied, n);
    limiter_charge(&d->limiter, n, now);
    virtio_push(c, n);
}

static void notify(void *dev, struct virtio_queue *q)
{
    struct virtio_rng *d = dev;
    for (;;) {
        uint64_t now = d->limiter.active ? clock_mono_ns() : 0;
        uint64_t wait = limiter_wait(&d->limiter, now);
        if (wait) {
            event_timer_arm(&d->timer, now + wait, 0);
            return;
        }
        struct virtio_chain *c = virtio_pop(q);
        if (!c) return;
        fill(d, c, now);
    }
}

static const struct virtio_ops ops = {
    .kind = "virtio-rng",
    .id = VIRTIO_ID_RNG,
    .class_code = 0x00ff00,
    .notify = notify,
};

int virtio_rng_create(struct pci_bus *b, int slot, const struct virtio_rng_config *cfg, struct virtio_rng **out,
                      struct nerr *e)
{
    *out = NULL;
    struct virtio_rng *d = calloc(1, sizeof(*d));
    if (!d) return nerr_set(e, -ENOMEM, "%s: out of memory", cfg->name);
    struct virtio_queue_desc queue = {QUEUE_SIZE, SEGMENTS_MAX, 0};
    struct virtio_desc desc = {
        .ops = &ops, .dev = d, .name = cfg->name, .loop = cfg->loop, .queues = 1, .queue = &queue};
    limiter_set(&d->limiter, &(struct limiter_rate){.avg = cfg->rate, .burst = cfg->rate}, clock_mono_ns());
    event_timer_init(&d->timer, cfg->loop, timer, d);
    int r = virtio_pci_create(b, slot, &desc, &d->virtio, e);
    if (r)
        free(d);
    else
        *out = d;
    return r;
}

void virtio_rng_destroy(struct virtio_rng *d)
{
    if (!d) return;
    event_timer_destroy(&d->timer);
    virtio_destroy(d->virtio);
    free(d);
}
