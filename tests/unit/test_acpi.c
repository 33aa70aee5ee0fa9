/* The ACPI tables: checksums and links by hand, contents by ACPICA's own disassembler and compiler (package acpica-tools). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/platform/aml.h"
#include "vmm/platform/platform.h"

static uint8_t area[ACPI_AREA_SIZE];
static struct pci_layout pci;
#define CHANGING 0xffff00f5u /* slots; 0 must not become a device, nor must 1, 3 and 8 to 15 */

static uint32_t u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
    uint8_t s = 0;
    while (n--) s = (uint8_t)(s + *p++);
    return s;
}

static const uint8_t *at(uint64_t gpa)
{
    assert_in_range(gpa, ACPI_AREA_BASE, ACPI_AREA_BASE + ACPI_AREA_SIZE - 36);
    return area + (gpa - ACPI_AREA_BASE);
}

static const uint8_t *find(const char *signature)
{
    const uint8_t *xsdt = at(u32(area + 24));
    if (!strcmp(signature, "DSDT")) return at(u32(find("FACP") + 140));
    for (uint32_t off = 36; off + 8 <= u32(xsdt + 4); off += 8) {
        const uint8_t *t = at(u32(xsdt + off));
        if (!memcmp(t, signature, 4)) return t;
    }
    return NULL;
}

static void build(unsigned vcpus)
{
    struct nerr e;
    pci_layout_init(&pci, (uint64_t)vcpus << 30, 0);
    struct acpi_config cfg = {.vcpus = vcpus, .pci = &pci, .changing_slots = CHANGING};
    memset(area, 0xee, sizeof area);
    assert_true(acpi_build_buffer(&cfg, area, sizeof area, &e) > 0);
}

static void test_links_and_checksums(void **state)
{
    (void)state;
    build(4);
    assert_memory_equal(area, "RSD PTR ", 8);
    assert_int_equal(sum(area, 20), 0);
    assert_int_equal(sum(area, 36), 0);
    const uint8_t *xsdt = at(u32(area + 24)), *rsdt = at(u32(area + 16));
    assert_memory_equal(xsdt, "XSDT", 4);
    assert_memory_equal(rsdt, "RSDT", 4);
    assert_int_equal(u32(xsdt + 36), u32(rsdt + 36));
    static const char *const names[] = {"FACP", "APIC", "DSDT", "MCFG"};
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *t = find(names[i]);
        assert_non_null(t);
        assert_int_equal(sum(t, u32(t + 4)), 0);
    }
    assert_int_equal(sum(xsdt, u32(xsdt + 4)), 0);
    assert_int_equal(sum(rsdt, u32(rsdt + 4)), 0);
    const uint8_t *facp = find("FACP"), *facs = at(u32(facp + 36));
    assert_memory_equal(facs, "FACS", 4);
    assert_int_equal(u32(facp + 36) % 64, 0);
    assert_int_equal(facp[109] & 2, 0); /* no 8042: kernels do not probe for one */
    assert_int_equal(u32(facp + 76), PLATFORM_PM_BASE + 8);
}

static void test_mcfg(void **state)
{
    (void)state;
    build(1);
    const uint8_t *m = find("MCFG");
    assert_int_equal(u32(m + 4), 60);
    assert_int_equal(u32(m + 44), pci.ecam_base);
    assert_int_equal(u32(m + 48), 0);
    assert_int_equal(m[54], 0); /* first bus */
    assert_int_equal((m[55] + 1) << 20, pci.ecam_size);
    /* A machine without a bus has no such table. */
    struct nerr e;
    struct acpi_config none = {.vcpus = 1};
    assert_true(acpi_build_buffer(&none, area, sizeof area, &e) > 0);
    assert_null(find("MCFG"));
}

static void test_madt(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 64; n *= 2) {
        build(n);
        const uint8_t *m = find("APIC");
        unsigned cpus = 0, ioapics = 0;
        for (uint32_t off = 44; off < u32(m + 4); off += m[off + 1]) {
            assert_true(m[off + 1] >= 4);
            if (m[off] == 0) assert_int_equal(m[off + 3], cpus++);
            if (m[off] == 1) ioapics++;
            if (m[off] == 2 && m[off + 3] == 0) assert_int_equal(u32(m + off + 4), 2);
        }
        assert_int_equal(cpus, n);
        assert_int_equal(ioapics, 1);
    }
}

/* Runs a command with its output in a file; the file's contents are in `text`. */
static int run(const char *dir, const char *command, char *text, size_t room)
{
    char line[512], log[300];
    snprintf(log, sizeof log, "%s/log", dir);
    snprintf(line, sizeof line, "cd %s && { %s; } > log 2>&1", dir, command);
    int r = system(line);
    FILE *f = fopen(log, "r");
    assert_non_null(f);
    text[fread(text, 1, room - 1, f)] = 0;
    fclose(f);
    if (r) print_message("%s", text);
    return r;
}

static void save(const char *dir, const char *name, const uint8_t *t)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(t, 1, u32(t + 4), f), u32(t + 4));
    assert_int_equal(fclose(f), 0);
}

/* `text` has the disassembled DSDT, with hot plug for the slots of CHANGING. */
static void check_slots(const char *dir, char *text, size_t room)
{
    char device[32];
    for (unsigned slot = 0; slot < 32; slot++) {
        snprintf(device, sizeof device, "Device (SL%02X)", slot);
        assert_int_equal(strstr(text, device) != NULL, slot && CHANGING >> slot & 1);
    }
    assert_non_null(strstr(text, "OperationRegion (SLOT, SystemIO, 0x0640, 0x0C)"));
    assert_non_null(strstr(text, "Field (SLOT, DWordAcc, NoLock, Preserve)"));
    assert_non_null(strstr(text, "Scope (\\_GPE)"));
    assert_non_null(strstr(text, "Method (_L01, 0, NotSerialized)"));
    assert_non_null(strstr(text, "\\_SB.PCI0.SLEV ()"));
    static const struct {
        const char *line;
        int count;
    } want[] = {{"Method (_EJ0, 1", 21},   {"SLEJ = 0x80000000", 1},  {"_ADR, 0x001F0000", 1},
                {"_SUN, 0x1F)", 1},        {"Notify (SL", 21},        {"If ((Arg0 & 0x80000000))", 1},
                {"SLTL (Local0, One)", 1}, {"SLTL (Local0, 0x03)", 1}};
    for (unsigned i = 0; i < sizeof want / sizeof want[0]; i++) {
        char command[100];
        snprintf(command, sizeof command, "grep -cF '%s' dsdt.dsl", want[i].line);
        run(dir, command, text, room);
        if (atoi(text) != want[i].count) fail_msg("%s: %s", want[i].line, text);
    }
    const uint8_t *facp = find("FACP");
    assert_int_equal(u32(facp + 80), PLATFORM_GPE_BASE);
    assert_int_equal(facp[92], PLATFORM_GPE_LEN);
    assert_int_equal(facp[220], 1); /* I/O ports, 32 bits, byte accesses */
    assert_int_equal(facp[221], 32);
    assert_int_equal(facp[223], 1);
    assert_int_equal(u32(facp + 224), PLATFORM_GPE_BASE);
}

static void test_iasl(void **state)
{
    (void)state;
    static char text[65536];
    char dir[] = "/tmp/nacelle-acpi-XXXXXX", command[400], want[64];
    assert_non_null(mkdtemp(dir));
    static const unsigned counts[] = {1, 4, 64};
    for (unsigned i = 0; i < 3; i++) {
        build(counts[i]);
        save(dir, "dsdt.dat", find("DSDT"));
        save(dir, "facp.dat", find("FACP"));
        save(dir, "apic.dat", find("APIC"));
        save(dir, "mcfg.dat", find("MCFG"));
        save(dir, "facs.dat", at(u32(find("FACP") + 36)));
        assert_int_equal(
            run(dir,
                "rm -f *.dsl && iasl -d dsdt.dat && iasl -d facp.dat && iasl -d apic.dat && iasl -d facs.dat && iasl -d mcfg.dat",
                text, sizeof text),
            0);
        assert_null(strstr(text, "Error"));
        assert_null(strstr(text, "Invalid"));
        assert_null(strstr(text, "ncorrect checksum"));
        assert_int_equal(
            run(dir, "iasl -ve dsdt.dsl && iasl facp.dsl && iasl apic.dsl && iasl mcfg.dsl", text, sizeof text), 0);
        assert_non_null(strstr(text, "0 Errors"));
        /* The disassembler understood what was meant, and the compiler makes the same size of table of it. */
        assert_int_equal(run(dir, "cat dsdt.dsl", text, sizeof text), 0);
        assert_non_null(strstr(text, "EisaId (\"PNP0501\")"));
        assert_non_null(strstr(text, "IRQNoFlags ()"));
        assert_non_null(strstr(text, "0x03F8"));
        assert_non_null(strstr(text, "\\_S5"));
        /* The bridge: what is passed on, 32 slots, and _OSC as a method with names and branches. */
        assert_non_null(strstr(text, "Device (PCI0)"));
        assert_non_null(strstr(text, "EisaId (\"PNP0A08\")"));
        assert_non_null(strstr(text, "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode"));
        assert_non_null(strstr(text, "WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange"));
        assert_non_null(
            strstr(text, "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite"));
        assert_non_null(
            strstr(text, "QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Prefetchable, ReadWrite"));
        assert_non_null(strstr(text, "Memory32Fixed (ReadWrite"));
        assert_non_null(strstr(text, "33db4d5b-1ff7-401c-9657-7441c03dd766"));
        snprintf(want, sizeof want, "0x%016llX, // Range Minimum", (unsigned long long)pci.mem64_base);
        assert_non_null(strstr(text, want));
        check_slots(dir, text, sizeof text);
        assert_int_equal(run(dir, "grep -c 0x001FFFFF dsdt.dsl", text, sizeof text), 0);
        assert_int_equal(atoi(text), 2); /* slot 31, by the IOAPIC's numbers and by the 8259s' */
        snprintf(command, sizeof command, "grep -c ACPI0007 dsdt.dsl");
        assert_int_equal(run(dir, command, text, sizeof text), 0);
        assert_int_equal(atoi(text), counts[i]);
    }
    snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static void test_too_small(void **state)
{
    (void)state;
    struct nerr e;
    struct acpi_config cfg = {.vcpus = 8, .pci = &pci};
    size_t need = acpi_build_buffer(&cfg, area, sizeof area, &e);
    assert_true(need > 0);
    for (size_t room = 0; room < need; room += 7) {
        uint8_t *small = malloc(room + 1); /* exact, so that ASan sees a byte too many */
        assert_non_null(small);
        assert_int_equal(acpi_build_buffer(&cfg, small, room, &e), 0);
        free(small);
    }
    cfg.vcpus = 0;
    assert_int_equal(acpi_build_buffer(&cfg, area, sizeof area, &e), 0);
    cfg.vcpus = 65;
    assert_int_equal(acpi_build_buffer(&cfg, area, sizeof area, &e), 0);
}

static void test_aml(void **state)
{
    (void)state;
    uint8_t buf[64];
    struct aml a = {.p = buf, .room = sizeof buf};
    aml_integer(&a, 0);
    aml_integer(&a, 1);
    aml_integer(&a, 0x7f);
    aml_integer(&a, 0x1234);
    aml_integer(&a, 0x12345678);
    aml_integer(&a, 0x123456789abcull);
    static const uint8_t want[] = {0,    1,    0x0a, 0x7f, 0x0b, 0x34, 0x12, 0x0c, 0x78, 0x56, 0x34,
                                   0x12, 0x0e, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0,    0};
    assert_int_equal(a.len, sizeof want);
    assert_memory_equal(buf, want, sizeof want);
    a.len = 0;
    aml_eisa_id(&a, "PNP0501");
    static const uint8_t pnp[] = {0x0c, 0x41, 0xd0, 0x05, 0x01};
    assert_memory_equal(buf, pnp, sizeof pnp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_and_checksums),
        cmocka_unit_test(test_mcfg),
        cmocka_unit_test(test_madt),
        cmocka_unit_test(test_iasl),
        cmocka_unit_test(test_too_small),
        cmocka_unit_test(test_aml),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
