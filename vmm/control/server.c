#define _GNU_SOURCE
#include "vmm/control/server.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "common/event.h"

#define REQUESTS_AT_ONCE 16 /* per client, before others get their turn */

struct client {
    struct client *next;
    struct control *server;
    int fd;          /* -1: it has gone, but what it asked for is not done yet */
    uint32_t events; /* what the loop watches */
    bool ended;      /* nothing more comes in */
    bool closing;    /* no more requests are taken: it goes when it has its replies */
    bool dead;       /* it goes at once */
    bool listens;
    uint64_t ticket;  /* the request that is answered later; 0: none */
    cJSON *ticket_id; /* its id, or NULL */
    char *out;
    size_t out_bytes, out_room;
    size_t in_bytes;
    char in[CONTROL_LINE_MAX + 1];
};

struct control {
    struct control_config cfg;
    struct client *clients;
    unsigned nclients;
    struct event_timer accept_again;
    bool posted; /* go_on() is on its way */
    uint64_t tickets;
};

/* ---- output ---- */

static bool reserve(struct client *c, size_t more)
{
    size_t room = c->out_room ? c->out_room : 4096;
    if (c->out_bytes + more <= c->out_room) return true;
    while (room < c->out_bytes + more) room *= 2;
    char *out = realloc(c->out, room);
    if (!out) return false;
    c->out = out;
    c->out_room = room;
    return true;
}

static void say(struct client *c, const cJSON *o)
{
    char *text = o ? cJSON_PrintUnformatted(o) : NULL;
    size_t n = text ? strlen(text) : 0;
    if (!text || c->out_bytes + n + 1 > CONTROL_DROP_BYTES + CONTROL_BUSY_BYTES || !reserve(c, n + 1)) {
        c->dead = true; /* better gone than with a reply missing */
        free(text);
        return;
    }
    memcpy(c->out + c->out_bytes, text, n);
    c->out[c->out_bytes + n] = '\n';
    c->out_bytes += n + 1;
    free(text);
}

/* False: the other end is gone. */
static bool flush(struct client *c)
{
    size_t done = 0;
    if (c->fd < 0) return false;
    while (done < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + done, c->out_bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return false;
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done) memmove(c->out, c->out + done, c->out_bytes - done);
    c->out_bytes -= done;
    if (!c->out_bytes) {
        free(c->out);
        c->out = NULL;
        c->out_room = 0;
    }
    return true;
}

static cJSON *error_reply(const char *class, const char *message)
{
    struct nerr clean;
    cJSON *o = cJSON_CreateObject(), *x = cJSON_AddObjectToObject(o, "error");
    nerr_set(&clean, 0, "%s", message);
    control_clean_text(clean.text);
    cJSON_AddStringToObject(x, "class", class);
    cJSON_AddStringToObject(x, "message", clean.text);
    return o;
}

/* ---- requests ---- */

static bool own_command(struct client *c, const struct control_request *q, cJSON *reply)
{
    if (strcmp(q->command->name, "events") != 0) return false;
    c->listens = control_value(q, "on")->on;
    cJSON_AddBoolToObject(reply, "on", c->listens);
    return true;
}

/* `class`: NULL when all went well. Takes over reply and id. */
static void answer(struct client *c, const char *class, const char *message, cJSON *reply, cJSON *id)
{
    cJSON *o = class ? error_reply(class, message) : cJSON_CreateObject();
    if (class)
        cJSON_Delete(reply);
    else
        cJSON_AddItemToObject(o, "return", reply);
    if (id) cJSON_AddItemToObject(o, "id", id);
    say(c, o);
    cJSON_Delete(o);
}

static void serve_line(struct client *c, const char *line, size_t len)
{
    struct control_request q;
    const char *class;
    struct nerr e;
    cJSON *reply = cJSON_CreateObject();
    int r = control_request_parse(line, len, &q, &class, &e);
    cJSON *id = q.id ? cJSON_Duplicate(q.id, true) : NULL;
    q.ticket = ++c->server->tickets;
    if (!r && !own_command(c, &q, reply)) {
        r = c->server->cfg.execute(c->server->cfg.ctx, &q, reply, &e);
        class = control_class(r);
    }
    if (r == CONTROL_LATER) {
        c->ticket = q.ticket;
        c->ticket_id = id;
        cJSON_Delete(reply);
    } else {
        answer(c, r ? class : NULL, e.text, reply, id);
    }
    control_request_free(&q);
}

static bool may_serve(const struct client *c)
{
    return !c->closing && !c->dead && !c->ticket && c->out_bytes < CONTROL_BUSY_BYTES;
}

/* True: there is another line. */
static bool next_line(struct client *c, size_t *len)
{
    const char *end = memchr(c->in, '\n', c->in_bytes);
    *len = end ? (size_t)(end - c->in) : c->in_bytes;
    /* What an ended client wrote last is a line as well. */
    return end || (c->ended && c->in_bytes && c->in_bytes <= CONTROL_LINE_MAX);
}

static void take_line(struct client *c, size_t len)
{
    size_t used = len < c->in_bytes ? len + 1 : len;
    c->in_bytes -= used;
    memmove(c->in, c->in + used, c->in_bytes);
}

static void serve(struct client *c)
{
    size_t len;
    for (unsigned n = 0; may_serve(c) && next_line(c, &len); n++) {
        if (n == REQUESTS_AT_ONCE) return;
        bool blank = len == 0 || (len == 1 && c->in[0] == '\r');
        if (!blank) serve_line(c, c->in, len);
        take_line(c, len);
    }
    if (c->in_bytes > CONTROL_LINE_MAX && !c->closing && may_serve(c)) {
        cJSON *o = error_reply("syntax", "the line is longer than 65536 bytes; the connection is closed");
        say(c, o);
        cJSON_Delete(o);
        c->closing = true;
    }
}

static void fill(struct client *c)
{
    while (!c->ended && c->in_bytes < sizeof(c->in)) {
        ssize_t n = recv(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0)
            c->ended = true;
        else
            c->in_bytes += (size_t)n;
    }
}

/* ---- clients ---- */

/* Nobody is there any more to hear or say anything. */
static void hang_up(struct client *c)
{
    if (c->fd < 0) return;
    event_fd_remove(c->server->cfg.loop, c->fd);
    close(c->fd);
    c->fd = -1;
    c->ended = true;
    c->listens = false;
    c->server->nclients--;
}

static void forget(struct client *c)
{
    struct client **p = &c->server->clients;
    while (*p != c) p = &(*p)->next;
    *p = c->next;
    hang_up(c);
    cJSON_Delete(c->ticket_id);
    free(c->out);
    free(c);
}

static void post_rest(struct control *s);

/* After anything happened: sends what can be sent, and says what is waited for. May free the client. */
static void settle(struct client *c, bool gone)
{
    size_t len;
    serve(c);
    gone |= !flush(c);
    if (gone) c->out_bytes = 0;        /* nobody reads it; but what was asked before is done */
    if (gone && c->ticket) hang_up(c); /* the loop would tell us of its end all the time */
    bool lines = !c->closing && next_line(c, &len);
    bool over = c->closing ? !c->out_bytes : c->ended && !lines && !c->out_bytes && !c->ticket;
    if (over || c->dead) {
        forget(c);
        return;
    }
    uint32_t want = c->out_bytes ? EPOLLOUT : 0;
    if (!c->ended && may_serve(c) && !lines) want |= EPOLLIN;
    if (c->fd >= 0 && want != c->events && event_fd_modify(c->server->cfg.loop, c->fd, want) == 0) c->events = want;
    if (lines && may_serve(c)) post_rest(c->server);
}

static void on_client(void *ctx, uint32_t events)
{
    struct client *c = ctx;
    bool gone = events & (EPOLLHUP | EPOLLERR);
    if (!c->closing) fill(c);
    settle(c, gone);
}

/* Those that have lines left, once more. */
static void go_on(void *ctx)
{
    struct control *s = ctx;
    struct client *next;
    s->posted = false;
    for (struct client *c = s->clients; c; c = next) {
        next = c->next;
        settle(c, false);
    }
}

void control_answer(struct control *s, uint64_t ticket, int result, cJSON *reply, const struct nerr *e)
{
    struct client *c = s->clients;
    while (c && c->ticket != ticket) c = c->next;
    if (!c) {
        cJSON_Delete(reply);
        return;
    }
    answer(c, result ? control_class(result) : NULL, e->text, reply, c->ticket_id);
    c->ticket = 0;
    c->ticket_id = NULL;
    settle(c, false);
}

static void post_rest(struct control *s)
{
    if (!s->posted) s->posted = event_loop_post(s->cfg.loop, go_on, s) == 0;
}

static void greet(struct client *c)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "nacelle", c->server->cfg.version);
    cJSON_AddNumberToObject(o, "protocol", control_protocol);
    cJSON_AddStringToObject(o, "name", c->server->cfg.name);
    cJSON_AddNumberToObject(o, "pid", getpid());
    say(c, o);
    cJSON_Delete(o);
}

int control_add_client(struct control *s, int fd, struct nerr *e)
{
    struct client *c = malloc(sizeof(*c));
    if (!c) {
        close(fd);
        return nerr_set(e, -ENOMEM, "control: out of memory");
    }
    memset(c, 0, offsetof(struct client, in));
    c->server = s;
    c->fd = fd;
    c->events = EPOLLIN;
    int r = event_fd_add(s->cfg.loop, fd, EPOLLIN, on_client, c, e);
    if (r) {
        close(fd);
        free(c);
        return r;
    }
    c->next = s->clients;
    s->clients = c;
    s->nclients++;
    greet(c);
    settle(c, false);
    return 0;
}

unsigned control_clients(const struct control *s)
{
    return s->nclients;
}

/* ---- the listening socket ---- */

/* The socket's mode keeps others out already; this holds where somebody changed that. */
static bool trusted(int fd)
{
    struct ucred who;
    socklen_t n = sizeof(who);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) == 0 && (who.uid == geteuid() || who.uid == 0);
}

static void send_away(int fd)
{
    cJSON *o = error_reply("too-many", "as many clients are connected as there may be (16)");
    char *text = o ? cJSON_PrintUnformatted(o) : NULL;
    if (text) {
        ssize_t n = send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) n = send(fd, "\n", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)n;
    }
    cJSON_Delete(o);
    free(text);
    close(fd);
}

static void on_listener(void *ctx, uint32_t events)
{
    struct control *s = ctx;
    struct nerr ignored;
    (void)events;
    int fd = event_accept(s->cfg.loop, s->cfg.listener, &s->accept_again);
    if (fd < 0) return;
    if (!trusted(fd))
        close(fd);
    else if (s->nclients >= CONTROL_MAX_CLIENTS)
        send_away(fd);
    else
        (void)control_add_client(s, fd, &ignored);
}

static void accept_again(void *ctx)
{
    struct control *s = ctx;
    event_listen(s->cfg.loop, s->cfg.listener);
}

/* ---- events ---- */

void control_tell(struct control *s, const char *event, cJSON *data)
{
    struct timespec now;
    cJSON *v;
    cJSON *o = cJSON_CreateObject();
    clock_gettime(CLOCK_REALTIME, &now);
    cJSON_AddStringToObject(o, "event", event);
    cJSON_AddNumberToObject(o, "time", (double)now.tv_sec + (double)now.tv_nsec / 1e9);
    while (data && (v = cJSON_DetachItemFromArray(data, 0)))
        cJSON_AddItemToArray(o, v); /* under the name that it has already */
    cJSON_Delete(data);
    for (struct client *c = s->clients; c; c = c->next) {
        if (!c->listens || c->closing) continue;
        say(c, o);
        if (c->out_bytes > CONTROL_DROP_BYTES) c->dead = true;
    }
    cJSON_Delete(o);
    post_rest(s); /* sent later: a client may be in the middle of the very request that caused the event */
}

/* ---- life ---- */

int control_start(const struct control_config *cfg, struct control **out, struct nerr *e)
{
    struct control *s = calloc(1, sizeof(*s));
    *out = NULL;
    if (!s) return nerr_set(e, -ENOMEM, "control: out of memory");
    s->cfg = *cfg;
    event_timer_init(&s->accept_again, cfg->loop, accept_again, s);
    int r = cfg->listener < 0 ? 0 : event_fd_add(cfg->loop, cfg->listener, EPOLLIN, on_listener, s, e);
    if (r) {
        event_timer_destroy(&s->accept_again);
        free(s);
        return r;
    }
    *out = s;
    return 0;
}

void control_stop(struct control *s)
{
    if (!s) return;
    event_timer_destroy(&s->accept_again);
    if (s->cfg.listener >= 0) event_fd_remove(s->cfg.loop, s->cfg.listener);
    while (s->clients) {
        (void)flush(s->clients);
        forget(s->clients);
    }
    free(s);
}
