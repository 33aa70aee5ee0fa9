/* Private header of the KVM engine: Linux' /dev/kvm behind engine.h (the kernel's Documentation/virt/kvm/api.rst is the manual). */
#ifndef NACELLE_VMM_ENGINE_KVM_H
#define NACELLE_VMM_ENGINE_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#include "vmm/engine/engine.h"

/* ---- what the engine asks of the host (sys.c); tests put something else in its place ---- */
struct kvm_sys {
    int (*open)(void);                                          /* /dev/kvm; -errno */
    int (*ioctl)(int fd, unsigned long request, uintptr_t arg); /* >= 0, or -errno */
    void *(*mmap)(int fd, size_t len, off_t offset);            /* shared, read-write; NULL on failure */
    void (*munmap)(void *p, size_t len);
    void (*close)(int fd);
};
extern const struct kvm_sys kvm_sys_host;
extern const struct kvm_sys *kvm_sys;

static inline int kvm_ioctl(int fd, unsigned long request, const void *arg)
{
    return kvm_sys->ioctl(fd, request, (uintptr_t)arg);
}
static inline int kvm_ioctl_n(int fd, unsigned long request, uintptr_t n)
{
    return kvm_sys->ioctl(fd, request, n);
}

/* ---- limits ---- */
#define KVM_CPUID_ENTRIES 256
#define KVM_MSR_LIST_MAX 256
/* GSIs above the IOAPIC's pins are messages of irqfds. */
#define KVM_MAX_IRQFDS 1024
#define KVM_DIRTY_RING_ENTRIES 4096
/* Where Intel CPUs without unrestricted guest mode keep three pages and a page of their own, just below the reset vector's page. */
#define KVM_IDENTITY_MAP 0xfffbc000ull
#define KVM_TSS 0xfffbd000ull

struct kvm_stats {
    uint64_t entries, kicks_seen, rings_full;
};

struct vcpu {
    struct engine *engine;
    unsigned id;
    int fd;
    struct kvm_run *run;
    /* The exit being answered: items of port I/O handed to the VMM and still to be handed (KVM may have more than an exit holds). */
    uint32_t io_given, io_left;
    bool mmio_read;
    bool unfinished; /* the last exit was for I/O: the instruction is completed by the next KVM_RUN */
    _Atomic bool kicked;
    _Atomic bool in_run;
    _Atomic pid_t thread; /* 0: not known yet */
    unsigned msrs;        /* registers that this host's KVM keeps, with their power-on values */
    struct kvm_msr_entry *msr;
    struct kvm_dirty_gfn *ring;
    uint32_t ring_next;
    struct kvm_stats stats;
};

struct kvm_irqfd_route {
    int fd; /* -1: free */
    uint64_t addr;
    uint32_t data;
};

struct engine {
    int kvm_fd, vm_fd;
    const struct guest_memory *memory;
    unsigned vcpus;
    struct vcpu *vcpu[ENGINE_MAX_VCPUS];
    size_t run_size;
    uint32_t ring_bytes; /* per vCPU; 0: the host offers no dirty ring */
    bool tsc_offset_attr;
    struct kvm_cpuid2 *cpuid; /* what this host's KVM supports */
    struct kvm_msr_list *msr_list;
    /* Interrupts (irqchip.c) */
    pthread_mutex_t irq_lock; /* guards lines, routes */
    uint32_t lines;
    struct kvm_irqfd_route *routes;
    unsigned route_count;
    /* Dirty log (dirty.c) */
    pthread_mutex_t dirty_lock;              /* guards all below, and the rings' consumer side */
    _Atomic bool tracking;                   /* read without the lock, too */
    uint64_t *dirty[GUEST_MEMORY_MAX_SLOTS]; /* a bit per page */
};

/* host.c: /dev/kvm opened and checked; the descriptor, or negative with a line that says what to do. */
int kvm_open_checked(struct nerr *e);
/* Creating a VM can be interrupted by a signal and then just wants to be tried again. */
int kvm_create_vm(int kvm_fd, struct nerr *e);
int kvm_probe(bool speed, struct nerr *e);

/* cpuid.c */
int kvm_cpuid_init(struct engine *g, struct nerr *e);
int kvm_cpuid_vcpu(struct vcpu *v, struct nerr *e);
/* What vCPU `id` of `cpus` is told, made of what the host's KVM supports. `c` has room for KVM_CPUID_ENTRIES. Also for tests. */
void kvm_cpuid_make(struct kvm_cpuid2 *c, unsigned id, unsigned cpus, uint32_t tsc_khz);

/* vcpu.c */
int kvm_vcpu_create(struct engine *g, unsigned id, const struct vcpu_irq_port *port, struct vcpu **out, struct nerr *e);
void kvm_vcpu_destroy(struct vcpu *v);
void kvm_vcpu_run(struct vcpu *v, struct vcpu_exit *exit);
void kvm_vcpu_kick(struct vcpu *v);
/* Ends an instruction whose I/O is under way, with whatever data: its effects are about to be overwritten. */
void kvm_vcpu_abandon_io(struct vcpu *v);
int kvm_signals_init(struct nerr *e);
#define KVM_KICK_SIGNAL (SIGRTMIN + 1)

/* state.c, msr.c */
int kvm_get_state(struct vcpu *v, struct cpu_state *s);
int kvm_set_state(struct vcpu *v, const struct cpu_state *s, struct nerr *e);
int kvm_msrs_init(struct vcpu *v, struct nerr *e);
int kvm_get_msrs(struct vcpu *v, struct cpu_state *s);
int kvm_set_msrs(struct vcpu *v, const struct cpu_state *s, struct nerr *e);
int kvm_get_msr(const struct vcpu *v, uint32_t index, uint64_t *value);
int kvm_set_msr(const struct vcpu *v, uint32_t index, uint64_t value);
int kvm_get_tsc_offset(const struct vcpu *v, uint64_t *offset);
int kvm_set_tsc_offset(const struct vcpu *v, uint64_t offset);

/* irqchip.c */
extern const struct engine_irq_ops kvm_irq_ops;
int kvm_irq_init(struct engine *g, struct nerr *e);
void kvm_irq_fini(struct engine *g);
int kvm_ioeventfd_add(struct engine *g, const struct engine_ioeventfd *io);
void kvm_ioeventfd_remove(struct engine *g, const struct engine_ioeventfd *io);

/* dirty.c */
int kvm_dirty_init(struct engine *g);
void kvm_dirty_fini(struct engine *g);
int kvm_dirty_vcpu(struct vcpu *v, struct nerr *e);
void kvm_dirty_vcpu_fini(struct vcpu *v);
void kvm_dirty_ring_full(struct engine *g);
void kvm_memory_written(struct engine *g, gpa_t a, uint64_t len);
int kvm_dirty_track(struct engine *g, bool on, struct nerr *e);
int kvm_dirty_collect(struct engine *g, void (*fn)(void *ctx, gpa_t a, uint64_t len), void *ctx, struct nerr *e);
int kvm_memory_slot(const struct engine *g, unsigned i, bool log);

#endif
