/* PCI hot plug as ACPI describes it: a device object per slot that may change, a method that ejects it, and the general-purpose event
 * through which the guest hears of arrivals and of devices that the user wants back. slots.c has the registers. */
#include "vmm/platform/acpi_pci.h"
#include "vmm/platform/platform.h"

/* Opcodes (ACPI 6.4 20.2.5) */
enum {
    LOCAL0 = 0x60,
    ARG0 = 0x68,
    ARG1 = 0x69,
    OP_EXT = 0x5b,
    OP_EXT_REGION = 0x80,
    OP_EXT_FIELD = 0x81,
    OP_STORE = 0x70,
    OP_AND = 0x7b,
    OP_NOTIFY = 0x86,
    OP_IF = 0xa0,
    NO_TARGET = 0x00,
};

#define REGION_IO 1
/* Accessed as 32 bits, no lock, writes keep other bits: there are none in a field as wide as its access. */
#define FIELD_DWORDS 3
#define FIELD_BITS 32
/* Device object notifications (ACPI 5.6.6) */
#define DEVICE_CHECK 1
#define EJECT_REQUEST 3

#define ADDED "SLAD"
#define ASKED "SLAS"
#define EJECT "SLEJ"
#define TELL "SLTL"
#define EVENT "SLEV"

static void slot_name(unsigned slot, char name[5])
{
    static const char digit[] = "0123456789ABCDEF";
    name[0] = 'S';
    name[1] = 'L';
    name[2] = digit[slot >> 4];
    name[3] = digit[slot & 0xf];
    name[4] = 0;
}

static void field(struct aml *a, const char *name)
{
    aml_path(a, name);
    aml_byte(a, FIELD_BITS);
}

static void registers(struct aml *a)
{
    aml_byte(a, OP_EXT);
    aml_byte(a, OP_EXT_REGION);
    aml_path(a, "SLOT");
    aml_byte(a, REGION_IO);
    aml_integer(a, PLATFORM_SLOTS_BASE);
    aml_integer(a, PLATFORM_SLOTS_LEN);
    aml_byte(a, OP_EXT);
    size_t f = aml_block_begin(a, OP_EXT_FIELD);
    aml_path(a, "SLOT");
    aml_byte(a, FIELD_DWORDS);
    field(a, ADDED);
    field(a, ASKED);
    field(a, EJECT);
    aml_end(a, f);
}

static void device(struct aml *a, unsigned slot)
{
    char name[5];
    slot_name(slot, name);
    size_t d = aml_device_begin(a, name);
    aml_name(a, "_ADR");
    aml_integer(a, slot << 16);
    aml_name(a, "_SUN");
    aml_integer(a, slot);
    size_t m = aml_method_begin(a, "_EJ0", 1);
    aml_byte(a, OP_STORE);
    aml_integer(a, 1u << slot);
    aml_path(a, EJECT);
    aml_end(a, m);
    aml_end(a, d);
}

/* TELL(slots, what) notifies the devices of these slots. */
static void tell(struct aml *a, uint32_t changing_slots)
{
    char name[5];
    size_t m = aml_method_begin(a, TELL, 2);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (!(changing_slots >> slot & 1)) continue;
        slot_name(slot, name);
        size_t mine = aml_block_begin(a, OP_IF);
        aml_byte(a, OP_AND);
        aml_byte(a, ARG0);
        aml_integer(a, 1u << slot);
        aml_byte(a, NO_TARGET);
        aml_byte(a, OP_NOTIFY);
        aml_path(a, name);
        aml_byte(a, ARG1);
        aml_end(a, mine);
    }
    aml_end(a, m);
}

/* Reads the slots, clears what was read and no more, and tells of them. */
static void tell_of(struct aml *a, const char *name, unsigned what)
{
    aml_byte(a, OP_STORE);
    aml_path(a, name);
    aml_byte(a, LOCAL0);
    aml_byte(a, OP_STORE);
    aml_byte(a, LOCAL0);
    aml_path(a, name);
    aml_path(a, TELL);
    aml_byte(a, LOCAL0);
    aml_integer(a, what);
}

void acpi_slots(struct aml *a, uint32_t changing_slots)
{
    registers(a);
    for (unsigned slot = 1; slot < PCI_SLOTS; slot++)
        if (changing_slots >> slot & 1) device(a, slot);
    tell(a, changing_slots & ~1u);
    size_t m = aml_method_begin(a, EVENT, 0);
    tell_of(a, ADDED, DEVICE_CHECK);
    tell_of(a, ASKED, EJECT_REQUEST);
    aml_end(a, m);
}

/* Level-triggered (5.6.4.1): the registers hold the event until both read as 0, so that none is lost between the reading and the clearing of the
 * status bit, nor one that came before the system listened. */
void acpi_slots_event(struct aml *a)
{
    const char name[5] = {'_', 'L', '0', '0' + PLATFORM_GPE_SLOTS, 0};
    size_t gpe = aml_scope_begin(a, "\\_GPE");
    size_t m = aml_method_begin(a, name, 0);
    aml_path(a, "\\/\x03_SB_PCI0" EVENT);
    aml_end(a, m);
    aml_end(a, gpe);
}
