/* Writes down what a real guest does to one device: every access to its BARs and every write to its configuration space, and before each
 * of them what the device is about to find in guest memory. Linked into a nacelle of its own (tests/fuzz/fuzz.mk) in front of the bus and of guest
 * memory by --wrap, so that the real program has nothing of it. tests/fuzz/record.sh makes the seeds; seed.h has the format.
 *
 * NACELLE_RECORD=SLOT:BYTES:FILE in the environment: the PCI slot, how much to write at most, and where. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/bus/pci_internal.h"

#define SHADOW (1ull << 30) /* bytes of guest memory that are followed */
#define STANDING 128
#define GAP 24 /* unchanged bytes that are cheaper to write than another event */

uint64_t __real_bus_read(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size);
void __real_bus_write(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);
void *__real_guest_memory_ptr(const struct guest_memory *m, gpa_t a, uint64_t len, bool write);
bool __real_guest_memory_read(const struct guest_memory *m, gpa_t a, void *dst, uint64_t len);
int __real_pci_bus_create(const struct pci_config *cfg, struct pci_bus **out, struct nerr *e);
uint64_t __wrap_bus_read(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size);
void __wrap_bus_write(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);
void *__wrap_guest_memory_ptr(const struct guest_memory *m, gpa_t a, uint64_t len, bool write);
bool __wrap_guest_memory_read(const struct guest_memory *m, gpa_t a, void *dst, uint64_t len);
int __wrap_pci_bus_create(const struct pci_config *cfg, struct pci_bus **out, struct nerr *e);

static struct pci_bus *pci;
static FILE *out;
static unsigned slot;
static long most;
static uint8_t *shadow; /* what a replay's memory holds where the device has looked */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool started;
static struct {
    uint64_t at, len;
} standing[STANDING]; /* rings, which the device has pointers to */
static unsigned standings;
static uint64_t last_read; /* polling is written once */

#define MOST_ALIKE 300 /* accesses to one register: an EEPROM read bit by bit says no more by the thousand */
static unsigned alike[2][0x8000];

static _Thread_local bool vcpu, inside, common;

static void number(uint64_t v)
{
    for (; v > 127; v >>= 7) fputc((int)(v & 127) | 128, out);
    fputc((int)v, out);
}

static void event(char kind, unsigned bar, uint64_t off, unsigned size)
{
    if (ftell(out) > most) exit(0);
    last_read = 0;
    fputc(kind, out);
    fputc((int)bar, out);
    number(off);
    number(size);
}

/* Bytes of guest memory that differ from what a replay has there; with the lock held. */
static void memory(uint64_t at, const uint8_t *now, uint64_t len)
{
    uint64_t i = 0;
    if (at + len > SHADOW) return;
    while (i < len) {
        if (now[i] == shadow[at + i] && ++i) continue;
        uint64_t end = i + 1, same = 0;
        for (uint64_t k = i + 1; k < len && same < GAP; k++) {
            same = now[k] == shadow[at + k] ? same + 1 : 0;
            if (!same) end = k + 1;
        }
        event('M', 0, at + i, (unsigned)(end - i));
        fwrite(now + i, 1, end - i, out);
        memcpy(shadow + at + i, now + i, end - i);
        i = end;
    }
}

/* Data that only pass through need not be told in full: the first bytes hold headers. */
static uint64_t interesting(uint64_t len)
{
    return len >= 512 ? 96 : len;
}

static void seen(gpa_t a, const uint8_t *p, uint64_t len, bool write)
{
    if (!p || !started || (vcpu && !inside)) return;
    pthread_mutex_lock(&lock);
    if (common && standings < STANDING) {
        standing[standings].at = a.v;
        standing[standings++].len = len;
    }
    if (!write) memory(a.v, p, interesting(len));
    /* What the device writes is not what a replay has there; its driver's next bytes must be told even if they are as before. */
    if (write && !common && a.v + len <= SHADOW)
        for (uint64_t i = 0; i < interesting(len); i++) shadow[a.v + i] = (uint8_t)~p[i];
    pthread_mutex_unlock(&lock);
}

void *__wrap_guest_memory_ptr(const struct guest_memory *m, gpa_t a, uint64_t len, bool write)
{
    void *p = __real_guest_memory_ptr(m, a, len, write);
    seen(a, p, len, write);
    return p;
}

bool __wrap_guest_memory_read(const struct guest_memory *m, gpa_t a, void *dst, uint64_t len)
{
    bool good = __real_guest_memory_read(m, a, dst, len);
    seen(a, good ? dst : NULL, len, false);
    return good;
}

int __wrap_pci_bus_create(const struct pci_config *cfg, struct pci_bus **bus, struct nerr *e)
{
    const char *want = getenv("NACELLE_RECORD");
    char name[256];
    int r = __real_pci_bus_create(cfg, bus, e);
    if (r || !want || sscanf(want, "%u:%ld:%255s", &slot, &most, name) != 3) return r;
    out = fopen(name, "wb");
    shadow = mmap(NULL, SHADOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!out || shadow == MAP_FAILED) exit(1);
    pci = *bus;
    return r;
}

/* The BAR of the recorded function that an address is in, -1: none. */
static int which(enum bus_space space, uint64_t addr, uint64_t *off)
{
    const struct pci_function *f = pci ? pci->function[slot] : NULL;
    vcpu = true;
    for (int n = 0; f && n < PCI_BARS; n++)
        if (f->bar_at[n] != PCI_NOWHERE && (f->d.bar[n].kind == PCI_BAR_IO) == (space == BUS_PIO) &&
            addr - f->bar_at[n] < f->d.bar[n].size) {
            *off = addr - f->bar_at[n];
            return n;
        }
    return -1;
}

static void rings(void)
{
    for (unsigned i = 0; i < standings; i++) {
        const uint8_t *p = __real_guest_memory_ptr(pci->cfg.dma.memory, GPA(standing[i].at), standing[i].len, false);
        if (p) memory(standing[i].at, p, standing[i].len);
    }
}

uint64_t __wrap_bus_read(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size)
{
    uint64_t off = 0;
    int bar = which(space, addr, &off);
    if (bar < 0) return __real_bus_read(b, space, addr, size);
    inside = true;
    uint64_t v = __real_bus_read(b, space, addr, size);
    inside = false;
    pthread_mutex_lock(&lock);
    if (last_read != addr + 1 && alike[0][off >> 2 & 0x7fff]++ < MOST_ALIKE) event('R', (unsigned)bar, off, size);
    last_read = addr + 1;
    pthread_mutex_unlock(&lock);
    return v;
}

/* Where in the recorded function's configuration space a write goes, 4096: elsewhere. */
static uint64_t config_offset(enum bus_space space, uint64_t addr, uint64_t value)
{
    static _Atomic uint32_t selected;
    uint64_t ecam = addr - pci->layout.ecam_base - ((uint64_t)slot << 15);
    if (space == BUS_MMIO) return ecam < 4096 ? ecam : 4096;
    if (addr == 0xcf8) selected = (uint32_t)value;
    return addr >= 0xcfc && addr <= 0xcff && selected >> 8 == (0x800000u | slot << 3) ? (selected & 0xfc) + (addr & 3)
                                                                                      : 4096;
}

void __wrap_bus_write(const struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
    uint64_t off = 0, config = pci ? config_offset(space, addr, value) : 4096;
    int bar = which(space, addr, &off);
    if (bar < 0 && config == 4096) {
        __real_bus_write(b, space, addr, size, value);
        return;
    }
    started |= bar >= 0;
    pthread_mutex_lock(&lock);
    rings();
    pthread_mutex_unlock(&lock);
    inside = true;
    common = pci->function[slot]->d.vendor == 0x1af4 && off < 0x1000 && bar >= 0;
    __real_bus_write(b, space, addr, size, value);
    inside = common = false;
    pthread_mutex_lock(&lock);
    if (bar < 0 || alike[1][off >> 2 & 0x7fff]++ < MOST_ALIKE) {
        event(bar >= 0 ? 'W' : 'C', bar >= 0 ? (unsigned)bar : 0, bar >= 0 ? off : config, size);
        number(value);
    }
    pthread_mutex_unlock(&lock);
}
