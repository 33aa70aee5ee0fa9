#define _GNU_SOURCE
#include "vmm/control/client.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "common/clock.h"
#include "vmm/backend/unix.h"

/* What a machine says in one line, at most; it has more to say than to hear. */
#define REPLY_MAX (16u << 20)

/* Waits for `events` up to the deadline. */
static int await(const struct control_link *l, short events, uint64_t deadline, struct nerr *e)
{
    for (;;) {
        uint64_t now = clock_mono_ns();
        int left = now >= deadline ? 0 : (int)((deadline - now) / 1000000 + 1);
        struct pollfd p = {.fd = l->fd, .events = events};
        int n = poll(&p, 1, left);
        if (n > 0) return 0;
        if (n < 0 && errno != EINTR) return nerr_set(e, -errno, "poll: %s", strerror(errno));
        if (n == 0 && !left) return nerr_set(e, -ETIMEDOUT, "the machine (pid %d) does not answer", (int)l->pid);
    }
}

static int read_more(struct control_link *l, uint64_t deadline, struct nerr *e)
{
    if (l->bytes == l->room) {
        size_t room = l->room ? l->room * 2 : 4096;
        char *in = room <= REPLY_MAX ? realloc(l->in, room) : NULL;
        if (!in) return nerr_set(e, -ENOMEM, "no memory for the machine's reply");
        l->in = in;
        l->room = room;
    }
    int r = await(l, POLLIN, deadline, e);
    if (r) return r;
    ssize_t n = recv(l->fd, l->in + l->bytes, l->room - l->bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) return nerr_set(e, -ECONNRESET, "the machine ended the connection");
    l->bytes += (size_t)n;
    return 0;
}

static int read_object(struct control_link *l, uint64_t deadline, cJSON **out, struct nerr *e)
{
    char *end;
    while (!(end = l->bytes ? memchr(l->in, '\n', l->bytes) : NULL)) {
        int r = read_more(l, deadline, e);
        if (r) return r;
    }
    size_t len = (size_t)(end - l->in);
    *end = 0;
    *out = cJSON_ParseWithOpts(l->in, NULL, true);
    l->bytes -= len + 1;
    memmove(l->in, end + 1, l->bytes);
    return cJSON_IsObject(*out) ? 0 : nerr_set(e, -EPROTO, "what answers is no control socket");
}

static uint64_t from_now(int ms)
{
    return clock_mono_ns() + (uint64_t)ms * 1000000u;
}

int control_connect(struct control_link *l, const char *path, int fd, int ms, struct nerr *e)
{
    struct ucred who;
    socklen_t size = sizeof(who);
    cJSON *greeting = NULL;
    *l = (struct control_link){.fd = fd >= 0 ? fd : unix_connect(path)};
    if (l->fd == -ECONNREFUSED || l->fd == -ENOENT)
        return nerr_set(e, -ENOENT, "no machine listens at %s; 'nacelle ps' lists those there are", path);
    if (l->fd < 0) return nerr_set(e, l->fd, "cannot connect to %s: %s", path, strerror(-l->fd));
    if (getsockopt(l->fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0) l->pid = who.pid;
    int r = read_object(l, from_now(ms), &greeting, e);
    if (!r) {
        const cJSON *error = cJSON_GetObjectItemCaseSensitive(greeting, "error");
        const char *message = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(error, "message"));
        if (error) r = nerr_set(e, -EBUSY, "%s", message ? message : "the machine takes no connection");
    }
    cJSON_Delete(greeting);
    if (r) control_disconnect(l);
    return r;
}

static int send_all(struct control_link *l, const char *text, size_t len, uint64_t deadline, struct nerr *e)
{
    while (len) {
        ssize_t n = send(l->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return nerr_set(e, -errno, "cannot send to the machine: %s", strerror(errno));
        if (n > 0) {
            text += n;
            len -= (size_t)n;
            continue;
        }
        int r = await(l, POLLOUT, deadline, e);
        if (r) return r;
    }
    return 0;
}

int control_ask(struct control_link *l, const cJSON *request, int ms, cJSON **reply, struct nerr *e)
{
    uint64_t deadline = from_now(ms);
    char *text = cJSON_PrintUnformatted(request);
    *reply = NULL;
    if (!text) return nerr_set(e, -ENOMEM, "out of memory");
    size_t len = strlen(text);
    text[len] = '\n'; /* in the NUL's place: what is sent needs none */
    int r = send_all(l, text, len + 1, deadline, e);
    free(text);
    while (!r) {
        r = read_object(l, deadline, reply, e);
        if (r || !cJSON_GetObjectItemCaseSensitive(*reply, "event")) break;
        cJSON_Delete(*reply);
        *reply = NULL;
    }
    return r;
}

void control_disconnect(struct control_link *l)
{
    if (l->fd >= 0) close(l->fd);
    free(l->in);
    pid_t pid = l->pid;
    *l = (struct control_link){.fd = -1, .pid = pid};
}
