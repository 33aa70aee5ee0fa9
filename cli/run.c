/* nacelle run: one virtual machine in this process, its console here. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "cli/option_console.h"
#include "cli/option_disk.h"
#include "cli/option_net.h"
#include "common/log.h"
#include "vmm/control/commands.h"
#include "vmm/control/place.h"
#include "vmm/control/server.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/machine_control.h"

#define DEFAULT_MEMORY (512ull << 20)

struct run_options {
    struct machine_config machine;
    struct cli_disks disks;
    struct cli_consoles consoles;
    struct cli_nics nics;
    const char *engine;
    const char *control; /* path of the socket, "none", or NULL: by the name */
    const char *name;    /* NULL: not given */
    bool stats;
    const char *stats_json; /* file, or NULL for the table */
};

enum { OPT_ENGINE = 256, OPT_NO_REBOOT, OPT_DEBUG_EXIT, OPT_STATS, OPT_NAME, OPT_CONSOLE, OPT_VSOCK, OPT_CONTROL };

static const struct option options[] = {
    {"kernel", required_argument, NULL, 'k'},
    {"initrd", required_argument, NULL, 'i'},
    {"append", required_argument, NULL, 'a'},
    {"memory", required_argument, NULL, 'm'},
    {"cpus", required_argument, NULL, 'c'},
    {"disk", required_argument, NULL, 'd'},
    {"net", required_argument, NULL, 'n'},
    {"engine", required_argument, NULL, OPT_ENGINE},
    {"no-reboot", no_argument, NULL, OPT_NO_REBOOT},
    {"debug-exit", required_argument, NULL, OPT_DEBUG_EXIT},
    {"stats", optional_argument, NULL, OPT_STATS},
    {"name", required_argument, NULL, OPT_NAME},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"console", required_argument, NULL, OPT_CONSOLE},
    {"vsock", required_argument, NULL, OPT_VSOCK},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static void run_help(FILE *out)
{
    fputs("Usage: nacelle run -k FILE [options]\n"
          "\n"
          "Starts a virtual machine with its serial console on standard input and output.\n"
          "\n"
          "  -k, --kernel FILE      bzImage, ELF with PVH note, Linux vmlinux, or multiboot kernel\n"
          "  -i, --initrd FILE      initial RAM disk; for multiboot a list 'FILE ARGS,FILE2 ARGS'\n"
          "  -a, --append TEXT      kernel command line\n"
          "  -m, --memory SIZE      guest memory with K, M, G or T (default 512M)\n"
          "  -c, --cpus N           virtual CPUs (default 1)\n",
          out);
    fputs(cli_disk_help, out);
    fputs(cli_net_help, out);
    fputs(cli_console_help, out);
    fputs(
        "      --engine NAME      kvm (the host's hardware virtualization), soft (any host), or\n"
        "                         auto: kvm where it is there and fast, else soft, saying why (default)\n"
        "      --no-reboot        end instead of resetting\n"
        "      --debug-exit PORT  a guest write of V to PORT ends with status (V << 1) | 1\n"
        "      --stats[=json:FILE]  say at the end what the run cost\n"
        "      --name NAME        what nacelle ps and nacelle ctl call the machine (default vm-PID)\n"
        "      --control PATH|none  where its control socket is, or that it has none (default: by the name)\n"
        "  -h, --help             this help\n"
        "\n"
        "On a terminal, Ctrl-A x ends the machine and Ctrl-A h lists the other keys.\n"
        "Exit status: 0 powered off, 1 the host failed, 2 wrong use, 4 triple fault with --no-reboot, 5 engine failure,\n"
        "(V << 1) | 1 by --debug-exit, 128 + N by signal N.\n",
        out);
}

static int set_stats(struct run_options *o, const char *arg, struct nerr *e)
{
    o->stats = true;
    if (!arg) return 0;
    if (strncmp(arg, "json:", 5) != 0 || !arg[5])
        return nerr_set(e, -EINVAL, "--stats: '%s' is unknown; give --stats or --stats=json:FILE", arg);
    o->stats_json = arg + 5;
    return 0;
}

static int set_name(struct run_options *o, const char *name, struct nerr *e)
{
    if (!control_name_good(name))
        return nerr_set(e, -EINVAL,
                        "--name: give 1 to %d letters, digits, '.', '_' or '-', with a letter, digit or '_' first",
                        CONTROL_VM_NAME_MAX);
    o->name = o->machine.name = name;
    return 0;
}

static int bad_option(int got, char **argv, struct nerr *e)
{
    const char *word = argv[optind - 1];
    if (got == ':' && word[0] == '-')
        return nerr_set(e, -EINVAL, "run: %s needs an argument; see 'nacelle help run'", word);
    if (optopt && optopt < 256 && (word[0] != '-' || word[1] != '-'))
        return nerr_set(e, -EINVAL, "run: unknown option -%c; see 'nacelle help run'", optopt);
    if (optopt) /* a long option that is known, with an argument that it does not take */
        return nerr_set(e, -EINVAL, "run: %s takes no argument; see 'nacelle help run'", word);
    return nerr_set(e, -EINVAL, "run: unknown option %s; see 'nacelle help run'", word);
}

/* One option. 1: help was asked for. */
static int set_option(struct run_options *o, int opt, char **argv, struct nerr *e)
{
    uint64_t n;
    int r = 0;
    switch (opt) {
    case 'k': o->machine.kernel = optarg; break;
    case 'i': o->machine.initrd = optarg; break;
    case 'a': o->machine.append = optarg; break;
    case 'm': r = cli_parse_size("--memory", optarg, &o->machine.memory, e); break;
    case 'c':
        r = cli_parse_number("--cpus", optarg, 1, MACHINE_MAX_CPUS, &n, e);
        if (!r) o->machine.cpus = (unsigned)n;
        break;
    case 'd': r = cli_disk_add(&o->disks, optarg, e); break;
    case 'n': r = cli_net_add(&o->nics, optarg, e); break;
    case OPT_ENGINE: o->engine = optarg; break;
    case OPT_NO_REBOOT: o->machine.no_reboot = true; break;
    case OPT_DEBUG_EXIT:
        r = cli_parse_number("--debug-exit", optarg, 1, 0xffff, &n, e);
        if (!r) o->machine.debug_exit_port = (int)n;
        break;
    case OPT_STATS: r = set_stats(o, optarg, e); break;
    case OPT_NAME: r = set_name(o, optarg, e); break;
    case OPT_CONTROL: o->control = optarg; break;
    case OPT_CONSOLE: r = cli_console_add(&o->consoles, optarg, e); break;
    case OPT_VSOCK: r = cli_vsock_set(&o->consoles, &o->machine.vsock, optarg, e); break;
    case 'h': return 1;
    default: return bad_option(opt, argv, e);
    }
    return r;
}

static int parse(struct run_options *o, int argc, char **argv, struct nerr *e)
{
    int opt;
    *o = (struct run_options){
        .machine = {.memory = DEFAULT_MEMORY, .cpus = 1, .debug_exit_port = MACHINE_NO_DEBUG_EXIT, .name = "vm"},
        .engine = "auto"};
    optind = 0; /* glibc: start anew, also in tests that call this more than once */
    opterr = 0;
    while (optopt = 0, (opt = getopt_long(argc, argv, "+:k:i:a:m:c:d:n:h", options, NULL)) != -1) {
        int r = set_option(o, opt, argv, e);
        if (r) return r;
    }
    if (optind < argc)
        return nerr_set(e, -EINVAL, "run: '%s' is one argument too many; see 'nacelle help run'", argv[optind]);
    if (!o->machine.kernel) return nerr_set(e, -EINVAL, "run: no kernel; give --kernel FILE");
    return 0;
}

/* For the run, which takes them by signalfd. Before it and after it they end the process, whatever holds that up. */
static void block_signals(void)
{
    sigset_t set;
    console_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Signals that came too late to end the run are forgotten: it has ended. */
static void unblock_signals(void)
{
    sigset_t set;
    console_signals(&set);
    while (sigtimedwait(&set, NULL, &(struct timespec){0}) > 0) {
    }
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void ignore_signals(void)
{
    signal(SIGPIPE, SIG_IGN); /* a closed standard output is no reason to die */
    signal(SIGXFSZ, SIG_IGN); /* a disk at the file size limit is an I/O error for the guest */
}

/* The statistics file must be writable before the run, not found out to be otherwise after hours. */
static int check_stats_file(const struct run_options *o, struct nerr *e)
{
    struct stat s;
    /* A pipe is not tried: its reader would take the end of that for the end of the statistics. */
    if (!o->stats_json || (stat(o->stats_json, &s) == 0 && S_ISFIFO(s.st_mode))) return 0;
    int fd = open(o->stats_json, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    if (fd < 0)
        return nerr_set(e, -errno, "--stats: cannot write %s: %s; give another file", o->stats_json, strerror(errno));
    close(fd);
    return 0;
}

static void write_stats(const struct run_options *o, struct machine *m)
{
    struct nerr e;
    if (o->stats && !o->stats_json)
        machine_stats_print(m, stderr);
    else if (o->stats && machine_stats_json(m, o->stats_json, &e))
        nc_error("%s", e.text);
}

/* ---- control ---- */

/* Takes the machine's name before anything is made. A host without a place for sockets still runs machines. */
static int claim(const struct run_options *o, struct control_place *place, struct nerr *e)
{
    struct nerr why;
    *place = (struct control_place){.fd = -1};
    if (o->control && strcmp(o->control, "none") == 0) return 0;
    int r = control_claim(o->name, o->control, place, &why);
    if (r == -EEXIST) return nerr_set(e, r, "%s", why.text);
    if (r)
        nc_warn("no control socket: %s; the machine runs without (--control none says that this is meant)", why.text);
    return 0;
}

static void on_machine_event(void *ctx, enum machine_event event)
{
    static const char *const name[] = {
        [MACHINE_EVENT_PAUSED] = "paused", [MACHINE_EVENT_RESUMED] = "resumed", [MACHINE_EVENT_RESET] = "reset"};
    control_tell(ctx, name[event], NULL);
}

static void on_disk_gone(void *ctx, const char *id)
{
    cJSON *data = cJSON_CreateObject();
    cJSON_AddStringToObject(data, "id", id);
    control_tell(ctx, "disk-removed", data);
}

static void on_disk_error(void *ctx, const char *id, const struct block_error *error)
{
    cJSON *data = cJSON_CreateObject();
    cJSON_AddStringToObject(data, "id", id);
    cJSON_AddStringToObject(data, "operation", block_op_name(error->op));
    cJSON_AddStringToObject(data, "reason", strerror(-error->error));
    cJSON_AddNumberToObject(data, "errors", (double)error->count);
    control_tell(ctx, "disk-error", data);
}

static void tell_end(struct control *control, int status)
{
    cJSON *data = cJSON_CreateObject();
    cJSON_AddNumberToObject(data, "status", status);
    control_tell(control, "ended", data);
}

/* Runs the machine with its control socket, if it has one. */
static int run_controlled(struct machine *m, const struct control_place *place, int *status, struct nerr *e)
{
    struct control_machine target = {.machine = m, .name = place->name};
    struct control *control = NULL;
    if (place->fd >= 0) {
        struct control_config cfg = {.loop = machine_loop(m),
                                     .listener = place->fd,
                                     .name = place->name,
                                     .version = cli_version,
                                     .execute = control_execute,
                                     .ctx = &target};
        int r = control_start(&cfg, &control, e);
        if (r) return r;
        target.server = control;
        machine_listen(m, on_machine_event, control);
        machine_disk_observe(m, on_disk_gone, on_disk_error, control);
    }
    *status = machine_run(m);
    machine_listen(m, NULL, NULL);
    machine_disk_observe(m, NULL, NULL, NULL);
    if (control) tell_end(control, *status);
    control_stop(control);
    return 0;
}

static int run_machine(struct run_options *o)
{
    struct console *con = NULL;
    struct machine *m = NULL;
    struct control_place place;
    struct nerr e, why;
    int status = CLI_USAGE_STATUS;
    int r = claim(o, &place, &e);
    if (!r) r = cli_pick_engine(o->engine, &o->machine.engine, &why, &e);
    if (!r) r = console_open(&(struct console_config){.in = STDIN_FILENO, .out = STDOUT_FILENO}, &con, &e);
    if (!r) {
        o->machine.console = (struct machine_console){.ctx = con, .output = console_output, .room = console_room};
        o->machine.disks = o->disks.disk;
        o->machine.ndisks = o->disks.disks;
        o->machine.ports = o->consoles.port;
        o->machine.nports = o->consoles.ports;
        o->machine.nics = o->nics.nic;
        o->machine.nnics = o->nics.n;
        r = machine_create(&o->machine, &m, &e);
    }
    if (!r) r = check_stats_file(o, &e);
    if (!r && why.text[0]) nc_info("%s", why.text);
    if (!r) block_signals();
    if (!r) r = console_attach(con, m, &e);
    if (!r) r = run_controlled(m, &place, &status, &e);
    console_close(con); /* first: what follows is printed on a terminal in its own mode */
    unblock_signals();
    if (r)
        nc_error("%s", e.text);
    else
        write_stats(o, m);
    machine_destroy(m);
    control_release(&place);
    return status;
}

static int run_verb(int argc, char **argv)
{
    struct run_options o;
    struct nerr e;
    int status = CLI_USAGE_STATUS;
    int r = parse(&o, argc, argv, &e);
    if (r == 1) {
        run_help(stdout);
        status = 0;
    } else if (r) {
        nc_error("%s", e.text);
    } else {
        ignore_signals();
        status = run_machine(&o);
    }
    cli_disks_free(&o.disks);
    cli_consoles_free(&o.consoles);
    cli_nics_free(&o.nics);
    return status;
}

const struct cli_verb cli_run = {"run", "start a virtual machine with its console here", run_verb, run_help};
