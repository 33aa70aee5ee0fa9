/* ACPI tables of the board (ACPI 6.4 chapter 5). Laid out one after the other, the RSDP first; addresses are guest-physical. */
#include <errno.h>
#include <string.h>

#include "vmm/engine/engine.h"
#include "vmm/platform/acpi_pci.h"
#include "vmm/platform/aml.h"
#include "vmm/platform/platform.h"

#define OEM_ID "NACELL"
#define OEM_TABLE_ID "NACELLE "
#define LAPIC_BASE 0xfee00000u
#define IOAPIC_BASE 0xfec00000u

/* FADT flags (table 5.10) */
#define FADT_WBINVD (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_SLP_BUTTON (1u << 5) /* no fixed-hardware sleep button */
#define FADT_FIX_RTC (1u << 6)    /* RTC wake is not in the fixed registers */
#define FADT_TMR_VAL_EXT (1u << 8)
#define FADT_RESET_REG_SUP (1u << 10)
/* IA-PC boot architecture (table 5.11): ISA devices, no 8042, no VGA, and the CMOS RTC is there. */
#define BOOT_LEGACY_DEVICES 0x01u
#define BOOT_NO_VGA 0x04u
/* MADT interrupt flags: active high, level-triggered */
#define MADT_HIGH_LEVEL 0x0d
#define MADT_PCAT_COMPAT 1u

struct table {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));

struct rsdp {
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct address {
    uint8_t space, width, offset, access;
    uint64_t address;
} __attribute__((packed));

struct fadt {
    struct table h;
    uint32_t firmware_ctrl, dsdt;
    uint8_t reserved0, profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct address reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor;
    uint64_t x_firmware_ctrl, x_dsdt;
    struct address x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1, sleep_control,
        sleep_status;
    uint64_t hypervisor_id;
} __attribute__((packed));
_Static_assert(sizeof(struct fadt) == 276, "FADT of ACPI 6");

struct facs {
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version, reserved0[3];
    uint32_t ospm_flags;
    uint8_t reserved1[24];
} __attribute__((packed));
_Static_assert(sizeof(struct facs) == 64, "FACS");

/* ---- placing ---- */

/* Everything goes through one aml buffer, whose position is the guest address. */
static uint32_t here(const struct aml *a)
{
    return ACPI_AREA_BASE + (uint32_t)a->len;
}

static void align(struct aml *a, size_t to)
{
    while (a->len % to && !a->overflow) aml_byte(a, 0);
}

static uint8_t sum(const void *p, size_t n)
{
    uint8_t s = 0;
    for (size_t i = 0; i < n; i++) s = (uint8_t)(s + ((const uint8_t *)p)[i]);
    return s;
}

static struct table header(const char *signature, uint8_t revision)
{
    struct table t = {.revision = revision, .oem_revision = 1, .creator_revision = 1};
    memcpy(t.signature, signature, 4);
    memcpy(t.oem_id, OEM_ID, 6);
    memcpy(t.oem_table_id, OEM_TABLE_ID, 8);
    memcpy(t.creator_id, "NACL", 4);
    return t;
}

/* Starts a table whose body is appended; returns its offset. */
static size_t table_begin(struct aml *a, const char *signature, uint8_t revision)
{
    align(a, 16);
    size_t at = a->len;
    struct table t = header(signature, revision);
    aml_bytes(a, &t, sizeof t);
    return at;
}

static void table_end(struct aml *a, size_t at)
{
    if (a->overflow) return;
    struct table t;
    memcpy(&t, a->p + at, sizeof t);
    t.length = (uint32_t)(a->len - at);
    t.checksum = 0;
    memcpy(a->p + at, &t, sizeof t);
    t.checksum = (uint8_t)-sum(a->p + at, t.length);
    memcpy(a->p + at, &t, sizeof t);
}

/* ---- DSDT ---- */

static size_t isa_device(struct aml *a, const char *name, const char *id)
{
    size_t d = aml_device_begin(a, name);
    aml_name(a, "_HID");
    aml_eisa_id(a, id);
    return d;
}

/* _CRS of a device with one range of ports and one interrupt. */
static void ports_and_irq(struct aml *a, uint16_t port, uint8_t ports, uint8_t irq)
{
    aml_name(a, "_CRS");
    size_t r = aml_resources_begin(a);
    aml_io(a, port, ports);
    aml_irq(a, irq);
    aml_resources_end(a, r);
}

static void com1(struct aml *a)
{
    size_t d = isa_device(a, "COM1", "PNP0501");
    aml_name(a, "_UID");
    aml_integer(a, 1);
    aml_name(a, "_STA");
    aml_integer(a, 0x0f);
    ports_and_irq(a, PLATFORM_COM1_PORT, 8, PLATFORM_COM1_GSI);
    aml_end(a, d);
}

static void rtc(struct aml *a)
{
    size_t d = isa_device(a, "RTC_", "PNP0B00");
    ports_and_irq(a, 0x70, 2, PLATFORM_RTC_GSI);
    aml_end(a, d);
}

static void pit(struct aml *a)
{
    size_t d = isa_device(a, "TIMR", "PNP0100");
    ports_and_irq(a, 0x40, 4, 0);
    aml_end(a, d);
}

static void pic(struct aml *a)
{
    size_t d = isa_device(a, "PIC_", "PNP0000");
    aml_name(a, "_CRS");
    size_t r = aml_resources_begin(a);
    aml_io(a, 0x20, 2);
    aml_io(a, 0xa0, 2);
    aml_io(a, 0x4d0, 2);
    aml_irq(a, 2);
    aml_resources_end(a, r);
    aml_end(a, d);
}

/* Ports that belong to the board and that no other device may be given. */
static void board(struct aml *a, const struct pci_layout *pci)
{
    size_t d = isa_device(a, "MBRD", "PNP0C02");
    aml_name(a, "_CRS");
    size_t r = aml_resources_begin(a);
    aml_io(a, 0x61, 1);
    aml_io(a, 0x92, 1);
    aml_io(a, PLATFORM_PM_BASE, 12);
    aml_io(a, PLATFORM_GPE_BASE, PLATFORM_GPE_LEN);
    aml_io(a, PLATFORM_SLOTS_BASE, PLATFORM_SLOTS_LEN);
    aml_io(a, PLATFORM_RESET_PORT, 1);
    if (pci) aml_memory32(a, (uint32_t)pci->ecam_base, (uint32_t)pci->ecam_size);
    aml_resources_end(a, r);
    aml_end(a, d);
}

static void processor(struct aml *a, unsigned n)
{
    static const char digit[] = "0123456789ABCDEF";
    const char name[5] = {'C', 'P', digit[n >> 4 & 0xf], digit[n & 0xf], 0};
    size_t d = aml_device_begin(a, name);
    aml_name(a, "_HID");
    aml_string(a, "ACPI0007");
    aml_name(a, "_UID");
    aml_integer(a, n);
    aml_end(a, d);
}

static uint32_t build_dsdt(struct aml *a, const struct acpi_config *cfg)
{
    size_t t = table_begin(a, "DSDT", 2);
    size_t sb = aml_scope_begin(a, "\\_SB_");
    for (unsigned i = 0; i < cfg->vcpus; i++) processor(a, i);
    board(a, cfg->pci);
    if (cfg->pci) acpi_pci_bridge(a, cfg->pci, cfg->changing_slots);
    pic(a);
    pit(a);
    rtc(a);
    com1(a);
    aml_end(a, sb);
    if (cfg->pci) {
        acpi_pci_mode(a);
        acpi_slots_event(a);
    }
    aml_name(a, "\\_S5_");
    size_t s5 = aml_package_begin(a, 4);
    aml_integer(a, PLATFORM_S5_TYPE);
    aml_integer(a, PLATFORM_S5_TYPE);
    aml_integer(a, 0);
    aml_integer(a, 0);
    aml_end(a, s5);
    table_end(a, t);
    return ACPI_AREA_BASE + (uint32_t)t;
}

/* ---- FACS, FADT, MADT ---- */

static uint32_t build_facs(struct aml *a)
{
    align(a, 64);
    uint32_t at = here(a);
    struct facs f = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof f, .version = 2};
    aml_bytes(a, &f, sizeof f);
    return at;
}

static struct address io_port(uint16_t port, uint8_t bits)
{
    /* Access size: 1 byte, 2 word, 3 dword */
    return (struct address){.space = 1, .width = bits, .access = bits == 8 ? 1 : bits == 16 ? 2 : 3, .address = port};
}

static uint32_t build_fadt(struct aml *a, uint32_t facs, uint32_t dsdt)
{
    struct fadt f = {
        .h = header("FACP", 6),
        .firmware_ctrl = facs,
        .dsdt = dsdt,
        .profile = 4, /* enterprise server */
        .sci_int = PLATFORM_SCI_GSI,
        .pm1a_evt = PLATFORM_PM_BASE,
        .pm1a_cnt = PLATFORM_PM_BASE + 4,
        .pm_tmr = PLATFORM_PM_BASE + 8,
        .gpe0 = PLATFORM_GPE_BASE,
        .gpe0_len = PLATFORM_GPE_LEN,
        .pm1_evt_len = 4,
        .pm1_cnt_len = 2,
        .pm_tmr_len = 4,
        .p_lvl2_lat = 0xfff, /* C2 and C3 do not exist */
        .p_lvl3_lat = 0xfff,
        .century = 0x32,
        .boot_arch = BOOT_LEGACY_DEVICES | BOOT_NO_VGA,
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP,
        .reset_reg = io_port(PLATFORM_RESET_PORT, 8),
        .reset_value = 0x06,
        .minor = 3,
        .x_dsdt = dsdt,
        .x_pm1a_evt = io_port(PLATFORM_PM_BASE, 32),
        .x_pm1a_cnt = io_port(PLATFORM_PM_BASE + 4, 16),
        .x_pm_tmr = io_port(PLATFORM_PM_BASE + 8, 32),
        .x_gpe0 = io_port(PLATFORM_GPE_BASE, 8 * PLATFORM_GPE_LEN),
    };
    f.x_pm1a_evt.access = 2; /* status and enable are two registers */
    f.x_gpe0.access = 1;     /* bytes (4.8.4.1) */
    align(a, 16);
    size_t at = a->len;
    aml_bytes(a, &f, sizeof f);
    table_end(a, at);
    return ACPI_AREA_BASE + (uint32_t)at;
}

static void le16(struct aml *a, uint16_t v)
{
    aml_bytes(a, &v, sizeof v);
}

static void le32(struct aml *a, uint32_t v)
{
    aml_bytes(a, &v, sizeof v);
}

static void madt_lapic(struct aml *a, unsigned id)
{
    const uint8_t e[4] = {0, 8, (uint8_t)id, (uint8_t)id};
    aml_bytes(a, e, sizeof e);
    le32(a, 1); /* enabled */
}

static void madt_ioapic(struct aml *a)
{
    const uint8_t e[4] = {1, 12, 0, 0};
    aml_bytes(a, e, sizeof e);
    le32(a, IOAPIC_BASE);
    le32(a, 0); /* first GSI */
}

static void madt_override(struct aml *a, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    const uint8_t e[4] = {2, 10, 0, irq};
    aml_bytes(a, e, sizeof e);
    le32(a, gsi);
    le16(a, flags);
}

static void madt_nmi(struct aml *a)
{
    const uint8_t e[6] = {4, 6, 0xff, 0, 0, 1}; /* every CPU's LINT1 */
    aml_bytes(a, e, sizeof e);
}

static uint32_t build_madt(struct aml *a, const struct acpi_config *cfg)
{
    size_t t = table_begin(a, "APIC", 5);
    le32(a, LAPIC_BASE);
    le32(a, MADT_PCAT_COMPAT);
    for (unsigned i = 0; i < cfg->vcpus; i++) madt_lapic(a, i);
    madt_ioapic(a);
    madt_override(a, 0, PLATFORM_PIT_GSI, 0);
    madt_override(a, PLATFORM_SCI_GSI, PLATFORM_SCI_GSI, MADT_HIGH_LEVEL);
    madt_nmi(a);
    table_end(a, t);
    return ACPI_AREA_BASE + (uint32_t)t;
}

/* ---- MCFG: where ECAM is (PCI firmware specification 4.1.2) ---- */

static uint32_t build_mcfg(struct aml *a, const struct pci_layout *pci)
{
    static const uint8_t reserved[8], one_bus[8];
    size_t t = table_begin(a, "MCFG", 1);
    aml_bytes(a, reserved, sizeof reserved);
    le32(a, (uint32_t)pci->ecam_base);
    le32(a, (uint32_t)(pci->ecam_base >> 32));
    aml_bytes(a, one_bus, sizeof one_bus); /* segment 0, buses 0 to 0 */
    table_end(a, t);
    return ACPI_AREA_BASE + (uint32_t)t;
}

/* ---- roots ---- */

/* The RSDT is for kernels that know ACPI 1.0 only; entries are 32 bits wide there and 64 in the XSDT. */
static uint32_t build_root(struct aml *a, const char *signature, bool wide, const uint32_t *entries, unsigned n)
{
    size_t t = table_begin(a, signature, 1);
    for (unsigned i = 0; i < n; i++) {
        le32(a, entries[i]);
        if (wide) le32(a, 0);
    }
    table_end(a, t);
    return ACPI_AREA_BASE + (uint32_t)t;
}

static void put_rsdp(struct aml *a, uint32_t rsdt, uint32_t xsdt)
{
    struct rsdp r = {.revision = 2, .rsdt = rsdt, .length = sizeof r, .xsdt = xsdt};
    memcpy(r.signature, "RSD PTR ", 8);
    memcpy(r.oem_id, OEM_ID, 6);
    r.checksum = (uint8_t)-sum(&r, 20);
    r.extended_checksum = (uint8_t)-sum(&r, sizeof r);
    if (a->room >= sizeof r) memcpy(a->p, &r, sizeof r);
}

size_t acpi_build_buffer(const struct acpi_config *cfg, uint8_t *buf, size_t size, struct nerr *e)
{
    if (cfg->vcpus < 1 || cfg->vcpus > ENGINE_MAX_VCPUS) {
        nerr_set(e, -EINVAL, "ACPI tables for %u vCPUs: from 1 to %d are possible", cfg->vcpus, ENGINE_MAX_VCPUS);
        return 0;
    }
    struct aml a = {.p = buf, .room = size};
    for (size_t i = 0; i < sizeof(struct rsdp); i++) aml_byte(&a, 0); /* its place; filled in last */
    uint32_t facs = build_facs(&a), dsdt = build_dsdt(&a, cfg);
    uint32_t tables[3] = {build_fadt(&a, facs, dsdt), build_madt(&a, cfg), cfg->pci ? build_mcfg(&a, cfg->pci) : 0};
    unsigned n = cfg->pci ? 3 : 2;
    uint32_t xsdt = build_root(&a, "XSDT", true, tables, n), rsdt = build_root(&a, "RSDT", false, tables, n);
    put_rsdp(&a, rsdt, xsdt);
    if (!a.overflow) return a.len;
    nerr_set(e, -ENOSPC, "the ACPI tables do not fit into %zu bytes", size);
    return 0;
}

int acpi_build(const struct guest_memory *m, const struct acpi_config *cfg, gpa_t *rsdp, struct nerr *e)
{
    uint8_t *area = guest_memory_ptr(m, GPA(ACPI_AREA_BASE), ACPI_AREA_SIZE, true);
    if (!area) return nerr_set(e, -ENOMEM, "no guest memory for the ACPI tables at 0x%x", ACPI_AREA_BASE);
    if (!acpi_build_buffer(cfg, area, ACPI_AREA_SIZE, e)) return -ENOSPC;
    *rsdp = GPA(ACPI_AREA_BASE);
    return 0;
}
