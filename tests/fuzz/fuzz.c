/* main() of every device fuzzer, and what they share.
 *
 *   fuzz_X [--seed N] [--cases N] [--seconds N]    cases N, N+1, ... until one of the limits (default: 1000 cases from seed 1)
 *   fuzz_X --one N                                 only this case */
#define _GNU_SOURCE
#include "fuzz.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/clock.h"
#include "vmm/irq/irq.h"

static uint64_t rng, seed;
uint64_t fuzz_ram;

uint64_t fuzz_bits(void)
{
    rng += 0x9e3779b97f4a7c15ull;
    uint64_t z = rng;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

uint64_t fuzz_odd_number(void)
{
    switch (fuzz_below(6)) {
    case 0: return fuzz_below(9);
    case 1: return 1ull << fuzz_below(64);
    case 2: return (1ull << fuzz_below(64)) - 1 - fuzz_below(2);
    case 3: return ~fuzz_below(9);
    case 4: return fuzz_below(FUZZ_RAM);
    default: return fuzz_bits();
    }
}

_Noreturn void fuzz_fail(const char *file, int line, const char *what)
{
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s\n%s: failed; come back with: --one %llu\n", file, line, what, fuzz_name,
            (unsigned long long)seed);
    abort();
}

/* Sanitizers end the process by themselves: say which case it was first. */
static void on_death(int sig)
{
    char text[100];
    int n = snprintf(text, sizeof text, "%s: died in case %llu\n", fuzz_name, (unsigned long long)seed);
    if (write(2, text, (size_t)n) < 0) _exit(1);
    signal(sig, SIG_DFL);
    raise(sig);
}

const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "abort_on_error=1:detect_leaks=1:handle_abort=0:allocator_may_return_null=0";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "abort_on_error=1:print_stacktrace=1";
}

/* The bus sends through its sink; these are never called. */
void irqchip_msi(struct irqchip *c, uint64_t addr, uint32_t data)
{
    (void)c;
    (void)addr;
    (void)data;
    fuzz_check(!"a message past the sink");
}
bool irqchip_irqfd_direct(const struct irqchip *c)
{
    (void)c;
    return false;
}

int irqchip_irqfd_add(struct irqchip *c, int fd, uint64_t addr, uint32_t data, struct nerr *e)
{
    (void)c;
    (void)fd;
    (void)addr;
    (void)data;
    return nerr_set(e, -ENOTSUP, "no irqfds here");
}

void irqchip_irqfd_remove(struct irqchip *c, int fd)
{
    (void)c;
    (void)fd;
}

void irqchip_set_line(struct irqchip *c, unsigned gsi, bool level)
{
    (void)c;
    (void)gsi;
    (void)level;
    fuzz_check(!"a line past the sink");
}

/* ---- the rig ---- */

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct fuzz_rig *r = ctx;
    (void)addr;
    (void)data;
    r->msis++;
}

static void on_line(void *ctx, unsigned gsi, bool level)
{
    struct fuzz_rig *r = ctx;
    fuzz_check((gsi >= PCI_FIRST_GSI && gsi < PCI_FIRST_GSI + PCI_GSIS) || (gsi < 16 && IRQ_ISA_PCI >> gsi & 1));
    fuzz_check(r->line[gsi] != level);
    r->line[gsi] = level;
}

static void on_written(void *ctx, gpa_t a, uint64_t len)
{
    struct fuzz_rig *r = ctx;
    fuzz_check(len > 0 && guest_memory_ptr(&r->memory, a, len, true));
    memset(r->written + a.v, 1, len);
}

struct fuzz_rig *fuzz_rig_new(void)
{
    struct nerr e;
    struct fuzz_rig *r = calloc(1, sizeof *r);
    fuzz_check(r && guest_memory_create(&r->memory, FUZZ_RAM, &e) == 0);
    /* Not by calloc(): large ones are touched all over by AddressSanitizer. */
    r->written = mmap(NULL, FUZZ_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fuzz_check(r->written != MAP_FAILED);
    r->sink = (struct pci_irq_sink){r, on_msi, on_line};
    struct pci_config c = {.bus = &r->bus,
                           .dma = {.memory = &r->memory, .written = on_written, .ctx = r},
                           .ram_size = FUZZ_RAM,
                           .sink = &r->sink};
    pci_layout_init(&r->layout, FUZZ_RAM, 0);
    fuzz_check(pci_bus_create(&c, &r->pci, &e) == 0);
    return r;
}

void fuzz_rig_free(struct fuzz_rig *r)
{
    pci_bus_destroy(r->pci);
    guest_memory_destroy(&r->memory);
    munmap(r->written, FUZZ_RAM);
    free(r);
}

static uint64_t ecam(const struct fuzz_rig *r, unsigned slot, unsigned reg)
{
    return r->layout.ecam_base + ((uint64_t)slot << 15) + reg;
}

uint32_t fuzz_config_read(struct fuzz_rig *r, unsigned slot, unsigned reg, unsigned size)
{
    return (uint32_t)bus_read(&r->bus, BUS_MMIO, ecam(r, slot, reg), size);
}

void fuzz_config_write(struct fuzz_rig *r, unsigned slot, unsigned reg, unsigned size, uint32_t v)
{
    bus_write(&r->bus, BUS_MMIO, ecam(r, slot, reg), size, v);
}

static unsigned interesting_register(void)
{
    switch (fuzz_below(5)) {
    case 0: return 4;
    case 1: return 0x10 + (unsigned)fuzz_below(6) * 4;
    case 2: return 0x40 + (unsigned)fuzz_below(0xc0);
    case 3: return (unsigned)fuzz_below(4096);
    default: return (unsigned)fuzz_below(0x40);
    }
}

static uint32_t interesting_value(const struct fuzz_rig *r)
{
    switch (fuzz_below(6)) {
    case 0: return (uint32_t)(r->layout.mem_base + (fuzz_bits() & 0x1ffffff0));
    case 1: return (uint32_t)(r->layout.io_base + (fuzz_bits() & 0x3ffc));
    case 2: return 0x407;
    case 3: return 0x7;
    case 4: return 0xffffffff;
    default: return (uint32_t)fuzz_odd_number();
    }
}

void fuzz_config_access(struct fuzz_rig *r, unsigned slot)
{
    unsigned reg = interesting_register(), size = 1u << fuzz_below(4);
    uint64_t v = interesting_value(r);
    if (fuzz_one_in(4)) { /* by ports */
        pci_config_ports.write(r->pci, 0, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
        if (fuzz_one_in(2)) fuzz_check(pci_config_ports.read(r->pci, 4 + (reg & 3), size & 7 ? size & 7 : 1) || true);
        pci_config_ports.write(r->pci, fuzz_below(8), size & 7 ? size & 7 : 1, v);
    } else if (fuzz_one_in(3)) {
        bus_read(&r->bus, BUS_MMIO, ecam(r, slot, reg), size);
    } else {
        bus_write(&r->bus, BUS_MMIO, ecam(r, slot, reg), size, v);
    }
}

uint64_t fuzz_bar(struct fuzz_rig *r, unsigned slot, unsigned bar, bool on)
{
    if (on) fuzz_config_write(r, slot, 4, 2, 7);
    uint32_t low = fuzz_config_read(r, slot, 0x10 + 4 * bar, 4);
    uint64_t high = (low & 7) == 4 ? fuzz_config_read(r, slot, 0x14 + 4 * bar, 4) : 0;
    return high << 32 | (low & ~0xfu);
}

uint64_t fuzz_address(void)
{
    switch (fuzz_below(10)) {
    case 0: return FUZZ_RAM - fuzz_below(600);
    case 1: return fuzz_odd_number();
    case 2: return 0 - fuzz_below(5000);
    default: return fuzz_below(FUZZ_RAM);
    }
}

void fuzz_fill(struct fuzz_rig *r, uint64_t a, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += 8) {
        uint64_t v = fuzz_one_in(3) ? fuzz_odd_number() : fuzz_bits();
        guest_memory_write(&r->memory, GPA(a + i), &v, len - i < 8 ? len - i : 8);
    }
}

/* ---- main ---- */

static void one(uint64_t n)
{
    seed = rng = n;
    fuzz_ram = 4ull << 20;
    for (int i = 0; i < 4; i++) fuzz_bits();
    fuzz_case();
}

int main(int argc, char **argv)
{
    uint64_t first = 1, cases = 1000, seconds = 0, until = 0, n = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t v = strtoull(argv[i + 1], NULL, 0);
        if (!strcmp(argv[i], "--seed"))
            first = v;
        else if (!strcmp(argv[i], "--cases"))
            cases = v;
        else if (!strcmp(argv[i], "--seconds"))
            seconds = v;
        else if (!strcmp(argv[i], "--one"))
            first = v, cases = 1;
        else
            return fprintf(stderr, "%s: --seed, --cases, --seconds or --one, not %s\n", fuzz_name, argv[i]), 2;
    }
    signal(SIGABRT, on_death);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* a page here and there would cost 2 MiB of zeroes each */
    if (seconds) until = clock_mono_ns() + seconds * 1000000000ull;
    for (; n < cases && (!until || clock_mono_ns() < until); n++) one(first + n);
    printf("%s: %llu cases from seed %llu\n", fuzz_name, (unsigned long long)n, (unsigned long long)first);
    return 0;
}
