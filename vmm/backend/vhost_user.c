/* See the vhost-user protocol in QEMU's documentation (docs/interop/vhost-user). */
#define _GNU_SOURCE
#include "vmm/backend/vhost_user.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CONFIG_MAX 256

enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
};

#define VERSION 0x1u
#define VERSION_MASK 0x3u
#define REPLY 0x4u

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t u64;
        struct {
            uint32_t index, num;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } addr;
        struct {
            uint32_t regions, padding;
            uint64_t guest, size, user, offset;
        } memory;
        struct {
            uint32_t offset, size, flags;
            uint8_t data[CONFIG_MAX];
        } config;
    };
} __attribute__((packed));

#define HEADER offsetof(struct message, u64)

static int lost(int err, struct nerr *e)
{
    if (err == EAGAIN) return nerr_set(e, -ETIMEDOUT, "vhost-user: no answer in time");
    return nerr_set(e, -ECONNRESET, "vhost-user: the peer has gone: %s", err ? strerror(err) : "end of connection");
}

/* `fd` -1: none. */
static int send_message(int sock, struct message *m, uint32_t request, uint32_t size, int fd, struct nerr *e)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {.iov_base = m, .iov_len = HEADER + size};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    m->request = request;
    m->flags = VERSION;
    m->size = size;
    if (fd >= 0) {
        h.msg_control = control;
        h.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    ssize_t n;
    do {
        n = sendmsg(sock, &h, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    /* Messages are far smaller than the socket's buffer: part of one never goes alone. */
    return n == (ssize_t)iov.iov_len ? 0 : lost(n < 0 ? errno : EPIPE, e);
}

static int receive_all(int sock, void *p, size_t len, struct nerr *e)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = recv(sock, (uint8_t *)p + at, len - at, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return lost(n < 0 ? errno : 0, e);
        at += (size_t)n;
    }
    return 0;
}

static int receive_answer(int sock, struct message *m, uint32_t request, uint32_t size, struct nerr *e)
{
    int r = receive_all(sock, m, HEADER, e);
    if (r) return r;
    if (m->request != request || !(m->flags & REPLY) || (m->flags & VERSION_MASK) != VERSION || m->size != size)
        return nerr_set(e, -EPROTO, "vhost-user: a wrong answer (request %u, flags 0x%x, %u bytes) to request %u",
                        m->request, m->flags, m->size, request);
    return receive_all(sock, &m->u64, size, e);
}

static int get_u64(int sock, uint32_t request, uint64_t *value, struct nerr *e)
{
    struct message m = {.u64 = 0};
    int r = send_message(sock, &m, request, 0, -1, e);
    if (!r) r = receive_answer(sock, &m, request, sizeof(m.u64), e);
    if (!r) *value = m.u64;
    return r;
}

static int set_u64(int sock, uint32_t request, uint64_t value, int fd, struct nerr *e)
{
    struct message m = {.u64 = value};
    return send_message(sock, &m, request, sizeof(m.u64), fd, e);
}

static int set_state(int sock, uint32_t request, unsigned index, unsigned num, struct nerr *e)
{
    struct message m = {.state = {index, num}};
    return send_message(sock, &m, request, sizeof(m.state), -1, e);
}

int vhost_user_init(int sock, unsigned seconds, struct nerr *e)
{
    struct timeval t = {.tv_sec = seconds};
    if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) ||
        setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)))
        return nerr_set(e, -errno, "vhost-user: setsockopt: %s", strerror(errno));
    return 0;
}

int vhost_user_get_features(int sock, uint64_t *features, struct nerr *e)
{
    return get_u64(sock, GET_FEATURES, features, e);
}

int vhost_user_set_features(int sock, uint64_t features, struct nerr *e)
{
    return set_u64(sock, SET_FEATURES, features, -1, e);
}

int vhost_user_get_protocol_features(int sock, uint64_t *features, struct nerr *e)
{
    return get_u64(sock, GET_PROTOCOL_FEATURES, features, e);
}

int vhost_user_set_protocol_features(int sock, uint64_t features, struct nerr *e)
{
    return set_u64(sock, SET_PROTOCOL_FEATURES, features, -1, e);
}

int vhost_user_set_owner(int sock, struct nerr *e)
{
    struct message m = {.u64 = 0};
    return send_message(sock, &m, SET_OWNER, 0, -1, e);
}

int vhost_user_get_config(int sock, void *config, unsigned size, struct nerr *e)
{
    struct message m = {.config = {.size = size}};
    uint32_t whole = (uint32_t)offsetof(struct message, config.data) - HEADER + size;
    if (size > CONFIG_MAX) return nerr_set(e, -EINVAL, "vhost-user: a configuration space of %u bytes", size);
    int r = send_message(sock, &m, GET_CONFIG, whole, -1, e);
    if (!r) r = receive_answer(sock, &m, GET_CONFIG, whole, e);
    if (!r) memcpy(config, m.config.data, size);
    return r;
}

int vhost_user_memory(int sock, int fd, void *host, uint64_t size, struct nerr *e)
{
    struct message m = {.memory = {.regions = 1, .guest = 0, .size = size, .user = (uintptr_t)host}};
    return send_message(sock, &m, SET_MEM_TABLE, sizeof(m.memory), fd, e);
}

int vhost_user_start_ring(int sock, const struct vhost_user_ring *ring, struct nerr *e)
{
    struct message m = {.addr = {.index = ring->index,
                                 .desc = (uintptr_t)ring->desc,
                                 .used = (uintptr_t)ring->used,
                                 .avail = (uintptr_t)ring->avail}};
    int r = set_state(sock, SET_VRING_NUM, ring->index, ring->size, e);
    if (!r) r = set_state(sock, SET_VRING_BASE, ring->index, 0, e);
    if (!r) r = send_message(sock, &m, SET_VRING_ADDR, sizeof(m.addr), -1, e);
    if (!r) r = set_u64(sock, SET_VRING_CALL, ring->index, ring->call, e);
    if (!r) r = set_u64(sock, SET_VRING_KICK, ring->index, ring->kick, e);
    if (!r) r = set_state(sock, SET_VRING_ENABLE, ring->index, 1, e);
    return r;
}
