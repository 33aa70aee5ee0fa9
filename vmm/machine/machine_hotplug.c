/* Disks that come and go while the machine runs.
 *
 * A removal has four steps, since a vCPU may be inside the device at any moment: the guest ejects it, on a vCPU's thread, and the bus hides it at once
 * (machine_ejected); on the loop's thread, vCPUs parked, it leaves the bus, and with them running again its requests end
 * (collect); behind whatever it had posted to the loop it is destroyed (end). */
#include <errno.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/machine/machine_internal.h"

/* ---- going ---- */

/* On the loop's thread. */
static void end(void *ctx)
{
    struct machine_device *d = ctx;
    struct machine *m = d->machine;
    char id[sizeof(d->id)];
    memcpy(id, d->id, sizeof(id));
    machine_device_destroy(d);
    if (m->disk_observer.gone) m->disk_observer.gone(m->disk_observer.ctx, id);
}

static bool has_left(const struct machine_device *d)
{
    return d->id[0] && d->function && d->life != MACHINE_DISK_CLOSING && pci_unplugged(d->function);
}

static unsigned leave_bus(struct machine *m, struct machine_device *gone[MACHINE_MAX_DEVICES])
{
    unsigned n = 0;
    for (unsigned i = 0; i < m->devices; i++) {
        struct machine_device *d = &m->device[i];
        if (!has_left(d)) continue;
        platform_slot_empty(m->platform, pci_slot(d->function));
        pci_remove(d->function);
        if (d->life == MACHINE_DISK_HERE) nc_info("disk %s: the guest ejected it", d->id); /* nobody had asked */
        d->life = MACHINE_DISK_CLOSING;
        gone[n++] = d;
    }
    return n;
}

/* Without memory for a post the device stays as it is, out of reach, until the machine's end. */
static void close_all(struct machine *m, struct machine_device **gone, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        pci_quiesce(gone[i]->function);
        if (event_loop_post(m->loop, end, gone[i])) nc_warn("disk %s: out of memory; it stays open", gone[i]->id);
    }
}

/* A vCPU that hangs keeps the disk; each try holds up the loop. */
#define COLLECT_AGAIN_NS 60000000000ull

/* On the loop's thread. When the machine is being reset or stopped, that takes the disk along. */
static void collect(void *ctx)
{
    struct machine *m = ctx;
    struct machine_device *gone[MACHINE_MAX_DEVICES];
    struct nerr e;
    int r = machine_park(m, &e);
    if (r == -EAGAIN) event_timer_arm(&m->collect_again, clock_mono_ns() + COLLECT_AGAIN_NS, 0);
    if (r) return;
    unsigned n = leave_bus(m, gone);
    machine_unpark(m);
    close_all(m, gone, n);
}

void machine_hotplug_init(struct machine *m)
{
    event_timer_init(&m->collect_again, m->loop, collect, m);
}

/* On a vCPU's thread. What a lost post leaves behind, the next ejection or reset takes along. */
void machine_ejected(void *ctx, uint32_t slots)
{
    struct machine *m = ctx;
    bool any = false;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        if (slots >> slot & 1) any |= pci_unplug(m->pci, slot);
    if (any && event_loop_post(m->loop, collect, m)) nc_warn("eject: out of memory");
}

void machine_hotplug_reset(struct machine *m)
{
    struct machine_device *gone[MACHINE_MAX_DEVICES];
    for (unsigned i = 0; i < m->devices; i++)
        if (m->device[i].life == MACHINE_DISK_ASKED) pci_unplug(m->pci, pci_slot(m->device[i].function));
    close_all(m, gone, leave_bus(m, gone));
}

/* ---- what the user asks for ---- */

static void make_up_id(struct machine *m, char id[32])
{
    id[0] = 0;
    for (unsigned i = 0; !id[0] || machine_device_find(m, id); i++) snprintf(id, 32, "disk%u", i);
}

static bool serial_taken(const struct machine *m, const char *serial)
{
    for (unsigned i = 0; i < m->devices && serial[0]; i++)
        if (m->device[i].id[0] && strcmp(m->device[i].serial, serial) == 0) return true;
    return false;
}

static int check(struct machine *m, const struct machine_disk *d, struct nerr *e)
{
    if (d->model != MACHINE_DISK_VIRTIO)
        return nerr_set(e, -ENOTSUP, "disk %s: only virtio disks can be added to a running machine; leave if= out",
                        d->id);
    const struct machine_device *there = machine_device_find(m, d->id);
    if (there && there->opening)
        return nerr_set(e, -EEXIST, "disk %s: a disk of that name is being opened; give another id=", d->id);
    if (there) return nerr_set(e, -EEXIST, "disk %s: there is a device of that name already; give another id=", d->id);
    if (serial_taken(m, d->serial))
        return nerr_set(e, -EEXIST, "disk %s: there is a disk of serial %s already; give another serial=", d->id,
                        d->serial);
    return 0;
}

int machine_plug_in(struct machine *m, const struct machine_disk *disk, struct machine_device *d, struct block *b,
                    struct nerr *e)
{
    int r = block_start(b, e);
    if (!r) r = machine_park(m, e);
    if (r) return r;
    machine_disk_opened(d, b);
    d->opening = false;
    r = machine_virtio_disk_create(m, disk, d, e);
    if (!r) pci_hot_added(d->function);
    machine_unpark(m);
    if (!r) platform_slot_added(m->platform, pci_slot(d->function));
    return r;
}

int machine_disk_add(struct machine *m, const struct machine_disk *wanted, machine_disk_done *done, void *ctx,
                     struct nerr *e)
{
    struct machine_disk disk = *wanted;
    if (!disk.id[0]) make_up_id(m, disk.id);
    int r = check(m, &disk, e);
    if (r) return r;
    struct machine_device *d = machine_device_add(m, disk.id, NULL, NULL);
    if (!d) return nerr_set(e, -ENOSPC, "disk %s: no more devices are possible; remove one first", disk.id);
    d->opening = true;
    memcpy(d->serial, disk.serial, sizeof(d->serial));
    r = machine_open(m, &disk, d, done, ctx, e);
    if (r) *d = (struct machine_device){0};
    return r;
}

int machine_disk_remove(struct machine *m, const char *id, struct nerr *e)
{
    struct machine_device *d = machine_device_find(m, id);
    if (d && d->opening)
        return nerr_set(e, -EBUSY, "disk %s: it is still being opened; remove it when disk-add has answered", id);
    if (!d || !d->block) return nerr_set(e, -ENOENT, "disk %s: there is no disk of that name", id);
    if (!d->function)
        return nerr_set(e, -ENOTSUP, "disk %s: it is on the AHCI controller; only virtio disks can be removed", id);
    if (d->life == MACHINE_DISK_CLOSING) return 0;
    d->life = MACHINE_DISK_ASKED;
    if (machine_state(m) == MACHINE_CREATED)
        machine_hotplug_reset(m);
    else if (!pci_unplugged(d->function))
        platform_slot_ask(m->platform, pci_slot(d->function));
    return 0;
}

enum machine_disk_state machine_disk_state(const struct machine *m, const char *id)
{
    const struct machine_device *d = machine_device_find((struct machine *)m, id);
    if (!d || !d->block) return MACHINE_DISK_NONE;
    return d->function && pci_unplugged(d->function) ? MACHINE_DISK_CLOSING : d->life;
}

void machine_disk_observe(struct machine *m, void (*gone)(void *ctx, const char *id),
                          void (*failed)(void *ctx, const char *id, const struct block_error *error), void *ctx)
{
    m->disk_observer.gone = gone;
    m->disk_observer.failed = failed;
    m->disk_observer.ctx = ctx;
}
