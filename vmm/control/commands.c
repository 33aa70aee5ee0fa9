#include "vmm/control/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "vmm/control/server.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/machine_control.h"

typedef int command_fn(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e);

static const char *text_of(const struct control_request *q, const char *name)
{
    return control_value(q, name)->text;
}

static double seconds(uint64_t ns)
{
    uint64_t ms = ns / 1000000;
    return (double)ms / 1e3;
}

/* ---- limits ---- */

struct limit {
    const char *name;
    uint64_t *value;
};

static unsigned disk_limits_of(struct block_limits *l, struct limit out[6])
{
    const struct limit all[6] = {{"read_bps", &l->read_bps},     {"write_bps", &l->write_bps},
                                 {"total_bps", &l->total_bps},   {"read_iops", &l->read_iops},
                                 {"write_iops", &l->write_iops}, {"total_iops", &l->total_iops}};
    memcpy(out, all, sizeof(all));
    return 6;
}

static unsigned nic_limits_of(struct net_limits *l, struct limit out[6])
{
    const struct limit all[6] = {{"avg_in", &l->avg_in},   {"peak_in", &l->peak_in},   {"burst_in", &l->burst_in},
                                 {"avg_out", &l->avg_out}, {"peak_out", &l->peak_out}, {"burst_out", &l->burst_out}};
    memcpy(out, all, sizeof(all));
    return 6;
}

/* True when any was given. */
static bool take_limits(const struct control_request *q, const struct limit *l, unsigned n)
{
    bool any = false;
    for (unsigned i = 0; i < n; i++) {
        const struct control_value *v = control_value(q, l[i].name);
        if (!v->given) continue;
        *l[i].value = v->number;
        any = true;
    }
    return any;
}

static void show_limits(cJSON *reply, const struct limit *l, unsigned n)
{
    cJSON *o = cJSON_AddObjectToObject(reply, "limits");
    for (unsigned i = 0; i < n; i++)
        if (*l[i].value) cJSON_AddNumberToObject(o, l[i].name, (double)*l[i].value);
}

/* ---- the machine ---- */

static void show_error(cJSON *disk, const struct block_error *error)
{
    struct nerr text;
    nerr_set(&text, 0, "%s of %llu bytes at %llu: %s", block_op_name(error->op), (unsigned long long)error->length,
             (unsigned long long)error->offset, strerror(-error->error));
    cJSON_AddStringToObject(disk, "last_error", text.text);
}

static void show_disk(cJSON *list, struct machine_disk_info *d)
{
    struct limit l[6];
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "id", d->id);
    cJSON_AddStringToObject(o, "model", d->model);
    cJSON_AddStringToObject(o, "state", d->leaving ? "leaving" : "plugged");
    cJSON_AddStringToObject(o, "format", d->block.format ? d->block.format : "raw");
    cJSON_AddNumberToObject(o, "size", (double)d->block.size);
    cJSON_AddBoolToObject(o, "readonly", d->block.readonly);
    cJSON_AddNumberToObject(o, "read", (double)d->stats.bytes[BLOCK_READ]);
    cJSON_AddNumberToObject(o, "written", (double)d->stats.bytes[BLOCK_WRITE]);
    cJSON_AddNumberToObject(o, "errors", (double)d->stats.errors);
    show_limits(o, l, disk_limits_of(&d->limits, l));
    if (d->error.count) show_error(o, &d->error);
    cJSON_AddItemToArray(list, o);
}

static void show_nic(cJSON *list, struct machine_nic_info *n)
{
    struct limit l[6];
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "id", n->id);
    cJSON_AddStringToObject(o, "model", n->model);
    cJSON_AddStringToObject(o, "kind", n->net.kind);
    cJSON_AddStringToObject(o, "link", n->net.link ? "up" : "down");
    cJSON_AddNumberToObject(o, "in", (double)n->stats.bytes[0]);
    cJSON_AddNumberToObject(o, "out", (double)n->stats.bytes[1]);
    cJSON_AddNumberToObject(o, "dropped", (double)(n->stats.dropped[0] + n->stats.dropped[1]));
    show_limits(o, l, nic_limits_of(&n->limits, l));
    cJSON_AddItemToArray(list, o);
}

static int status(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    struct machine_info i;
    struct machine_disk_info d;
    struct machine_nic_info nic;
    (void)q, (void)e;
    machine_info(x->machine, &i);
    cJSON_AddStringToObject(reply, "name", x->name);
    cJSON_AddNumberToObject(reply, "pid", getpid());
    cJSON_AddStringToObject(reply, "state", i.state);
    cJSON_AddStringToObject(reply, "engine", i.engine);
    cJSON_AddNumberToObject(reply, "cpus", i.cpus);
    cJSON_AddNumberToObject(reply, "memory", (double)i.memory);
    cJSON_AddNumberToObject(reply, "uptime", seconds(i.uptime_ns));
    cJSON_AddNumberToObject(reply, "paused", seconds(i.paused_ns));
    cJSON_AddNumberToObject(reply, "cpu_time", seconds(i.cpu_ns));
    cJSON_AddNumberToObject(reply, "resets", (double)i.resets);
    cJSON *disks = cJSON_AddArrayToObject(reply, "disks");
    for (unsigned n = 0; machine_disk_info(x->machine, n, &d); n++) show_disk(disks, &d);
    cJSON *nics = cJSON_AddArrayToObject(reply, "nics");
    for (unsigned n = 0; machine_nic_info(x->machine, n, &nic); n++) show_nic(nics, &nic);
    return 0;
}

static void show_state(const struct control_machine *x, cJSON *reply)
{
    struct machine_info i;
    machine_info(x->machine, &i);
    cJSON_AddStringToObject(reply, "state", i.state);
}

static int pause_machine(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    bool idle;
    (void)q;
    int r = machine_pause(x->machine, &idle, e);
    if (r) return r;
    show_state(x, reply);
    cJSON_AddBoolToObject(reply, "disks_idle", idle);
    return 0;
}

static int resume(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)q;
    int r = machine_resume(x->machine, e);
    if (!r) show_state(x, reply);
    return r;
}

static int power_button(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)q, (void)reply, (void)e;
    machine_power_button(x->machine);
    return 0;
}

static int reset(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)q, (void)reply, (void)e;
    machine_reset(x->machine);
    return 0;
}

static int quit(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)q, (void)reply, (void)e;
    machine_stop(x->machine, MACHINE_EXIT_OK);
    return 0;
}

static int stats(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    (void)q;
    cJSON *o = machine_stats_object(x->machine, e), *v;
    if (!o) return -EBUSY;
    while ((v = cJSON_DetachItemFromArray(o, 0)))
        cJSON_AddItemToArray(reply, v); /* under the name that it has already */
    cJSON_Delete(o);
    return 0;
}

/* ---- disks ---- */

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from ? from : "");
}

static int check_serial(const char *serial, struct nerr *e)
{
    for (const char *p = serial; *p; p++)
        if ((unsigned char)*p > 0x7e) return nerr_set(e, -EINVAL, "disk-add: serial has a character that is not ASCII");
    return 0;
}

/* A disk-add that is to be answered. */
struct adding {
    struct control *server;
    uint64_t ticket;
};

static void added(void *ctx, const char *id, int result, const struct nerr *e)
{
    struct adding *a = ctx;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "id", id);
    control_answer(a->server, a->ticket, result, reply, e);
    free(a);
}

static int add_later(const struct control_machine *x, const struct control_request *q, const struct machine_disk *d,
                     struct nerr *e)
{
    struct adding *a = malloc(sizeof(*a));
    if (!a) return nerr_set(e, -ENOMEM, "disk-add: out of memory");
    *a = (struct adding){.server = x->server, .ticket = q->ticket};
    int r = machine_disk_add(x->machine, d, added, a, e);
    if (!r) return CONTROL_LATER;
    free(a);
    return r;
}

static int disk_add(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    static const enum block_aio aio[] = {BLOCK_AIO_AUTO, BLOCK_AIO_URING, BLOCK_AIO_THREADS};
    static const enum block_cache cache[] = {BLOCK_CACHE_NONE, BLOCK_CACHE_WRITEBACK, BLOCK_CACHE_WRITETHROUGH,
                                             BLOCK_CACHE_UNSAFE}; /* in the order of the schema */
    struct machine_disk d = {.model = MACHINE_DISK_VIRTIO};
    struct limit l[6];
    const struct control_value *c = control_value(q, "cache"), *discard = control_value(q, "discard");
    const struct control_value *packed = control_value(q, "packed");
    d.block.path = text_of(q, "path");
    d.block.readonly = control_value(q, "ro")->on;
    d.block.format = text_of(q, "format");
    d.block.cache = c->given ? cache[c->choice] : BLOCK_CACHE_WRITEBACK;
    d.block.discard = !discard->given || discard->on;
    d.block.aio = aio[control_value(q, "aio")->choice];
    d.split_ring = packed->given && !packed->on;
    (void)take_limits(q, l, disk_limits_of(&d.block.limits, l));
    copy(d.serial, sizeof(d.serial), text_of(q, "serial"));
    copy(d.id, sizeof(d.id), text_of(q, "id"));
    (void)reply;
    int r = check_serial(d.serial, e);
    return r ? r : add_later(x, q, &d, e);
}

static int disk_remove(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    int r = machine_disk_remove(x->machine, text_of(q, "id"), e);
    if (!r) cJSON_AddStringToObject(reply, "id", text_of(q, "id"));
    return r;
}

static int disk_resize(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    struct machine_disk_info d;
    int r = machine_disk_resize(x->machine, text_of(q, "id"), control_value(q, "size")->number, e);
    if (!r) r = machine_disk_find(x->machine, text_of(q, "id"), &d, e);
    if (r) return r;
    cJSON_AddStringToObject(reply, "id", d.id);
    cJSON_AddNumberToObject(reply, "size", (double)d.block.size);
    return 0;
}

static int disk_limits(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    struct machine_disk_info d;
    struct limit l[6];
    int r = machine_disk_find(x->machine, text_of(q, "id"), &d, e);
    if (r) return r;
    unsigned n = disk_limits_of(&d.limits, l);
    if (take_limits(q, l, n)) r = machine_disk_limits(x->machine, d.id, &d.limits, e);
    if (r) return r;
    cJSON_AddStringToObject(reply, "id", d.id);
    show_limits(reply, l, n);
    return 0;
}

/* ---- NICs ---- */

static int net_link(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    struct machine_nic_info n;
    int r = machine_nic_link(x->machine, text_of(q, "id"), strcmp(text_of(q, "state"), "up") == 0, e);
    if (!r) r = machine_nic_find(x->machine, text_of(q, "id"), &n, e);
    if (r) return r;
    cJSON_AddStringToObject(reply, "id", n.id);
    cJSON_AddStringToObject(reply, "link", n.net.link ? "up" : "down");
    return 0;
}

static int net_limits(const struct control_machine *x, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    struct machine_nic_info nic;
    struct limit l[6];
    int r = machine_nic_find(x->machine, text_of(q, "id"), &nic, e);
    if (r) return r;
    unsigned n = nic_limits_of(&nic.limits, l);
    if (take_limits(q, l, n)) r = machine_nic_limits(x->machine, nic.id, &nic.limits, e);
    if (r) return r;
    cJSON_AddStringToObject(reply, "id", nic.id);
    show_limits(reply, l, n);
    return 0;
}

/* ---- all ---- */

static const struct {
    const char *name;
    command_fn *run;
} commands[] = {
    {"status", status},
    {"pause", pause_machine},
    {"resume", resume},
    {"power-button", power_button},
    {"reset", reset},
    {"quit", quit},
    {"stats", stats},
    {"disk-add", disk_add},
    {"disk-remove", disk_remove},
    {"disk-resize", disk_resize},
    {"disk-limits", disk_limits},
    {"net-link", net_link},
    {"net-limits", net_limits},
};

static command_fn *find(const char *name)
{
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].name, name) == 0) return commands[i].run;
    return NULL;
}

bool control_carries_out(const char *command)
{
    return find(command) != NULL;
}

int control_execute(void *ctx, const struct control_request *q, cJSON *reply, struct nerr *e)
{
    command_fn *run = find(q->command->name);
    if (!run) return nerr_set(e, -ENOSYS, "%s: this machine cannot do that", q->command->name);
    return run(ctx, q, reply, e);
}
