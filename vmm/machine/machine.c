/* Creation, life cycle and reset of a machine. */
#define _GNU_SOURCE
#include "vmm/machine/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "vmm/machine/machine_internal.h"

/* How long output that the console does not take may hold up the end of a run, counted from its last progress. */
#define FLUSH_PATIENCE_NS 3000000000ull

/* How long a vCPU may take to stop between two instructions: far more than it needs on a host that is overloaded. */
#define PARK_PATIENCE_NS 10000000000ull

/* ---- callbacks of the devices ---- */

static void on_interrupt(void *ctx, unsigned vcpu)
{
    struct machine *m = ctx;
    if (vcpu < m->cpus && m->vcpu[vcpu]) machine_vcpu_interrupt(m->vcpu[vcpu]);
}

static void on_init(void *ctx, unsigned vcpu)
{
    struct machine *m = ctx;
    if (vcpu < m->cpus && m->vcpu[vcpu]) machine_vcpu_init_signal(m->vcpu[vcpu]);
}

static void on_sipi(void *ctx, unsigned vcpu, uint8_t vector)
{
    struct machine *m = ctx;
    if (vcpu < m->cpus && m->vcpu[vcpu]) machine_vcpu_sipi_signal(m->vcpu[vcpu], vector);
}

static size_t on_output(void *ctx, const uint8_t *data, size_t len)
{
    struct machine *m = ctx;
    size_t taken = m->console.output ? m->console.output(m->console.ctx, data, len) : len;
    m->output_bytes += taken;
    return taken;
}

static void on_room(void *ctx)
{
    struct machine *m = ctx;
    if (m->console.room) m->console.room(m->console.ctx);
}

static void on_power_off(void *ctx)
{
    machine_stop(ctx, MACHINE_EXIT_OK);
}

static void on_reset(void *ctx)
{
    machine_reset(ctx);
}

static void on_debug_exit(void *ctx, uint32_t status)
{
    machine_stop(ctx, (int)(status & 0xff));
}

/* ---- creation ---- */

static int check_config(const struct machine_config *c, struct nerr *e)
{
    if (c->memory < MACHINE_MIN_MEMORY || c->memory > MACHINE_MAX_MEMORY || c->memory % PAGE_SIZE)
        return nerr_set(e, -EINVAL, "--memory: %llu bytes is not possible; give a multiple of 4K from 2M to 1T",
                        (unsigned long long)c->memory);
    if (c->cpus < 1 || c->cpus > MACHINE_MAX_CPUS)
        return nerr_set(e, -EINVAL, "--cpus: %u is not possible; give 1 to %d", c->cpus, MACHINE_MAX_CPUS);
    if (c->debug_exit_port != MACHINE_NO_DEBUG_EXIT && (c->debug_exit_port < 1 || c->debug_exit_port > 0xffff))
        return nerr_set(e, -EINVAL, "--debug-exit: port %d is not possible; give 1 to 0xffff, usually 0xf4",
                        c->debug_exit_port);
    return 0;
}

/* ACPI tables and kernel, into memory whose contents may be anything. */
static int load(struct machine *m, struct nerr *e)
{
    struct acpi_config acpi = {.vcpus = m->cpus, .pci = &m->pci_layout, .changing_slots = pci_changing_slots(m->pci)};
    int r = acpi_build(&m->memory, &acpi, &m->rsdp, e);
    if (!r) r = boot_load(m->image, &m->memory, &m->map, m->rsdp, m->boot_state, e);
    return r;
}

static int create_memory(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    int r = boot_open(c->kernel, c->initrd, c->append, &m->image, e);
    if (!r) r = guest_memory_create(&m->memory, c->memory, e);
    if (r) return r;
    boot_memory_map_init(&m->map, &m->memory);
    r = boot_memory_map_set(&m->map, ACPI_AREA_BASE, ACPI_AREA_SIZE, BOOT_RESERVED, e);
    pci_layout_init(&m->pci_layout, m->memory.ram_size, machine_taken_port(c));
    if (!r) r = boot_memory_map_set(&m->map, m->pci_layout.ecam_base, m->pci_layout.ecam_size, BOOT_RESERVED, e);
    m->boot_state = aligned_alloc(64, sizeof(*m->boot_state));
    if (!r && !m->boot_state) r = nerr_set(e, -ENOMEM, "machine: out of memory");
    return r;
}

static int create_devices(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    m->loop = event_loop_create(e);
    if (!m->loop) return -ENOMEM;
    machine_hotplug_init(m);
    struct irqchip_host host = {.ctx = m, .interrupt = on_interrupt, .init = on_init, .sipi = on_sipi};
    int r = irqchip_create(m->cpus, m->loop, &host, &m->irqchip, e);
    if (!r) irqchip_use_engine(m->irqchip, m->ops, m->engine);
    if (!r) r = irqchip_attach(m->irqchip, &m->bus, e);
    if (!r) r = machine_bus_create(m, c, e);
    if (r) return r;
    struct platform_config p = {
        .loop = m->loop,
        .irqchip = m->irqchip,
        .bus = &m->bus,
        .vcpus = m->cpus,
        .ram_size = m->memory.ram_size,
        .config_ports = &pci_config_ports,
        .config_dev = m->pci,
        .debug_exit_port = machine_taken_port(c),
        .testdev = c->debug_exit_port != MACHINE_NO_DEBUG_EXIT,
        .cb = {.ctx = m,
               .serial_output = on_output,
               .serial_room = on_room,
               .power_off = on_power_off,
               .reset = on_reset,
               .debug_exit = on_debug_exit,
               .eject = machine_ejected},
    };
    r = platform_create(&p, &m->platform, e);
    return r ? r : machine_devices_create(m, c, e);
}

static struct engine_ioeventfd engines_form(const struct bus_ioeventfd *io)
{
    return (struct engine_ioeventfd){.port = io->space == BUS_PIO,
                                     .any = io->any,
                                     .len = io->len,
                                     .addr = io->addr,
                                     .value = io->value,
                                     .fd = io->fd};
}

static int add_ioeventfd(void *ctx, const struct bus_ioeventfd *io)
{
    struct machine *m = ctx;
    struct engine_ioeventfd x = engines_form(io);
    return m->ops->ioeventfd_add(m->engine, &x);
}

static void remove_ioeventfd(void *ctx, const struct bus_ioeventfd *io)
{
    struct machine *m = ctx;
    struct engine_ioeventfd x = engines_form(io);
    m->ops->ioeventfd_remove(m->engine, &x);
}

void machine_use_eventfds(struct machine *m)
{
    bool can = m->ops->ioeventfd_add;
    m->bus.eventfd.ctx = m;
    m->bus.eventfd.add = can ? add_ioeventfd : NULL;
    m->bus.eventfd.remove = can ? remove_ioeventfd : NULL;
}

static int create_engine(struct machine *m, struct nerr *e)
{
    struct engine_config cfg = {.memory = &m->memory, .vcpus = m->cpus};
    machine_use_eventfds(m);
    return m->ops->create(&cfg, &m->engine, e);
}

static int create_vcpus(struct machine *m, struct nerr *e)
{
    int r = 0;
    for (unsigned i = 0; i < m->cpus && !r; i++) {
        struct machine_vcpu *v = calloc(1, sizeof(*v));
        if (!v) return nerr_set(e, -ENOMEM, "machine: out of memory");
        v->machine = m;
        v->id = i;
        v->wait_sipi = machine_waits_for_sipi(m, i);
        v->load_boot_state = i == 0;
        r = m->ops->vcpu_create(m->engine, i, irqchip_port(m->irqchip, i), &v->engine_vcpu, e);
        if (r)
            free(v);
        else
            m->vcpu[i] = v;
    }
    return r;
}

static void make_condition(pthread_cond_t *c)
{
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(c, &a);
    pthread_condattr_destroy(&a);
}

int machine_create(const struct machine_config *cfg, struct machine **out, struct nerr *e)
{
    *out = NULL;
    int r = check_config(cfg, e);
    if (r) return r;
    struct machine *m = calloc(1, sizeof(*m));
    if (!m) return nerr_set(e, -ENOMEM, "machine: out of memory");
    m->name = cfg->name ? cfg->name : "vm";
    m->ops = cfg->engine;
    m->no_reboot = cfg->no_reboot;
    m->cpus = cfg->cpus;
    m->console = cfg->console;
    pthread_mutex_init(&m->lock, NULL);
    make_condition(&m->changed);
    m->park_patience_ns = PARK_PATIENCE_NS;
    atomic_init(&m->want, WANT_RUN);
    atomic_init(&m->state, MACHINE_CREATED);
    r = create_memory(m, cfg, e);
    if (!r) r = create_engine(m, e);
    if (!r) r = create_devices(m, cfg, e);
    if (!r) r = load(m, e); /* tables tell of the slots that devices took */
    if (!r) r = create_vcpus(m, e);
    if (!r) r = irqchip_reset(m->irqchip, e);
    if (r) {
        machine_destroy(m);
        return r;
    }
    *out = m;
    return 0;
}

void machine_destroy(struct machine *m)
{
    if (!m) return;
    for (unsigned i = 0; i < m->cpus; i++)
        if (m->vcpu[i] && m->vcpu[i]->started)
            return; /* a thread that did not stop still uses all of this; the process ends soon and takes it along */
    /* The devices' timers stop before the vCPUs that they interrupt go away. */
    machine_openings_abort(m);
    machine_devices_destroy(m);
    bool hangs = !machine_openings_destroy(m);
    if (m->platform) platform_destroy(m->platform);
    if (m->irqchip) irqchip_destroy(m->irqchip);
    if (m->engine) m->ops->destroy(m->engine);
    for (unsigned i = 0; i < m->cpus; i++) free(m->vcpu[i]);
    if (m->loop) event_timer_destroy(&m->collect_again);
    if (m->loop && !hangs) event_loop_destroy(m->loop);
    boot_close(m->image);
    guest_memory_destroy(&m->memory);
    free(m->boot_state);
    free(m->pause);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- stop and reset ---- */

static void kick_all(struct machine *m)
{
    for (unsigned i = 0; i < m->cpus; i++) machine_vcpu_kick(m->vcpu[i]);
}

void machine_stop(struct machine *m, int status)
{
    pthread_mutex_lock(&m->lock);
    bool first = !m->stopped;
    if (first) {
        m->stopped = true;
        m->status = status;
        atomic_store(&m->want, WANT_QUIT);
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    if (first) {
        kick_all(m);
        event_loop_stop(m->loop);
    }
}

/* Every page of RAM may have changed under translations the engine keeps. */
static void forget_code(struct machine *m)
{
    if (!m->ops->memory_written) return;
    for (unsigned i = 0; i < m->memory.slots; i++)
        m->ops->memory_written(m->engine, m->memory.slot[i].base, m->memory.slot[i].size);
}

/* On the loop's thread, with all vCPUs parked: nobody uses a device or memory now. */
static void do_reset(void *ctx)
{
    struct machine *m = ctx;
    struct nerr e;
    atomic_store(&m->state, MACHINE_RESETTING);
    platform_serial_flush(m->platform);
    machine_hotplug_reset(m);
    pci_bus_reset(m->pci);
    platform_reset(m->platform);
    if (irqchip_reset(m->irqchip, &e) || machine_clocks_reset(m, &e) || load(m, &e)) {
        nc_error("reset: %s", e.text);
        machine_stop(m, MACHINE_EXIT_HOST);
        return;
    }
    forget_code(m);
    for (unsigned i = 0; i < m->cpus; i++) {
        atomic_store(&m->vcpu[i]->signals, 0);
        m->vcpu[i]->wait_sipi = machine_waits_for_sipi(m, i);
        m->vcpu[i]->load_boot_state = i == 0;
    }
    m->resets++;
    pthread_mutex_lock(&m->lock);
    m->reset_pending = false;
    if (!m->stopped) {
        atomic_store(&m->state, m->paused ? MACHINE_PAUSED : MACHINE_RUNNING);
        if (!m->paused) atomic_store(&m->want, WANT_RUN);
    }
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    on_room(m); /* the serial port forgot that it had refused input */
    machine_tell(m, MACHINE_EVENT_RESET);
    machine_openings_go_on(m);
}

/* Called with the lock held. The loop never waits for vCPUs to park, so that it stays there for the user: the last one to park
 * sends it on. */
void machine_reset_if_parked(struct machine *m)
{
    if (!m->reset_pending || m->stopped || m->parked < m->cpus) return;
    if (event_loop_post(m->loop, do_reset, m)) {
        m->stopped = true;
        m->status = MACHINE_EXIT_HOST;
        atomic_store(&m->want, WANT_QUIT);
        pthread_cond_broadcast(&m->changed);
        event_loop_stop(m->loop);
    }
}

void machine_reset(struct machine *m)
{
    if (m->no_reboot) {
        machine_stop(m, MACHINE_EXIT_OK);
        return;
    }
    pthread_mutex_lock(&m->lock);
    bool first = !m->reset_pending && !m->stopped;
    if (first) {
        m->reset_pending = true;
        atomic_store(&m->want, WANT_PARK);
        machine_reset_if_parked(m);
    }
    pthread_mutex_unlock(&m->lock);
    if (first) kick_all(m);
}

int machine_park(struct machine *m, struct nerr *e)
{
    pthread_mutex_lock(&m->lock);
    bool busy = m->reset_pending || m->stopped || (atomic_load(&m->state) != MACHINE_RUNNING && !m->paused);
    if (!busy) atomic_store(&m->want, WANT_PARK);
    pthread_mutex_unlock(&m->lock);
    if (busy) return nerr_set(e, -EBUSY, "the machine is being reset or stopped");
    kick_all(m);
    uint64_t until = clock_mono_ns() + m->park_patience_ns;
    struct timespec t = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
    pthread_mutex_lock(&m->lock);
    int r = 0;
    while (m->parked < m->cpus && !m->stopped && !r) r = pthread_cond_timedwait(&m->changed, &m->lock, &t);
    bool hangs = r && m->parked < m->cpus;
    busy = m->stopped;
    pthread_mutex_unlock(&m->lock);
    if (busy) return nerr_set(e, -EBUSY, "the machine is being stopped");
    if (!hangs) return 0;
    machine_unpark(m);
    return nerr_set(
        e, -EAGAIN,
        "a vCPU does not stop: the host call that it is in does not end, as when a disk's or log's file system "
        "hangs; try again when that is over");
}

/* A reset that was asked for meanwhile finds the vCPUs parked, as it needs them. */
void machine_unpark(struct machine *m)
{
    pthread_mutex_lock(&m->lock);
    if (!m->reset_pending && !m->stopped && !m->paused) atomic_store(&m->want, WANT_RUN);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* ---- the run ---- */

/* What the guest wrote last must reach the console, but a console that takes nothing must not hold us for ever. */
static void flush_console(struct machine *m)
{
    uint64_t since = clock_mono_ns(), bytes = m->output_bytes;
    while (!platform_serial_flush(m->platform)) {
        uint64_t now = clock_mono_ns();
        if (m->output_bytes != bytes) {
            bytes = m->output_bytes;
            since = now;
        } else if (now - since > FLUSH_PATIENCE_NS) {
            nc_warn("the console takes no more output; its last bytes are lost");
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

int machine_run(struct machine *m)
{
    struct nerr e;
    m->start_ns = clock_mono_ns();
    atomic_store(&m->state, MACHINE_RUNNING);
    int r = machine_vcpus_start(m, &e);
    if (!r) r = event_loop_run(m->loop, &e);
    if (r) {
        nc_error("%s", e.text);
        machine_stop(m, MACHINE_EXIT_HOST);
    }
    machine_stop(m, MACHINE_EXIT_OK); /* no effect when a status is there already */
    machine_openings_abort(m);
    if (!machine_vcpus_join(m)) nc_error("a vCPU did not stop; ending without it (please report this)");
    flush_console(m);
    m->end_ns = clock_mono_ns();
    atomic_store(&m->state, MACHINE_STOPPED);
    return m->status;
}

void machine_power_button(struct machine *m)
{
    platform_power_button(m->platform);
}

size_t machine_serial_input(struct machine *m, const uint8_t *data, size_t len)
{
    return platform_serial_input(m->platform, data, len);
}

enum machine_state machine_state(const struct machine *m)
{
    return (enum machine_state)atomic_load(&m->state);
}

struct event_loop *machine_loop(struct machine *m)
{
    return m->loop;
}

const struct guest_memory *machine_memory(const struct machine *m)
{
    return &m->memory;
}
