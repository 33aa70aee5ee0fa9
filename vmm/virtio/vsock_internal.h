/* Private header of virtio-vsock: vsock.c speaks with the guest, vsock_host.c with the host's sockets. */
#ifndef NACELLE_VMM_VIRTIO_VSOCK_INTERNAL_H
#define NACELLE_VMM_VIRTIO_VSOCK_INTERNAL_H

#include "common/event.h"
#include <linux/virtio_vsock.h>
#include <pthread.h>

#include "vmm/virtio/devices.h"
#include "vmm/virtio/virtio.h"

#define VSOCK_HOST_CID 2u
#define VSOCK_CONNECTIONS 256
#define VSOCK_RESETS 64              /* for connections that there are none of */
#define VSOCK_BUFFER (128u * 1024)   /* bytes that the guest may send ahead on a connection */
#define VSOCK_PACKET 65536u          /* most bytes in one packet to the guest */
#define VSOCK_PATH_MAX 96            /* with "_4294967295" behind it still a socket's name */
#define VSOCK_FIRST_PORT 0x40000000u /* the host's end of connections from the host */

enum { VSOCK_RX, VSOCK_TX, VSOCK_EVENT, VSOCK_QUEUES };

enum vsock_state {
    VSOCK_FREE,
    VSOCK_HANDSHAKE, /* a host program has yet to say which port it wants */
    VSOCK_REQUESTED, /* the guest has yet to answer */
    VSOCK_OPEN,
};

/* Packets that a connection has to send to the guest. */
#define OWED_REQUEST 1u
#define OWED_RESPONSE 2u
#define OWED_RESET 4u
#define OWED_CREDIT 8u
#define OWED_DATA 16u /* there is something to read from the socket */
#define OWED_SHUTDOWN 32u

struct vsock_connection {
    struct virtio_vsock *device;
    enum vsock_state state;
    int fd;
    bool watched;
    uint32_t events; /* what the loop looks for */
    uint32_t host_port, guest_port;
    unsigned owed;
    bool ended;       /* the host sends no more */
    bool hung_up;     /* nor does it take any */
    unsigned closing; /* VIRTIO_VSOCK_SHUTDOWN_*: the guest's */
    /* Flow control (5.10.6.3): free-running counts of bytes. */
    uint32_t peer_alloc, peer_forwarded, sent; /* towards the guest */
    uint32_t forwarded, told;                  /* from it: passed on; what it knows of that */
    /* What the socket did not take yet. */
    uint8_t *buffer;
    uint32_t first, used;
    char line[32]; /* VSOCK_HANDSHAKE */
    unsigned line_len;
};

struct vsock_ports {
    uint32_t host, guest;
};

struct virtio_vsock {
    struct virtio_device *virtio;
    struct event_loop *loop;
    uint64_t cid;
    char path[VSOCK_PATH_MAX];
    int listener;
    struct event_timer listen_timer;

    pthread_mutex_t lock; /* all that follows */
    struct vsock_connection connection[VSOCK_CONNECTIONS];
    unsigned turn;
    uint32_t next_port;
    struct vsock_ports reset[VSOCK_RESETS];
    unsigned resets;
    bool tx_waits, tx_again; /* the transmit queue stopped for want of room in reset[] */
};

/* All with the device's lock. */
struct vsock_connection *vsock_new(struct virtio_vsock *d, int fd, enum vsock_state state);
struct vsock_connection *vsock_find(struct virtio_vsock *d, uint32_t host_port, uint32_t guest_port);
void vsock_free(struct virtio_vsock *d, struct vsock_connection *k);
void vsock_free_all(struct virtio_vsock *d);
/* Those that the guest has heard of. */
void vsock_free_known(struct virtio_vsock *d);
/* Has the loop look for what the connection needs now. */
void vsock_watch(struct virtio_vsock *d, struct vsock_connection *k);
/* Bytes that the guest has room for. */
uint32_t vsock_credit(const struct vsock_connection *k);
/* Reads from the socket into the chain behind the header, which it fills in. False when there is no packet to send. */
bool vsock_read(struct virtio_vsock *d, struct vsock_connection *k, struct virtio_chain *c, struct virtio_vsock_hdr *h);
/* Passes on `len` bytes that follow the chain's header. */
void vsock_write(struct virtio_vsock *d, struct vsock_connection *k, struct virtio_chain *c, uint32_t len);
void vsock_shutdown(struct virtio_vsock *d, struct vsock_connection *k, uint32_t flags);
/* Tells the host's program that it is connected. */
void vsock_answer(struct virtio_vsock *d, struct vsock_connection *k);
/* The loop's callback for the listener; takes the lock. */
void vsock_accept(void *ctx, uint32_t events);
void vsock_listen_again(void *ctx); /* the timer's, after a client could not be taken */

#endif
