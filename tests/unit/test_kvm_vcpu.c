/* The KVM engine on a made-up /dev/kvm: exits, kicks, state, interrupts, dirty log. */
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>

#include "kvm_fake.h"

static struct nerr err;
static struct guest_memory memory;
static struct engine *engine;
static struct vcpu *vcpu[2];
static struct vcpu_exit x;

static int setup(void **state)
{
    fake_setup(state);
    struct engine_config cfg = {.memory = &memory, .vcpus = 2};
    if (engine_kvm.create(&cfg, &engine, &err)) return -1;
    for (unsigned i = 0; i < 2; i++)
        if (engine_kvm.vcpu_create(engine, i, NULL, &vcpu[i], &err)) return -1;
    return 0;
}

static int teardown(void **state)
{
    engine_kvm.destroy(engine);
    return fake_teardown(state);
}

/* ---- exits ---- */

static uint8_t seen[4096];
static unsigned items;

static int string_in(struct fake_vcpu *v, unsigned run)
{
    if (run == 1) {
        memcpy(seen, (uint8_t *)v->run + v->run->io.data_offset, sizeof(seen));
        v->run->exit_reason = KVM_EXIT_SHUTDOWN;
        return 0;
    }
    v->run->exit_reason = KVM_EXIT_IO;
    v->run->io.direction = KVM_EXIT_IO_IN;
    v->run->io.size = 2;
    v->run->io.port = 0x1f0;
    v->run->io.count = items;
    v->run->io.data_offset = 4096;
    return 0;
}

/* A page of REP INSW is more than an exit holds: it comes in pieces, in order, without the guest running in between. */
static void test_string_io(void **state)
{
    (void)state;
    items = 2000;
    fake.on_run = string_in;
    unsigned got = 0, pieces = 0;
    for (engine_kvm.run(vcpu[0], &x); x.kind == VCPU_EXIT_IO; engine_kvm.run(vcpu[0], &x)) {
        assert_int_equal(x.io.port, 0x1f0);
        assert_int_equal(x.io.size, 2);
        assert_false(x.io.write);
        assert_true(x.io.count * 2 <= sizeof(x.io.data));
        for (unsigned i = 0; i < x.io.count; i++, got++) memcpy(x.io.data + 2 * i, &(uint16_t){(uint16_t)got}, 2);
        pieces++;
    }
    assert_int_equal(x.kind, VCPU_EXIT_SHUTDOWN);
    assert_int_equal(got, 2000);
    assert_int_equal(pieces, 4);
    assert_int_equal(fake.runs, 2);
    for (unsigned i = 0; i < 2000; i++) assert_int_equal(seen[2 * i] | seen[2 * i + 1] << 8, i);
}

static int bad_io(struct fake_vcpu *v, unsigned run)
{
    string_in(v, 0);
    if (run == 0) v->run->io.size = 3;
    if (run == 1) v->run->io.count = 0;
    if (run == 2) v->run->io.data_offset = FAKE_RUN_SIZE;
    if (run == 3) v->run->io.count = 0x40000000;
    return 0;
}

static void test_impossible_io(void **state)
{
    (void)state;
    fake.on_run = bad_io;
    for (unsigned i = 0; i < 4; i++) {
        engine_kvm.run(vcpu[0], &x);
        assert_int_equal(x.kind, VCPU_EXIT_FAIL);
    }
}

static int mmio(struct fake_vcpu *v, unsigned run)
{
    if (run == 2) memcpy(seen, v->run->mmio.data, 8);
    v->run->exit_reason = KVM_EXIT_MMIO;
    v->run->mmio.phys_addr = 0xe0001000;
    v->run->mmio.len = run == 3 ? 9 : 4;
    v->run->mmio.is_write = run == 0;
    memcpy(v->run->mmio.data, "\1\2\3\4", 4);
    return 0;
}

static void test_mmio(void **state)
{
    (void)state;
    fake.on_run = mmio;
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_MMIO);
    assert_true(x.mmio.write);
    assert_int_equal(x.mmio.addr.v, 0xe0001000);
    assert_int_equal(x.mmio.len, 4);
    assert_memory_equal(x.mmio.data, "\1\2\3\4", 4);
    engine_kvm.run(vcpu[0], &x);
    assert_false(x.mmio.write);
    memcpy(x.mmio.data, "\5\6\7\10", 4);
    engine_kvm.run(vcpu[0], &x);
    assert_memory_equal(seen, "\5\6\7\10", 4); /* the answer was there before the guest went on */
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_FAIL);
}

static int fails(struct fake_vcpu *v, unsigned run)
{
    static const uint8_t bytes[] = {0x0f, 0x0b, 0xcc};
    switch (run) {
    case 0:
        v->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        v->run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        v->run->emulation_failure.ndata = 3;
        v->run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
        v->run->emulation_failure.insn_size = 3;
        memcpy(v->run->emulation_failure.insn_bytes, bytes, 3);
        return 0;
    case 1:
        v->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        v->run->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
        v->run->internal.ndata = 16;
        return 0;
    case 2:
        v->run->exit_reason = KVM_EXIT_FAIL_ENTRY;
        v->run->fail_entry.hardware_entry_failure_reason = 0x80000021;
        return 0;
    case 3: v->run->exit_reason = 999; return 0;
    case 4: return -EFAULT;
    default: return -ENOMEM;
    }
}

static void test_failures(void **state)
{
    (void)state;
    static const char *const says[] = {"instruction 0f 0b cc", "event delivery", "0x80000021", "999",
                                       "guest memory",         "Cannot allocate"};
    fake.vcpu[0].regs.rip = 0x1000; /* not the reset vector, which has a meaning of its own */
    fake.on_run = fails;
    for (unsigned i = 0; i < 6; i++) {
        engine_kvm.run(vcpu[0], &x);
        assert_int_equal(x.kind, VCPU_EXIT_FAIL);
        if (!strstr(x.fail, says[i])) fail_msg("'%s' does not say '%s'", x.fail, says[i]);
    }
}

static int at_reset_vector(struct fake_vcpu *v, unsigned run)
{
    (void)run;
    v->regs.rip = 0xfff0;
    v->sregs.cs.base = 0xffff0000;
    v->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    v->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    v->run->internal.ndata = 0;
    return 0;
}

static void test_init_of_boot_cpu(void **state)
{
    (void)state;
    fake.on_run = at_reset_vector;
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_RESET);
    engine_kvm.run(vcpu[1], &x);
    assert_int_equal(x.kind, VCPU_EXIT_FAIL);
}

/* ---- kicks ---- */

static int shuts_down(struct fake_vcpu *v, unsigned run)
{
    (void)run;
    v->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return 0;
}

static void test_kick_before_run(void **state)
{
    (void)state;
    fake.on_run = shuts_down;
    engine_kvm.kick(vcpu[0]);
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_KICKED);
    assert_int_equal(fake.runs, 0);
    engine_kvm.run(vcpu[0], &x); /* once */
    assert_int_equal(x.kind, VCPU_EXIT_SHUTDOWN);
}

/* What KVM_RUN does in the kernel: waits until a signal comes. */
static int waits(struct fake_vcpu *v, unsigned run)
{
    (void)v;
    (void)run;
    return usleep(20000000) ? -EINTR : -EIO;
}

static void *kicker(void *arg)
{
    usleep(50000);
    engine_kvm.kick(arg);
    return NULL;
}

static void test_kick_inside(void **state)
{
    (void)state;
    pthread_t t;
    fake.on_run = waits;
    pthread_create(&t, NULL, kicker, vcpu[0]);
    engine_kvm.run(vcpu[0], &x);
    pthread_join(t, NULL);
    assert_int_equal(x.kind, VCPU_EXIT_KICKED);
}

static int spurious(struct fake_vcpu *v, unsigned run)
{
    if (run == 0) return -EINTR;
    if (run == 1) return -EAGAIN;
    return shuts_down(v, run);
}

static void test_wakes_for_nothing(void **state)
{
    (void)state;
    fake.on_run = spurious;
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_SHUTDOWN);
    assert_int_equal(fake.runs, 3);
}

/* ---- state ---- */

static struct cpu_state in, out;

static void fill_state(struct cpu_state *s)
{
    cpu_state_reset(s);
    for (unsigned i = 0; i < 16; i++) s->gpr[i] = 0x1111111111111111ull * i;
    s->rip = 0xffffffff81000000;
    s->rflags = 0x246;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct cpu_segment){.selector = (uint16_t)(i * 8), .attr = 0xa09b, .limit = 0xffffffff, .base = i};
    s->seg[SEG_FS].attr = SEG_ATTR_NULL;
    s->ldtr.attr = SEG_ATTR_NULL | 0x82;
    s->cr0 = 0x80050033, s->cr2 = 0x1234, s->cr3 = 0x1000, s->cr4 = 0x6a0, s->cr8 = 3, s->efer = 0xd01, s->xcr0 = 7;
    s->dr[0] = 0x10, s->dr[3] = 0x13, s->dr[6] = 0xffff0ff1, s->dr[7] = 0x402;
    s->star = 1, s->lstar = 2, s->cstar = 3, s->sfmask = 4, s->kernel_gs_base = 5, s->tsc_aux = 6;
    s->sysenter_cs = 7, s->sysenter_esp = 8, s->sysenter_eip = 9;
    s->tsc_offset = 0x123456789abcull;
    s->halted = true;
    s->irq_shadow = s->nmi_blocked = true;
    s->nmi_pending = 1;
    s->event = (struct cpu_event){.kind = CPU_EVENT_EXCEPTION, .vector = 14, .has_error = true, .error = 2};
    s->xsave[160] = 0x5a;
    s->msrs = 2;
    s->msr[0] = (struct cpu_msr){.index = 0x3b, .value = 77};
    s->msr[1] = (struct cpu_msr){.index = 0x4b564d01, .value = 0x2001};
}

static const struct cpu_msr *find(const struct cpu_state *s, uint32_t index)
{
    for (unsigned i = 0; i < s->msrs; i++)
        if (s->msr[i].index == index) return &s->msr[i];
    return NULL;
}

static void test_state(void **state)
{
    (void)state;
    fill_state(&in);
    assert_int_equal(engine_kvm.set_state(vcpu[1], &in, &err), 0);
    memset(&out, 0xee, sizeof(out));
    assert_int_equal(engine_kvm.get_state(vcpu[1], &out), 0);
    assert_int_equal(out.msrs, 2);
    assert_int_equal(find(&out, 0x3b)->value, 77);
    assert_int_equal(find(&out, 0x4b564d01)->value, 0x2001);
    memcpy(out.msr, in.msr, sizeof(in.msr));
    assert_memory_equal(&in, &out, offsetof(struct cpu_state, msr));
    assert_memory_equal(in.xsave, out.xsave, sizeof(in.xsave));
    /* What is not in the list goes back to its first value. */
    in.msrs = 0;
    in.event.kind = CPU_EVENT_INTERRUPT;
    in.event.vector = 0x30;
    assert_int_equal(engine_kvm.set_state(vcpu[1], &in, &err), 0);
    assert_int_equal(engine_kvm.get_state(vcpu[1], &out), 0);
    assert_int_equal(out.msrs, 0);
    assert_int_equal(out.event.kind, CPU_EVENT_INTERRUPT);
    assert_int_equal(out.event.vector, 0x30);
}

static void refuses(const char *text)
{
    err.text[0] = 0;
    assert_true(engine_kvm.set_state(vcpu[0], &in, &err) < 0);
    if (!strstr(err.text, text)) fail_msg("'%s' does not say '%s'", err.text, text);
}

static void test_refused_state(void **state)
{
    (void)state;
    fill_state(&in);
    in.msr[0].index = 0x1234;
    refuses("no register 0x1234");
    fill_state(&in);
    fake.refused_msr = 0x4b564d01;
    refuses("refuses 0x2001 for register 0x4b564d01");
    in.msrs = CPU_MAX_MSRS + 1;
    refuses("too many");
    fill_state(&in);
    in.event.kind = 9;
    refuses("event 9");
    fill_state(&in);
    in.xsave[27] = 1;
    refuses("MXCSR");
    fill_state(&in);
    fake.fail_request = KVM_SET_SREGS;
    fake.fail_error = EINVAL;
    refuses("lack a feature");
    fake.fail_request = KVM_SET_XCRS;
    refuses("XCR0");
}

static void test_tsc_without_attribute(void **state)
{
    (void)state;
    engine->tsc_offset_attr = false;
    assert_int_equal(kvm_set_tsc_offset(vcpu[0], 1000), 0);
    assert_true(fake_msr(&fake.vcpu[0], 0x10)->data > 1000);
}

/* An I/O exit is under way when another state is set: its completion must not fall on the new registers. */
static void test_abandoned_io(void **state)
{
    (void)state;
    items = 1;
    fake.on_run = string_in;
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(x.kind, VCPU_EXIT_IO);
    fill_state(&in);
    assert_int_equal(engine_kvm.set_state(vcpu[0], &in, &err), 0);
    assert_int_equal(fake.vcpu[0].run->immediate_exit, 0);
    assert_false(vcpu[0]->unfinished);
    fake.on_run = shuts_down;
    memset((uint8_t *)fake.vcpu[0].run + 4096, 0xaa, 4);
    engine_kvm.run(vcpu[0], &x);
    assert_int_equal(((uint8_t *)fake.vcpu[0].run)[4096], 0xaa); /* no answer was copied */
}

/* ---- CPUID ---- */

static const struct kvm_cpuid_entry2 *leaf(unsigned cpu, uint32_t function, uint32_t index)
{
    const struct fake_vcpu *v = &fake.vcpu[cpu];
    for (unsigned i = 0; i < v->cpuid_entries; i++)
        if (v->cpuid[i].function == function && v->cpuid[i].index == index) return &v->cpuid[i];
    fail_msg("no leaf 0x%x.%u", function, index);
    return NULL;
}

static void test_cpuid(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(leaf(i, 1, 0)->ebx >> 16, i << 8 | 2);
        assert_int_equal(leaf(i, 1, 0)->ecx & (1u << 5 | 1u << 3), 0); /* no VMX, no MONITOR */
        assert_int_equal(leaf(i, 1, 0)->ecx >> 21 & 9, 9);             /* x2APIC, TSC deadline */
        assert_int_equal(leaf(i, 0xb, 0)->edx, i);
        assert_int_equal(leaf(i, 0xb, 1)->ebx, 2);
    }
    assert_int_equal(leaf(0, 4, 0)->eax >> 14 & 0xfff, 0);
    assert_int_equal(leaf(0, 4, 3)->eax >> 14 & 0xfff, 1);
    assert_int_equal(leaf(0, 7, 0)->edx & 1u << 24, 0); /* no AMX */
    assert_int_equal(leaf(0, 0xd, 0)->eax, 7);
    assert_int_equal(leaf(0, 0xa, 0)->eax, 0);
    assert_int_equal(leaf(0, 0x80000001, 0)->ecx & 4, 0); /* no SVM */
    assert_int_equal(leaf(0, 0x80000008, 0)->ecx, 1 | 1 << 12);
    assert_int_equal(leaf(0, 0x40000000, 0)->eax, 0x40000010);
    assert_int_equal(leaf(0, 0x40000010, 0)->eax, 2000000);
}

/* ---- interrupts ---- */

static void test_lines(void **state)
{
    (void)state;
    const struct engine_irq_ops *irq = engine_kvm.irq;
    irq->set_line(engine, 4, false);
    assert_int_equal(fake.lines_set, 0); /* only changes are told */
    irq->set_line(engine, 4, true);
    irq->set_line(engine, 4, true);
    assert_int_equal(fake.lines_set, 1);
    assert_int_equal(fake.line, 1 << 4);
    unsigned pic = 0, ioapic = 0;
    for (unsigned i = 0; i < fake.routes; i++) {
        const struct kvm_irq_routing_entry *r = &fake.route[i];
        if (r->u.irqchip.irqchip == KVM_IRQCHIP_IOAPIC)
            ioapic += r->u.irqchip.pin == r->gsi;
        else
            pic++;
        if (r->gsi == 2 && r->u.irqchip.irqchip == KVM_IRQCHIP_PIC_MASTER) assert_int_equal(r->u.irqchip.pin, 0);
    }
    assert_int_equal(ioapic, 24);
    assert_int_equal(pic, 15);
    irq->msi(engine, 0xfee01000, 0x4041);
    assert_int_equal(fake.msi.address_lo, 0xfee01000);
    assert_int_equal(fake.msi.data, 0x4041);
}

static void test_irqfds(void **state)
{
    (void)state;
    const struct engine_irq_ops *irq = engine_kvm.irq;
    unsigned pins = fake.routes;
    for (int fd = 50; fd < 90; fd++) assert_int_equal(irq->irqfd_add(engine, fd, 0xfee00000, (uint32_t)fd, &err), 0);
    assert_int_equal(fake.routes, pins + 40);
    assert_int_equal(fake.irqfds, 40);
    assert_int_equal(fake.irqfd.gsi, IRQ_LINES + 39);
    assert_int_equal(fake.route[fake.routes - 1].u.msi.data, 89);
    assert_int_equal(irq->irqfd_add(engine, 60, 0xfee02000, 7, &err), 0); /* another message */
    assert_int_equal(fake.irqfds, 40);
    assert_int_equal(fake.route[pins + 10].u.msi.address_lo, 0xfee02000);
    irq->irqfd_remove(engine, 60);
    assert_true(fake.irqfd.flags & KVM_IRQFD_FLAG_DEASSIGN);
    assert_int_equal(irq->irqfd_add(engine, 99, 0xfee00000, 8, &err), 0); /* its place is taken again */
    assert_int_equal(fake.irqfd.gsi, IRQ_LINES + 10);
    assert_true(irq->irqfd_add(engine, -1, 0xfee00000, 8, &err) < 0);
    fake.fail_request = KVM_IRQFD;
    fake.fail_error = EBADF;
    assert_int_equal(irq->irqfd_add(engine, 100, 0xfee00000, 8, &err), -EBADF);
    assert_int_equal(fake.routes, pins + 40);
    /* A message that KVM refuses does not stay in the table, where it would have the next one refused, too. */
    fake.fail_request = KVM_SET_GSI_ROUTING;
    fake.fail_error = EINVAL;
    assert_int_equal(irq->irqfd_add(engine, 99, 0xfee00000, 0x1234, &err), -EINVAL);
    fake.fail_request = 0;
    assert_int_equal(irq->irqfd_add(engine, 61, 0xfee03000, 9, &err), 0);
    assert_int_equal(fake.route[pins + 11].u.msi.address_lo, 0xfee03000);
    assert_int_equal(fake.route[pins + 10].u.msi.data, 8);
}

static void test_ioeventfd(void **state)
{
    (void)state;
    struct engine_ioeventfd io = {.port = true, .len = 2, .addr = 0xc010, .value = 3, .fd = 9};
    assert_int_equal(engine_kvm.ioeventfd_add(engine, &io), 0);
    assert_int_equal(fake.ioeventfd.flags, KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH);
    assert_int_equal(fake.ioeventfd.datamatch, 3);
    io.port = false, io.any = true;
    engine_kvm.ioeventfd_remove(engine, &io);
    assert_int_equal(fake.ioeventfd.flags, KVM_IOEVENTFD_FLAG_DEASSIGN);
    fake.fail_request = KVM_IOEVENTFD;
    fake.fail_error = EEXIST;
    assert_int_equal(engine_kvm.ioeventfd_add(engine, &io), -EEXIST);
}

static void test_chips(void **state)
{
    (void)state;
    const struct engine_irq_ops *irq = engine_kvm.irq;
    struct irq_chips_state s = {.ioapic = {.lines = 1 << 4 | 1 << 10, .select = 0x14, .id = 1}}, got;
    for (unsigned i = 0; i < IRQ_LINES; i++) s.ioapic.redir[i] = 0x10030 + i;
    s.ioapic.redir[10] = 0x8000000000008041; /* level, unmasked */
    s.pic[0] = (struct irq_pic_state){.irr = 1, .imr = 0xfb, .isr = 2, .vector = 0x20, .elcr = 0xff, .init_step = 3};
    s.pic[1] = (struct irq_pic_state){.imr = 0xf7, .vector = 0x28, .priority_add = 5, .special_mask = true};
    assert_int_equal(irq->set_chips(engine, &s, &err), 0);
    assert_int_equal(fake.line, 1 << 4 | 1 << 10);
    /* A level that is high waits to be served, an edge that was seen does not come twice. */
    assert_int_equal(fake.chip[KVM_IRQCHIP_IOAPIC].chip.ioapic.irr, 1 << 10);
    assert_int_equal(irq->get_chips(engine, &got, &err), 0);
    s.pic[0].elcr = 0xf8; /* timer, keyboard and cascade are always edges */
    s.pic[0].lines = 1 << 4;
    s.pic[1].lines = 1 << 2;
    assert_memory_equal(&s.ioapic, &got.ioapic, sizeof(s.ioapic));
    assert_memory_equal(&s.pic, &got.pic, sizeof(s.pic));
}

static void test_lapic(void **state)
{
    (void)state;
    const struct engine_irq_ops *irq = engine_kvm.irq;
    static struct irq_lapic_state s, got;
    s = (struct irq_lapic_state){.base = 0xfee00c00, .tsc_deadline = 0x1234567, .nmis = 1, .wait_sipi = true};
    for (unsigned i = 0; i < IRQ_LAPIC_PAGE; i++) s.regs[i] = (uint8_t)i;
    fill_state(&in);
    in.nmi_pending = 0;
    assert_int_equal(engine_kvm.set_state(vcpu[1], &in, &err), 0);
    assert_int_equal(irq->set_lapic(engine, 1, &s, &err), 0);
    assert_int_equal(fake.vcpu[1].mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
    assert_int_equal(fake.vcpu[1].events.nmi.pending, 1);
    assert_int_equal(irq->get_lapic(engine, 1, &got, &err), 0);
    assert_int_equal(got.base, s.base);
    assert_int_equal(got.tsc_deadline, s.tsc_deadline);
    assert_true(got.wait_sipi);
    for (unsigned reg = 0x100; reg <= 0x200; reg += 0x80) memset(s.regs + reg, 0, 2); /* vectors that don't exist */
    assert_memory_equal(got.regs, s.regs, sizeof(s.regs));
    s.wait_sipi = false;
    assert_int_equal(irq->set_lapic(engine, 1, &s, &err), 0);
    assert_int_equal(fake.vcpu[1].mp.mp_state, KVM_MP_STATE_RUNNABLE);
    fake.fail_request = KVM_SET_LAPIC;
    fake.fail_error = EINVAL;
    assert_int_equal(irq->set_lapic(engine, 1, &s, &err), -EINVAL);
}

/* ---- dirty log ---- */

static uint64_t dirty_pages, last_start, last_len;

static void on_dirty(void *ctx, gpa_t a, uint64_t len)
{
    (void)ctx;
    dirty_pages += len / PAGE_SIZE;
    last_start = a.v;
    last_len = len;
}

static void write_page(unsigned cpu, unsigned at, uint64_t page)
{
    fake.vcpu[cpu].ring[at % FAKE_RING].offset = page;
    fake.vcpu[cpu].ring[at % FAKE_RING].flags = KVM_DIRTY_GFN_F_DIRTY;
}

static void test_dirty_ring(void **state)
{
    (void)state;
    assert_true(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err) < 0); /* nobody asked for it */
    assert_int_equal(engine_kvm.dirty_track(engine, true, &err), 0);
    assert_int_equal(fake.slot[0].flags, KVM_MEM_LOG_DIRTY_PAGES);
    dirty_pages = 0;
    for (unsigned i = 0; i < 4; i++) write_page(0, i, 100 + i);
    write_page(1, 0, 103);
    write_page(1, 1, 1u << 30); /* outside: a kernel that says so is not believed */
    engine_kvm.memory_written(engine, GPA(104 * PAGE_SIZE + 5), PAGE_SIZE);
    assert_int_equal(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err), 0);
    assert_int_equal(dirty_pages, 6);
    assert_int_equal(last_start, 100 * PAGE_SIZE); /* one run */
    assert_int_equal(last_len, 6 * PAGE_SIZE);
    assert_int_equal(fake.vcpu[0].ring[3].flags, KVM_DIRTY_GFN_F_RESET);
    assert_int_equal(fake.ring_resets, 1);
    dirty_pages = 0;
    assert_int_equal(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err), 0);
    assert_int_equal(dirty_pages, 0);
    assert_int_equal(engine_kvm.dirty_track(engine, false, &err), 0);
    assert_int_equal(fake.slot[0].flags, 0);
}

static int ring_full(struct fake_vcpu *v, unsigned run)
{
    if (run < 3) {
        for (unsigned i = 0; i < FAKE_RING; i++) {
            assert_true(v->ring[i].flags != KVM_DIRTY_GFN_F_DIRTY);
            write_page(0, i, i % 2000);
        }
        v->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
        return 0;
    }
    return shuts_down(v, run);
}

static void test_ring_full(void **state)
{
    (void)state;
    assert_int_equal(engine_kvm.dirty_track(engine, true, &err), 0);
    fake.on_run = ring_full;
    engine_kvm.run(vcpu[0], &x); /* nobody outside hears of it */
    assert_int_equal(x.kind, VCPU_EXIT_SHUTDOWN);
    assert_int_equal(fake.ring_resets, 3);
    dirty_pages = 0;
    assert_int_equal(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err), 0);
    assert_int_equal(dirty_pages, 2000);
}

static void test_dirty_bitmap(void **state)
{
    (void)state;
    engine->ring_bytes = 0; /* as where the host has none */
    assert_int_equal(engine_kvm.dirty_track(engine, true, &err), 0);
    dirty_pages = 0;
    assert_int_equal(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err), 0);
    assert_int_equal(dirty_pages, 2);
    assert_int_equal(last_start, 7 * PAGE_SIZE);
    fake.fail_request = KVM_GET_DIRTY_LOG;
    fake.fail_error = ENOENT;
    assert_int_equal(engine_kvm.dirty_collect(engine, on_dirty, NULL, &err), -ENOENT);
    engine->ring_bytes = FAKE_RING * sizeof(struct kvm_dirty_gfn);
}

static void test_clock(void **state)
{
    (void)state;
    uint64_t ns;
    assert_int_equal(engine_kvm.set_clock(engine, 123456), 0);
    assert_int_equal(engine_kvm.get_clock(engine, &ns), 0);
    assert_int_equal(ns, 123456);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_string_io),
        TEST(test_impossible_io),
        TEST(test_mmio),
        TEST(test_failures),
        TEST(test_init_of_boot_cpu),
        TEST(test_kick_before_run),
        TEST(test_kick_inside),
        TEST(test_wakes_for_nothing),
        TEST(test_state),
        TEST(test_refused_state),
        TEST(test_tsc_without_attribute),
        TEST(test_abandoned_io),
        TEST(test_cpuid),
        TEST(test_lines),
        TEST(test_irqfds),
        TEST(test_ioeventfd),
        TEST(test_chips),
        TEST(test_lapic),
        TEST(test_dirty_ring),
        TEST(test_ring_full),
        TEST(test_dirty_bitmap),
        TEST(test_clock),
    };
    struct nerr e;
    if (guest_memory_create(&memory, 16 << 20, &e)) return 1;
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    guest_memory_destroy(&memory);
    return r;
}
