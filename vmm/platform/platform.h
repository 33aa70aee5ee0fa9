/* The small devices of the PC platform: serial port, timers, clock, power management, ACPI tables, debug exit.
 *
 * platform_create() makes and attaches all of them, which is all that the machine needs; the single devices are public for tests
 * and for other boards.
 *
 * Threads: every function may be called from any thread but create/destroy. Each device has its own mutex. Lock order: device, then
 * interrupt chip (vmm/irq), then event loop. Callbacks into the machine (output, power_off, reset, ...) are made without a lock held,
 * on whatever thread the guest's access runs (a vCPU's) or on the loop's. */
#ifndef NACELLE_VMM_PLATFORM_H
#define NACELLE_VMM_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/addr.h"
#include "common/error.h"
#include "vmm/bus/bus.h"
#include "vmm/bus/pci.h"
#include "vmm/memory/memory.h"

struct event_loop;
struct irqchip;

/* Where a device's interrupt goes; called with the device's lock held. */
struct irq_line {
    void (*set)(void *ctx, unsigned gsi, bool level);
    void *ctx;
    unsigned gsi;
};

/* ---- I/O ports and interrupts of the board ---- */
#define PLATFORM_COM1_PORT 0x3f8
#define PLATFORM_COM1_GSI 4
#define PLATFORM_PIT_GSI 2 /* ISA IRQ 0 is wired to IOAPIC pin 2 */
#define PLATFORM_RTC_GSI 8
#define PLATFORM_SCI_GSI 9
#define PLATFORM_PM_BASE 0x600  /* PM1a event at +0, control at +4, timer at +8 */
#define PLATFORM_GPE_BASE 0x620 /* status at +0, enable at +2: 16 general-purpose events */
#define PLATFORM_GPE_LEN 4
#define PLATFORM_GPE_SLOTS 1      /* the event for PCI slots */
#define PLATFORM_SLOTS_BASE 0x640 /* see slots.c */
#define PLATFORM_SLOTS_LEN 12
#define PLATFORM_RESET_PORT 0xcf9
#define PLATFORM_S5_TYPE 5 /* SLP_TYP that powers off */

/* ---- everything at once ---- */
struct platform;

struct platform_callbacks {
    void *ctx;
    /* COM1 transmitted: takes up to `len` bytes without blocking for long and returns how many it took; the rest is offered again
     * some milliseconds later (or at platform_serial_flush). Called on the loop's thread. */
    size_t (*serial_output)(void *ctx, const uint8_t *data, size_t len);
    /* COM1 has room again after serial_input took less than it was given. Any thread; must not block. May be NULL. */
    void (*serial_room)(void *ctx);
    void (*power_off)(void *ctx);
    void (*reset)(void *ctx);
    /* A write of v to the debug-exit port: status is (v << 1) | 1. */
    void (*debug_exit)(void *ctx, uint32_t status);
    /* The guest ejects the PCI devices in these slots (a bit each), asked or not; what may go is the callee's to know. Devices that go are out of
     * the guest's sight when it returns. On a vCPU's thread. May be NULL. */
    void (*eject)(void *ctx, uint32_t slots);
};

struct platform_config {
    struct event_loop *loop;
    struct irqchip *irqchip;
    struct bus *bus;
    unsigned vcpus;
    uint64_t ram_size;        /* bytes; told to test kernels through fw_cfg and to firmware through CMOS */
    uint16_t debug_exit_port; /* 0: none */
    /* Takes accesses to ports 0xcf8..0xcff but to the reset register 0xcf9: those that reach PCI configuration space. May be NULL. */
    const struct bus_handler *config_ports;
    void *config_dev;
    bool testdev; /* the ports the field's conformance kernels use; on when there is a debug-exit port */
    struct platform_callbacks cb;
};

int platform_create(const struct platform_config *cfg, struct platform **out, struct nerr *e);
void platform_destroy(struct platform *p);
/* Machine reset: every device back to power-on state. */
void platform_reset(struct platform *p);
/* The guest's time stands still, and goes on `ns` nanoseconds later as if they had not been. The real-time clock is one of the real time and goes on.
 * No vCPU runs; on the loop's thread. */
void platform_freeze(struct platform *p);
void platform_thaw(struct platform *p, uint64_t ns);
/* Input for COM1; returns how many of the bytes were taken (the rest after serial_room). None are before the guest listens: see serial.c. */
size_t platform_serial_input(struct platform *p, const uint8_t *data, size_t len);
/* Hands everything transmitted to serial_output now; false when the callback did not take it all. */
bool platform_serial_flush(struct platform *p);
/* The user pressed the power button: an ACPI event for the guest. */
void platform_power_button(struct platform *p);
/* PCI hot plug: tells the guest of a device that is new in a slot; asks it to eject one; and the slot has been emptied: whatever the guest
 * was to be told of it is void. */
void platform_slot_added(struct platform *p, unsigned slot);
void platform_slot_ask(struct platform *p, unsigned slot);
void platform_slot_empty(struct platform *p, unsigned slot);

/* ---- ACPI tables ---- */
struct acpi_config {
    unsigned vcpus;               /* APIC ids 0..vcpus-1 */
    const struct pci_layout *pci; /* NULL: no PCI bus */
    uint32_t changing_slots;      /* PCI slots whose device may be added and ejected, a bit each; never slot 0 */
};
#define ACPI_AREA_BASE 0xe0000u
#define ACPI_AREA_SIZE 0x20000u
/* Writes all tables into the guest's [0xe0000, 0x100000) (the RSDP on a 16-byte boundary where BIOS scans look). Keep the area reserved in
 * the memory map. *rsdp gets the RSDP's address (also for boot_params.acpi_rsdp_addr and hvm_start_info). */
int acpi_build(const struct guest_memory *m, const struct acpi_config *cfg, gpa_t *rsdp, struct nerr *e);
/* The same into a buffer that stands for guest addresses [ACPI_AREA_BASE, ACPI_AREA_BASE + size). Bytes used, or 0 with the message. */
size_t acpi_build_buffer(const struct acpi_config *cfg, uint8_t *buf, size_t size, struct nerr *e);

/* ---- single devices ---- */
struct serial; /* 16550A */
struct serial_config {
    struct event_loop *loop;
    struct irq_line irq;
    size_t (*output)(void *ctx, const uint8_t *data, size_t len);
    void (*room)(void *ctx);
    void *ctx;
};
int serial_create(const struct serial_config *cfg, struct serial **out, struct nerr *e);
void serial_destroy(struct serial *s);
int serial_attach(struct serial *s, struct bus *b, uint16_t port, struct nerr *e);
void serial_reset(struct serial *s);
size_t serial_input(struct serial *s, const uint8_t *data, size_t len);
bool serial_flush(struct serial *s);

struct pit; /* i8254, and port 0x61 */
int pit_create(struct event_loop *loop, struct irq_line irq, struct pit **out, struct nerr *e);
void pit_destroy(struct pit *p);
int pit_attach(struct pit *p, struct bus *b, struct nerr *e);
void pit_reset(struct pit *p);
void pit_freeze(struct pit *p);
void pit_thaw(struct pit *p, uint64_t ns);

struct rtc; /* MC146818 and CMOS RAM */
int rtc_create(struct event_loop *loop, struct irq_line irq, uint64_t ram_size, struct rtc **out, struct nerr *e);
void rtc_destroy(struct rtc *r);
int rtc_attach(struct rtc *r, struct bus *b, struct nerr *e);
void rtc_reset(struct rtc *r);

struct pm; /* ACPI PM1 blocks, PM timer, reset register, ports 0x64 and 0x92 */
struct pm_config {
    struct event_loop *loop;
    struct irq_line sci;
    void (*power_off)(void *ctx);
    void (*reset)(void *ctx);
    void *ctx;
    const struct bus_handler *config_ports; /* see platform_config */
    void *config_dev;
};
int pm_create(const struct pm_config *cfg, struct pm **out, struct nerr *e);
void pm_destroy(struct pm *p);
int pm_attach(struct pm *p, struct bus *b, struct nerr *e);
void pm_reset(struct pm *p);
void pm_freeze(struct pm *p);
void pm_thaw(struct pm *p, uint64_t ns);
void pm_power_button(struct pm *p);
/* A source holds general-purpose event n (0..15), or lets it go. The status bit stays until it is cleared. */
void pm_gpe_set(struct pm *p, unsigned n, bool level);

struct slots; /* ACPI's registers for PCI hot plug */
struct slots_config {
    struct pm *pm; /* has the event; outlives this */
    void (*eject)(void *ctx, uint32_t slots);
    void *ctx;
};
int slots_create(const struct slots_config *cfg, struct slots **out, struct nerr *e);
void slots_destroy(struct slots *s);
int slots_attach(struct slots *s, struct bus *b, struct nerr *e);
void slots_reset(struct slots *s); /* nothing is to be told any more */
void slots_added(struct slots *s, unsigned slot);
void slots_ask(struct slots *s, unsigned slot);
void slots_empty(struct slots *s, unsigned slot);

struct debug_exit;
int debug_exit_create(void (*fn)(void *ctx, uint32_t status), void *ctx, struct debug_exit **out, struct nerr *e);
void debug_exit_destroy(struct debug_exit *d);
int debug_exit_attach(struct debug_exit *d, struct bus *b, uint16_t port, struct nerr *e);

struct fw_cfg; /* read-only, selector port 0x510, data port 0x511 */
int fw_cfg_create(unsigned vcpus, uint64_t ram_size, struct fw_cfg **out, struct nerr *e);
void fw_cfg_destroy(struct fw_cfg *f);
int fw_cfg_attach(struct fw_cfg *f, struct bus *b, struct nerr *e);
void fw_cfg_reset(struct fw_cfg *f);

struct testdev;
int testdev_create(struct irq_line irq, struct testdev **out,
                   struct nerr *e); /* irq.gsi is ignored: it drives all lines */
void testdev_destroy(struct testdev *t);
int testdev_attach(struct testdev *t, struct bus *b, struct nerr *e);
void testdev_reset(struct testdev *t);

#endif
