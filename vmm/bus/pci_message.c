/* Message-signalled interrupts: MSI (PCI 3.0 6.8.1) with one message and a mask bit, MSI-X (6.8.2) with table and PBA in a BAR of
 * their own. A message that cannot go out (masked, or no bus master) stays pending. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus/pci_internal.h"
#include "vmm/irq/irq.h"

/* MSI capability: offsets from its header */
#define MSI_CONTROL 2
#define MSI_ADDRESS 4
#define MSI_DATA 12
#define MSI_MASK 16
#define MSI_PENDING 20
#define MSI_LENGTH 24
#define MSI_ENABLE 0x0001u
#define MSI_64BIT 0x0080u
#define MSI_MASKABLE 0x0100u
/* MSI-X capability */
#define MSIX_CONTROL 2
#define MSIX_LENGTH 12
#define MSIX_ENABLE 0x8000u
#define MSIX_MASK_ALL 0x4000u

static uint64_t table_size(unsigned vectors)
{
    return (uint64_t)vectors * MSIX_ENTRY;
}

static uint64_t pba_size(unsigned vectors)
{
    return (vectors + 63ull) / 64 * 8;
}

uint64_t pci_msix_size(unsigned vectors)
{
    uint64_t size = PAGE_SIZE;
    while (size < table_size(vectors) + pba_size(vectors)) size *= 2;
    return size;
}

static void send(struct pci_function *f, unsigned n, uint64_t addr, uint32_t data)
{
    const struct pci_config *c = &f->bus->cfg;
    device_count(&f->stats.interrupts, 1);
    if (c->sink)
        c->sink->msi(c->sink->ctx, addr, data);
    else if (!pci_irqfd_send(f, n, addr, data))
        irqchip_msi(c->irqchip, addr, data);
}

/* ---- MSI-X ---- */

/* With message_lock. */
static void msix_try(struct pci_function *f, unsigned n)
{
    const uint8_t *t = f->table + (size_t)n * MSIX_ENTRY;
    uint64_t bit = 1ull << n % 64;
    if (f->msix_all_masked || t[12] & MSIX_MASKED || !pci_bus_master(f)) {
        f->pba[n / 64] |= bit;
        return;
    }
    f->pba[n / 64] &= ~bit;
    send(f, n, pci_get32(t) | (uint64_t)pci_get32(t + 4) << 32, pci_get32(t + 8));
}

static void msix_try_pending(struct pci_function *f)
{
    for (unsigned i = 0; i < (f->d.msix_vectors + 63) / 64; i++)
        for (uint64_t m = f->pba[i]; m; m &= m - 1) msix_try(f, i * 64 + (unsigned)__builtin_ctzll(m));
}

void pci_msix_notify(struct pci_function *f, unsigned vector)
{
    if (vector >= f->d.msix_vectors || !atomic_load_explicit(&f->msix_on, memory_order_acquire)) return;
    pthread_mutex_lock(&f->message_lock);
    if (atomic_load_explicit(&f->msix_on, memory_order_relaxed)) msix_try(f, vector);
    pthread_mutex_unlock(&f->message_lock);
}

bool pci_msix_enabled(const struct pci_function *f)
{
    return atomic_load_explicit(&f->msix_on, memory_order_acquire);
}

/* Table, then PBA; bytes behind them read as zero. */
static uint8_t msix_byte(const struct pci_function *f, uint64_t off)
{
    uint64_t table = table_size(f->d.msix_vectors);
    if (off < table) return f->table[off];
    off -= table;
    return off < pba_size(f->d.msix_vectors) ? (uint8_t)(f->pba[off / 8] >> off % 8 * 8) : 0;
}

uint64_t pci_msix_read(struct pci_function *f, uint64_t off, unsigned size)
{
    uint64_t v = 0;
    pthread_mutex_lock(&f->message_lock);
    for (unsigned i = 0; i < size; i++) v |= (uint64_t)msix_byte(f, off + i) << 8 * i;
    pthread_mutex_unlock(&f->message_lock);
    return v;
}

/* Only the mask bit of a vector control is there (PCI 3.0 6.8.2.9); the PBA is read-only. */
void pci_msix_write(struct pci_function *f, uint64_t off, unsigned size, uint64_t value)
{
    uint64_t table = table_size(f->d.msix_vectors);
    if (off >= table) return;
    pthread_mutex_lock(&f->message_lock);
    for (unsigned i = 0; i < size && off + i < table; i++) {
        uint8_t v = (uint8_t)(value >> 8 * i), at = (uint8_t)((off + i) % MSIX_ENTRY);
        f->table[off + i] = at < 12 ? v : at == 12 ? v & MSIX_MASKED : 0;
    }
    bool on = atomic_load_explicit(&f->msix_on, memory_order_relaxed);
    for (uint64_t n = off / MSIX_ENTRY; on && n <= (off + size - 1) / MSIX_ENTRY && n < f->d.msix_vectors; n++)
        if (f->pba[n / 64] >> n % 64 & 1) msix_try(f, (unsigned)n);
    pthread_mutex_unlock(&f->message_lock);
}

/* ---- MSI ---- */

bool pci_msi_enabled(const struct pci_function *f)
{
    return atomic_load_explicit(&f->msi_on, memory_order_acquire);
}

/* The capability's registers, as the sender needs them: under message_lock, in a place of their own, since configuration space has a lock
 * that a device's thread must not take. */
static void msi_try(struct pci_function *f)
{
    if (f->msi_masked || !pci_bus_master(f)) {
        f->msi_pending = true;
        return;
    }
    f->msi_pending = false;
    send(f, f->d.msix_vectors, f->msi_address, f->msi_data);
}

void pci_msi_notify(struct pci_function *f)
{
    if (!pci_msi_enabled(f)) return;
    pthread_mutex_lock(&f->message_lock);
    if (atomic_load_explicit(&f->msi_on, memory_order_relaxed)) msi_try(f);
    pthread_mutex_unlock(&f->message_lock);
}

static void msi_update(struct pci_function *f)
{
    const uint8_t *c = f->config + f->msi;
    f->msi_address = pci_get32(c + MSI_ADDRESS) | (uint64_t)pci_get32(c + MSI_ADDRESS + 4) << 32;
    f->msi_data = pci_get16(c + MSI_DATA);
    f->msi_masked = c[MSI_MASK] & 1;
    bool on = pci_get16(c + MSI_CONTROL) & MSI_ENABLE;
    atomic_store_explicit(&f->msi_on, on, memory_order_release);
    if (!on) f->msi_pending = false;
    if (f->msi_pending) msi_try(f);
}

/* ---- both ---- */

void pci_message_update(struct pci_function *f)
{
    pthread_mutex_lock(&f->message_lock);
    if (f->msi) msi_update(f);
    if (f->msix) {
        uint16_t control = pci_get16(f->config + f->msix + MSIX_CONTROL);
        bool on = control & MSIX_ENABLE;
        f->msix_all_masked = control & MSIX_MASK_ALL;
        atomic_store_explicit(&f->msix_on, on, memory_order_release);
        if (on) msix_try_pending(f);
    }
    pthread_mutex_unlock(&f->message_lock);
}

void pci_message_pending(struct pci_function *f)
{
    if (!f->msi) return;
    pthread_mutex_lock(&f->message_lock);
    f->config[f->msi + MSI_PENDING] = f->msi_pending;
    pthread_mutex_unlock(&f->message_lock);
}

void pci_message_reset(struct pci_function *f)
{
    pthread_mutex_lock(&f->message_lock);
    f->msi_pending = false;
    pci_irqfd_drop(f);
    memset(f->pba, 0, sizeof f->pba);
    if (f->table) {
        memset(f->table, 0, table_size(f->d.msix_vectors));
        for (unsigned i = 0; i < f->d.msix_vectors; i++) f->table[i * MSIX_ENTRY + 12] = MSIX_MASKED;
    }
    pthread_mutex_unlock(&f->message_lock);
    pci_message_update(f);
}

static bool add_msi(struct pci_function *f)
{
    uint8_t body[MSI_LENGTH - 2] = {0}, writable[MSI_LENGTH - 2] = {0};
    pci_put16(body + MSI_CONTROL - 2, MSI_64BIT | MSI_MASKABLE);
    pci_put16(writable + MSI_CONTROL - 2, MSI_ENABLE);
    pci_put32(writable + MSI_ADDRESS - 2, ~3u);
    pci_put32(writable + MSI_ADDRESS + 4 - 2, ~0u);
    pci_put16(writable + MSI_DATA - 2, 0xffff);
    writable[MSI_MASK - 2] = 1;
    f->msi = pci_add_capability(f, CAP_MSI, body, writable, sizeof body);
    return f->msi;
}

static bool add_msix(struct pci_function *f)
{
    uint8_t body[MSIX_LENGTH - 2] = {0}, writable[MSIX_LENGTH - 2] = {0};
    pci_put16(body + MSIX_CONTROL - 2, (uint16_t)(f->d.msix_vectors - 1));
    pci_put16(writable + MSIX_CONTROL - 2, MSIX_ENABLE | MSIX_MASK_ALL);
    pci_put32(body + 2, f->d.msix_bar);
    pci_put32(body + 6, (uint32_t)table_size(f->d.msix_vectors) | f->d.msix_bar);
    f->msix = pci_add_capability(f, CAP_MSIX, body, writable, sizeof body);
    return f->msix;
}

int pci_message_init(struct pci_function *f, struct nerr *e)
{
    if (f->d.msi && !add_msi(f)) return nerr_set(e, -ENOSPC, "%s: no room for MSI", f->d.name);
    if (pci_irqfd_init(f)) return nerr_set(e, -ENOMEM, "%s: out of memory", f->d.name);
    if (!f->d.msix_vectors) return 0;
    if (!add_msix(f)) return nerr_set(e, -ENOSPC, "%s: no room for MSI-X", f->d.name);
    f->table = calloc(f->d.msix_vectors, MSIX_ENTRY);
    return f->table ? 0 : nerr_set(e, -ENOMEM, "%s: out of memory", f->d.name);
}

void pci_message_fini(struct pci_function *f)
{
    pci_irqfd_fini(f);
    free(f->table);
}
