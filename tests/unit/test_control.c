/* The control socket: requests that are right and wrong in every way, and the server with clients that behave and that don't. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <cjson/cJSON.h>

#include "cli/option_disk.h"
#include "cli/option_net.h"
#include "common/clock.h"
#include "common/event.h"
#include "vmm/control/client.h"
#include "vmm/control/commands.h"
#include "vmm/control/place.h"
#include "vmm/control/server.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct nerr err;

/* ---- the schema ---- */

static void test_schema(void **state)
{
    (void)state;
    struct cli_disks disks = {0};
    assert_true(control_ncommands > 10);
    for (unsigned i = 0; i < control_ncommands; i++) {
        const struct control_command *c = &control_commands[i];
        assert_ptr_equal(control_find(c->name), c); /* no name twice */
        assert_true(c->narguments <= CONTROL_MAX_ARGUMENTS);
        bool own = strcmp(c->name, "events") == 0; /* the server's */
        if (control_carries_out(c->name) == own) fail_msg("%s is in the schema and nobody does it", c->name);
        for (unsigned k = 0; k < c->narguments; k++) {
            const struct control_argument *a = &c->arguments[k];
            assert_ptr_equal(control_find_argument(c, a->name), a);
            assert_true(a->type != CONTROL_CHOICE || a->choices);
            assert_true(a->min <= a->max && a->max <= CONTROL_NUMBER_MAX);
        }
    }
    assert_null(control_find("format-my-disk"));
    /* What disk-add takes, --disk takes as well, and the other way round. */
    const struct control_command *add = control_find("disk-add");
    for (unsigned k = 0; k < add->narguments; k++) {
        const struct control_argument *a = &add->arguments[k];
        for (unsigned i = 0; !i || (a->choices && a->choices[i]); i++) {
            char text[200];
            const char *value = a->choices ? a->choices[i] : a->type == CONTROL_BOOLEAN ? "on" : "7";
            snprintf(text, sizeof(text), strcmp(a->name, "path") ? "file,%s=%s" : "%s=%s", a->name, value);
            if (cli_disk_add(&disks, text, &err)) fail_msg("%s: %s", text, err.text);
            cli_disks_free(&disks);
        }
    }
    unsigned keys = 0;
    for (const char *key; (key = cli_disk_key(keys)); keys++)
        if (!control_find_argument(add, key)) fail_msg("--disk has the key %s, disk-add has no such argument", key);
    assert_int_equal(keys, add->narguments);
    /* And the limits have the command line's names and bases. */
    struct block_limits bl;
    struct net_limits nl;
    unsigned base;
    for (unsigned k = 1; k < control_find("disk-limits")->narguments; k++) {
        const struct control_argument *a = &control_find("disk-limits")->arguments[k];
        assert_non_null(cli_disk_limit(&bl, a->name, &base));
        assert_int_equal(base, a->base);
    }
    for (unsigned k = 1; k < control_find("net-limits")->narguments; k++) {
        const struct control_argument *a = &control_find("net-limits")->arguments[k];
        assert_non_null(cli_net_limit(&nl, a->name, &base));
        assert_int_equal(base, a->base);
    }
}

/* ---- requests ---- */

static int parse(const char *line, struct control_request *q, const char **class)
{
    strcpy(err.text, "");
    return control_request_parse(line, strlen(line), q, class, &err);
}

static void good(const char *line, const char *argument, uint64_t number)
{
    struct control_request q;
    const char *class;
    if (parse(line, &q, &class)) fail_msg("%s: %s", line, err.text);
    if (argument) {
        assert_true(control_value(&q, argument)->given);
        assert_true(control_value(&q, argument)->number == number);
    }
    control_request_free(&q);
}

#define RESIZE(x) "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"disk0\",\"size\":" x "}}"
#define ADD(x) "{\"execute\":\"disk-add\",\"arguments\":{\"path\":\"p\"," x "}}"

static void test_good_requests(void **state)
{
    (void)state;
    struct control_request q;
    const char *class;
    good("{\"execute\":\"status\"}", NULL, 0);
    good(" {\t\"execute\" : \"status\" , \"arguments\" : { } , \"id\" : [1,{\"a\":null}] }\r", NULL, 0);
    good(RESIZE("512"), "size", 512);
    good(RESIZE("1e3"), "size", 1000);
    good(RESIZE("\"20G\""), "size", 20ull << 30);
    good(RESIZE("\"8192T\""), "size", 1ull << 53);
    good(RESIZE("9007199254740992"), "size", 1ull << 53);
    good("{\"execute\":\"net-limits\",\"arguments\":{\"id\":\"net0\",\"avg_in\":\"10M\"}}", "avg_in", 10000000);
    good("{\"execute\":\"net-limits\",\"arguments\":{\"id\":\"net0\",\"burst_in\":\"1m\"}}", "burst_in", 1 << 20);
    assert_int_equal(
        parse(ADD("\"ro\":true,\"discard\":\"off\",\"cache\":\"unsafe\",\"serial\":\"\\u00e9\""), &q, &class), 0);
    assert_true(control_value(&q, "ro")->on && control_value(&q, "discard")->given &&
                !control_value(&q, "discard")->on);
    assert_int_equal(control_value(&q, "cache")->choice, 3);
    assert_string_equal(control_value(&q, "serial")->text, "\xc3\xa9");
    assert_string_equal(control_value(&q, "path")->text, "p");
    assert_false(control_value(&q, "aio")->given);
    assert_null(control_value(&q, "nothing"));
    control_request_free(&q);
    assert_int_equal(parse("{\"execute\":\"status\",\"id\":7}", &q, &class), 0);
    assert_true(q.id && q.id->valuedouble == 7);
    control_request_free(&q);
}

static void test_bad_requests(void **state)
{
    (void)state;
    static const struct {
        const char *class, *line, *says; /* says: part of the message */
    } bad[] = {
        {"syntax", "", "byte 1"},
        {"syntax", "hello", "byte 1"},
        {"syntax", "{\"execute\":\"status\"", "JSON"},
        {"syntax", "{\"execute\":\"status\"}}", "byte 21"},
        {"syntax", "{\"execute\":\"status\"} {}", "JSON"},
        {"syntax", "{\"execute\":\"status\",}", "JSON"},
        {"syntax", "{'execute':'status'}", "JSON"},
        {"syntax", "{\"execute\":\"sta\\u0000tus\"}", "u0000"},
        {"syntax", "{\"execute\":\"\\ud800\"}", "JSON"},
        {"syntax", "{\"execute\":\"st\xff\"}", "UTF-8"},
        {"syntax", "{\"execute\":\"st\xc0\x80\"}", "UTF-8"},
        {"syntax", "{\"execute\":\"st\xed\xa0\x80\"}", "UTF-8"},
        {"syntax", "{\"execute\":\"st\xf4\x90\x80\x80\"}", "UTF-8"},
        {"syntax", "{\"execute\":\"st\xe2\x82\"}", "UTF-8"},
        {"syntax", "{\"execute\":\"st\x01\"}", "control character"},
        {"syntax", "{\"execute\":\"status\",\"execute\":\"quit\"}", "twice"},
        {"syntax", "{\"execute\":\"status\",\"arguments\":{},\"arguments\":{}}", "twice"},
        {"syntax", RESIZE("NaN"), "JSON"},
        {"syntax", RESIZE("Infinity"), "JSON"},
        {"syntax", RESIZE("0x200"), "JSON"},
        {"request", "[]", "no request"},
        {"request", "null", "no request"},
        {"request", "\"status\"", "no request"},
        {"request", "{}", "execute is missing"},
        {"request", "{\"execute\":1}", "execute"},
        {"request", "{\"execute\":null}", "execute"},
        {"request", "{\"execute\":\"status\",\"arguments\":[]}", "arguments"},
        {"request", "{\"execute\":\"status\",\"arguments\":null}", "arguments"},
        {"request", "{\"execute\":\"status\",\"more\":1}", "'more'"},
        {"request", "{\"Execute\":\"status\"}", "'Execute'"},
        {"unknown-command", "{\"execute\":\"\"}", "no command"},
        {"unknown-command", "{\"execute\":\"STATUS\"}", "'STATUS'"},
        {"argument", "{\"execute\":\"status\",\"arguments\":{\"all\":1}}", "'all'"},
        {"argument", "{\"execute\":\"disk-resize\"}", "id is missing"},
        {"argument", "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"disk0\"}}", "size is missing"},
        {"argument", "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"a\",\"id\":\"b\",\"size\":512}}", "twice"},
        {"argument", "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":1,\"size\":512}}", "id is not a text"},
        {"argument", "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"\",\"size\":512}}", "no name"},
        {"argument", "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"../x\",\"size\":512}}", "no name"},
        {"argument",
         "{\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"12345678901234567890123456789012\",\"size\":512}}",
         "no name"},
        {"argument", RESIZE("511"), "from 512"},
        {"argument", RESIZE("0"), "from 512"},
        {"argument", RESIZE("-512"), "-512"},
        {"argument", RESIZE("512.5"), "512.5"},
        {"argument", RESIZE("1e999"), "size"},
        {"argument", RESIZE("-1e999"), "size"},
        {"argument", RESIZE("9007199254740994"), "size"},
        {"argument", RESIZE("18446744073709551616"), "size"},
        {"argument", RESIZE("99999999999999999999999999999999999999999999"), "size"},
        {"argument", RESIZE("\"\""), "size"},
        {"argument", RESIZE("\"G\""), "size"},
        {"argument", RESIZE("\"1GB\""), "1GB"},
        {"argument", RESIZE("\"-1G\""), "-1G"},
        {"argument", RESIZE("\" 1G\""), "size"},
        {"argument", RESIZE("\"16777216T\""), "size"},
        {"argument", RESIZE("\"18446744073709551616\""), "size"},
        {"argument", RESIZE("null"), "not a number"},
        {"argument", RESIZE("true"), "not a number"},
        {"argument", RESIZE("[512]"), "not a number"},
        {"argument", RESIZE("{\"a\":512}"), "not a number"},
        {"argument", ADD("\"ro\":1"), "neither on nor off"},
        {"argument", ADD("\"ro\":\"maybe\""), "neither on nor off"},
        {"argument", ADD("\"cache\":\"huge\""), "unsafe"},
        {"argument", ADD("\"cache\":2"), "not a text"},
        {"argument", ADD("\"serial\":\"123456789012345678901\""), "at most 20"},
        {"argument", ADD("\"serial\":\"a\\nb\""), "control character"},
        {"argument", "{\"execute\":\"disk-add\",\"arguments\":{\"path\":\"\"}}", "empty"},
        {"argument", "{\"execute\":\"disk-add\",\"arguments\":{}}", "path is missing"},
        {"argument", "{\"execute\":\"net-link\",\"arguments\":{\"id\":\"net0\",\"state\":\"sideways\"}}", "down, up"},
    };
    for (unsigned i = 0; i < COUNT(bad); i++) {
        struct control_request q;
        const char *class = "";
        if (!parse(bad[i].line, &q, &class)) fail_msg("taken: %s", bad[i].line);
        if (strcmp(class, bad[i].class) || !strstr(err.text, bad[i].says) || strchr(err.text, '\n'))
            fail_msg("%s: %s: %s", bad[i].line, class, err.text);
        control_request_free(&q);
    }
}

static void test_odd_lines(void **state)
{
    (void)state;
    struct control_request q;
    const char *class;
    char *line = malloc(CONTROL_LINE_MAX + 1);
    /* A NUL in the middle ends nothing. */
    memcpy(line, "{\"execute\":\"quit\"}\0x", 20);
    assert_true(control_request_parse(line, 20, &q, &class, &err) < 0);
    assert_string_equal(class, "syntax");
    control_request_free(&q);
    /* Deep nesting, as a whole and as an id. */
    memset(line, '[', CONTROL_LINE_MAX);
    assert_true(control_request_parse(line, CONTROL_LINE_MAX, &q, &class, &err) < 0);
    control_request_free(&q);
    int n = snprintf(line, CONTROL_LINE_MAX, "{\"execute\":\"status\",\"id\":");
    memset(line + n, '[', 20000);
    memset(line + n + 20000, ']', 20000);
    line[n + 40000] = '}';
    assert_true(control_request_parse(line, (size_t)n + 40001, &q, &class, &err) < 0);
    control_request_free(&q);
    /* The errno's class is one of the schema's. */
    for (int e = 0; e < 140; e++) {
        bool known = false;
        for (unsigned i = 0; i < control_nerrors; i++) known |= !strcmp(control_errors[i].name, control_class(-e));
        assert_true(known);
    }
    free(line);
}

/* ---- the server ---- */

static struct {
    struct event_loop *loop;
    struct control *control;
    unsigned executed;
    char last[64];
    size_t reply_bytes; /* a reply as large as that */
    bool tell;          /* an event, from inside a request */
    bool later;         /* disk-add is not answered at once */
    uint64_t ticket[4];
    unsigned tickets;
} box;

static int execute(void *ctx, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)ctx;
    box.executed++;
    snprintf(box.last, sizeof(box.last), "%s", q->command->name);
    if (box.tell) control_tell(box.control, "paused", NULL);
    if (box.later && strcmp(q->command->name, "disk-add") == 0) {
        box.ticket[box.tickets++ % 4] = q->ticket;
        return CONTROL_LATER;
    }
    if (strcmp(q->command->name, "reset") == 0) return nerr_set(e, -EBUSY, "not now");
    if (box.reply_bytes) {
        char *big = malloc(box.reply_bytes + 1);
        memset(big, 'x', box.reply_bytes);
        big[box.reply_bytes] = 0;
        cJSON_AddStringToObject(reply, "big", big);
        free(big);
    }
    return 0;
}

static int setup(void **state)
{
    (void)state;
    memset(&box, 0, sizeof(box));
    box.loop = event_loop_create(&err);
    struct control_config cfg = {.loop = box.loop, .listener = -1, .name = "box", .version = "1.2", .execute = execute};
    return control_start(&cfg, &box.control, &err);
}

static int teardown(void **state)
{
    (void)state;
    control_stop(box.control);
    event_loop_destroy(box.loop);
    return 0;
}

static void stop_loop(void *ctx)
{
    event_loop_stop(ctx);
}

/* Some turns of the loop, each of which sees what is readable or writable by then: enough for whatever is under way. */
static void turn(void)
{
    struct event_timer timer;
    event_timer_init(&timer, box.loop, stop_loop, box.loop);
    for (unsigned i = 0; i < 40; i++) {
        event_timer_arm(&timer, clock_mono_ns() + 50000, 0);
        assert_int_equal(event_loop_run(box.loop, &err), 0);
    }
    event_timer_destroy(&timer);
}

struct peer {
    int fd;
    char text[1 << 22];
    size_t bytes;
};

static struct peer *connect_peer(int send_buffer)
{
    int fd[2];
    struct peer *p = calloc(1, sizeof(*p));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd), 0);
    if (send_buffer) setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof(send_buffer));
    assert_int_equal(control_add_client(box.control, fd[0], &err), 0);
    p->fd = fd[1];
    return p;
}

static void hang_up(struct peer *p)
{
    if (p->fd >= 0) close(p->fd);
    free(p);
}

static void put(struct peer *p, const char *data, size_t len)
{
    while (len) {
        ssize_t n = send(p->fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            turn();
            continue;
        }
        if (n < 0) return; /* dropped */
        data += n;
        len -= (size_t)n;
    }
    turn();
}

static void puts_to(struct peer *p, const char *line)
{
    put(p, line, strlen(line));
}

/* Everything there is; false at the end of the connection. */
static bool take(struct peer *p)
{
    bool open = true;
    p->bytes = 0;
    for (;;) {
        ssize_t n = recv(p->fd, p->text + p->bytes, sizeof(p->text) - 1 - p->bytes, 0);
        if (n > 0) {
            p->bytes += (size_t)n;
            turn();
            continue;
        }
        open = n < 0 && errno == EAGAIN;
        break;
    }
    p->text[p->bytes] = 0;
    return open;
}

static unsigned lines(const struct peer *p)
{
    unsigned n = 0;
    for (size_t i = 0; i < p->bytes; i++) n += p->text[i] == '\n';
    return n;
}

static void test_dialogue(void **state)
{
    (void)state;
    struct peer *p = connect_peer(0);
    turn();
    assert_true(take(p));
    assert_non_null(strstr(p->text, "{\"nacelle\":\"1.2\",\"protocol\":1,\"name\":\"box\",\"pid\":"));
    puts_to(p, "{\"execute\":\"status\",\"id\":{\"a\":[1,\"b\"]}}\n");
    assert_true(take(p));
    assert_string_equal(p->text, "{\"return\":{},\"id\":{\"a\":[1,\"b\"]}}\n");
    puts_to(p, "{\"execute\":\"reset\",\"id\":3}\n");
    assert_true(take(p));
    assert_string_equal(p->text, "{\"error\":{\"class\":\"busy\",\"message\":\"not now\"},\"id\":3}\n");
    /* A wrong one says so, with its id, and nothing was carried out. */
    unsigned before = box.executed;
    puts_to(
        p,
        "{\"id\":null,\"execute\":\"status\",\"arguments\":{\"x\":1}}\n{\"execute\":5,\"id\":\"q\"}\nnonsense\n\n \r\n\r\n");
    assert_true(take(p));
    assert_int_equal(lines(p), 4);
    assert_non_null(strstr(p->text, "\"argument\""));
    assert_non_null(strstr(p->text, "\"id\":null}"));
    assert_non_null(strstr(p->text, "\"id\":\"q\"}"));
    assert_non_null(strstr(p->text, "\"syntax\""));
    assert_int_equal(box.executed, before);
    /* Byte by byte, and many at once. */
    const char *line = "{\"execute\":\"pause\"}\r\n";
    for (const char *b = line; *b; b++) put(p, b, 1);
    assert_true(take(p));
    assert_string_equal(p->text, "{\"return\":{}}\n");
    char *many = malloc(500 * 24);
    many[0] = 0;
    for (unsigned i = 0; i < 500; i++) strcat(many, "{\"execute\":\"resume\"}\n");
    before = box.executed;
    puts_to(p, many);
    assert_true(take(p));
    assert_int_equal(lines(p), 500);
    assert_int_equal(box.executed - before, 500);
    free(many);
    hang_up(p);
    turn();
    assert_int_equal(control_clients(box.control), 0);
}

/* Messages quote what they don't know, but not all of it: no character is cut in two, and the reply is UTF-8 that JSON readers take. */
static void test_quotes(void **state)
{
    (void)state;
#define EUROS "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac"
    struct peer *p = connect_peer(0);
    turn();
    assert_true(take(p));
    puts_to(p, "{\"execute\":\"" EUROS EUROS "\"}\n");
    assert_true(take(p));
    assert_non_null(
        strstr(p->text, "'" EUROS "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac'"));
    hang_up(p);
    turn();
    static const char *const cleaned[][2] = {
        {"", ""},
        {"plain", "plain"},
        {"\xe2\x82\xac", "\xe2\x82\xac"},
        {"a\xe2\x82", "a"},
        {"\xf0\x9f\x98'b\xff\x80", "'b"},
        {"\xed\xa0\x80\xc3\xa9", "\xc3\xa9"},
    };
    for (unsigned i = 0; i < COUNT(cleaned); i++) {
        char text[16];
        strcpy(text, cleaned[i][0]);
        control_clean_text(text);
        assert_string_equal(text, cleaned[i][1]);
    }
}

static void test_ends(void **state)
{
    (void)state;
    /* Half closed after a line without an end: it is answered. */
    struct peer *p = connect_peer(0);
    puts_to(p, "{\"execute\":\"status\"}\n{\"execute\":\"stats\"}");
    assert_int_equal(box.executed, 1);
    shutdown(p->fd, SHUT_WR);
    turn();
    assert_false(take(p));
    assert_int_equal(lines(p), 3);
    assert_string_equal(box.last, "stats");
    hang_up(p);
    /* Gone at once: what it asked for is done. */
    p = connect_peer(0);
    char *many = malloc(100 * 24);
    many[0] = 0;
    for (unsigned i = 0; i < 100; i++) strcat(many, "{\"execute\":\"resume\"}\n");
    box.executed = 0;
    assert_int_equal(send(p->fd, many, strlen(many), 0), strlen(many));
    hang_up(p);
    turn();
    assert_int_equal(box.executed, 100);
    assert_int_equal(control_clients(box.control), 0);
    free(many);
}

static void test_oversized(void **state)
{
    (void)state;
    char *line = malloc(3 * CONTROL_LINE_MAX);
    /* As long as may be. */
    struct peer *p = connect_peer(0);
    memset(line, ' ', CONTROL_LINE_MAX);
    memcpy(line, "{\"execute\":\"status\"}", 20);
    line[CONTROL_LINE_MAX] = '\n';
    put(p, line, CONTROL_LINE_MAX + 1);
    assert_true(take(p));
    assert_int_equal(lines(p), 2);
    assert_int_equal(box.executed, 1);
    /* One byte longer. */
    memset(line, ' ', 3 * CONTROL_LINE_MAX);
    memcpy(line, "{\"execute\":\"quit\"}", 18);
    line[CONTROL_LINE_MAX + 1] = '\n';
    put(p, line, CONTROL_LINE_MAX + 2);
    assert_false(take(p));
    assert_non_null(strstr(p->text, "longer than 65536"));
    assert_int_equal(box.executed, 1);
    hang_up(p);
    /* Without an end. */
    p = connect_peer(0);
    put(p, line + 20, 3 * CONTROL_LINE_MAX - 20);
    assert_false(take(p));
    assert_non_null(strstr(p->text, "\"syntax\""));
    hang_up(p);
    assert_int_equal(box.executed, 1);
    assert_int_equal(control_clients(box.control), 0);
    free(line);
}

/* Reads no replies: it waits, the others don't, and nothing is lost. */
static void test_deaf(void **state)
{
    (void)state;
    struct peer *deaf = connect_peer(4096), *other = connect_peer(0);
    box.reply_bytes = 50000;
    char many[100 * 24] = "";
    for (unsigned i = 0; i < 60; i++) strcat(many, "{\"execute\":\"resume\"}\n");
    puts_to(deaf, many);
    turn();
    assert_in_range(box.executed, 5, 12); /* 256 KiB of replies, and no more */
    puts_to(other, "{\"execute\":\"status\"}\n");
    assert_true(take(other));
    assert_int_equal(lines(other), 2);
    assert_true(take(deaf));
    assert_int_equal(lines(deaf), 61);
    /* Events that it does not read pile up, and then it goes. */
    box.reply_bytes = 0;
    puts_to(deaf, "{\"execute\":\"events\",\"arguments\":{\"on\":true}}\n");
    for (unsigned i = 0; i < 40000 && control_clients(box.control) == 2; i++) {
        control_tell(box.control, "paused", NULL);
        if (i % 100 == 0) turn();
    }
    turn();
    assert_int_equal(control_clients(box.control), 1);
    assert_false(take(deaf));
    puts_to(other, "{\"execute\":\"status\"}\n");
    assert_true(take(other));
    assert_int_equal(lines(other), 1); /* and has heard of no events */
    hang_up(deaf);
    hang_up(other);
}

static void test_events(void **state)
{
    (void)state;
    struct peer *a = connect_peer(0), *b = connect_peer(0);
    puts_to(a, "{\"execute\":\"events\",\"arguments\":{\"on\":\"on\"}}\n");
    assert_true(take(a));
    assert_non_null(strstr(a->text, "{\"return\":{\"on\":true}}\n"));
    box.tell = true;
    puts_to(a, "{\"execute\":\"pause\"}\n");
    assert_true(take(a));
    assert_int_equal(lines(a), 2);
    assert_non_null(strstr(a->text, "{\"event\":\"paused\",\"time\":"));
    puts_to(b, "{\"execute\":\"pause\"}\n");
    assert_true(take(a));
    assert_int_equal(lines(a), 1);
    assert_true(take(b));
    assert_null(strstr(b->text, "event"));
    box.tell = false;
    cJSON *data = cJSON_CreateObject();
    cJSON_AddNumberToObject(data, "status", 7);
    cJSON_AddStringToObject(data, "more", "of it");
    control_tell(box.control, "ended", data);
    turn();
    assert_true(take(a));
    assert_non_null(strstr(a->text, "\"status\":7,\"more\":\"of it\"}\n"));
    puts_to(a, "{\"execute\":\"events\",\"arguments\":{\"on\":false}}\n");
    assert_true(take(a));
    control_tell(box.control, "paused", NULL);
    turn();
    assert_true(take(a));
    assert_int_equal(a->bytes, 0);
    hang_up(a);
    hang_up(b);
}

static void answer_ticket(unsigned i, int result)
{
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "id", "late");
    if (result) nerr_set(&err, result, "it failed");
    control_answer(box.control, box.ticket[i], result, reply, &err);
    turn();
}

#define LATE "{\"execute\":\"disk-add\",\"arguments\":{\"path\":\"x\"},\"id\":[7]}\n"
#define STATUS "{\"execute\":\"status\"}\n"

/* Answers that come later: the client's own next requests wait, other clients don't. */
static void test_later(void **state)
{
    (void)state;
    struct peer *a = connect_peer(0), *b = connect_peer(0);
    turn();
    assert_true(take(a) && take(b));
    box.later = true;
    puts_to(a, LATE STATUS);
    assert_true(take(a));
    assert_int_equal(a->bytes, 0);
    assert_int_equal(box.executed, 1);
    puts_to(b, STATUS STATUS);
    assert_true(take(b));
    assert_int_equal(lines(b), 2);
    answer_ticket(0, 0);
    assert_true(take(a));
    assert_string_equal(a->text, "{\"return\":{\"id\":\"late\"},\"id\":[7]}\n{\"return\":{}}\n");
    answer_ticket(0, 0); /* nobody waits for it any more */
    assert_true(take(a));
    assert_int_equal(a->bytes, 0);
    /* An error; and events come meanwhile to who listens. */
    puts_to(a, "{\"execute\":\"events\",\"arguments\":{\"on\":true}}\n" LATE);
    control_tell(box.control, "paused", NULL);
    turn();
    assert_true(take(a));
    assert_int_equal(lines(a), 2);
    assert_non_null(strstr(a->text, "\"event\":\"paused\""));
    answer_ticket(1, -EBUSY);
    assert_true(take(a));
    assert_string_equal(a->text, "{\"error\":{\"class\":\"busy\",\"message\":\"it failed\"},\"id\":[7]}\n");
    /* One that has said all it has to say still hears the answer. */
    puts_to(b, LATE STATUS);
    shutdown(b->fd, SHUT_WR);
    turn();
    assert_int_equal(control_clients(box.control), 2);
    answer_ticket(2, 0);
    assert_false(take(b));
    assert_int_equal(lines(b), 2);
    hang_up(b);
    /* One that goes takes up no place meanwhile, costs nothing, and what it had asked for besides is done. */
    box.executed = 0;
    puts_to(a, LATE STATUS STATUS);
    hang_up(a);
    turn();
    assert_int_equal(control_clients(box.control), 0);
    assert_int_equal(box.executed, 1);
    clock_t cpu = clock();
    for (unsigned i = 0; i < 50; i++) turn();
    assert_true(clock() - cpu < CLOCKS_PER_SEC);
    answer_ticket(3, 0);
    assert_int_equal(box.executed, 3);
    /* The end of the server while one waits. */
    a = connect_peer(0);
    puts_to(a, LATE);
    hang_up(a);
    turn();
    a = connect_peer(0);
    puts_to(a, LATE);
    control_stop(box.control);
    struct control_config cfg = {.loop = box.loop, .listener = -1, .name = "box", .version = "1.2", .execute = execute};
    assert_int_equal(control_start(&cfg, &box.control, &err), 0);
    answer_ticket(0, 0);
    hang_up(a);
}

/* ---- places ---- */

static char directory[64];

static void make_directory(void)
{
    strcpy(directory, "/tmp/nacelle-control.XXXXXX");
    assert_non_null(mkdtemp(directory));
    setenv("NACELLE_RUN_DIR", directory, 1);
}

static void remove_directory(void)
{
    char name[128];
    snprintf(name, sizeof(name), "%s/.lock", directory);
    unlink(name);
    if (rmdir(directory)) fail_msg("%s is not empty", directory);
    unsetenv("NACELLE_RUN_DIR");
}

static void count(void *ctx, const char *name, int fd)
{
    (*(unsigned *)ctx)++;
    assert_true(strlen(name) > 0);
    if (fd >= 0) close(fd);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",    ".",   "..",  ".x",       "-x",
        "a/b", "a b", "a\n", "\xc3\xa9", "1234567890123456789012345678901234567890123456789012345678901234"};
    for (unsigned i = 0; i < COUNT(bad); i++) assert_false(control_name_good(bad[i]));
    assert_true(control_name_good("web-1.example_com"));
    assert_true(control_name_good("123456789012345678901234567890123456789012345678901234567890123"));
}

static void test_places(void **state)
{
    (void)state;
    struct control_place a, b;
    struct stat s;
    char path[CONTROL_PATH_MAX];
    unsigned machines = 0, removed;
    make_directory();
    assert_int_equal(control_claim("web", NULL, &a, &err), 0);
    assert_int_equal(stat(a.path, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    /* Alive: refused. */
    assert_int_equal(control_claim("web", NULL, &b, &err), -EEXIST);
    assert_non_null(strstr(err.text, "nacelle ctl web quit"));
    assert_int_equal(control_claim(NULL, NULL, &b, &err), 0);
    assert_int_equal(strncmp(b.name, "vm-", 3), 0);
    struct control_place again;
    assert_int_equal(control_claim(NULL, NULL, &again, &err), 0); /* as from another PID namespace */
    assert_string_not_equal(again.name, b.name);
    control_release(&again);
    control_each(count, &machines, &removed);
    assert_int_equal(machines, 2);
    assert_int_equal(removed, 0);
    assert_int_equal(control_locate("web", path, &err), 0);
    assert_string_equal(path, a.path);
    assert_int_equal(control_locate("nobody", path, &err), -ENOENT);
    assert_int_equal(control_locate("../web", path, &err), 0); /* a path, whatever is there */
    control_release(&b);
    /* Dead: its socket is replaced ... */
    close(a.fd);
    usleep(20000); /* another time of creation */
    assert_int_equal(control_claim("web", NULL, &b, &err), 0);
    a.fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    control_release(&a); /* not its own any more */
    assert_int_equal(stat(b.path, &s), 0);
    /* ... or cleaned. */
    close(b.fd);
    machines = 0;
    control_each(count, &machines, &removed);
    assert_int_equal(machines, 0);
    assert_int_equal(removed, 1);
    assert_int_equal(stat(b.path, &s), -1);
    /* By path. */
    snprintf(path, sizeof(path), "%s/own", directory);
    assert_int_equal(control_claim("web", path, &a, &err), 0);
    assert_int_equal(control_claim("other", path, &b, &err), -EEXIST);
    control_release(&a);
    remove_directory();
}

static void test_bad_places(void **state)
{
    (void)state;
    struct control_place a;
    char path[200];
    make_directory();
    chmod(directory, 0777);
    assert_true(control_claim("web", NULL, &a, &err) < 0);
    assert_non_null(strstr(err.text, "other users"));
    chmod(directory, 0700);
    snprintf(path, sizeof(path), "%s/none/none", directory);
    setenv("NACELLE_RUN_DIR", path, 1);
    assert_true(control_claim("web", NULL, &a, &err) < 0);
    assert_true(a.fd < 0);
    control_release(&a);
    memset(path, 'x', sizeof(path) - 1);
    path[0] = '/';
    path[sizeof(path) - 1] = 0;
    setenv("NACELLE_RUN_DIR", path, 1);
    assert_true(control_claim("web", NULL, &a, &err) < 0 && a.fd < 0);
    setenv("NACELLE_RUN_DIR", directory, 1);
    remove_directory();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schema),
        cmocka_unit_test(test_good_requests),
        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_odd_lines),
        cmocka_unit_test_setup_teardown(test_dialogue, setup, teardown),
        cmocka_unit_test_setup_teardown(test_quotes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oversized, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deaf, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_later, setup, teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_bad_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
