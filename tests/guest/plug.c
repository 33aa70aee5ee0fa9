/* plug [-e ENGINE] [-c CPUS] [-m MIB] [-i INITRD] [-a APPEND] [-d FILE] [-r] KERNEL: boots a guest that plugs its own disks by lines on its console,
 *
 *   @@ADD ID FILE SERIAL    the disk is added
 *   @@REMOVE ID             and asked for
 *   @@AFTER ID              what follows waits until it has gone
 *
 * and says on stderr what became of it, also of disks that the guest ejected by itself: "added ID", "removed ID" (its file is unlocked
 * again: that is tried), "refused ID: why". -d: a disk from the start, "base"; -r: the guest may reboot.
 * Ends with the guest's exit status; 3: a file was still locked. */
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/event.h"
#include "vmm/machine/machine_internal.h"

#define STILL_LOCKED 3
#define MAX_DISKS 64

static const struct engine_ops *const known[] = {&engine_kvm, &engine_soft};

struct plugger {
    struct machine *machine;
    char line[256], queue[8192]; /* the line that comes in; those that wait */
    size_t len;
    bool adding; /* one is on its way in: */
    char new_file[128];
    struct {
        char id[32], file[128];
    } disk[MAX_DISKS];
};

static struct machine_disk description(const char *id, const char *file, const char *serial)
{
    struct machine_disk d = {.block = {.path = file, .discard = true, .format = "raw"}};
    snprintf(d.id, sizeof(d.id), "%s", id);
    snprintf(d.serial, sizeof(d.serial), "%s", serial);
    return d;
}

static void note(struct plugger *p, const char *id, const char *file)
{
    for (unsigned i = 0; i < MAX_DISKS; i++) {
        if (p->disk[i].id[0] && strcmp(p->disk[i].id, id) != 0) continue;
        snprintf(p->disk[i].id, sizeof(p->disk[i].id), "%s", id);
        snprintf(p->disk[i].file, sizeof(p->disk[i].file), "%s", file);
        return;
    }
}

static void go_on(struct plugger *p);

static void gone(void *ctx, const char *id)
{
    struct plugger *p = ctx;
    struct nerr e;
    struct block *b;
    for (unsigned i = 0; i < MAX_DISKS; i++) {
        if (strcmp(p->disk[i].id, id) != 0) continue;
        struct machine_disk d = description(id, p->disk[i].file, "");
        if (block_open(&d.block, machine_loop(p->machine), &b, &e)) {
            fprintf(stderr, "plug: %s was removed: %s\n", id, e.text);
            machine_stop(p->machine, STILL_LOCKED);
            return;
        }
        block_close(b);
    }
    fprintf(stderr, "removed %s\n", id);
    go_on(p);
}

static void added(void *ctx, const char *id, int result, const struct nerr *e)
{
    struct plugger *p = ctx;
    if (result) {
        fprintf(stderr, "refused %s: %s\n", id, e->text);
    } else {
        note(p, id, p->new_file);
        fprintf(stderr, "added %s\n", id);
    }
    p->adding = false;
    go_on(p);
}

/* False: it has to wait. */
static bool command(struct plugger *p, const char *line)
{
    char id[32], file[128], serial[21];
    struct nerr e;
    if (p->adding) return false;
    if (sscanf(line, "@@AFTER %31s", id) == 1) return machine_disk_state(p->machine, id) == MACHINE_DISK_NONE;
    if (sscanf(line, "@@ADD %31s %127s %20s", id, file, serial) == 3) {
        struct machine_disk d = description(id, file, serial);
        if (machine_disk_add(p->machine, &d, added, p, &e)) {
            fprintf(stderr, "refused %s: %s\n", id, e.text);
            return true;
        }
        p->adding = true;
        memcpy(p->new_file, file, sizeof(file));
    } else if (sscanf(line, "@@REMOVE %31s", id) == 1) {
        if (machine_disk_remove(p->machine, id, &e))
            fprintf(stderr, "refused %s: %s\n", id, e.text);
        else
            fprintf(stderr, "asked %s\n", id);
    }
    return true;
}

static void go_on(struct plugger *p)
{
    char *end;
    while ((end = strchr(p->queue, '\n'))) {
        *end = 0;
        bool done = command(p, p->queue);
        *end = '\n';
        if (!done) return;
        memmove(p->queue, end + 1, strlen(end + 1) + 1);
    }
}

/* On the loop's thread. */
static size_t output(void *ctx, const uint8_t *data, size_t len)
{
    struct plugger *p = ctx;
    fwrite(data, 1, len, stdout);
    fflush(stdout);
    for (size_t i = 0; i < len; i++) {
        if (data[i] != '\n' && data[i] != '\r') {
            if (p->len < sizeof(p->line) - 1) p->line[p->len++] = (char)data[i];
            continue;
        }
        p->line[p->len] = 0;
        p->len = 0;
        size_t used = strlen(p->queue);
        if (p->line[0] == '@') snprintf(p->queue + used, sizeof(p->queue) - used, "%s\n", p->line);
        go_on(p);
    }
    return len;
}

static int usage(void)
{
    fputs("usage: plug [-e ENGINE] [-c CPUS] [-m MIB] [-i INITRD] [-a APPEND] [-d FILE] [-r] KERNEL\n", stderr);
    return 2;
}

static const struct engine_ops *find_engine(const char *name)
{
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(known[i]->name, name) == 0) return known[i];
    return NULL;
}

int main(int argc, char **argv)
{
    static struct plugger p;
    struct machine_disk base;
    struct machine_config c = {.memory = 256ull << 20,
                               .cpus = 1,
                               .engine = &engine_soft,
                               .no_reboot = true,
                               .debug_exit_port = MACHINE_NO_DEBUG_EXIT};
    struct nerr e;
    int opt;
    while ((opt = getopt(argc, argv, "e:c:m:i:a:d:r")) != -1) {
        switch (opt) {
        case 'e': c.engine = find_engine(optarg); break;
        case 'c': c.cpus = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'm': c.memory = strtoull(optarg, NULL, 10) << 20; break;
        case 'i': c.initrd = optarg; break;
        case 'a': c.append = optarg; break;
        case 'd':
            base = description("base", optarg, "base");
            note(&p, "base", optarg);
            c.disks = &base;
            c.ndisks = 1;
            break;
        case 'r': c.no_reboot = false; break;
        default: return usage();
        }
    }
    if (argc - optind != 1 || !c.engine) return usage();
    c.kernel = argv[optind];
    c.console = (struct machine_console){.ctx = &p, .output = output};
    signal(SIGPIPE, SIG_IGN);
    if (machine_create(&c, &p.machine, &e)) {
        fprintf(stderr, "plug: %s\n", e.text);
        return 2;
    }
    machine_disk_observe(p.machine, gone, NULL, &p);
    int status = machine_run(p.machine);
    machine_destroy(p.machine);
    return status;
}
