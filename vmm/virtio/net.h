/* virtio network device (1.2, 5.1): mergeable receive buffers, checksum and TCP segmentation offloads both ways, control queue, several
 * queue pairs.
 *
 * Threads: created and destroyed while neither vCPUs nor the loop run; registers are accessed on vCPU threads, frames for the guest come on the
 * loop's thread, or on the one that has just sent (net.h). */
#ifndef NACELLE_VMM_VIRTIO_NET_H
#define NACELLE_VMM_VIRTIO_NET_H

#include "vmm/backend/net.h"
#include "vmm/virtio/virtio.h"

#define VIRTIO_NET_MAX_PAIRS 8

struct virtio_net;

struct virtio_net_options {
    const char *name; /* "net0"; outlives the device */
    uint8_t mac[6];
    unsigned pairs;  /* of queues: 1..VIRTIO_NET_MAX_PAIRS; 0: 1 */
    bool split_ring; /* don't offer packed rings */
    struct net_config net;
};

int virtio_net_create(struct pci_bus *b, int slot, const struct virtio_net_options *cfg, struct event_loop *loop,
                      struct virtio_net **out, struct nerr *e);
/* NULL is fine. */
void virtio_net_destroy(struct virtio_net *v);
/* For link state, limits and statistics; the device's own, which it closes. */
struct net *virtio_net_backend(struct virtio_net *v);

#endif
