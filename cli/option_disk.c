#include "cli/option_disk.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define OPTION "--disk"

const char cli_disk_help[] =
    "  -d, --disk FILE[,KEY=VALUE]...\n"
    "                         add a disk: an image, a block device, or nbd://HOST[:PORT]/NAME\n"
    "       if=virtio|ahci      paravirtual (default) or an emulated SATA disk\n"
    "       ro                  read-only; several machines may share it\n"
    "       format=raw|qcow2    default: looked at; say raw for images that a guest may fill as it likes\n"
    "       cache=writeback     host's page cache, flushed when the guest flushes (default)\n"
    "       cache=none          past the page cache (O_DIRECT) where possible\n"
    "       cache=writethrough  every write is on stable storage when it completes\n"
    "       cache=unsafe        flushes do nothing: for scratch disks\n"
    "       discard=on|off      hand unused blocks back to the host (default on)\n"
    "       aio=auto|io_uring|threads  auto: io_uring where it is allowed (default)\n"
    "       packed=on|off       offer virtio's packed rings besides split ones (default on)\n"
    "       serial=TEXT, id=NAME  what the guest sees; what nacelle calls it (default disk0 ...)\n"
    "       read_bps= write_bps= total_bps=     bytes per second (K, M, G: powers of 1024)\n"
    "       read_iops= write_iops= total_iops=  operations per second, one per 64 KiB begun\n"
    "                         a comma in a file's name is written twice; path=FILE may stand for FILE\n";

static const struct {
    const char *name;
    size_t at;
    unsigned base;
} limits[] = {
    {"read_bps", offsetof(struct block_limits, read_bps), 1024},
    {"write_bps", offsetof(struct block_limits, write_bps), 1024},
    {"total_bps", offsetof(struct block_limits, total_bps), 1024},
    {"read_iops", offsetof(struct block_limits, read_iops), 1000},
    {"write_iops", offsetof(struct block_limits, write_iops), 1000},
    {"total_iops", offsetof(struct block_limits, total_iops), 1000},
};
#define LIMITS (sizeof(limits) / sizeof(limits[0]))

uint64_t *cli_disk_limit(struct block_limits *l, const char *name, unsigned *base)
{
    for (unsigned i = 0; i < LIMITS; i++)
        if (strcmp(limits[i].name, name) == 0) {
            *base = limits[i].base;
            return (uint64_t *)(void *)((char *)l + limits[i].at);
        }
    return NULL;
}

static int set_model(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    static const char *const words[] = {"virtio", "ahci", NULL};
    unsigned i;
    int r = cli_keyvalue_choice(OPTION, kv, words, &i, e);
    if (!r) d->model = i ? MACHINE_DISK_AHCI : MACHINE_DISK_VIRTIO;
    return r;
}

static int set_cache(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    static const char *const words[] = {"none", "writeback", "writethrough", "unsafe", NULL};
    unsigned i;
    int r = cli_keyvalue_choice(OPTION, kv, words, &i, e);
    if (!r) d->block.cache = (enum block_cache)i;
    return r;
}

static int set_aio(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    static const char *const words[] = {"auto", "io_uring", "threads", NULL};
    unsigned i;
    int r = cli_keyvalue_choice(OPTION, kv, words, &i, e);
    if (!r) d->block.aio = (enum block_aio)i;
    return r;
}

static int set_format(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    static const char *const words[] = {"raw", "qcow2", NULL};
    unsigned i;
    int r = cli_keyvalue_choice(OPTION, kv, words, &i, e);
    if (!r) d->block.format = words[i];
    return r;
}

static int set_serial(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    const char *v;
    int r = cli_keyvalue_text(OPTION, kv, &v, e);
    if (r) return r;
    size_t n = strlen(v);
    bool good = n < sizeof(d->serial);
    for (size_t i = 0; i < n; i++) good &= isprint((unsigned char)v[i]) != 0;
    if (!good)
        return nerr_set(e, -EINVAL, OPTION ": serial=%s is not possible; give at most %zu printable ASCII characters",
                        v, sizeof(d->serial) - 1);
    memcpy(d->serial, v, n + 1);
    return 0;
}

static int set_id(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    return cli_keyvalue_name(OPTION, kv, d->id, sizeof(d->id), e);
}

static int set_path(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    const char *before = d->block.path;
    int r = cli_keyvalue_text(OPTION, kv, &d->block.path, e);
    if (!r && before) r = nerr_set(e, -EINVAL, OPTION ": two files, %s and %s; give one", before, kv->value);
    return r;
}

static int set_ro(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    return cli_keyvalue_bool(OPTION, kv, &d->block.readonly, e);
}

static int set_discard(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    return cli_keyvalue_bool(OPTION, kv, &d->block.discard, e);
}

static int set_packed(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    bool packed;
    int r = cli_keyvalue_bool(OPTION, kv, &packed, e);
    if (!r) d->split_ring = !packed;
    return r;
}

static const struct {
    const char *key;
    int (*set)(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e);
} keys[] = {
    {"path", set_path},     {"if", set_model}, {"ro", set_ro},         {"cache", set_cache},     {"aio", set_aio},
    {"format", set_format}, {"id", set_id},    {"serial", set_serial}, {"discard", set_discard}, {"packed", set_packed},
};

#define KEYS (sizeof(keys) / sizeof(keys[0]))

const char *cli_disk_key(unsigned n)
{
    return n < KEYS ? keys[n].key : n - KEYS < LIMITS ? limits[n - KEYS].name : NULL;
}

static int set_key(struct machine_disk *d, const struct cli_keyvalue *kv, struct nerr *e)
{
    for (unsigned i = 0; i < KEYS; i++)
        if (strcmp(keys[i].key, kv->key) == 0) return keys[i].set(d, kv, e);
    unsigned base;
    uint64_t *limit = cli_disk_limit(&d->block.limits, kv->key, &base);
    if (limit) return cli_keyvalue_count(OPTION, kv, base, limit, e);
    return nerr_set(
        e, -EINVAL,
        OPTION ": unknown key %s; there are path, if, ro, format, cache, discard, aio, packed, serial, id, and limits "
               "such as read_bps (see 'nacelle help run'); a comma in a file's name is ,,",
        kv->key);
}

/* Is the first item a file by itself? Keys are made of letters and '_', so what has another character before its '=' is none, and needs no
 * path= in front. */
static bool bare_file(const struct cli_keyvalue *kv)
{
    if (!kv->value) return strcmp(kv->key, "ro") != 0;
    return kv->key[strspn(kv->key, "abcdefghijklmnopqrstuvwxyz_")] != 0;
}

static int parse(struct cli_disks *all, struct machine_disk *d, struct cli_keyvalues *kv, struct nerr *e)
{
    unsigned first = bare_file(&kv->pair[0]);
    if (first) d->block.path = cli_keyvalue_whole(kv, 0);
    int r = cli_keyvalues_unique(OPTION, kv, NULL, e);
    for (unsigned i = first; i < kv->pairs && !r; i++) r = set_key(d, &kv->pair[i], e);
    if (!r && !d->block.path) r = nerr_set(e, -EINVAL, OPTION ": which file? give " OPTION " path=FILE");
    for (unsigned i = 0; i < all->disks && !r; i++)
        if (strcmp(all->disk[i].id, d->id) == 0)
            r = nerr_set(e, -EINVAL, OPTION ": two disks are called %s; give each its own id=", d->id);
        else if (d->serial[0] && strcmp(all->disk[i].serial, d->serial) == 0)
            r = nerr_set(e, -EINVAL,
                         OPTION ": two disks have the serial %s, which guests know them by; give each its own",
                         d->serial);
    return r;
}

int cli_disk_add(struct cli_disks *all, const char *text, struct nerr *e)
{
    unsigned n = all->disks;
    if (n == MACHINE_MAX_DISKS)
        return nerr_set(e, -EINVAL, OPTION ": %d disks are the most that a machine has", MACHINE_MAX_DISKS);
    struct machine_disk *d = &all->disk[n];
    *d = (struct machine_disk){.block = {.cache = BLOCK_CACHE_WRITEBACK, .discard = true}};
    snprintf(d->id, sizeof(d->id), "disk%u", n);
    int r = cli_keyvalues_parse(OPTION, text, &all->text[n], e);
    if (r) return r;
    r = parse(all, d, &all->text[n], e);
    if (r)
        cli_keyvalues_free(&all->text[n]);
    else
        all->disks++;
    return r;
}

void cli_disks_free(struct cli_disks *d)
{
    for (unsigned i = 0; i < d->disks; i++) cli_keyvalues_free(&d->text[i]);
    d->disks = 0;
}
