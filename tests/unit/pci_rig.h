/* A PCI bus without a machine: guest memory, configuration accesses the two ways, a record of interrupts. */
#ifndef NACELLE_TESTS_PCI_RIG_H
#define NACELLE_TESTS_PCI_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/bus/pci.h"

#define RIG_RAM (16ull << 20)
#define CFG_COMMAND 0x04
#define CFG_STATUS 0x06
#define CFG_BAR(n) (0x10u + 4 * (n))
#define CFG_INTERRUPT_LINE 0x3cu
#define CMD_IO 1u
#define CMD_MEMORY 2u
#define CMD_MASTER 4u
#define CMD_INTX_OFF 0x400u

struct pci_rig {
    struct bus bus;
    struct guest_memory memory;
    struct pci_bus *pci;
    struct pci_layout layout;
    struct pci_irq_sink sink;
    atomic_bool line[24];
    atomic_uint rises, msis;
    _Atomic uint64_t msi_addr;
    _Atomic uint32_t msi_data;
};

static void rig_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct pci_rig *r = ctx;
    r->msi_addr = addr;
    r->msi_data = data;
    r->msis++;
}

static void rig_line(void *ctx, unsigned gsi, bool level)
{
    struct pci_rig *r = ctx;
    if (gsi < 24 && !atomic_exchange(&r->line[gsi], level) && level) r->rises++;
}

static inline struct pci_rig *pci_rig_new(void)
{
    struct nerr e;
    struct pci_rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    assert_int_equal(guest_memory_create(&r->memory, RIG_RAM, &e), 0);
    r->sink = (struct pci_irq_sink){r, rig_msi, rig_line};
    struct pci_config c = {.bus = &r->bus, .dma = {.memory = &r->memory}, .ram_size = RIG_RAM, .sink = &r->sink};
    pci_layout_init(&r->layout, RIG_RAM, 0);
    assert_int_equal(pci_bus_create(&c, &r->pci, &e), 0);
    return r;
}

static inline void pci_rig_free(struct pci_rig *r)
{
    pci_bus_destroy(r->pci);
    guest_memory_destroy(&r->memory);
    free(r);
}

static inline uint64_t rig_ecam(const struct pci_rig *r, unsigned slot, unsigned reg)
{
    return r->layout.ecam_base + ((uint64_t)slot << 15) + reg;
}

static inline uint32_t cfg_read(struct pci_rig *r, unsigned slot, unsigned reg, unsigned size)
{
    return (uint32_t)bus_read(&r->bus, BUS_MMIO, rig_ecam(r, slot, reg), size);
}

static inline void cfg_write(struct pci_rig *r, unsigned slot, unsigned reg, unsigned size, uint32_t v)
{
    bus_write(&r->bus, BUS_MMIO, rig_ecam(r, slot, reg), size, v);
}

static inline uint32_t mem_read(struct pci_rig *r, uint64_t addr, unsigned size)
{
    return (uint32_t)bus_read(&r->bus, BUS_MMIO, addr, size);
}

static inline void mem_write(struct pci_rig *r, uint64_t addr, unsigned size, uint32_t v)
{
    bus_write(&r->bus, BUS_MMIO, addr, size, v);
}

/* Offset of a capability, 0 when there is none. */
static inline unsigned cfg_capability(struct pci_rig *r, unsigned slot, uint8_t id)
{
    unsigned left = 64;
    for (unsigned at = cfg_read(r, slot, 0x34, 1); at && left--; at = cfg_read(r, slot, at + 1, 1)) {
        assert_true(at >= 0x40 && at % 4 == 0);
        if (cfg_read(r, slot, at, 1) == id) return at;
    }
    return 0;
}

#endif
