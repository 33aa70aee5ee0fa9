/* The machine: board, vCPU threads, life cycle. It knows nothing of terminals or options; its user (cli/) gives it a
 * configuration and a console, and gets an exit status.
 *
 * Threads: create, run, destroy and the statistics belong to one thread (the main one), which runs the event loop while the
 * machine runs. Functions marked [any] may be called from any thread between create and destroy. */
#ifndef NACELLE_VMM_MACHINE_H
#define NACELLE_VMM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/error.h"
#include "vmm/backend/block.h"
#include "vmm/backend/char.h"
#include "vmm/backend/net.h"
#include "vmm/engine/engine.h"

struct cJSON;
struct event_loop;
struct machine;

/* Exit statuses of a run. With a debug-exit port the guest's own are odd: (v << 1) | 1. */
enum machine_status {
    MACHINE_EXIT_OK = 0,     /* powered off; reset under no_reboot; ended by the user */
    MACHINE_EXIT_HOST = 1,   /* the host failed during the run (memory, event loop) */
    MACHINE_EXIT_USAGE = 2,  /* bad option, file or size, or no resources: nothing was run */
    MACHINE_EXIT_TRIPLE = 4, /* triple fault under no_reboot */
    MACHINE_EXIT_ENGINE = 5, /* the CPU engine failed */
};

enum machine_state {
    MACHINE_CREATED, /* loaded, vCPU threads not started */
    MACHINE_RUNNING,
    MACHINE_RESETTING, /* vCPUs parked while devices and kernel are made new */
    MACHINE_PAUSED,    /* vCPUs parked, the guest's time stands still (machine_control.h) */
    MACHINE_STOPPED,   /* has an exit status */
};

#define MACHINE_MAX_CPUS ENGINE_MAX_VCPUS
#define MACHINE_MIN_MEMORY (2ull << 20) /* bytes */
#define MACHINE_MAX_MEMORY (1ull << 40)
#define MACHINE_NO_DEBUG_EXIT (-1)

struct machine_console {
    void *ctx;
    /* Guest output: takes up to `len` bytes without blocking for long, returns how many. On the loop's thread. */
    size_t (*output)(void *ctx, const uint8_t *data, size_t len);
    /* There is room for input again after machine_serial_input() took less than given. Any thread. May be NULL. */
    void (*room)(void *ctx);
};

#define MACHINE_MAX_DISKS 24
#define MACHINE_MAX_NICS 8

enum machine_disk_model { MACHINE_DISK_VIRTIO, MACHINE_DISK_AHCI };
struct machine_disk {
    struct block_config block;
    enum machine_disk_model model;
    bool split_ring; /* don't offer packed rings; virtio only */
    char id[32];     /* unique among the machine's devices: "disk0" unless the user said */
    char serial[21]; /* at most 20 printable characters; "": made of the id */
};

#define MACHINE_NIC_MAX_QUEUES 8
enum machine_nic_model { MACHINE_NIC_VIRTIO, MACHINE_NIC_E1000 };
struct machine_nic {
    struct net_config net;
    enum machine_nic_model model;
    bool split_ring; /* as with disks */
    unsigned queues; /* pairs of them, 1..MACHINE_NIC_MAX_QUEUES; 0: 1. virtio only */
    char id[32];     /* "net0" unless the user said */
    uint8_t mac[6];  /* all zeros: made of the machine's name and the NIC's number */
};

#define MACHINE_MAX_PORTS 8
struct machine_port { /* a virtio console */
    enum char_kind kind;
    const char *path; /* see struct char_config */
    char id[32];
};

struct machine_vsock {
    uint64_t cid;     /* 3 to 2^32 - 2 */
    const char *path; /* NULL: none */
};

/* All strings are copied or used during machine_create() only, `name` excepted, which must outlive the machine. */
struct machine_config {
    const char *name;   /* for messages and statistics; may be NULL */
    const char *kernel; /* file; never NULL */
    const char *initrd; /* file (multiboot: list), or NULL */
    const char *append; /* command line, or NULL */
    uint64_t memory;    /* bytes, multiple of 4 KiB */
    unsigned cpus;      /* 1..MACHINE_MAX_CPUS */
    const struct engine_ops *engine;
    bool no_reboot;
    int debug_exit_port; /* 0..0xffff, or MACHINE_NO_DEBUG_EXIT */
    struct machine_console console;
    const struct machine_disk *disks; /* copied; the files are opened by machine_create() */
    unsigned ndisks;                  /* 0..MACHINE_MAX_DISKS */
    const struct machine_nic *nics;   /* copied */
    unsigned nnics;                   /* 0..MACHINE_MAX_NICS */
    const struct machine_port *ports; /* copied */
    unsigned nports;                  /* 0..MACHINE_MAX_PORTS */
    struct machine_vsock vsock;
};

/* Checks the configuration, loads the kernel, then creates everything. A failure leaves nothing behind. */
int machine_create(const struct machine_config *cfg, struct machine **out, struct nerr *e);
void machine_destroy(struct machine *m); /* NULL is fine; the machine must not be running */

/* Runs until the guest ends or machine_stop(); the exit status. Registers and reasons of failures go to stderr. */
int machine_run(struct machine *m);
/* [any] Ends the run with `status`; the first call wins. */
void machine_stop(struct machine *m, int status);
/* [any] Starts the guest anew (or ends the run with 0 under no_reboot). */
void machine_reset(struct machine *m);
/* [any] The user pressed the power button. */
void machine_power_button(struct machine *m);
/* [any] Console input; returns how many bytes were taken. */
size_t machine_serial_input(struct machine *m, const uint8_t *data, size_t len);
enum machine_state machine_state(const struct machine *m); /* [any] */
struct event_loop *machine_loop(struct machine *m);
const struct guest_memory *machine_memory(const struct machine *m);

/* ---- disks that come and go (machine_hotplug.c); on the loop's thread ---- */

/* What came of machine_disk_add(): 0, or a negative errno with the message in `e`. On the loop's thread. */
typedef void machine_disk_done(void *ctx, const char *id, int result, const struct nerr *e);
/* Opens and locks the image on a thread of its own, then puts the disk into a free PCI slot: the guest is told, and may use it when `done` (or NULL) is called.
 * That is never from inside this function, after a reset that is under way, and at the end of the run at the latest. `d` is copied, its texts
 * as well; an empty id is made up ("disk3"). The id is taken from now on. Fails with one message and nothing changed, at once or by `done`:
 * -EEXIST (the id is taken), -ENOTSUP (an AHCI disk), -ENOSPC (no free slot), -EBUSY (the machine ends, or its vCPUs do not stop for it), or what
 * opening the image says. */
int machine_disk_add(struct machine *m, const struct machine_disk *d, machine_disk_done *done, void *ctx,
                     struct nerr *e);
/* Asks the guest to let go of a disk, one of its start-up configuration or a later one, and returns at once. When the guest ejects it, its requests end, the
 * image is closed and unlocked, and slot and id are free: the observer hears of that. A guest that never does keeps it until the
 * machine's reset, which takes it away. Asking again is fine. -ENOENT: no such disk; -EBUSY: it is still being opened;
 * -ENOTSUP: it is on the AHCI controller.
 * (A guest may eject a disk that nobody wanted back, too.) */
int machine_disk_remove(struct machine *m, const char *id, struct nerr *e);
enum machine_disk_state {
    MACHINE_DISK_NONE, /* there is none of that name (any more) */
    MACHINE_DISK_HERE,
    MACHINE_DISK_ASKED,   /* the guest has been asked */
    MACHINE_DISK_CLOSING, /* ejected; its last requests end */
};
enum machine_disk_state machine_disk_state(const struct machine *m, const char *id);
/* Who hears, on the loop's thread, that a disk has gone, and that the host has failed some of its requests (at most once a second for a disk);
 * each may be NULL. */
void machine_disk_observe(struct machine *m, void (*gone)(void *ctx, const char *id),
                          void (*failed)(void *ctx, const char *id, const struct block_error *error), void *ctx);

/* What the run cost, after machine_run(): a table, or JSON into a file. */
void machine_stats_print(struct machine *m, FILE *out);
int machine_stats_json(struct machine *m, const char *path, struct nerr *e);
/* The same as an object, the caller's to free; NULL when memory ran out, or when vCPUs do not stop for it, as `e` says. While the machine
 * runs: on the loop's thread. */
struct cJSON *machine_stats_object(struct machine *m, struct nerr *e);

#endif
