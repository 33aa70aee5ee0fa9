/* The PCI host bridge as ACPI describes it: windows, interrupt routing, and who controls PCI Express features. */
#include "vmm/platform/acpi_pci.h"

/* Opcodes of the one method here (ACPI 6.4 20.2.5, 20.3) */
enum {
    LOCAL0 = 0x60,
    ARG0 = 0x68,
    ARG3 = 0x6b,
    OP_AND = 0x7b,
    OP_OR = 0x7d,
    OP_CREATE_DWORD_FIELD = 0x8a,
    OP_LNOT = 0x92,
    OP_LEQUAL = 0x93,
    OP_IF = 0xa0,
    OP_ELSE = 0xa1,
    OP_RETURN = 0xa4,
    OP_STORE = 0x70,
    OP_BUFFER = 0x11,
};

#define OSC_UNKNOWN_UUID 4 /* ACPI 6.2.11 */
#define OSC_MASKED 16
/* PCI firmware specification 4.5.1: what systems may control themselves: PME, AER, the Express capability; hot plug is
 * ACPI's (acpi_slots.c). */
#define OSC_GRANTED 0x1c

#define MEMORY_READ_WRITE 0x01
#define MEMORY_PREFETCHABLE 0x07
#define IO_ENTIRE_RANGE 0x03

static void crs(struct aml *a, const struct pci_layout *p)
{
    aml_name(a, "_CRS");
    size_t r = aml_resources_begin(a);
    aml_window(a, AML_BUS, 16, 0, 0, 1);
    aml_io(a, 0x0cf8, 8);
    aml_window(a, AML_IO, 16, IO_ENTIRE_RANGE, p->io_base, p->io_size);
    aml_window(a, AML_MEMORY, 32, MEMORY_READ_WRITE, p->mem_base, p->mem_size);
    aml_window(a, AML_MEMORY, 64, MEMORY_PREFETCHABLE, p->mem64_base, p->mem64_size);
    aml_resources_end(a, r);
}

/* Without link devices: each entry names address, pin, 0, GSI (ACPI 6.2.13). Functions here have INTA# at most, and systems interpret all
 * of this for each device that they enable, so there is nothing about other pins. */
static void prt_table(struct aml *a, const char *name, unsigned (*line)(unsigned slot))
{
    aml_name(a, name);
    size_t all = aml_package_begin(a, PCI_SLOTS);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        size_t one = aml_package_begin(a, 4);
        aml_integer(a, slot << 16 | 0xffff);
        aml_integer(a, 0);
        aml_integer(a, 0);
        aml_integer(a, line(slot));
        aml_end(a, one);
    }
    aml_end(a, all);
}

static void return_name(struct aml *a, const char *name)
{
    aml_byte(a, OP_RETURN);
    aml_path(a, name);
}

/* The wires end at the IOAPIC and at the 8259s, and a system has said which it uses (_PIC). */
static void prt(struct aml *a)
{
    prt_table(a, "PRTA", pci_gsi);
    prt_table(a, "PRTP", pci_isa_irq);
    size_t m = aml_method_begin(a, "_PRT", 0);
    size_t apic = aml_block_begin(a, OP_IF);
    aml_path(a, "\\PICM");
    return_name(a, "PRTA");
    aml_end(a, apic);
    return_name(a, "PRTP");
    aml_end(a, m);
}

void acpi_pci_mode(struct aml *a)
{
    aml_name(a, "\\PICM");
    aml_integer(a, 0);
    size_t m = aml_method_begin(a, "\\_PIC", 1);
    aml_byte(a, OP_STORE);
    aml_byte(a, ARG0);
    aml_path(a, "\\PICM");
    aml_end(a, m);
}

static void osc_field(struct aml *a, unsigned off, const char *name)
{
    aml_byte(a, OP_CREATE_DWORD_FIELD);
    aml_byte(a, ARG3);
    aml_integer(a, off);
    aml_path(a, name);
}

/* name = name OP value */
static void assign(struct aml *a, uint8_t op, const char *name, uint32_t value)
{
    aml_byte(a, op);
    aml_path(a, name);
    aml_integer(a, value);
    aml_path(a, name);
}

static void if_equal(struct aml *a, uint8_t arg, const uint8_t *bytes, uint8_t len)
{
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, arg);
    size_t b = aml_block_begin(a, OP_BUFFER);
    aml_integer(a, len);
    aml_bytes(a, bytes, len);
    aml_end(a, b);
}

/* _OSC(uuid, revision, count, buffer): the third double word of the buffer is what the system wants to control. */
static void osc(struct aml *a)
{
    static const uint8_t uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
                                     0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};
    size_t m = aml_method_begin(a, "_OSC", 4);
    osc_field(a, 0, "CDW1");
    size_t known = aml_block_begin(a, OP_IF);
    if_equal(a, ARG0, uuid, sizeof uuid);
    osc_field(a, 8, "CDW3");
    aml_byte(a, OP_STORE);
    aml_path(a, "CDW3");
    aml_byte(a, LOCAL0);
    assign(a, OP_AND, "CDW3", OSC_GRANTED);
    size_t less = aml_block_begin(a, OP_IF);
    aml_byte(a, OP_LNOT);
    aml_byte(a, OP_LEQUAL);
    aml_path(a, "CDW3");
    aml_byte(a, LOCAL0);
    assign(a, OP_OR, "CDW1", OSC_MASKED);
    aml_end(a, less);
    aml_end(a, known);
    size_t unknown = aml_block_begin(a, OP_ELSE);
    assign(a, OP_OR, "CDW1", OSC_UNKNOWN_UUID);
    aml_end(a, unknown);
    aml_byte(a, OP_RETURN);
    aml_byte(a, ARG3);
    aml_end(a, m);
}

void acpi_pci_bridge(struct aml *a, const struct pci_layout *p, uint32_t changing_slots)
{
    static const char *const zero[] = {"_UID", "_SEG", "_BBN"};
    size_t d = aml_device_begin(a, "PCI0");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0A08");
    aml_name(a, "_CID");
    aml_eisa_id(a, "PNP0A03");
    for (unsigned i = 0; i < 3; i++) {
        aml_name(a, zero[i]);
        aml_integer(a, 0);
    }
    crs(a, p);
    prt(a);
    osc(a);
    acpi_slots(a, changing_slots);
    aml_end(a, d);
}
