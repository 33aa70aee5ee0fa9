/* move [-c CPUS] [-m MIB] [-i INITRD] [-a APPEND] KERNEL ENGINE ENGINE...: boots a guest on the first engine; each time it writes a line
 * "@@MOVE" on its console the machine goes on with the next engine (after the last comes the first), and the guest gets a
 * byte on its serial line. Ends with the guest's exit status; 3: a move failed. */
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/machine/machine_internal.h"

#define DEBUG_EXIT_PORT 0xf4
#define MOVE_FAILED 3

static const struct engine_ops *const known[] = {&engine_kvm, &engine_soft};

struct mover {
    struct machine *machine;
    const struct engine_ops *engine[16];
    unsigned engines, moves;
    unsigned matched; /* characters of the marker seen so far */
    unsigned owed;    /* bytes that the guest is to get */
};

static const struct engine_ops *find_engine(const char *name)
{
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(known[i]->name, name) == 0) return known[i];
    return NULL;
}

/* The guest may not be listening yet: then room() comes when it is. */
static void answer(void *ctx)
{
    struct mover *mv = ctx;
    if (mv->owed && machine_serial_input(mv->machine, (const uint8_t *)"m", 1)) mv->owed--;
}

static void room(void *ctx)
{
    struct mover *mv = ctx;
    event_loop_post(machine_loop(mv->machine), answer, mv);
}

static void move(void *ctx)
{
    struct mover *mv = ctx;
    struct nerr e;
    const struct engine_ops *from = mv->engine[mv->moves % mv->engines],
                            *to = mv->engine[(mv->moves + 1) % mv->engines];
    uint64_t before = clock_mono_ns();
    if (machine_change_engine(mv->machine, to, &e)) {
        fprintf(stderr, "move: from %s to %s: %s\n", from->name, to->name, e.text);
        machine_stop(mv->machine, MOVE_FAILED);
        return;
    }
    mv->moves++;
    fprintf(stderr, "move %u: %s to %s, %.1f ms\n", mv->moves, from->name, to->name,
            (double)(clock_mono_ns() - before) / 1e6);
    mv->owed++;
    answer(mv);
}

static size_t output(void *ctx, const uint8_t *data, size_t len)
{
    static const char marker[] = "@@MOVE\n";
    struct mover *mv = ctx;
    fwrite(data, 1, len, stdout);
    fflush(stdout);
    for (size_t i = 0; i < len; i++) {
        if (data[i] == '\r') continue;
        if (data[i] != (uint8_t)marker[mv->matched]) mv->matched = 0;
        if (data[i] == (uint8_t)marker[mv->matched]) mv->matched++;
        if (marker[mv->matched]) continue;
        mv->matched = 0;
        event_loop_post(machine_loop(mv->machine), move, mv);
    }
    return len;
}

static int usage(void)
{
    fputs("usage: move [-c CPUS] [-m MIB] [-i INITRD] [-a APPEND] KERNEL ENGINE ENGINE...\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    struct mover mv = {0};
    struct machine_config c = {.memory = 64ull << 20, .cpus = 1, .no_reboot = true, .debug_exit_port = DEBUG_EXIT_PORT};
    struct nerr e;
    int opt;
    while ((opt = getopt(argc, argv, "c:m:i:a:")) != -1) {
        switch (opt) {
        case 'c': c.cpus = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'm': c.memory = strtoull(optarg, NULL, 10) << 20; break;
        case 'i': c.initrd = optarg; break;
        case 'a': c.append = optarg; break;
        default: return usage();
        }
    }
    if (argc - optind < 3 || argc - optind > 17) return usage();
    c.kernel = argv[optind++];
    for (; optind < argc; optind++) {
        mv.engine[mv.engines] = find_engine(argv[optind]);
        if (!mv.engine[mv.engines++]) return usage();
    }
    c.engine = mv.engine[0];
    c.console = (struct machine_console){.ctx = &mv, .output = output, .room = room};
    signal(SIGPIPE, SIG_IGN);
    if (machine_create(&c, &mv.machine, &e)) {
        fprintf(stderr, "move: %s\n", e.text);
        return 2;
    }
    int status = machine_run(mv.machine);
    machine_destroy(mv.machine);
    fprintf(stderr, "move: %u moves, status %d\n", mv.moves, status);
    return status;
}
