/* nacelle ps: the machines that run. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "cli/cli.h"
#include "cli/control_print.h"
#include "common/log.h"
#include "vmm/control/client.h"
#include "vmm/control/place.h"

/* A machine that is stopped with a signal, or starting, must not hold up the list. */
#define PATIENCE_MS 2000

static void ps_help(FILE *out)
{
    fputs(
        "Usage: nacelle ps [--json]\n"
        "\n"
        "Lists the running machines of this user, and removes the sockets of those that were killed. CPU% is CPU time by time\n"
        "since the start, as in ps(1). A machine that does not answer has its PID only.\n",
        out);
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static const char *text(const cJSON *o, const char *key)
{
    const char *t = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, key));
    return t ? t : "-";
}

/* Its status, or what little can be said. */
static cJSON *describe(const char *name, int fd)
{
    struct control_link l = {.fd = -1};
    struct nerr e;
    cJSON *o = NULL, *reply = NULL, *request = cJSON_CreateObject();
    cJSON_AddStringToObject(request, "execute", "status");
    if (fd >= 0 && control_connect(&l, name, fd, PATIENCE_MS, &e) == 0 &&
        control_ask(&l, request, PATIENCE_MS, &reply, &e) == 0)
        o = cJSON_DetachItemFromObjectCaseSensitive(reply, "return");
    if (!o) {
        o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "name", name);
        if (l.pid) cJSON_AddNumberToObject(o, "pid", l.pid);
        cJSON_AddStringToObject(o, "state", "no answer");
    }
    control_disconnect(&l);
    cJSON_Delete(reply);
    cJSON_Delete(request);
    return o;
}

static void add(void *ctx, const char *name, int fd)
{
    cJSON_AddItemToArray(ctx, describe(name, fd));
}

static void print_table(const cJSON *list)
{
    const cJSON *o;
    char memory[32], uptime[32];
    int width = 4;
    cJSON_ArrayForEach(o, list)
    {
        if ((int)strlen(text(o, "name")) > width) width = (int)strlen(text(o, "name"));
    }
    printf("%-*s  %7s  %-9s  %-6s  %4s  %9s  %6s  %s\n", width, "NAME", "PID", "STATE", "ENGINE", "CPUS", "MEMORY",
           "CPU%", "UPTIME");
    cJSON_ArrayForEach(o, list)
    {
        double up = number(o, "uptime");
        printf("%-*s  %7.0f  %-9s  %-6s  ", width, text(o, "name"), number(o, "pid"), text(o, "state"),
               text(o, "engine"));
        if (cJSON_HasObjectItem(o, "uptime"))
            printf("%4.0f  %9s  %6.1f  %s\n", number(o, "cpus"), cli_bytes(number(o, "memory"), memory),
                   up > 0 ? number(o, "cpu_time") / up * 100 : 0, cli_seconds(up, uptime));
        else
            printf("%4s  %9s  %6s  %s\n", "-", "-", "-", "-");
    }
}

static int ps_verb(int argc, char **argv)
{
    bool json = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            ps_help(stdout);
            return 0;
        }
        if (strcmp(argv[i], "--json") != 0) {
            nc_error("ps: unknown argument '%s'; see 'nacelle help ps'", argv[i]);
            return CLI_USAGE_STATUS;
        }
        json = true;
    }
    unsigned removed;
    cJSON *list = cJSON_CreateArray();
    control_each(add, list, &removed);
    if (json) {
        char *all = cJSON_Print(list);
        if (all) puts(all);
        free(all);
    } else {
        print_table(list);
    }
    if (removed == 1)
        nc_info("removed the socket of a machine that had been killed");
    else if (removed)
        nc_info("removed the sockets of %u machines that had been killed", removed);
    cJSON_Delete(list);
    return 0;
}

const struct cli_verb cli_ps = {"ps", "list the running machines", ps_verb, ps_help};
