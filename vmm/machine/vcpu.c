/* One host thread per vCPU: runs the engine, carries out what it exits for, sleeps in HLT. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/machine/machine_internal.h"

#define JOIN_SECONDS 5
/* Many times what is used, and small enough that no huge page fits in: where those are "always" given, the default
 * stack of 8 MiB costs 2 MiB of memory with its first touch. */
#define STACK_BYTES (1u << 20)

/* A halted vCPU looks for its next interrupt for so long before it sleeps. */
#define POLL_MIN_NS 10000
#define POLL_MAX_NS 100000
#define POLL_LOOKS 8           /* between two looks at the clock */
#define POLL_GAP_NS 50000      /* a longer time between these: another thread ran here */
#define POLL_PAUSE_NS 20000000 /* then there is no polling for so long */

#define TRIPLE_FAULT_LINES 4 /* a guest that resets itself all day must not fill the log */

/* ---- sleep and wake-up: no lock, no system call unless somebody sleeps ---- */

static void wake(struct machine_vcpu *v)
{
    if (atomic_exchange(&v->wake, WAKE_NOTIFIED) == WAKE_SLEEPING)
        syscall(SYS_futex, &v->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Looks for a notification for as long as the vCPU's recent waits make one likely. A sleep costs two switches and the wake-up of an idle
 * host CPU, which can be more than the wait itself: for a guest that waits for a disk or a peer's answer that is most of its time.
 * False: none came. */
static bool poll_for_wake(struct machine_vcpu *v, uint64_t now)
{
    uint64_t end = now + v->poll_ns;
    for (uint64_t last = now; now < end; last = now) {
        for (unsigned i = 0; i < POLL_LOOKS; i++) {
            if (atomic_load_explicit(&v->wake, memory_order_relaxed) != WAKE_NONE) return true;
            __builtin_ia32_pause();
        }
        now = clock_mono_ns();
        /* Somebody else had this CPU meanwhile, and needs it more: perhaps the one who is to wake us. */
        if (now - last > POLL_GAP_NS) {
            v->poll_after = now + POLL_PAUSE_NS;
            return false;
        }
    }
    return false;
}

/* Waits that were short make the next one worth polling; one that was long ends that at once, so that an idle guest costs nothing. */
static void learn_from_wait(struct machine_vcpu *v, uint64_t ns, uint64_t now)
{
    if (!v->machine->may_poll || ns > POLL_MAX_NS || now < v->poll_after)
        v->poll_ns = 0;
    else if (ns > v->poll_ns)
        v->poll_ns = v->poll_ns ? 2 * v->poll_ns : POLL_MIN_NS;
    if (v->poll_ns > POLL_MAX_NS) v->poll_ns = POLL_MAX_NS;
}

/* Returns at once when a notification came since the last sleep. It may return early; callers look again. */
static void sleep_until_woken(struct machine_vcpu *v)
{
    uint32_t none = WAKE_NONE;
    if (atomic_load(&v->wake) == WAKE_NONE) {
        uint64_t before = clock_mono_ns();
        if (v->poll_ns && poll_for_wake(v, before)) {
            v->polls++;
        } else if (atomic_compare_exchange_strong(&v->wake, &none, WAKE_SLEEPING)) {
            while (atomic_load(&v->wake) == WAKE_SLEEPING)
                syscall(SYS_futex, &v->wake, FUTEX_WAIT_PRIVATE, WAKE_SLEEPING, NULL, NULL, 0);
            v->sleeps++;
        }
        uint64_t now = clock_mono_ns();
        v->sleep_ns += now - before;
        learn_from_wait(v, now - before, now);
    }
    atomic_exchange(&v->wake, WAKE_NONE); /* not a plain store: what the waker wrote before must be seen from here on */
}

void machine_vcpu_kick(struct machine_vcpu *v)
{
    v->machine->ops->kick(v->engine_vcpu);
    wake(v);
}

void machine_vcpu_interrupt(struct machine_vcpu *v)
{
    v->machine->ops->interrupt(v->engine_vcpu);
    wake(v);
}

void machine_vcpu_init_signal(struct machine_vcpu *v)
{
    atomic_store(&v->signals, SIGNAL_INIT);
    machine_vcpu_kick(v);
}

void machine_vcpu_sipi_signal(struct machine_vcpu *v, uint8_t vector)
{
    uint32_t old = atomic_load(&v->signals), new;
    do {
        new = (old & SIGNAL_INIT) | SIGNAL_SIPI | (uint32_t)vector << SIGNAL_VECTOR_SHIFT;
    } while (!atomic_compare_exchange_weak(&v->signals, &old, new));
    machine_vcpu_kick(v);
}

/* ---- start-up ---- */

static void engine_failed(struct machine_vcpu *v, const char *why)
{
    struct cpu_state *s = aligned_alloc(64, sizeof(*s));
    nc_error("vcpu %u: the %s engine failed: %s; please report it with the registers below", v->id,
             v->machine->ops->name, why);
    if (s && v->machine->ops->get_state(v->engine_vcpu, s) == 0) machine_dump(stderr, v->id, s);
    free(s);
    machine_stop(v->machine, MACHINE_EXIT_ENGINE);
}

static void start_at_sipi(struct machine_vcpu *v, uint8_t vector)
{
    struct nerr e;
    struct cpu_state *s = aligned_alloc(64, 2 * sizeof(*s));
    if (!s || v->machine->ops->get_state(v->engine_vcpu, s)) {
        free(s);
        engine_failed(v, "no state to start from");
        return;
    }
    struct cpu_state *old = s + 1;
    *old = *s;
    cpu_state_sipi(s, vector);
    /* INIT leaves the FPU, PAT, TSC and the machine-specific registers alone (SDM vol. 3 table 10-1). */
    memcpy(s->xsave, old->xsave, sizeof(s->xsave));
    s->xcr0 = old->xcr0;
    s->pat = old->pat;
    s->tsc_offset = old->tsc_offset;
    s->tsc_aux = old->tsc_aux;
    s->star = old->star;
    s->lstar = old->lstar;
    s->cstar = old->cstar;
    s->sfmask = old->sfmask;
    s->kernel_gs_base = old->kernel_gs_base;
    s->sysenter_cs = old->sysenter_cs;
    s->sysenter_esp = old->sysenter_esp;
    s->sysenter_eip = old->sysenter_eip;
    if (v->machine->ops->set_state(v->engine_vcpu, s, &e))
        engine_failed(v, e.text);
    else
        v->wait_sipi = false;
    free(s);
}

static void take_signals(struct machine_vcpu *v)
{
    uint32_t s = atomic_exchange(&v->signals, 0);
    if (s & SIGNAL_INIT) {
        /* An INIT of the boot processor starts the firmware, and with it the machine, anew. */
        if (v->id == 0) {
            machine_reset(v->machine);
            return;
        }
        v->wait_sipi = true;
    }
    if (s & SIGNAL_SIPI && v->wait_sipi) start_at_sipi(v, (uint8_t)(s >> SIGNAL_VECTOR_SHIFT));
}

static void load_boot_state(struct machine_vcpu *v)
{
    struct nerr e;
    v->load_boot_state = false;
    if (v->machine->ops->set_state(v->engine_vcpu, v->machine->boot_state, &e)) engine_failed(v, e.text);
}

/* ---- exits ---- */

/* Counts an access under the region that handles it; lookups are a small part of what an exit costs. */
static void count_access(struct machine_vcpu *v, enum bus_space space, uint64_t addr)
{
    v->access[space][bus_region_at(&v->machine->bus, space, addr)]++;
}

static void do_io(struct machine_vcpu *v)
{
    struct vcpu_exit *x = &v->exit;
    unsigned size = x->io.size;
    count_access(v, BUS_PIO, x->io.port);
    for (uint32_t i = 0; i < x->io.count && (i + 1) * size <= sizeof(x->io.data); i++) {
        uint64_t value = 0;
        if (x->io.write) {
            memcpy(&value, x->io.data + i * size, size);
            bus_write(&v->machine->bus, BUS_PIO, x->io.port, size, value);
        } else {
            value = bus_read(&v->machine->bus, BUS_PIO, x->io.port, size);
            memcpy(x->io.data + i * size, &value, size);
        }
    }
}

/* The bus takes powers of two; other widths (a store that ends at RAM's edge) go byte by byte. */
static void do_mmio(struct machine_vcpu *v)
{
    struct vcpu_exit *x = &v->exit;
    const struct bus *b = &v->machine->bus;
    unsigned len = x->mmio.len > 8 ? 8 : x->mmio.len;
    unsigned step = len & (len - 1) ? 1 : len;
    count_access(v, BUS_MMIO, x->mmio.addr.v);
    for (unsigned i = 0; i < len; i += step) {
        uint64_t value = 0;
        if (x->mmio.write) {
            memcpy(&value, x->mmio.data + i, step);
            bus_write(b, BUS_MMIO, x->mmio.addr.v + i, step, value);
        } else {
            value = bus_read(b, BUS_MMIO, x->mmio.addr.v + i, step);
            memcpy(x->mmio.data + i, &value, step);
        }
    }
}

static void triple_fault(struct machine_vcpu *v)
{
    struct machine *m = v->machine;
    if (!m->no_reboot) {
        if (atomic_fetch_add(&m->triple_faults, 1) < TRIPLE_FAULT_LINES)
            nc_info("vcpu %u: triple fault; the machine resets", v->id);
        machine_reset(m);
        return;
    }
    struct cpu_state *s = aligned_alloc(64, sizeof(*s));
    nc_error("vcpu %u: triple fault; the registers:", v->id);
    if (s && m->ops->get_state(v->engine_vcpu, s) == 0) machine_dump(stderr, v->id, s);
    free(s);
    machine_stop(m, MACHINE_EXIT_TRIPLE);
}

static void dispatch(struct machine_vcpu *v)
{
    if ((unsigned)v->exit.kind < EXIT_KINDS) v->exits[v->exit.kind]++;
    switch (v->exit.kind) {
    case VCPU_EXIT_KICKED: break;
    case VCPU_EXIT_IO: do_io(v); break;
    case VCPU_EXIT_MMIO: do_mmio(v); break;
    case VCPU_EXIT_HLT: sleep_until_woken(v); break;
    case VCPU_EXIT_PAUSE: sched_yield(); break;
    case VCPU_EXIT_SHUTDOWN: triple_fault(v); break;
    case VCPU_EXIT_RESET: machine_reset(v->machine); break;
    case VCPU_EXIT_FAIL: engine_failed(v, v->exit.fail); break;
    default: engine_failed(v, "unknown exit"); break;
    }
}

/* An instruction that asked for I/O is completed by the next run(), perhaps with more I/O. */
static void finish_instruction(struct machine_vcpu *v)
{
    while (v->exit.kind == VCPU_EXIT_IO || v->exit.kind == VCPU_EXIT_MMIO) {
        v->machine->ops->kick(v->engine_vcpu);
        v->machine->ops->run(v->engine_vcpu, &v->exit);
        dispatch(v);
    }
}

/* Waits while the machine is being reset or moved. False: the run is over. */
static bool park(struct machine_vcpu *v)
{
    struct machine *m = v->machine;
    finish_instruction(v);
    if (atomic_load(&v->signals)) take_signals(v);
    pthread_mutex_lock(&m->lock);
    m->parked++;
    pthread_cond_broadcast(&m->changed);
    machine_reset_if_parked(m);
    while (atomic_load(&m->want) == WANT_PARK) pthread_cond_wait(&m->changed, &m->lock);
    m->parked--;
    pthread_mutex_unlock(&m->lock);
    return atomic_load(&m->want) != WANT_QUIT;
}

static void *vcpu_thread(void *arg)
{
    struct machine_vcpu *v = arg;
    struct machine *m = v->machine;
    irqchip_set_current_vcpu(v->id);
    for (;;) {
        int want = atomic_load(&m->want);
        if (want == WANT_QUIT || (want == WANT_PARK && !park(v))) break;
        if (want != WANT_RUN) continue;
        if (v->load_boot_state)
            load_boot_state(v);
        else if (atomic_load(&v->signals))
            take_signals(v);
        else if (v->wait_sipi)
            sleep_until_woken(v);
        else {
            m->ops->run(v->engine_vcpu, &v->exit);
            dispatch(v);
        }
    }
    return NULL;
}

/* Everything is blocked but what a fault of the thread itself raises: the main thread takes the others (signalfd). */
static void vcpu_signal_mask(sigset_t *set)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigfillset(set);
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) sigdelset(set, own[i]);
}

/* With a host CPU left over for who wakes them. */
static bool may_poll(const struct machine *m)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 && m->cpus < (unsigned)CPU_COUNT(&set);
}

int machine_vcpus_start(struct machine *m, struct nerr *e)
{
    sigset_t block, before;
    pthread_attr_t attributes;
    int r = pthread_attr_init(&attributes);
    if (r) return nerr_set(e, -r, "cannot start a vCPU thread: %s; use fewer --cpus", strerror(r));
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    m->may_poll = may_poll(m);
    vcpu_signal_mask(&block);
    pthread_sigmask(SIG_SETMASK, &block, &before); /* inherited by the threads */
    for (unsigned i = 0; i < m->cpus && !r; i++) {
        struct machine_vcpu *v = m->vcpu[i];
        char name[16];
        r = pthread_create(&v->thread, &attributes, vcpu_thread, v);
        if (r) break;
        v->started = true;
        snprintf(name, sizeof(name), "vcpu%u", i);
        pthread_setname_np(v->thread, name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (r) return nerr_set(e, -r, "cannot start a vCPU thread: %s; use fewer --cpus", strerror(r));
    return 0;
}

bool machine_vcpus_join(struct machine *m)
{
    struct timespec until;
    bool all = true;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += JOIN_SECONDS;
    for (unsigned i = 0; i < m->cpus; i++) {
        struct machine_vcpu *v = m->vcpu[i];
        if (!v->started) continue;
        machine_vcpu_kick(v);
        if (pthread_timedjoin_np(v->thread, NULL, &until) == 0)
            v->started = false;
        else
            all = false;
    }
    return all;
}
