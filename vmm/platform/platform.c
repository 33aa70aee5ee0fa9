/* All platform devices of the board, in one explicit list. */
#include <errno.h>
#include <stdlib.h>

#include "vmm/irq/irq.h"
#include "vmm/platform/platform.h"

struct platform {
    struct platform_config cfg;
    struct serial *com1;
    struct pit *pit;
    struct rtc *rtc;
    struct pm *pm;
    struct slots *slots;
    struct debug_exit *debug_exit; /* the last three: only when asked for */
    struct fw_cfg *fw_cfg;
    struct testdev *testdev;
};

static void set_line(void *ctx, unsigned gsi, bool level)
{
    irqchip_set_line(ctx, gsi, level);
}

static struct irq_line line(const struct platform *p, unsigned gsi)
{
    return (struct irq_line){.set = set_line, .ctx = p->cfg.irqchip, .gsi = gsi};
}

static int add_com1(struct platform *p, struct nerr *e)
{
    struct serial_config c = {
        .loop = p->cfg.loop,
        .irq = line(p, PLATFORM_COM1_GSI),
        .output = p->cfg.cb.serial_output,
        .room = p->cfg.cb.serial_room,
        .ctx = p->cfg.cb.ctx,
    };
    int r = serial_create(&c, &p->com1, e);
    return r ? r : serial_attach(p->com1, p->cfg.bus, PLATFORM_COM1_PORT, e);
}

static int add_pit(struct platform *p, struct nerr *e)
{
    int r = pit_create(p->cfg.loop, line(p, PLATFORM_PIT_GSI), &p->pit, e);
    return r ? r : pit_attach(p->pit, p->cfg.bus, e);
}

static int add_rtc(struct platform *p, struct nerr *e)
{
    int r = rtc_create(p->cfg.loop, line(p, PLATFORM_RTC_GSI), p->cfg.ram_size, &p->rtc, e);
    return r ? r : rtc_attach(p->rtc, p->cfg.bus, e);
}

static int add_pm(struct platform *p, struct nerr *e)
{
    struct pm_config c = {
        .loop = p->cfg.loop,
        .sci = line(p, PLATFORM_SCI_GSI),
        .config_ports = p->cfg.config_ports,
        .config_dev = p->cfg.config_dev,
        .power_off = p->cfg.cb.power_off,
        .reset = p->cfg.cb.reset,
        .ctx = p->cfg.cb.ctx,
    };
    int r = pm_create(&c, &p->pm, e);
    return r ? r : pm_attach(p->pm, p->cfg.bus, e);
}

static int add_slots(struct platform *p, struct nerr *e)
{
    struct slots_config c = {.pm = p->pm, .eject = p->cfg.cb.eject, .ctx = p->cfg.cb.ctx};
    int r = slots_create(&c, &p->slots, e);
    return r ? r : slots_attach(p->slots, p->cfg.bus, e);
}

static int add_debug_exit(struct platform *p, struct nerr *e)
{
    if (!p->cfg.debug_exit_port) return 0;
    int r = debug_exit_create(p->cfg.cb.debug_exit, p->cfg.cb.ctx, &p->debug_exit, e);
    return r ? r : debug_exit_attach(p->debug_exit, p->cfg.bus, p->cfg.debug_exit_port, e);
}

static int add_fw_cfg(struct platform *p, struct nerr *e)
{
    if (!p->cfg.testdev) return 0;
    int r = fw_cfg_create(p->cfg.vcpus, p->cfg.ram_size, &p->fw_cfg, e);
    return r ? r : fw_cfg_attach(p->fw_cfg, p->cfg.bus, e);
}

static int add_testdev(struct platform *p, struct nerr *e)
{
    if (!p->cfg.testdev) return 0;
    int r = testdev_create(line(p, 0), &p->testdev, e);
    return r ? r : testdev_attach(p->testdev, p->cfg.bus, e);
}

/* Debug exit comes last: it is the one whose port the user chose, so it is the one to hear of a clash. */
static int (*const devices[])(struct platform *p, struct nerr *e) = {
    add_com1, add_pit, add_rtc, add_pm, add_slots, add_fw_cfg, add_testdev, add_debug_exit,
};

int platform_create(const struct platform_config *cfg, struct platform **out, struct nerr *e)
{
    struct platform *p = calloc(1, sizeof *p);
    if (!p) return nerr_set(e, -ENOMEM, "out of memory for the platform devices");
    p->cfg = *cfg;
    if (cfg->debug_exit_port) p->cfg.testdev = true;
    for (unsigned i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        int r = devices[i](p, e);
        if (!r) continue;
        platform_destroy(p);
        return r;
    }
    *out = p;
    return 0;
}

void platform_destroy(struct platform *p)
{
    if (!p) return;
    debug_exit_destroy(p->debug_exit);
    testdev_destroy(p->testdev);
    fw_cfg_destroy(p->fw_cfg);
    slots_destroy(p->slots);
    pm_destroy(p->pm);
    rtc_destroy(p->rtc);
    pit_destroy(p->pit);
    serial_destroy(p->com1);
    free(p);
}

void platform_reset(struct platform *p)
{
    serial_reset(p->com1);
    pit_reset(p->pit);
    rtc_reset(p->rtc);
    slots_reset(p->slots); /* lets its event go before that is forgotten */
    pm_reset(p->pm);
    if (p->fw_cfg) fw_cfg_reset(p->fw_cfg);
    if (p->testdev) testdev_reset(p->testdev);
}

void platform_freeze(struct platform *p)
{
    pit_freeze(p->pit);
    pm_freeze(p->pm);
}

void platform_thaw(struct platform *p, uint64_t ns)
{
    pit_thaw(p->pit, ns);
    pm_thaw(p->pm, ns);
}

size_t platform_serial_input(struct platform *p, const uint8_t *data, size_t len)
{
    return serial_input(p->com1, data, len);
}

bool platform_serial_flush(struct platform *p)
{
    return serial_flush(p->com1);
}

void platform_power_button(struct platform *p)
{
    pm_power_button(p->pm);
}

void platform_slot_added(struct platform *p, unsigned slot)
{
    slots_added(p->slots, slot);
}

void platform_slot_ask(struct platform *p, unsigned slot)
{
    slots_ask(p->slots, slot);
}

void platform_slot_empty(struct platform *p, unsigned slot)
{
    slots_empty(p->slots, slot);
}
