/* Private header of vmm/machine. */
#ifndef NACELLE_VMM_MACHINE_INTERNAL_H
#define NACELLE_VMM_MACHINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/event.h"
#include "vmm/boot/boot.h"
#include "vmm/bus/bus.h"
#include "vmm/bus/pci.h"
#include "vmm/irq/irq.h"
#include "vmm/machine/machine.h"
#include "vmm/machine/machine_control.h"
#include "vmm/memory/memory.h"
#include "vmm/platform/platform.h"

/* A vCPU sleeps on its own word: AWAKE -> SLEEPING by itself; anyone -> NOTIFIED. */
enum wake_word { WAKE_NONE = 0, WAKE_NOTIFIED = 1, WAKE_SLEEPING = 2 };

/* INIT and SIPI that arrived, in one word so that their order is never lost: a new INIT drops an older SIPI. */
#define SIGNAL_INIT 0x1u
#define SIGNAL_SIPI 0x2u
#define SIGNAL_VECTOR_SHIFT 8

#define EXIT_KINDS (VCPU_EXIT_RESET + 1)
#define MACHINE_MAX_ENGINE_STATS 64

struct machine_vcpu {
    struct machine *machine;
    unsigned id;
    struct vcpu *engine_vcpu;
    pthread_t thread;
    bool started;
    bool wait_sipi;           /* own thread, or while parked */
    bool load_boot_state;     /* the boot vCPU takes machine->boot_state before it runs next */
    _Atomic uint32_t wake;    /* enum wake_word, a futex */
    _Atomic uint32_t signals; /* SIGNAL_* */
    /* Counters of its own thread. */
    uint64_t exits[EXIT_KINDS];
    uint64_t sleeps, polls, sleep_ns;        /* waits that slept; that ended before; their time */
    uint64_t poll_ns, poll_after;            /* how long to look before sleeping; not before then (clock_mono_ns) */
    uint64_t access[2][BUS_MAX_REGIONS + 1]; /* by space and region; the last is "nobody's" */
    struct vcpu_exit exit;
};

#define MACHINE_MAX_DEVICES 64

/* A device on the PCI bus with what stands behind it; machine_devices.c. */
struct machine_device {
    char id[32]; /* unique: "disk0"; "": a place that is free */
    struct machine *machine;
    struct pci_function *function; /* of one that may be removed, else NULL */
    enum machine_disk_state life;
    void *dev;
    void (*destroy)(void *dev); /* back ends included. No vCPU runs; the event loop's thread calls */
    char serial[21];            /* a disk's, where the user gave one */
    bool opening;               /* a disk whose image is being opened: nothing else is there yet */
    struct block *block;        /* a disk's back end, for statistics and control, or NULL */
    struct net *net;            /* a NIC's, or NULL */
    /* Tells the guest of its disk's new size; NULL where it cannot be told. */
    void (*resized)(void *dev);
};

enum machine_want { WANT_RUN, WANT_PARK, WANT_QUIT };

struct machine {
    /* Configuration */
    const char *name;
    const struct engine_ops *ops;
    bool no_reboot;
    unsigned cpus;
    bool may_poll; /* there are more host CPUs than vCPUs */
    struct machine_console console;

    struct boot_image *image;
    struct guest_memory memory;
    struct boot_memory_map map;
    gpa_t rsdp;
    struct cpu_state *boot_state; /* of vCPU 0; aligned, since it is larger than a stack likes */

    struct event_loop *loop;
    struct bus bus;
    struct irqchip *irqchip;
    struct platform *platform;
    struct pci_layout pci_layout;
    struct pci_bus *pci;
    struct event_timer collect_again;                  /* disks that the guest ejected */
    struct machine_openings *openings;                 /* disks that are being opened; NULL until the first */
    struct machine_device device[MACHINE_MAX_DEVICES]; /* they stay where they are: their ids are the devices' names */
    unsigned devices;                                  /* places in use, free ones between them */
    struct {
        void (*gone)(void *ctx, const char *id);
        void (*failed)(void *ctx, const char *id, const struct block_error *error);
        void *ctx;
    } disk_observer;
    struct engine *engine;
    struct machine_vcpu *vcpu[MACHINE_MAX_CPUS];

    /* Life cycle. `want` is read by vCPUs without the lock between two runs. */
    _Atomic int want;
    _Atomic int state;
    pthread_mutex_t lock; /* parked, stopped, status, resetting */
    pthread_cond_t changed;
    unsigned parked; /* vCPU threads that honour WANT_PARK */
    bool stopped;
    bool reset_pending;
    uint64_t park_patience_ns;
    bool paused;                 /* the loop's thread writes it, with the lock held */
    struct machine_pause *pause; /* what stands still, from the first pause on; machine_control.c */
    void (*listen)(void *ctx, enum machine_event event);
    void *listen_ctx;
    int status;
    uint64_t start_ns, end_ns;
    uint64_t resets;
    _Atomic unsigned triple_faults;
    uint64_t output_bytes; /* taken by the console; loop's thread */
};

/* At power-on. An engine with controllers of its own keeps its application processors waiting by itself. */
static inline bool machine_waits_for_sipi(const struct machine *m, unsigned vcpu)
{
    return vcpu != 0 && !m->ops->irq;
}

/* machine.c: lets devices have eventfds of the engine's, where it has any. */
void machine_use_eventfds(struct machine *m);

/* machine.c: a vCPU parked. Called with the lock held. */
void machine_reset_if_parked(struct machine *m);

/* Parks all vCPUs, each between two instructions, so that their state is whole. On the loop's thread. -EBUSY: the machine is being reset or stopped.
 * -EAGAIN: one did not stop within 10 s, and all go on. That can happen, since a device's registers are served on the vCPU's thread, and some of
 * what stands behind them may sleep in the host's kernel for as long as a file system does: a small write into the page cache (block_file.c),
 * a console that goes to a file, a device's reset that waits for requests which the kernel has. Taps, sockets, eventfds and pipes are used without
 * blocking, and a storage daemon's requests are let go after 2 s. */
int machine_park(struct machine *m, struct nerr *e);
void machine_unpark(struct machine *m);

/* move.c: goes on with another engine; when that fails, with the old one. On the loop's thread. PCI devices' eventfds move along (others given to
 * the old engine don't), and devices with threads of their own must be idle. */
int machine_change_engine(struct machine *m, const struct engine_ops *ops, struct nerr *e);

/* machine_control.c: vCPUs' time-stamp counters agree again after a reset. With all of them parked. */
int machine_clocks_reset(struct machine *m, struct nerr *e);
void machine_tell(struct machine *m, enum machine_event event);

/* vcpu.c */
int machine_vcpus_start(struct machine *m, struct nerr *e);
/* Joins all threads; false when one did not stop in time (an engine that ignores kicks). */
bool machine_vcpus_join(struct machine *m);
/* Makes a vCPU look around: leaves the engine or its sleep. Any thread. */
void machine_vcpu_kick(struct machine_vcpu *v);
/* An interrupt may be pending: cheaper than a kick. Any thread. */
void machine_vcpu_interrupt(struct machine_vcpu *v);
void machine_vcpu_init_signal(struct machine_vcpu *v);
void machine_vcpu_sipi_signal(struct machine_vcpu *v, uint8_t vector);

/* machine_devices.c */
int machine_bus_create(struct machine *m, const struct machine_config *c, struct nerr *e);
/* The port that the user chose, which the PCI bus must leave free; 0: none. */
uint16_t machine_taken_port(const struct machine_config *c);
int machine_devices_create(struct machine *m, const struct machine_config *c, struct nerr *e);
void machine_devices_destroy(struct machine *m); /* and the bus */
/* One more in the list; a machine has room for all that its configuration may ask for. NULL: no place is free. */
struct machine_device *machine_device_add(struct machine *m, const char *id, void *dev, void (*destroy)(void *dev));
/* The same with the checks that a device of the configuration needs; `option` is for the message. NULL: refused, as `e` says. */
struct machine_device *machine_device_claim(struct machine *m, const char *option, const char *id, struct nerr *e);
struct machine_device *machine_device_find(struct machine *m, const char *id); /* or NULL */
void machine_device_destroy(struct machine_device *d);                         /* its place is free then */
/* A disk's back end is there. */
void machine_disk_opened(struct machine_device *d, struct block *b);
/* The device of a virtio disk whose back end is open, in a free slot; removable. The back end is taken over when it succeeds. */
int machine_virtio_disk_create(struct machine *m, const struct machine_disk *disk, struct machine_device *d,
                               struct nerr *e);

/* machine_hotplug.c */
void machine_hotplug_init(struct machine *m);    /* collect_again; whoever destroys the loop destroys it */
void machine_ejected(void *ctx, uint32_t slots); /* platform_callbacks.eject */
/* vCPUs are parked for a reset: disks that the guest was asked for go now. */
void machine_hotplug_reset(struct machine *m);

/* The disk's device for a back end that has been opened: takes it over, tells the guest. When it fails the back end stays the caller's. */
int machine_plug_in(struct machine *m, const struct machine_disk *disk, struct machine_device *d, struct block *b,
                    struct nerr *e);

/* machine_open.c; on the loop's thread */
/* Opens a disk beside the machine; `device` is its place, and free again if that fails. `done` (or NULL) is called later, never from inside. */
int machine_open(struct machine *m, const struct machine_disk *disk, struct machine_device *device,
                 machine_disk_done *done, void *ctx, struct nerr *e);
/* After a reset: what was opened meanwhile. */
void machine_openings_go_on(struct machine *m);
/* The run is over: none is waited for any more (but 5 s for those that hang). */
void machine_openings_abort(struct machine *m);
/* After that, and after the disks. False: a thread hangs, and the loop must stay for it. */
bool machine_openings_destroy(struct machine *m);

/* machine_nics.c */
int machine_nics_create(struct machine *m, const struct machine_config *c, struct nerr *e);

/* dump.c: registers for people. */
void machine_dump(FILE *out, unsigned vcpu, const struct cpu_state *s);

#endif
