/* nacelle doctor: asks every check, and shows what they found. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/doctor_internal.h"
#include "common/log.h"

/* The order in which people read it: what runs guests, what holds their memory, what does their I/O, what a cluster needs. */
static const struct {
    const char *name;
    doctor_check_fn *check;
} checks[] = {
    {"cpu", doctor_cpu},
    {"kvm", doctor_kvm},
    {"nested-paging", doctor_nested_paging},
    {"nested-kvm", doctor_nested},
    {"huge-pages-2m", doctor_huge_2m},
    {"huge-pages-1g", doctor_huge_1g},
    {"transparent-huge", doctor_thp},
    {"ksm", doctor_ksm},
    {"userfaultfd", doctor_userfaultfd},
    {"numa", doctor_numa},
    {"cgroup", doctor_cgroup},
    {"iommu", doctor_iommu},
    {"vfio", doctor_vfio},
    {"io_uring", doctor_io_uring},
    {"tun", doctor_tun},
    {"vhost-net", doctor_vhost_net},
    {"storage-daemon", doctor_storage_daemon},
    {"etcd", doctor_etcd},
};
#define CHECKS (sizeof(checks) / sizeof(checks[0]))
_Static_assert(CHECKS <= DOCTOR_MAX_FINDINGS, "a report holds every check");

static int open_device(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    close(fd);
    return 0;
}

static int probe_kvm(struct nerr *why)
{
    return engine_kvm.probe(true, why);
}

static int try_userfaultfd(int flags)
{
    long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
    if (fd < 0) return -errno;
    close((int)fd);
    return 0;
}

static int try_io_uring(void)
{
    struct io_uring_params params = {0};
    long fd = syscall(SYS_io_uring_setup, 1, &params);
    if (fd < 0) return -errno;
    close((int)fd);
    return 0;
}

const struct doctor_env doctor_host = {
    .root = "",
    .path = NULL, /* $PATH */
    .probe_kvm = probe_kvm,
    .open_device = open_device,
    .try_userfaultfd = try_userfaultfd,
    .try_io_uring = try_io_uring,
};

void doctor_examine(const struct doctor_env *given, struct doctor_report *report)
{
    struct doctor_env env = *given;
    const char *path = getenv("PATH");
    if (!env.path) env.path = path ? path : "/usr/sbin:/usr/bin:/sbin:/bin";
    report->count = CHECKS;
    for (unsigned i = 0; i < CHECKS; i++) {
        report->finding[i] = (struct doctor_finding){.name = checks[i].name, .facts = cJSON_CreateObject()};
        checks[i].check(&env, &report->finding[i]);
    }
}

void doctor_free(struct doctor_report *report)
{
    for (unsigned i = 0; i < report->count; i++) cJSON_Delete(report->finding[i].facts);
    report->count = 0;
}

const char *doctor_state_name(enum doctor_state state)
{
    static const char *const names[] = {"ok", "limited", "missing"};
    return names[state];
}

static const struct doctor_finding *finding(const struct doctor_report *report, const char *name)
{
    for (unsigned i = 0; i < report->count; i++)
        if (strcmp(report->finding[i].name, name) == 0) return &report->finding[i];
    return NULL;
}

/* What --engine auto takes here. */
static const char *engine(const struct doctor_report *report)
{
    const struct doctor_finding *kvm = finding(report, "kvm");
    return kvm && kvm->state == DOCTOR_OK ? "kvm" : "soft";
}

void doctor_print(const struct doctor_report *report, FILE *out)
{
    unsigned count[3] = {0};
    for (unsigned i = 0; i < report->count; i++) {
        const struct doctor_finding *f = &report->finding[i];
        count[f->state]++;
        fprintf(out, "%-17s %-8s %s\n", f->name, doctor_state_name(f->state), f->found);
        if (f->advice[0]) fprintf(out, "%-17s %-8s -> %s\n", "", "", f->advice);
    }
    fprintf(out, "\nGuests run on the %s engine here. %u ok, %u limited, %u missing.\n", engine(report),
            count[DOCTOR_OK], count[DOCTOR_LIMITED], count[DOCTOR_MISSING]);
}

int doctor_print_json(const struct doctor_report *report, FILE *out)
{
    cJSON *whole = cJSON_CreateObject();
    cJSON_AddStringToObject(whole, "version", cli_version);
    cJSON_AddStringToObject(whole, "engine", engine(report));
    cJSON *list = cJSON_AddArrayToObject(whole, "checks");
    for (unsigned i = 0; i < report->count; i++) {
        const struct doctor_finding *f = &report->finding[i];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", f->name);
        cJSON_AddStringToObject(item, "state", doctor_state_name(f->state));
        cJSON_AddStringToObject(item, "found", f->found);
        if (f->advice[0]) cJSON_AddStringToObject(item, "advice", f->advice);
        cJSON_AddItemReferenceToObject(item, "facts", f->facts);
        cJSON_AddItemToArray(list, item);
    }
    char *text = cJSON_Print(whole);
    cJSON_Delete(whole);
    if (!text) return -1;
    fprintf(out, "%s\n", text);
    cJSON_free(text);
    return 0;
}

static void doctor_help(FILE *out)
{
    fputs("Usage: nacelle doctor [--json]\n"
          "\n"
          "Says what this host offers to virtual machines and what it lacks, each with what to do about it: the\n"
          "processor, KVM and how it pages, huge pages, NUMA nodes, control groups, IOMMU, devices and helper\n"
          "programs. It only looks; nothing is changed.\n"
          "\n"
          "      --json   the same for programs\n"
          "  -h, --help   this help\n"
          "\n"
          "Exit status: 0, whatever is missing; 2 wrong use.\n",
          out);
}

static int doctor_verb(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct doctor_report report;
    bool json = false;
    optind = 0;
    opterr = 0;
    for (int got; (got = getopt_long(argc, argv, "+h", options, NULL)) != -1;) {
        if (got == 'h') {
            doctor_help(stdout);
            return 0;
        }
        if (got != 'j') {
            nc_error("doctor: unknown option '%s'; see 'nacelle help doctor'", argv[optind - 1]);
            return CLI_USAGE_STATUS;
        }
        json = true;
    }
    if (optind < argc) {
        nc_error("doctor: '%s' is too much; see 'nacelle help doctor'", argv[optind]);
        return CLI_USAGE_STATUS;
    }
    doctor_examine(&doctor_host, &report);
    int error = 0;
    if (json)
        error = doctor_print_json(&report, stdout);
    else
        doctor_print(&report, stdout);
    doctor_free(&report);
    if (error) nc_error("doctor: out of memory");
    return error ? 1 : 0;
}

const struct cli_verb cli_doctor = {"doctor", "say what this host offers and lacks", doctor_verb, doctor_help};
