/* What a run cost: exits, sleeps, device accesses and the engine's own counters, as a table or as JSON. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "vmm/machine/machine_internal.h"

static const char *const exit_name[EXIT_KINDS] = {
    [VCPU_EXIT_KICKED] = "kicked",     [VCPU_EXIT_IO] = "io",
    [VCPU_EXIT_MMIO] = "mmio",         [VCPU_EXIT_HLT] = "hlt",
    [VCPU_EXIT_SHUTDOWN] = "shutdown", [VCPU_EXIT_FAIL] = "fail",
    [VCPU_EXIT_PAUSE] = "pause",       [VCPU_EXIT_RESET] = "reset",
};

static double seconds(const struct machine *m)
{
    uint64_t end = m->end_ns ? m->end_ns : clock_mono_ns();
    return (double)(end - m->start_ns) / 1e9;
}

static double cpu_seconds(void)
{
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u)) return 0;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Resident bytes of guest RAM. mincore() does not do: it says nothing about anonymous memory's pages alone, but smaps does. */
static void resident(const struct machine *m, uint64_t *guest, uint64_t *all)
{
    char line[256];
    uint64_t start, end, kib;
    bool in_guest = false;
    *guest = *all = 0;
    FILE *f = fopen("/proc/self/smaps", "re");
    if (!f) return;
    while (fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2) {
            in_guest = false;
            for (unsigned i = 0; i < m->memory.slots; i++) {
                uint64_t base = (uintptr_t)m->memory.slot[i].host;
                in_guest |= start >= base && start < base + m->memory.slot[i].size;
            }
        } else if (sscanf(line, "Rss: %" SCNu64 " kB", &kib) == 1) {
            *all += kib * 1024;
            if (in_guest) *guest += kib * 1024;
        }
    }
    fclose(f);
}

static uint64_t accesses(const struct machine *m, enum bus_space space, unsigned region)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < m->cpus; i++) n += m->vcpu[i]->access[space][region];
    return n;
}

static unsigned engine_stats(const struct machine *m, unsigned vcpu, struct engine_stat *s)
{
    return m->ops->stats ? m->ops->stats(m->vcpu[vcpu]->engine_vcpu, s, MACHINE_MAX_ENGINE_STATS) : 0;
}

static void row(FILE *out, const char *name, const uint64_t *value, unsigned n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++) sum += value[i];
    if (sum == 0) return;
    fprintf(out, "  %-24s", name);
    for (unsigned i = 0; i < n; i++) fprintf(out, " %14" PRIu64, value[i]);
    fputc('\n', out);
}

static void print_engine(const struct machine *m, FILE *out)
{
    struct engine_stat s[MACHINE_MAX_CPUS][MACHINE_MAX_ENGINE_STATS];
    uint64_t value[MACHINE_MAX_CPUS];
    unsigned n = 0;
    for (unsigned i = 0; i < m->cpus; i++) n = engine_stats(m, i, s[i]);
    for (unsigned k = 0; k < n; k++) {
        for (unsigned i = 0; i < m->cpus; i++) value[i] = s[i][k].value;
        row(out, s[0][k].name, value, m->cpus);
    }
}

static void print_devices(const struct machine *m, FILE *out)
{
    static const char *const kind[2] = {"port", "mmio"};
    fprintf(out, "accesses by device\n");
    for (unsigned space = 0; space < 2; space++) {
        for (unsigned r = 0; r < m->bus.regions[space]; r++) {
            const struct bus_region *reg = &m->bus.region[space][r];
            uint64_t n = accesses(m, (enum bus_space)space, r);
            if (n) fprintf(out, "  %-24s %14" PRIu64 "  %s 0x%" PRIx64 "\n", reg->name, n, kind[space], reg->base);
        }
        uint64_t none = accesses(m, (enum bus_space)space, BUS_MAX_REGIONS);
        if (none) fprintf(out, "  %-24s %14" PRIu64 "  %s\n", "(nothing there)", none, kind[space]);
    }
}

/* Register accesses that exited and interrupts come from the bus, the rest from the devices (vmm/bus/device_stats.h). */
static const struct {
    const char *name, *json;
    int width;
    size_t offset;
} device_counter[] = {
    {"requests", "requests", 10, offsetof(struct device_stats, requests)},
    {"notified", "notifications", 10, offsetof(struct device_stats, notifications)},
    {"exits", "exits", 10, offsetof(struct device_stats, accesses)},
    {"interrupts", "interrupts", 10, offsetof(struct device_stats, interrupts)},
    {"by irqfd", "irqfd", 10, offsetof(struct device_stats, irqfd)},
    {"bytes in", "bytes_in", 14, offsetof(struct device_stats, bytes_in)},
    {"bytes out", "bytes_out", 14, offsetof(struct device_stats, bytes_out)},
    {"copies", "copies", 10, offsetof(struct device_stats, copies)},
    {"copied", "bytes_copied", 14, offsetof(struct device_stats, copied)},
    {"errors", "errors", 7, offsetof(struct device_stats, errors)},
};
#define DEVICE_COUNTERS (sizeof(device_counter) / sizeof(device_counter[0]))

static uint64_t counter(const struct device_stats *s, unsigned n)
{
    return device_counted((const _Atomic uint64_t *)((const char *)s + device_counter[n].offset));
}

static void print_pci(const struct machine *m, FILE *out)
{
    struct pci_function *f[PCI_SLOTS];
    unsigned n = pci_functions(m->pci, f, PCI_SLOTS);
    if (!n) return;
    fprintf(out, "%-26s", "PCI devices");
    for (unsigned k = 0; k < DEVICE_COUNTERS; k++)
        fprintf(out, " %*s", device_counter[k].width, device_counter[k].name);
    fputc('\n', out);
    for (unsigned i = 0; i < n; i++) {
        const struct device_stats *s = pci_stats(f[i]);
        char name[64];
        snprintf(name, sizeof(name), "%s (%s)", s->name, s->kind);
        fprintf(out, "  %-24s", name);
        for (unsigned k = 0; k < DEVICE_COUNTERS; k++)
            fprintf(out, " %*" PRIu64, device_counter[k].width, counter(s, k));
        fputc('\n', out);
    }
}

void machine_stats_print(struct machine *m, FILE *out)
{
    uint64_t value[MACHINE_MAX_CPUS], guest, all;
    resident(m, &guest, &all);
    fprintf(out, "%s: %s engine, %.3f s wall, %.3f s CPU, status %d, %" PRIu64 " resets\n", m->name, m->ops->name,
            seconds(m), cpu_seconds(), m->status, m->resets);
    fprintf(out, "memory: guest %" PRIu64 " MiB, %" PRIu64 " MiB of it resident; the VMM's own %.1f MiB\n",
            m->memory.ram_size >> 20, guest >> 20, (double)(all - guest) / (1 << 20));
    fprintf(out, "%-26s", "per vCPU");
    for (unsigned i = 0; i < m->cpus; i++) fprintf(out, " %14u", i);
    fputc('\n', out);
    for (unsigned k = 0; k < EXIT_KINDS; k++) {
        char name[32];
        for (unsigned i = 0; i < m->cpus; i++) value[i] = m->vcpu[i]->exits[k];
        snprintf(name, sizeof(name), "exits: %s", exit_name[k]);
        row(out, name, value, m->cpus);
    }
    for (unsigned i = 0; i < m->cpus; i++) value[i] = m->vcpu[i]->sleeps;
    row(out, "sleeps", value, m->cpus);
    for (unsigned i = 0; i < m->cpus; i++) value[i] = m->vcpu[i]->polls;
    row(out, "waits without sleep", value, m->cpus);
    for (unsigned i = 0; i < m->cpus; i++) value[i] = m->vcpu[i]->sleep_ns / 1000000;
    row(out, "asleep, ms", value, m->cpus);
    print_engine(m, out);
    print_devices(m, out);
    print_pci(m, out);
}

static cJSON *json_vcpu(const struct machine *m, unsigned i)
{
    const struct machine_vcpu *v = m->vcpu[i];
    struct engine_stat s[MACHINE_MAX_ENGINE_STATS];
    cJSON *o = cJSON_CreateObject(), *x = cJSON_AddObjectToObject(o, "exits");
    for (unsigned k = 0; k < EXIT_KINDS; k++) cJSON_AddNumberToObject(x, exit_name[k], (double)v->exits[k]);
    cJSON_AddNumberToObject(o, "sleeps", (double)v->sleeps);
    cJSON_AddNumberToObject(o, "polls", (double)v->polls);
    cJSON_AddNumberToObject(o, "sleep_seconds", (double)v->sleep_ns / 1e9);
    cJSON *g = cJSON_AddObjectToObject(o, "engine");
    unsigned n = engine_stats(m, i, s);
    for (unsigned k = 0; k < n; k++) cJSON_AddNumberToObject(g, s[k].name, (double)s[k].value);
    return o;
}

static cJSON *json_devices(const struct machine *m)
{
    cJSON *list = cJSON_CreateArray();
    for (unsigned space = 0; space < 2; space++)
        for (unsigned r = 0; r < m->bus.regions[space]; r++) {
            const struct bus_region *reg = &m->bus.region[space][r];
            uint64_t n = accesses(m, (enum bus_space)space, r);
            if (!n) continue;
            cJSON *o = cJSON_CreateObject();
            cJSON_AddStringToObject(o, "name", reg->name);
            cJSON_AddStringToObject(o, "space", space == BUS_PIO ? "port" : "mmio");
            cJSON_AddNumberToObject(o, "base", (double)reg->base);
            cJSON_AddNumberToObject(o, "accesses", (double)n);
            cJSON_AddItemToArray(list, o);
        }
    return list;
}

static cJSON *json_pci(const struct machine *m)
{
    struct pci_function *f[PCI_SLOTS];
    unsigned n = pci_functions(m->pci, f, PCI_SLOTS);
    cJSON *list = cJSON_CreateArray();
    for (unsigned i = 0; i < n; i++) {
        const struct device_stats *s = pci_stats(f[i]);
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "name", s->name);
        cJSON_AddStringToObject(o, "kind", s->kind);
        cJSON_AddNumberToObject(o, "slot", pci_slot(f[i]));
        for (unsigned k = 0; k < DEVICE_COUNTERS; k++)
            cJSON_AddNumberToObject(o, device_counter[k].json, (double)counter(s, k));
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

static cJSON *json_all(const struct machine *m)
{
    uint64_t guest, all;
    cJSON *o = cJSON_CreateObject();
    resident(m, &guest, &all);
    cJSON_AddStringToObject(o, "name", m->name);
    cJSON_AddStringToObject(o, "engine", m->ops->name);
    cJSON_AddNumberToObject(o, "status", m->status);
    cJSON_AddNumberToObject(o, "wall_seconds", seconds(m));
    cJSON_AddNumberToObject(o, "cpu_seconds", cpu_seconds());
    cJSON_AddNumberToObject(o, "resets", (double)m->resets);
    cJSON_AddNumberToObject(o, "guest_memory", (double)m->memory.ram_size);
    cJSON_AddNumberToObject(o, "guest_resident", (double)guest);
    cJSON_AddNumberToObject(o, "vmm_resident", (double)(all - guest));
    cJSON *list = cJSON_AddArrayToObject(o, "vcpus");
    for (unsigned i = 0; i < m->cpus; i++) cJSON_AddItemToArray(list, json_vcpu(m, i));
    cJSON_AddItemToObject(o, "devices", json_devices(m));
    cJSON_AddItemToObject(o, "pci", json_pci(m));
    return o;
}

cJSON *machine_stats_object(struct machine *m, struct nerr *e)
{
    /* Counters belong to the vCPUs' threads. While these are parked already nothing counts. */
    bool runs = machine_state(m) == MACHINE_RUNNING;
    if (runs && machine_park(m, e)) return NULL;
    cJSON *o = json_all(m);
    if (runs) machine_unpark(m);
    if (!o) nerr_set(e, -ENOMEM, "stats: out of memory");
    return o;
}

int machine_stats_json(struct machine *m, const char *path, struct nerr *e)
{
    cJSON *o = json_all(m);
    char *text = cJSON_Print(o);
    cJSON_Delete(o);
    if (!text) return nerr_set(e, -ENOMEM, "--stats: out of memory");
    /* Non-blocking is for opening: a pipe that nobody reads is an error. Then a reader has the time that it takes. */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    int r = f ? 0 : -errno;
    if (fd >= 0 && !f) close(fd);
    if (f) {
        if (fprintf(f, "%s\n", text) < 0) r = -EIO;
        if (fclose(f) && !r) r = -errno;
    }
    free(text);
    if (r == -ENXIO) return nerr_set(e, r, "--stats: nobody reads the pipe %s; the statistics are lost", path);
    return r ? nerr_set(e, r, "--stats: cannot write %s: %s; the statistics are lost", path, strerror(-r)) : 0;
}
