/* The control socket's server with a client that makes requests of the schema, most of them spoiled in some way, in pieces of any size: each
 * line gets one reply, which is JSON; what is carried out has passed the schema; nothing else is. Number of cases in make test: 1500. */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/control/server.h"

const char *const fuzz_name = "fuzz_control";

#define SENT_MAX (4u << 20)

static struct event_loop *loop;
static struct event_timer timer;
static struct control *server;
static uint64_t ticket; /* of a request that is not answered yet */
static uint64_t executed;
static char *sent; /* all lines of this case */
static size_t sent_bytes;

static void add(const char *data, size_t len)
{
    fuzz_check(sent_bytes + len <= SENT_MAX);
    memcpy(sent + sent_bytes, data, len);
    sent_bytes += len;
}

static void add_text(const char *text)
{
    add(text, strlen(text));
}

/* ---- what comes through ---- */

static int execute(void *ctx, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    const struct control_command *c = q->command;
    (void)ctx;
    executed++;
    fuzz_check(control_find(c->name) == c);
    for (unsigned i = 0; i < c->narguments; i++) {
        const struct control_argument *a = &c->arguments[i];
        const struct control_value *v = &q->value[i];
        fuzz_check(v == control_value(q, a->name) && (v->given || !a->required));
        if (!v->given) continue;
        if (a->type == CONTROL_NUMBER) fuzz_check(v->number >= a->min && v->number <= a->max);
        if (a->type == CONTROL_CHOICE) fuzz_check(a->choices[v->choice] && !strcmp(a->choices[v->choice], v->text));
        if (a->type == CONTROL_NAME)
            fuzz_check(*v->text && strlen(v->text) <= CONTROL_NAME_MAX && !strchr(v->text, '/'));
        if (a->type == CONTROL_STRING) fuzz_check(*v->text && strlen(v->text) <= a->max);
    }
    if (fuzz_one_in(8)) control_tell(server, "paused", NULL);
    if (fuzz_one_in(8)) {
        fuzz_check(!ticket); /* the next request waits for it */
        ticket = q->ticket;
        return CONTROL_LATER;
    }
    if (fuzz_one_in(8)) return nerr_set(e, -(int)fuzz_below(130) - 1, "\"quotes\" and \\ in a message");
    if (fuzz_one_in(200)) {
        char *big = calloc(1, 100001);
        memset(big, 'x', 100000);
        cJSON_AddStringToObject(reply, "big", big);
        free(big);
    }
    return 0;
}

/* ---- what goes in ---- */

static void add_value(const struct control_argument *a)
{
    static const char *const odd[] = {"null",
                                      "[]",
                                      "{}",
                                      "-1",
                                      "1e400",
                                      "0.5",
                                      "true",
                                      "\"\"",
                                      "\"\\u0000\"",
                                      "\"\\ud800\"",
                                      "NaN",
                                      "\"18446744073709551616\"",
                                      "9007199254740993",
                                      "[[[[1]]]]",
                                      "\"\xff\"",
                                      "\"K\""};
    char text[64];
    if (fuzz_one_in(6)) {
        add_text(odd[fuzz_below(sizeof(odd) / sizeof(odd[0]))]);
        return;
    }
    switch (a->type) {
    case CONTROL_NUMBER:
        if (fuzz_one_in(2))
            snprintf(text, sizeof(text), "%llu", (unsigned long long)(fuzz_odd_number() >> fuzz_below(40)));
        else
            snprintf(text, sizeof(text), "\"%u%c\"", (unsigned)fuzz_below(5000), "KMGTkmgtx"[fuzz_below(9)]);
        break;
    case CONTROL_BOOLEAN: snprintf(text, sizeof(text), fuzz_one_in(2) ? "true" : "\"off\""); break;
    case CONTROL_CHOICE: snprintf(text, sizeof(text), "\"%s\"", a->choices[0]); break;
    default: snprintf(text, sizeof(text), "\"disk%u\"", (unsigned)fuzz_below(30)); break;
    }
    add_text(text);
}

static void add_request(void)
{
    const struct control_command *c = &control_commands[fuzz_below(control_ncommands)];
    bool first = true;
    add_text("{\"execute\":\"");
    add_text(c->name);
    add_text("\"");
    if (c->narguments || fuzz_one_in(4)) {
        add_text(",\"arguments\":{");
        for (unsigned i = 0; i < c->narguments; i++) {
            if (!c->arguments[i].required && !fuzz_one_in(3)) continue;
            if (c->arguments[i].required && fuzz_one_in(20)) continue;
            for (unsigned twice = fuzz_one_in(40) ? 2 : 1; twice--; first = false) {
                add_text(first ? "\"" : ",\"");
                add_text(c->arguments[i].name);
                add_text("\":");
                add_value(&c->arguments[i]);
            }
        }
        add_text("}");
    }
    if (fuzz_one_in(3)) add_text(",\"id\":[1,{\"a\":null},\"\xc3\xa9\"]");
    if (fuzz_one_in(30)) add_text(",\"id\":7");
    if (fuzz_one_in(30)) add_text(",\"other\":7");
    add_text("}");
}

static void spoil(size_t from)
{
    for (uint64_t n = fuzz_below(4); n-- && sent_bytes > from;) {
        size_t at = from + fuzz_below(sent_bytes - from), left = sent_bytes - at;
        switch (fuzz_below(4)) {
        case 0: sent[at] = (char)fuzz_bits(); break;
        case 1: sent[at] ^= (char)(1u << fuzz_below(8)); break;
        case 2: sent_bytes -= fuzz_below(left) + 1; break;
        default: /* a piece once more */ left = fuzz_below(left < 200 ? left : 200); add(sent + at, left);
        }
    }
}

static void add_line(void)
{
    size_t from = sent_bytes;
    if (fuzz_one_in(60)) { /* deep */
        size_t n = fuzz_below(3000);
        for (size_t i = 0; i < n; i++) add_text(fuzz_one_in(2) ? "[" : "{\"a\":");
    } else if (fuzz_one_in(400)) { /* long, about as long as may be */
        size_t n = CONTROL_LINE_MAX - 100 + fuzz_below(140);
        add_request();
        while (sent_bytes - from < n) add_text(" ");
    } else {
        add_request();
    }
    if (fuzz_one_in(2)) spoil(from);
    add_text(fuzz_one_in(10) ? "\r\n" : "\n");
}

/* ---- what must come out ---- */

/* Replies to all that was sent; *closed: one line was too long, and the rest is not answered. */
static unsigned expected(bool *closed)
{
    unsigned n = 0;
    size_t at = 0;
    *closed = false;
    while (at < sent_bytes) {
        const char *end = memchr(sent + at, '\n', sent_bytes - at);
        size_t len = end ? (size_t)(end - (sent + at)) : sent_bytes - at;
        bool blank = !len || (len == 1 && sent[at] == '\r');
        n += !blank;
        if (len > CONTROL_LINE_MAX) {
            *closed = true;
            return n;
        }
        at += len + 1;
    }
    return n;
}

struct replies {
    char line[200000];
    size_t bytes;
    unsigned returns, errors, events;
};

static void take_reply(struct replies *r)
{
    r->line[r->bytes] = 0;
    fuzz_check(strlen(r->line) == r->bytes);
    cJSON *o = cJSON_ParseWithOpts(r->line, NULL, true);
    fuzz_check(cJSON_IsObject(o));
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(o, "error");
    if (error) {
        const char *class = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(error, "class"));
        const char *message = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(error, "message"));
        bool known = false;
        fuzz_check(class && message && *message);
        for (unsigned i = 0; i < control_nerrors; i++) known |= !strcmp(control_errors[i].name, class);
        fuzz_check(known);
    }
    r->errors += error != NULL;
    r->returns += cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(o, "return"));
    r->events += cJSON_IsString(cJSON_GetObjectItemCaseSensitive(o, "event"));
    cJSON_Delete(o);
    r->bytes = 0;
}

/* False: the server has closed. */
static bool take(int fd, struct replies *r)
{
    char data[4096];
    ssize_t n = recv(fd, data, fuzz_below(sizeof(data)) + 1, MSG_DONTWAIT);
    for (ssize_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            take_reply(r);
            continue;
        }
        fuzz_check(r->bytes + 1 < sizeof(r->line));
        r->line[r->bytes++] = data[i];
    }
    return n > 0 || (n < 0 && errno == EAGAIN);
}

static void stop(void *ctx)
{
    event_loop_stop(ctx);
}

static void turn(void)
{
    struct nerr e;
    uint64_t t = ticket;
    if (t && fuzz_one_in(4)) {
        ticket = 0; /* the next one may come from inside */
        nerr_set(&e, -EIO, "later");
        control_answer(server, t, fuzz_one_in(2) ? -EIO : 0, cJSON_CreateObject(), &e);
    }
    event_timer_arm(&timer, clock_mono_ns() + 20000, 0); /* a post would come before the sockets, every time */
    fuzz_check(event_loop_run(loop, &e) == 0);
}

void fuzz_case(void)
{
    static struct replies r;
    struct nerr e;
    bool closed, open = true;
    int fd[2];
    sent = malloc(SENT_MAX);
    sent_bytes = 0;
    executed = 0;
    ticket = 0;
    r = (struct replies){.bytes = 0};
    loop = event_loop_create(&e);
    struct control_config cfg = {.loop = loop, .listener = -1, .name = "fuzz", .version = "0", .execute = execute};
    event_timer_init(&timer, loop, stop, loop);
    fuzz_check(loop && control_start(&cfg, &server, &e) == 0);
    fuzz_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) == 0);
    fuzz_check(control_add_client(server, fd[0], &e) == 0 && control_clients(server) == 1);
    for (uint64_t n = fuzz_below(40) + 1; n--;) add_line();
    if (fuzz_one_in(3)) sent_bytes -= fuzz_below(sent_bytes < 100 ? sent_bytes : 100); /* the last line has no end */
    unsigned want = expected(&closed);
    size_t at = 0;
    while (at < sent_bytes && open) {
        size_t n = fuzz_below(fuzz_one_in(4) ? 20 : 5000) + 1;
        if (n > sent_bytes - at) n = sent_bytes - at;
        ssize_t done = send(fd[1], sent + at, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0 && errno != EAGAIN) break; /* it was told why */
        if (done > 0) at += (size_t)done;
        if (fuzz_one_in(3)) turn();
        if (fuzz_one_in(3)) open = take(fd[1], &r);
    }
    shutdown(fd[1], SHUT_WR);
    for (unsigned i = 0; open && i < 100000; i++) {
        turn();
        open = take(fd[1], &r);
    }
    fuzz_check(!open);
    fuzz_check(!r.bytes);
    fuzz_check(control_clients(server) == 0);
    fuzz_check(r.returns + r.errors == want && r.returns <= executed + want && (closed || at == sent_bytes));
    close(fd[1]);
    control_stop(server);
    event_timer_destroy(&timer);
    event_loop_destroy(loop);
    free(sent);
}
