/* nacelle ctl: one command to a running machine. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cli/cli.h"
#include "cli/control_print.h"
#include "common/log.h"
#include "vmm/control/client.h"
#include "vmm/control/place.h"
#include "vmm/control/request.h"
#include "vmm/control/schema.h"

#define DEFAULT_TIMEOUT_MS 30000

/* ---- help ---- */

static void argument_help(const struct control_argument *a, FILE *out)
{
    fprintf(out, "      %c %-11s %s", a->required ? '*' : ' ', a->name, a->meaning);
    if (a->unit) fprintf(out, " (%s)", a->unit);
    for (unsigned i = 0; a->choices && a->choices[i]; i++) fprintf(out, "%s%s", i ? ", " : ": ", a->choices[i]);
    fputc('\n', out);
}

static void ctl_help(FILE *out)
{
    fputs(
        "Usage: nacelle ctl NAME COMMAND [KEY=VALUE]... [--json] [--timeout SECONDS]\n"
        "\n"
        "Sends a command to the running machine NAME (see 'nacelle ps'; with a slash in it, the path of its socket) and prints\n"
        "the reply. Bare words stand for the required arguments in their order: nacelle ctl web disk-resize disk0 20G.\n"
        "Numbers may have K, M, G or T behind them. --json prints the reply as JSON.\n"
        "\n"
        "Commands, with their arguments (*: required):\n",
        out);
    for (unsigned i = 0; i < control_ncommands; i++) {
        const struct control_command *c = &control_commands[i];
        fprintf(out, "\n  %-13s %s\n", c->name, c->summary);
        for (unsigned k = 0; k < c->narguments; k++) argument_help(&c->arguments[k], out);
    }
    fputs(
        "\nExit status: 0, 1 when the machine answers with an error, 2 for wrong use or when there is no such machine.\n",
        out);
}

/* ---- arguments ---- */

struct ctl {
    const char *name;
    const struct control_command *command;
    cJSON *request, *arguments;
    bool json;
    int ms;
};

/* A bare word: a boolean argument of that name, or the next required one. */
static const struct control_argument *meant(const struct ctl *x, const char *word, bool *boolean)
{
    const struct control_argument *a = control_find_argument(x->command, word);
    *boolean = a && a->type == CONTROL_BOOLEAN && !a->required;
    if (*boolean) return a;
    for (unsigned i = 0; i < x->command->narguments; i++) {
        a = &x->command->arguments[i];
        if (a->required && !cJSON_HasObjectItem(x->arguments, a->name)) return a;
    }
    return NULL;
}

static int set(struct ctl *x, const char *key, const char *value, struct nerr *e)
{
    if (cJSON_GetObjectItemCaseSensitive(x->arguments, key))
        return nerr_set(e, -EINVAL, "ctl: %s is given twice; give it once", key);
    return cJSON_AddStringToObject(x->arguments, key, value) ? 0 : nerr_set(e, -ENOMEM, "ctl: out of memory");
}

static int add_argument(struct ctl *x, const char *word, struct nerr *e)
{
    char key[64];
    bool boolean;
    const char *equals = strchr(word, '=');
    size_t n = equals ? (size_t)(equals - word) : 0;
    if (equals && n && n < sizeof(key)) {
        memcpy(key, word, n);
        key[n] = 0;
        if (control_find_argument(x->command, key)) return set(x, key, equals + 1, e);
    }
    const struct control_argument *a = equals ? NULL : meant(x, word, &boolean);
    if (a) return set(x, a->name, boolean ? "on" : word, e);
    return nerr_set(e, -EINVAL, "ctl: %s: '%.60s' is no argument of it; see 'nacelle ctl --help'", x->command->name,
                    word);
}

static int set_timeout(struct ctl *x, const char *text, struct nerr *e)
{
    uint64_t seconds;
    if (!text) return nerr_set(e, -EINVAL, "ctl: --timeout needs seconds");
    int r = cli_parse_number("--timeout", text, 1, 86400, &seconds, e);
    if (!r) x->ms = (int)seconds * 1000;
    return r;
}

static int add_word(struct ctl *x, const char *word, struct nerr *e)
{
    if (!x->name) {
        x->name = word;
        return 0;
    }
    if (x->command) return add_argument(x, word, e);
    x->command = control_find(word);
    return x->command ? 0 : nerr_set(e, -EINVAL, "ctl: there is no command '%.40s'; see 'nacelle ctl --help'", word);
}

/* 1: help was asked for. The request is checked here as the machine will check it, so that wrong use ends with 2. */
static int parse(struct ctl *x, int argc, char **argv, struct nerr *e)
{
    struct control_request q;
    const char *class;
    int r = 0;
    x->request = cJSON_CreateObject();
    x->arguments = cJSON_CreateObject();
    for (int i = 1; i < argc && !r; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return 1;
        if (strcmp(argv[i], "--json") == 0)
            x->json = true;
        else if (strcmp(argv[i], "--timeout") == 0)
            r = set_timeout(x, argv[++i], e);
        else if (argv[i][0] == '-' && argv[i][1] == '-')
            r = nerr_set(e, -EINVAL, "ctl: unknown option %s; see 'nacelle ctl --help'", argv[i]);
        else
            r = add_word(x, argv[i], e);
    }
    if (r) return r;
    if (!x->name)
        return nerr_set(e, -EINVAL, "ctl: which machine? give nacelle ctl NAME COMMAND; 'nacelle ps' lists them");
    if (!x->command) return nerr_set(e, -EINVAL, "ctl: what shall %s do? see 'nacelle ctl --help'", x->name);
    cJSON_AddStringToObject(x->request, "execute", x->command->name);
    cJSON_AddItemToObject(x->request, "arguments", x->arguments);
    char *line = cJSON_PrintUnformatted(x->request);
    if (!line) return nerr_set(e, -ENOMEM, "ctl: out of memory");
    struct nerr why;
    r = control_request_parse(line, strlen(line), &q, &class, &why);
    if (r) nerr_set(e, r, "ctl: %s", why.text);
    control_request_free(&q);
    free(line);
    return r;
}

/* ---- what comes back ---- */

static void print_json(const cJSON *o)
{
    char *text = cJSON_Print(o);
    if (text) puts(text);
    free(text);
}

static int show(const struct ctl *x, const cJSON *reply)
{
    const cJSON *good = cJSON_GetObjectItemCaseSensitive(reply, "return");
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(reply, "error");
    const char *message = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(error, "message"));
    if (x->json) print_json(reply);
    if (good) {
        if (!x->json) cli_print_reply(x->command, good, stdout);
        return 0;
    }
    nc_error("%s: %s", x->name, message ? message : "the machine's reply makes no sense");
    return 1;
}

/* A descriptor that is readable when the machine's process is gone; -1: nothing to wait for. */
static int watch_end(const struct ctl *x, const struct control_link *l)
{
    bool quits = x->command && strcmp(x->command->name, "quit") == 0;
    return quits && l->pid > 0 ? (int)syscall(SYS_pidfd_open, l->pid, 0) : -1;
}

/* So that its name and its disks are free for the next command of a script. */
static void await_end(const struct ctl *x, int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (fd < 0) return;
    if (poll(&p, 1, x->ms) == 0) nc_warn("%s: it has not ended yet", x->name);
}

static int talk(struct ctl *x)
{
    struct control_link l;
    struct nerr e;
    char path[CONTROL_PATH_MAX];
    cJSON *reply = NULL;
    int r = control_locate(x->name, path, &e);
    if (!r) r = control_connect(&l, path, -1, x->ms, &e);
    if (r) {
        nc_error("%s", e.text);
        return r == -ENOENT ? CLI_USAGE_STATUS : 1;
    }
    int end = watch_end(x, &l);
    r = control_ask(&l, x->request, x->ms, &reply, &e);
    int status = 1;
    if (r)
        nc_error("%s: %s", x->name, e.text);
    else
        status = show(x, reply);
    control_disconnect(&l);
    if (!status) await_end(x, end);
    if (end >= 0) close(end);
    cJSON_Delete(reply);
    return status;
}

static int ctl_verb(int argc, char **argv)
{
    struct ctl x = {.ms = DEFAULT_TIMEOUT_MS};
    struct nerr e;
    int status = CLI_USAGE_STATUS;
    int r = parse(&x, argc, argv, &e);
    if (r == 1) {
        ctl_help(stdout);
        status = 0;
    } else if (r) {
        nc_error("%s", e.text);
    } else {
        status = talk(&x);
    }
    if (!x.request || !cJSON_GetObjectItemCaseSensitive(x.request, "arguments")) cJSON_Delete(x.arguments);
    cJSON_Delete(x.request);
    return status;
}

const struct cli_verb cli_ctl = {"ctl", "steer a running machine: nacelle ctl NAME COMMAND", ctl_verb, ctl_help};
