/* The kernel's interrupt controllers: lines, messages, eventfds, and their state in and out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/engine/kvm/kvm.h"

#define RTE_LEVEL (1ull << 15)
#define RTE_MASKED (1ull << 16)
#define IOAPIC_BASE 0xfec00000u
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0

/* ---- routing ---- */

static void pin_route(struct kvm_irq_routing *t, unsigned gsi, unsigned chip, unsigned pin)
{
    t->entries[t->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = chip, .pin = pin}};
}

/* As in vmm/irq: GSI n is pin n of the IOAPIC; ISA IRQ 0, the PIT, is GSI 2, the 8259s' own pin 2 being their cascade. */
static void pin_routes(struct kvm_irq_routing *t)
{
    for (unsigned gsi = 0; gsi < IRQ_LINES; gsi++) {
        pin_route(t, gsi, KVM_IRQCHIP_IOAPIC, gsi);
        if (gsi == 2)
            pin_route(t, gsi, KVM_IRQCHIP_PIC_MASTER, 0);
        else if (gsi > 0 && gsi < 8)
            pin_route(t, gsi, KVM_IRQCHIP_PIC_MASTER, gsi);
        else if (gsi >= 8 && gsi < 16)
            pin_route(t, gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8);
    }
}

/* With irq_lock held. */
static int set_routes(const struct engine *g)
{
    struct kvm_irq_routing *t = calloc(1, sizeof(*t) + (2 * IRQ_LINES + g->route_count) * sizeof(t->entries[0]));
    if (!t) return -ENOMEM;
    pin_routes(t);
    for (unsigned i = 0; i < g->route_count; i++) {
        const struct kvm_irqfd_route *r = &g->routes[i];
        if (r->fd < 0) continue;
        t->entries[t->nr++] = (struct kvm_irq_routing_entry){
            .gsi = IRQ_LINES + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)r->addr, .address_hi = (uint32_t)(r->addr >> 32), .data = r->data}};
    }
    int r = kvm_ioctl(g->vm_fd, KVM_SET_GSI_ROUTING, t);
    free(t);
    return r < 0 ? r : 0;
}

int kvm_irq_init(struct engine *g, struct nerr *e)
{
    int r = kvm_ioctl_n(g->vm_fd, KVM_CREATE_IRQCHIP, 0);
    if (r >= 0) r = set_routes(g);
    return r < 0
               ? nerr_set(e, r, "KVM has no interrupt controllers for us: %s; see the host's kernel log", strerror(-r))
               : 0;
}

void kvm_irq_fini(struct engine *g)
{
    free(g->routes);
    pthread_mutex_destroy(&g->irq_lock);
}

/* ---- lines and messages ---- */

/* Devices say their level whenever they look at it; only a change is worth a system call. The lock keeps changes of one line in order. */
static void set_line(struct engine *g, unsigned gsi, bool level)
{
    pthread_mutex_lock(&g->irq_lock);
    if ((g->lines >> gsi & 1) != level) {
        struct kvm_irq_level l = {.irq = gsi, .level = level};
        g->lines ^= 1u << gsi;
        (void)kvm_ioctl(g->vm_fd, KVM_IRQ_LINE, &l);
    }
    pthread_mutex_unlock(&g->irq_lock);
}

static void msi(struct engine *g, uint64_t addr, uint32_t data)
{
    struct kvm_msi m = {.address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data};
    (void)kvm_ioctl(g->vm_fd, KVM_SIGNAL_MSI, &m); /* a message that nobody takes is lost, as on hardware */
}

/* ---- eventfds ---- */

static struct kvm_irqfd_route *find_route(const struct engine *g, int fd)
{
    for (unsigned i = 0; i < g->route_count; i++)
        if (g->routes[i].fd == fd) return &g->routes[i];
    return NULL;
}

static struct kvm_irqfd_route *free_route(struct engine *g)
{
    struct kvm_irqfd_route *r = find_route(g, -1);
    if (r) return r;
    if (g->route_count == KVM_MAX_IRQFDS) return NULL;
    unsigned n = g->route_count ? 2 * g->route_count : 16;
    r = realloc(g->routes, n * sizeof(*r));
    if (!r) return NULL;
    for (unsigned i = g->route_count; i < n; i++) r[i].fd = -1;
    g->routes = r;
    r += g->route_count;
    g->route_count = n;
    return r;
}

static int switch_irqfd(const struct engine *g, const struct kvm_irqfd_route *r, bool on)
{
    struct kvm_irqfd i = {
        .fd = (uint32_t)r->fd, .gsi = IRQ_LINES + (uint32_t)(r - g->routes), .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    return kvm_ioctl(g->vm_fd, KVM_IRQFD, &i);
}

/* The message is in the table before the fd may send it. */
static int new_irqfd(struct engine *g, int fd, uint64_t addr, uint32_t data)
{
    struct kvm_irqfd_route *r = free_route(g);
    if (!r) return -ENOSPC;
    *r = (struct kvm_irqfd_route){.fd = fd, .addr = addr, .data = data};
    int err = set_routes(g);
    if (!err) err = switch_irqfd(g, r, true);
    if (err < 0) {
        r->fd = -1;
        (void)set_routes(g);
    }
    return err;
}

static int irqfd_add(struct engine *g, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    if (fd < 0) return nerr_set(e, -EBADF, "irqfd: %d is no file descriptor", fd);
    int err = 0;
    pthread_mutex_lock(&g->irq_lock);
    struct kvm_irqfd_route *r = find_route(g, fd);
    if (!r) {
        err = new_irqfd(g, fd, addr, data);
    } else if (r->addr != addr || r->data != data) {
        struct kvm_irqfd_route old = *r;
        r->addr = addr;
        r->data = data;
        err = set_routes(g);
        if (err < 0) *r = old; /* what KVM refuses must not stay in the table: it would refuse all that follows, too */
    }
    pthread_mutex_unlock(&g->irq_lock);
    return err < 0 ? nerr_set(e, err, "KVM cannot send interrupts for an eventfd: %s", strerror(-err)) : 0;
}

static void irqfd_remove(struct engine *g, int fd)
{
    if (fd < 0) return;
    pthread_mutex_lock(&g->irq_lock);
    struct kvm_irqfd_route *r = find_route(g, fd);
    if (r) {
        (void)switch_irqfd(g, r, false);
        r->fd = -1;
    }
    pthread_mutex_unlock(&g->irq_lock);
}

static struct kvm_ioeventfd ioeventfd(const struct engine_ioeventfd *io)
{
    return (struct kvm_ioeventfd){.datamatch = io->any ? 0 : io->value,
                                  .addr = io->addr,
                                  .len = io->len,
                                  .fd = io->fd,
                                  .flags = (io->port ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                                           (io->any ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH)};
}

int kvm_ioeventfd_add(struct engine *g, const struct engine_ioeventfd *io)
{
    struct kvm_ioeventfd i = ioeventfd(io);
    int r = kvm_ioctl(g->vm_fd, KVM_IOEVENTFD, &i);
    return r < 0 ? r : 0;
}

void kvm_ioeventfd_remove(struct engine *g, const struct engine_ioeventfd *io)
{
    struct kvm_ioeventfd i = ioeventfd(io);
    i.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    (void)kvm_ioctl(g->vm_fd, KVM_IOEVENTFD, &i);
}

/* ---- 8259s and IOAPIC ---- */

static int get_chip(const struct engine *g, unsigned id, struct kvm_irqchip *c)
{
    *c = (struct kvm_irqchip){.chip_id = id};
    return kvm_ioctl(g->vm_fd, KVM_GET_IRQCHIP, c);
}

static void pic_from_kvm(const struct kvm_pic_state *k, uint8_t lines, struct irq_pic_state *s)
{
    *s = (struct irq_pic_state){
        .irr = k->irr,
        .imr = k->imr,
        .isr = k->isr,
        .lines = lines,
        .elcr = k->elcr,
        .vector = k->irq_base,
        .init_step = k->init_state ? k->init_state + 1 : 0, /* KVM counts from the first word that is expected */
        .priority_add = k->priority_add,
        .needs_icw4 = k->init4,
        .read_isr = k->read_reg_select,
        .poll = k->poll,
        .special_mask = k->special_mask,
        .auto_eoi = k->auto_eoi,
        .rotate_on_aeoi = k->rotate_on_auto_eoi,
        .fully_nested = k->special_fully_nested_mode,
    };
}

static void pic_to_kvm(const struct irq_pic_state *s, bool slave, struct kvm_pic_state *k)
{
    uint8_t elcr_mask = slave ? 0xde : 0xf8;
    *k = (struct kvm_pic_state){
        .last_irr = s->lines,
        .irr = s->irr,
        .imr = s->imr,
        .isr = s->isr,
        .priority_add = s->priority_add & 7,
        .irq_base = s->vector & 0xf8,
        .read_reg_select = s->read_isr,
        .poll = s->poll,
        .special_mask = s->special_mask,
        .init_state = s->init_step >= 2 && s->init_step <= 4 ? s->init_step - 1 : 0,
        .auto_eoi = s->auto_eoi,
        .rotate_on_auto_eoi = s->rotate_on_aeoi,
        .special_fully_nested_mode = s->fully_nested,
        .init4 = s->needs_icw4,
        .elcr = s->elcr & elcr_mask,
        .elcr_mask = elcr_mask,
    };
}

/* Levels of the 8259s' inputs, from the machine's lines. */
static uint8_t pic_lines(uint32_t lines, bool slave)
{
    return slave ? (uint8_t)(lines >> 8) : (uint8_t)((lines & 0xfa) | (lines >> 2 & 1));
}

static int get_chips(struct engine *g, struct irq_chips_state *s, struct nerr *e)
{
    struct kvm_irqchip c;
    memset(s, 0, sizeof(*s));
    pthread_mutex_lock(&g->irq_lock);
    uint32_t lines = g->lines;
    pthread_mutex_unlock(&g->irq_lock);
    int r = get_chip(g, KVM_IRQCHIP_IOAPIC, &c);
    if (r >= 0) {
        for (unsigned i = 0; i < IRQ_LINES; i++) s->ioapic.redir[i] = c.chip.ioapic.redirtbl[i].bits & ~(1ull << 12);
        s->ioapic.lines = lines;
        s->ioapic.select = (uint8_t)c.chip.ioapic.ioregsel;
        s->ioapic.id = (uint8_t)c.chip.ioapic.id;
    }
    for (unsigned i = 0; i < 2 && r >= 0; i++) {
        r = get_chip(g, i ? KVM_IRQCHIP_PIC_SLAVE : KVM_IRQCHIP_PIC_MASTER, &c);
        if (r >= 0) pic_from_kvm(&c.chip.pic, pic_lines(lines, i), &s->pic[i]);
    }
    return r < 0 ? nerr_set(e, r, "KVM does not tell its interrupt controllers' state: %s", strerror(-r)) : 0;
}

static int set_ioapic(const struct engine *g, const struct irq_ioapic_state *s, bool masked)
{
    struct kvm_irqchip c = {.chip_id = KVM_IRQCHIP_IOAPIC};
    struct kvm_ioapic_state *k = &c.chip.ioapic;
    k->base_address = IOAPIC_BASE;
    k->ioregsel = s->select;
    k->id = s->id & 0xf;
    for (unsigned i = 0; i < IRQ_LINES; i++) {
        k->redirtbl[i].bits = s->redir[i] | (masked ? RTE_MASKED : 0);
        /* What KVM is given here it takes for requests that were not served yet: levels are, edges of lines that are still high are not. */
        if (!masked && s->lines >> i & 1 && s->redir[i] & RTE_LEVEL) k->irr |= 1u << i;
    }
    return kvm_ioctl(g->vm_fd, KVM_SET_IRQCHIP, &c);
}

/* Brings the kernel's idea of the wired levels up to date while all is masked, so that no edge is seen that is none. */
static int set_lines(struct engine *g, uint32_t lines)
{
    int r = 0;
    pthread_mutex_lock(&g->irq_lock);
    for (unsigned i = 0; i < IRQ_LINES && r >= 0; i++) {
        struct kvm_irq_level l = {.irq = i, .level = lines >> i & 1};
        r = kvm_ioctl(g->vm_fd, KVM_IRQ_LINE, &l);
    }
    g->lines = lines & ((1u << IRQ_LINES) - 1);
    pthread_mutex_unlock(&g->irq_lock);
    return r;
}

static int set_chips(struct engine *g, const struct irq_chips_state *s, struct nerr *e)
{
    static const struct irq_pic_state closed = {.imr = 0xff};
    struct kvm_irqchip c = {.chip_id = KVM_IRQCHIP_PIC_MASTER};
    pic_to_kvm(&closed, false, &c.chip.pic);
    int r = kvm_ioctl(g->vm_fd, KVM_SET_IRQCHIP, &c);
    if (r >= 0) r = set_ioapic(g, &s->ioapic, true);
    if (r >= 0) r = set_lines(g, s->ioapic.lines);
    for (int i = 1; i >= 0 && r >= 0; i--) {
        memset(&c, 0, sizeof(c));
        c.chip_id = i ? KVM_IRQCHIP_PIC_SLAVE : KVM_IRQCHIP_PIC_MASTER;
        pic_to_kvm(&s->pic[i], i, &c.chip.pic);
        r = kvm_ioctl(g->vm_fd, KVM_SET_IRQCHIP, &c);
    }
    if (r >= 0) r = set_ioapic(g, &s->ioapic, false);
    return r < 0 ? nerr_set(e, r, "KVM refuses the interrupt controllers' state: %s", strerror(-r)) : 0;
}

/* ---- local APICs ---- */

static int add_nmis(const struct vcpu *v, unsigned n)
{
    struct kvm_vcpu_events ev;
    if (!n) return 0;
    int r = kvm_ioctl(v->fd, KVM_GET_VCPU_EVENTS, &ev);
    if (r < 0) return r;
    ev.nmi.pending = (uint8_t)(ev.nmi.pending + n > 2 ? 2 : ev.nmi.pending + n);
    ev.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
    return kvm_ioctl(v->fd, KVM_SET_VCPU_EVENTS, &ev);
}

static int get_lapic(struct engine *g, unsigned id, struct irq_lapic_state *s, struct nerr *e)
{
    const struct vcpu *v = g->vcpu[id];
    struct kvm_lapic_state k;
    struct kvm_mp_state mp;
    memset(s, 0, sizeof(*s));
    int r = kvm_get_msr(v, MSR_APIC_BASE, &s->base);
    if (!r) r = kvm_get_msr(v, MSR_TSC_DEADLINE, &s->tsc_deadline);
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_LAPIC, &k);
    if (r >= 0) r = kvm_ioctl(v->fd, KVM_GET_MP_STATE, &mp);
    if (r < 0) return nerr_set(e, r, "KVM does not tell the state of LAPIC %u: %s", id, strerror(-r));
    memcpy(s->regs, k.regs, sizeof(s->regs));
    s->wait_sipi = mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
    return 0;
}

/* A vCPU that waits for its SIPI has been through INIT. One that doesn't runs, or waits in HLT: that is its own state's to say. */
static int set_waiting(const struct vcpu *v, bool wait)
{
    struct kvm_mp_state mp;
    int r = kvm_ioctl(v->fd, KVM_GET_MP_STATE, &mp);
    if (r < 0) return r;
    bool waits = mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
    if (waits == wait) return 0;
    mp.mp_state = wait ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE;
    return kvm_ioctl(v->fd, KVM_SET_MP_STATE, &mp);
}

static int set_lapic(struct engine *g, unsigned id, const struct irq_lapic_state *s, struct nerr *e)
{
    struct vcpu *v = g->vcpu[id];
    struct kvm_lapic_state k;
    memcpy(k.regs, s->regs, sizeof(k.regs));
    /* Vectors 0 to 15 don't exist (SDM vol. 3 10.5.2): requests for them would stay for ever. */
    for (unsigned reg = 0x100; reg <= 0x200; reg += 0x80) memset(k.regs + reg, 0, 2);
    int r = kvm_set_msr(v, MSR_APIC_BASE, s->base);
    if (!r) r = kvm_ioctl(v->fd, KVM_SET_LAPIC, &k);
    if (r >= 0) r = kvm_set_msr(v, MSR_TSC_DEADLINE, s->tsc_deadline);
    if (r >= 0) r = set_waiting(v, s->wait_sipi);
    if (r >= 0) r = add_nmis(v, s->nmis);
    return r < 0 ? nerr_set(e, r, "KVM refuses the state of LAPIC %u: %s", id, strerror(-r)) : 0;
}

/* ---- power-on ---- */

/* vmm/irq follows with the controllers' own power-on state, which is the same whoever keeps them. */
static int reset(struct engine *g, struct nerr *e)
{
    struct cpu_state *s = aligned_alloc(64, sizeof(*s));
    int r = s ? 0 : nerr_set(e, -ENOMEM, "reset: out of memory");
    if (s) cpu_state_reset(s);
    for (unsigned i = 0; i < g->vcpus && !r; i++)
        if (g->vcpu[i]) r = kvm_set_state(g->vcpu[i], s, e);
    free(s);
    return r;
}

const struct engine_irq_ops kvm_irq_ops = {
    .set_line = set_line,
    .msi = msi,
    .irqfd_add = irqfd_add,
    .irqfd_remove = irqfd_remove,
    .reset = reset,
    .get_chips = get_chips,
    .set_chips = set_chips,
    .get_lapic = get_lapic,
    .set_lapic = set_lapic,
};
