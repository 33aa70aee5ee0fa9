/* The front end's side of the vhost-user protocol: the messages that hand shared memory and virtqueues to another process, which then serves
 * them. Everything here happens while a device is set up: requests themselves go through the rings.
 *
 * The peer is a process that we started ourselves, but what it says is checked all the same. All functions block, at most 30 seconds,
 * and return 0 or a negative errno with the message in `e` (-ECONNRESET: the peer is gone). One thread at a time. */
#ifndef NACELLE_VMM_VHOST_USER_H
#define NACELLE_VMM_VHOST_USER_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define VHOST_USER_PROTOCOL_FEATURES (1ull << 30) /* among the virtio features */
#define VHOST_USER_CONFIG_SPACE (1ull << 9)       /* protocol features */

struct vhost_user_ring {
    unsigned index, size;      /* entries: a power of two */
    void *desc, *avail, *used; /* in the region given to vhost_user_memory() */
    int kick, call;            /* eventfds; the peer gets copies */
};

/* Limits the time of one answer: seconds, 1 to 30. `sock` stays the caller's. */
int vhost_user_init(int sock, unsigned seconds, struct nerr *e);
int vhost_user_get_features(int sock, uint64_t *features, struct nerr *e);
int vhost_user_set_features(int sock, uint64_t features, struct nerr *e);
int vhost_user_get_protocol_features(int sock, uint64_t *features, struct nerr *e);
int vhost_user_set_protocol_features(int sock, uint64_t features, struct nerr *e);
int vhost_user_set_owner(int sock, struct nerr *e);
/* The first `size` bytes of the device's configuration space (at most 256). */
int vhost_user_get_config(int sock, void *config, unsigned size, struct nerr *e);
/* One region of shared memory, at address 0 for the peer: `fd` (a memfd) of `size` bytes, mapped here at `host`. */
int vhost_user_memory(int sock, int fd, void *host, uint64_t size, struct nerr *e);
int vhost_user_start_ring(int sock, const struct vhost_user_ring *r, struct nerr *e);

#endif
