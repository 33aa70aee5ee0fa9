/* A vCPU: KVM_RUN, what it comes back with, and how it is called back. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/engine/kvm/kvm.h"

#define ABANDON_TRIES 64

/* ---- kicks ----
 *
 * kick() leaves its wish in `kicked` and in the shared page's immediate_exit, which KVM_RUN looks at on its way in; a vCPU that is in there
 * already is called out by a signal whose handler does nothing. */

static void on_signal(int n)
{
    (void)n;
}

int kvm_signals_init(struct nerr *e)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    if (sigaction(KVM_KICK_SIGNAL, &a, NULL))
        return nerr_set(e, -errno, "the kvm engine's signal %d cannot be set up: %s", KVM_KICK_SIGNAL, strerror(errno));
    return 0;
}

static void bind_thread(struct vcpu *v)
{
    sigset_t own;
    pid_t me = (pid_t)syscall(SYS_gettid);
    if (atomic_load_explicit(&v->thread, memory_order_relaxed) == me) return;
    sigemptyset(&own);
    sigaddset(&own, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &own, NULL);
    atomic_store(&v->thread, me);
}

void kvm_vcpu_kick(struct vcpu *v)
{
    atomic_store(&v->kicked, true);
    __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pid_t thread = atomic_load(&v->thread);
    if (thread && atomic_load(&v->in_run)) syscall(SYS_tgkill, getpid(), thread, KVM_KICK_SIGNAL);
}

/* immediate_exit is cleared before `kicked` is looked at: a kick in between makes one KVM_RUN return for nothing, but none gets lost. */
static bool take_kick(struct vcpu *v)
{
    __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    return atomic_exchange(&v->kicked, false);
}

/* ---- exits ---- */

static void failed(struct vcpu_exit *x, const char *what, const char *detail)
{
    x->kind = VCPU_EXIT_FAIL;
    snprintf(x->fail, sizeof(x->fail), "%s%s%s", what, detail[0] ? ": " : "", detail);
}

/* The BIOS that an INIT of the boot processor leads to isn't there, so the instruction at the reset vector can't be fetched. */
static bool at_reset_vector(const struct vcpu *v)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    return v->id == 0 && kvm_ioctl(v->fd, KVM_GET_REGS, &regs) >= 0 && kvm_ioctl(v->fd, KVM_GET_SREGS, &sregs) >= 0 &&
           regs.rip == 0xfff0 && sregs.cs.base == 0xffff0000;
}

static void internal_error(struct vcpu *v, struct vcpu_exit *x)
{
    const struct kvm_run *run = v->run;
    char detail[160];
    int n;
    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
        static const char *const names[] = {"?", "?", "simultaneous exceptions",
                                            "unexpected exit during event delivery", "unexpected exit reason"};
        uint32_t s = run->internal.suberror;
        n = snprintf(detail, sizeof(detail), "%u, %s", s, s < sizeof(names) / sizeof(names[0]) ? names[s] : "?");
        for (uint32_t i = 0; i < run->internal.ndata && i < 4 && n < (int)sizeof(detail) - 20; i++)
            n += snprintf(detail + n, sizeof(detail) - (size_t)n, " 0x%llx", (unsigned long long)run->internal.data[i]);
        failed(x, "KVM internal error", detail);
        return;
    }
    if (at_reset_vector(v)) {
        x->kind = VCPU_EXIT_RESET;
        return;
    }
    detail[0] = 0;
    n = 0;
    if (run->emulation_failure.ndata >= 1 &&
        run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
        for (unsigned i = 0; i < run->emulation_failure.insn_size && i < 15; i++)
            n += snprintf(detail + n, sizeof(detail) - (size_t)n, "%s%02x", i ? " " : "instruction ",
                          run->emulation_failure.insn_bytes[i]);
    failed(x, "KVM cannot emulate what the guest does here", detail);
}

/* The next items of a port access. KVM gives a whole page of them at once, struct vcpu_exit has room for less. */
static void give_io(struct vcpu *v, struct vcpu_exit *x)
{
    const struct kvm_run *run = v->run;
    uint8_t size = run->io.size;
    uint32_t room = (uint32_t)sizeof(x->io.data) / size, count = v->io_left < room ? v->io_left : room;
    x->kind = VCPU_EXIT_IO;
    x->io.port = run->io.port;
    x->io.size = size;
    x->io.write = run->io.direction == KVM_EXIT_IO_OUT;
    x->io.count = count;
    const uint8_t *data = (const uint8_t *)run + run->io.data_offset + (size_t)(run->io.count - v->io_left) * size;
    if (x->io.write) memcpy(x->io.data, data, (size_t)count * size);
    v->io_given = count;
}

static bool begin_io(struct vcpu *v, struct vcpu_exit *x)
{
    const struct kvm_run *run = v->run;
    uint64_t bytes = (uint64_t)run->io.size * run->io.count;
    bool size_good = run->io.size == 1 || run->io.size == 2 || run->io.size == 4;
    if (!size_good || !bytes || run->io.data_offset > v->engine->run_size ||
        bytes > v->engine->run_size - run->io.data_offset) {
        failed(x, "KVM reports an impossible port access", "");
        return true;
    }
    v->unfinished = true;
    v->io_left = run->io.count;
    give_io(v, x);
    return true;
}

/* The VMM has answered the items it was given. True: there are more of them. */
static bool finish_io(struct vcpu *v, struct vcpu_exit *x)
{
    struct kvm_run *run = v->run;
    size_t size = run->io.size;
    uint8_t *data = (uint8_t *)run + run->io.data_offset + (size_t)(run->io.count - v->io_left) * size;
    if (run->io.direction == KVM_EXIT_IO_IN) memcpy(data, x->io.data, v->io_given * size);
    v->io_left -= v->io_given;
    v->io_given = 0;
    if (v->io_left) give_io(v, x);
    return v->io_left;
}

static bool give_mmio(struct vcpu *v, struct vcpu_exit *x)
{
    const struct kvm_run *run = v->run;
    uint32_t len = run->mmio.len;
    if (len < 1 || len > sizeof(x->mmio.data)) {
        failed(x, "KVM reports an impossible memory access", "");
        return true;
    }
    x->kind = VCPU_EXIT_MMIO;
    x->mmio.addr = GPA(run->mmio.phys_addr);
    x->mmio.len = (uint8_t)len;
    x->mmio.write = run->mmio.is_write;
    memcpy(x->mmio.data, run->mmio.data, sizeof(x->mmio.data));
    v->mmio_read = !run->mmio.is_write;
    v->unfinished = true;
    return true;
}

/* True: `x` is for the VMM. */
static bool handle_exit(struct vcpu *v, struct vcpu_exit *x)
{
    char detail[64];
    const struct kvm_run *run = v->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO: return begin_io(v, x);
    case KVM_EXIT_MMIO: return give_mmio(v, x);
    case KVM_EXIT_SHUTDOWN: x->kind = VCPU_EXIT_SHUTDOWN; return true;
    case KVM_EXIT_HLT: x->kind = VCPU_EXIT_HLT; return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN: return false;
    case KVM_EXIT_DIRTY_RING_FULL:
        v->stats.rings_full++;
        kvm_dirty_ring_full(v->engine);
        return false;
    case KVM_EXIT_INTERNAL_ERROR: internal_error(v, x); return true;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(detail, sizeof(detail), "reason 0x%llx",
                 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        failed(x, "the CPU refuses to enter the guest", detail);
        return true;
    default:
        snprintf(detail, sizeof(detail), "%u", run->exit_reason);
        failed(x, "KVM exit of unknown kind", detail);
        return true;
    }
}

static void run_failed(struct vcpu_exit *x, int r)
{
    if (r == -EFAULT)
        failed(x, "KVM cannot reach guest memory", "is the host out of memory or huge pages?");
    else
        failed(x, "KVM_RUN failed", strerror(-r));
}

/* -EAGAIN: a vCPU that waits for its SIPI was woken by something else. */
static bool enter(struct vcpu *v, struct vcpu_exit *x)
{
    v->unfinished = false;
    atomic_store(&v->in_run, true);
    int r = kvm_ioctl_n(v->fd, KVM_RUN, 0);
    atomic_store(&v->in_run, false);
    v->stats.entries++;
    if (r >= 0) return handle_exit(v, x);
    if (r == -EINTR || r == -EAGAIN) {
        if (!take_kick(v)) return false;
        v->stats.kicks_seen++;
        x->kind = VCPU_EXIT_KICKED;
        return true;
    }
    run_failed(x, r);
    return true;
}

void kvm_vcpu_abandon_io(struct vcpu *v)
{
    for (unsigned tries = 0; v->unfinished && tries < ABANDON_TRIES; tries++) {
        __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        int r = kvm_ioctl_n(v->fd, KVM_RUN, 0);
        /* A REP or a wide access may come back with its next piece. */
        v->unfinished = r >= 0 && (v->run->exit_reason == KVM_EXIT_IO || v->run->exit_reason == KVM_EXIT_MMIO);
    }
    if (!atomic_load(&v->kicked)) __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    v->io_given = v->io_left = 0;
    v->mmio_read = v->unfinished = false;
}

void kvm_vcpu_run(struct vcpu *v, struct vcpu_exit *x)
{
    bind_thread(v);
    if (v->mmio_read) {
        memcpy(v->run->mmio.data, x->mmio.data, sizeof(x->mmio.data));
        v->mmio_read = false;
    }
    if (v->io_given && finish_io(v, x)) return;
    while (!enter(v, x)) {
    }
}

/* ---- life ---- */

void kvm_vcpu_destroy(struct vcpu *v)
{
    v->engine->vcpu[v->id] = NULL;
    kvm_dirty_vcpu_fini(v);
    if (v->run) kvm_sys->munmap(v->run, v->engine->run_size);
    if (v->fd >= 0) kvm_sys->close(v->fd);
    free(v->msr);
    free(v);
}

static int create_failed(const struct engine *g, unsigned id, int r, struct nerr *e)
{
    if (r == -EINVAL || r == -E2BIG)
        return nerr_set(e, r, "--cpus: KVM refuses vCPU %u of %u; use fewer", id, g->vcpus);
    return nerr_set(e, r, "KVM cannot create vCPU %u: %s; use fewer --cpus, or free memory", id, strerror(-r));
}

static int set_up(struct vcpu *v, struct nerr *e)
{
    struct engine *g = v->engine;
    v->fd = kvm_ioctl_n(g->vm_fd, KVM_CREATE_VCPU, v->id);
    if (v->fd < 0) return create_failed(g, v->id, v->fd, e);
    v->run = kvm_sys->mmap(v->fd, g->run_size, 0);
    if (!v->run) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", v->id);
    int r = kvm_dirty_vcpu(v, e);
    if (!r) r = kvm_cpuid_vcpu(v, e);
    if (!r) r = kvm_msrs_init(v, e);
    if (r) return r;
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
    g->tsc_offset_attr = kvm_ioctl(v->fd, KVM_HAS_DEVICE_ATTR, &attr) >= 0;
    struct cpu_state *s = aligned_alloc(64, sizeof(*s));
    if (!s) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", v->id);
    cpu_state_reset(s);
    r = kvm_set_state(v, s, e);
    free(s);
    return r;
}

int kvm_vcpu_create(struct engine *g, unsigned id, const struct vcpu_irq_port *port, struct vcpu **out, struct nerr *e)
{
    (void)port; /* the kernel has LAPICs of its own */
    if (id >= g->vcpus || g->vcpu[id])
        return nerr_set(e, -EINVAL, "vCPU %u cannot be created (of %u, each once)", id, g->vcpus);
    struct vcpu *v = calloc(1, sizeof(*v));
    if (!v) return nerr_set(e, -ENOMEM, "no memory for vCPU %u", id);
    v->engine = g;
    v->id = id;
    v->fd = -1;
    g->vcpu[id] = v;
    int r = set_up(v, e);
    if (r) {
        kvm_vcpu_destroy(v);
        return r;
    }
    *out = v;
    return 0;
}
