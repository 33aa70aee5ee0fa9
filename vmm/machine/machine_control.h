/* What can be asked of a machine while it runs: stop and go, its disks and NICs, what it is made of. For the control socket, and for an agent.
 *
 * Threads: all of this on the event loop's thread, from inside machine_run(). Strings that come back live as long as the machine (or the device). */
#ifndef NACELLE_VMM_MACHINE_CONTROL_H
#define NACELLE_VMM_MACHINE_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/backend/block.h"
#include "vmm/backend/net.h"

struct machine;

/* Stops all vCPUs and the guest's time: its TSC, paravirtual clock, APIC timers, PIT and ACPI timer go on where they stopped; the real-time
 * clock goes on all the while. Disk requests in flight are finished first (*disks_idle: all of them were, within 2 s); frames for the guest
 * wait as when it has no room. Pausing what is paused does nothing. -EBUSY: it is being reset or stopped. */
int machine_pause(struct machine *m, bool *disks_idle, struct nerr *e);
/* Resuming what runs does nothing. */
int machine_resume(struct machine *m, struct nerr *e);

struct machine_info {
    const char *name, *engine, *state; /* state: "running", "paused", "resetting", "starting", "ended" */
    unsigned cpus;
    uint64_t memory;               /* bytes */
    uint64_t uptime_ns, paused_ns; /* since machine_run(), and how much of it paused */
    uint64_t cpu_ns;               /* of the whole process */
    uint64_t resets;
};
void machine_info(const struct machine *m, struct machine_info *out);

struct machine_disk_info {
    const char *id, *model; /* "virtio" or "ahci" */
    bool leaving;           /* the guest has been asked to let it go */
    struct block_info block;
    struct block_limits limits;
    struct block_stats stats;
    struct block_error error; /* the last one */
};
struct machine_nic_info {
    const char *id, *model; /* "virtio" or "e1000" */
    struct net_info net;
    struct net_limits limits;
    struct net_stats stats;
};
/* The n-th disk or NIC; false when there are fewer. */
bool machine_disk_info(const struct machine *m, unsigned n, struct machine_disk_info *out);
bool machine_nic_info(const struct machine *m, unsigned n, struct machine_nic_info *out);

/* By id. -ENOENT: there is no such device; the message names those there are. */
int machine_disk_find(const struct machine *m, const char *id, struct machine_disk_info *out, struct nerr *e);
int machine_nic_find(const struct machine *m, const char *id, struct machine_nic_info *out, struct nerr *e);
/* Grows a file, or takes over a block device's new size, and tells the guest. */
int machine_disk_resize(struct machine *m, const char *id, uint64_t bytes, struct nerr *e);
/* All of them: what is 0 is without a limit. */
int machine_disk_limits(struct machine *m, const char *id, const struct block_limits *l, struct nerr *e);
int machine_nic_limits(struct machine *m, const char *id, const struct net_limits *l, struct nerr *e);
/* Plugs the cable in or pulls it. */
int machine_nic_link(struct machine *m, const char *id, bool up, struct nerr *e);

enum machine_event { MACHINE_EVENT_PAUSED, MACHINE_EVENT_RESUMED, MACHINE_EVENT_RESET };
/* One listener, called on the loop's thread after the fact; NULL: none. */
void machine_listen(struct machine *m, void (*fn)(void *ctx, enum machine_event event), void *ctx);

#endif
