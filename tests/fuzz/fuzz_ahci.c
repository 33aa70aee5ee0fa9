/* The AHCI controller, by two drivers: a hostile one, which writes anything anywhere, and an honest one, which cuts its data into odd
 * pieces, lets commands end in any order and some of them fail, and compares every byte with what the disk should hold.
 * Number of cases in make test: 1600. */
#include <sys/uio.h>

#include "seed.h"
#include "vmm/emulated/ahci_internal.h"

const char *const fuzz_name = "fuzz_ahci";

FUZZ_SEED(ahci_seed, "ahci.seed");

/* ---- a back end that answers when it likes ---- */

#define DISKS 3
#define DISK_SIZE (512u << 10)
#define MAX_PENDING 128

struct block {
    struct block_info info;
    uint8_t data[DISK_SIZE];
    struct block_request *pending[MAX_PENDING];
    unsigned n;
    bool failing; /* now and then */
    uint64_t submits, reads_done;
};

static struct fuzz_rig *rig;
static struct block disk[DISKS];

void block_info(const struct block *b, struct block_info *out)
{
    *out = b->info;
}

static void check_iov(const struct block *b, const struct block_request *r)
{
    const uint8_t *ram = rig->memory.slot[0].host;
    uint64_t total = 0;
    fuzz_check(r->iovs >= 1 && r->iovs <= 1024);
    for (unsigned i = 0; i < r->iovs; i++) {
        const uint8_t *p = r->iov[i].iov_base;
        fuzz_check(r->iov[i].iov_len > 0 && p >= ram && p + r->iov[i].iov_len <= ram + FUZZ_RAM);
        total += r->iov[i].iov_len;
    }
    fuzz_check(total == r->length && total % b->info.logical_block == 0 && total > 0);
}

void block_submit(struct block *b, struct block_request *r)
{
    fuzz_check(r->done && b->n < MAX_PENDING);
    for (unsigned i = 0; i < b->n; i++) fuzz_check(b->pending[i] != r);
    fuzz_check(r->offset % b->info.logical_block == 0 && r->length % b->info.logical_block == 0);
    if (r->op != BLOCK_FLUSH) fuzz_check(r->offset < b->info.size && r->length <= b->info.size - r->offset);
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) check_iov(b, r);
    if (r->op == BLOCK_DISCARD) fuzz_check(b->info.can_discard && r->length > 0);
    if (r->op != BLOCK_READ && r->op != BLOCK_FLUSH) fuzz_check(!b->info.readonly);
    b->pending[b->n++] = r;
    b->submits++;
}

static void move(struct block *b, const struct block_request *r)
{
    uint8_t *at = b->data + r->offset;
    if (r->op == BLOCK_DISCARD) memset(at, 0, r->length);
    for (unsigned i = 0; r->op <= BLOCK_WRITE && i < r->iovs; i++) {
        void *p = r->iov[i].iov_base;
        if (r->op == BLOCK_READ)
            memcpy(p, at, r->iov[i].iov_len);
        else
            memcpy(at, p, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
}

static void complete_one(struct block *b)
{
    unsigned i = (unsigned)fuzz_below(b->n);
    struct block_request *r = b->pending[i];
    b->pending[i] = b->pending[--b->n];
    bool fails = b->failing && fuzz_one_in(12);
    if (!fails || fuzz_one_in(2)) move(b, r);
    r->done(r, fails ? -5 : 0);
}

void block_plug(struct block *b)
{
    (void)b;
}
void block_unplug(struct block *b)
{
    (void)b;
}
void block_unplug_reap(struct block *b)
{
    while (b->n && fuzz_one_in(3)) complete_one(b);
}
void block_count_into(struct block *b, struct device_stats *s)
{
    (void)b;
    (void)s;
}
void block_drain(struct block *b)
{
    while (b->n) complete_one(b);
}

static void complete_some(void)
{
    for (unsigned i = 0; i < DISKS; i++)
        while (disk[i].n && !fuzz_one_in(4)) complete_one(&disk[i]);
}

static void complete_all(void)
{
    for (unsigned i = 0; i < DISKS; i++) block_drain(&disk[i]);
}

/* ---- registers ---- */

#define SLOT 1
#define ABAR 5

static uint64_t abar;

static uint32_t get(unsigned reg)
{
    return (uint32_t)bus_read(&rig->bus, BUS_MMIO, abar + reg, 4);
}
static void set(unsigned reg, uint32_t v)
{
    bus_write(&rig->bus, BUS_MMIO, abar + reg, 4, v);
}
static unsigned port_reg(unsigned port, unsigned reg)
{
    return 0x100 + port * 0x80 + reg;
}
static void put(uint64_t a, const void *p, uint64_t len)
{
    fuzz_check(guest_memory_write(&rig->memory, GPA(a), p, len));
}
static void take(uint64_t a, void *p, uint64_t len)
{
    fuzz_check(guest_memory_read(&rig->memory, GPA(a), p, len));
}
static void put32(uint64_t a, uint32_t v)
{
    put(a, &v, 4);
}

/* Each port has 1 MiB of RAM: command list, received FISes, 32 tables of 16 KiB, 32 buffers of 12 KiB. */
#define AREA(port) ((1ull + (port)) << 20)
#define LIST(port) AREA(port)
#define FISES(port) (AREA(port) + 0x400)
#define TABLE(port, s) (AREA(port) + 0x1000 + (s)*0x4000ull)
#define BUFFER(port, s) (AREA(port) + 0x81000 + (s)*0x3000ull)
#define BUFFER_SIZE 0x3000u

static void port_start(unsigned p)
{
    set(port_reg(p, 0x18), 0);
    complete_all();
    set(port_reg(p, 0x00), (uint32_t)LIST(p));
    set(port_reg(p, 0x04), 0);
    set(port_reg(p, 0x08), (uint32_t)FISES(p));
    set(port_reg(p, 0x0c), 0);
    set(port_reg(p, 0x30), ~0u);
    set(port_reg(p, 0x10), ~0u);
    set(port_reg(p, 0x14), 0x7840006f);
    set(port_reg(p, 0x18), 0x11);
}

/* ---- the hostile driver ---- */

static uint8_t any_command(void)
{
    static const uint8_t known[] = {0x06, 0x20, 0x24, 0x25, 0x29, 0x2f, 0x30, 0x35, 0x3d, 0x40, 0x42, 0x47, 0x60, 0x60,
                                    0x61, 0x61, 0xb0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xe5, 0xe7, 0xea, 0xec, 0xef};
    return fuzz_one_in(8) ? (uint8_t)fuzz_bits() : known[fuzz_below(sizeof known)];
}

static void hostile_prdt(uint64_t table, unsigned n)
{
    bool tiny = fuzz_one_in(20);
    for (unsigned i = 0; i < n; i++) {
        uint64_t at = table + 0x80 + i * 16ull;
        if (at + 16 > FUZZ_RAM) return;
        uint64_t addr = fuzz_one_in(3) ? BUFFER(fuzz_below(2), 0) : fuzz_address();
        uint32_t len =
            fuzz_one_in(6) ? (uint32_t)fuzz_odd_number() : (uint32_t)fuzz_below(fuzz_one_in(4) ? 70000 : 1100);
        if (tiny) addr %= FUZZ_RAM - 8;
        put32(at, (uint32_t)addr);
        put32(at + 4, (uint32_t)(addr >> 32));
        put32(at + 12, tiny ? 1 : len);
    }
}

/* Registers that take a command further than its first check. */
static void sensible(uint8_t *fis)
{
    static const uint8_t features[] = {0x02, 0x82, 0xaa, 0x55, 0x03};
    switch (fis[2]) {
    case 0x06:
        fis[3] = 1;
        fis[12] = (uint8_t)fuzz_below(10);
        fis[13] = 0;
        break;
    case 0x2f:
    case 0x47:
        fis[4] = fuzz_one_in(2) ? 0x10 : 0;
        fis[5] = fis[9] = fis[13] = 0;
        fis[12] = 1;
        break;
    case 0xb0:
        fis[3] = (uint8_t)(0xd0 + fuzz_below(12));
        fis[5] = 0x4f;
        fis[6] = 0xc2;
        break;
    case 0xef: fis[3] = features[fuzz_below(sizeof features)]; break;
    default: break;
    }
}

/* Ranges for a trim: some of them on the disk. */
static void hostile_ranges(unsigned p)
{
    for (unsigned i = 0; i < 512; i++) {
        uint64_t v = fuzz_one_in(700) ? fuzz_odd_number() : fuzz_one_in(3) ? 0 : fuzz_below(100) | fuzz_below(5) << 48;
        put(BUFFER(p, 0) + i * 8, &v, 8);
    }
}

static void hostile_command(unsigned p)
{
    unsigned s = (unsigned)fuzz_below(32),
             prds = fuzz_one_in(9) ? 65535 : (unsigned)fuzz_below(fuzz_one_in(5) ? 900 : 6);
    uint64_t table = fuzz_one_in(12) ? fuzz_address() & ~0x7full : TABLE(p, s);
    uint8_t fis[32];
    for (unsigned i = 0; i < sizeof fis; i++) fis[i] = fuzz_one_in(3) ? (uint8_t)fuzz_bits() : 0;
    if (!fuzz_one_in(30)) fis[0] = 0x27;
    if (!fuzz_one_in(20)) fis[1] = 0x80;
    fis[2] = any_command();
    if (fis[2] == 0x60 || fis[2] == 0x61) fis[12] = (uint8_t)(fuzz_one_in(8) ? fuzz_bits() : s << 3);
    if (!fuzz_one_in(4)) fis[6] = fis[8] = fis[9] = fis[10] = 0, fis[11] &= 1;
    if (!fuzz_one_in(4)) sensible(fis);
    put32(LIST(p) + s * 32, (fuzz_one_in(20) ? (uint32_t)fuzz_bits() : 5) | (uint32_t)prds << 16);
    put32(LIST(p) + s * 32 + 8, (uint32_t)table);
    put32(LIST(p) + s * 32 + 12, (uint32_t)(table >> 32));
    guest_memory_write(&rig->memory, GPA(table), fis, sizeof fis);
    if (table < FUZZ_RAM) hostile_prdt(table, prds > 1000 ? 1000 : prds);
    set(port_reg(p, 0x34), 1u << s);
    set(port_reg(p, 0x38), fuzz_one_in(10) ? (uint32_t)fuzz_bits() : 1u << s);
}

static void hostile_register(unsigned p)
{
    static const unsigned hot[] = {0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x18, 0x2c, 0x2c, 0x30, 0x34, 0x38};
    unsigned reg = port_reg(p, hot[fuzz_below(sizeof hot / sizeof hot[0])]);
    switch (fuzz_below(5)) {
    case 0: set(reg, (uint32_t)fuzz_odd_number()); break;
    case 1: set(reg, (uint32_t)fuzz_below(0x20)); break;
    case 2: set(port_reg(p, 0x2c), (uint32_t)fuzz_below(5)); break;
    case 3: set(4, fuzz_one_in(4) ? 0x80000003 : 0x80000002); break;
    default: {
        unsigned size = 1u << fuzz_below(4);
        uint64_t at = abar + fuzz_below(0x2000 - size + 1);
        if (fuzz_one_in(2))
            bus_read(&rig->bus, BUS_MMIO, at, size);
        else
            bus_write(&rig->bus, BUS_MMIO, at, size, fuzz_odd_number());
        break;
    }
    }
}

static void hostile_step(void)
{
    unsigned p = (unsigned)fuzz_below(DISKS);
    switch (fuzz_below(16)) {
    case 0:
    case 1: hostile_register(p); break;
    case 2: hostile_ranges(p); break;
    case 3: fuzz_fill(rig, fuzz_one_in(3) ? LIST(p) : TABLE(p, fuzz_below(32)), fuzz_below(600)); break;
    case 9:
        if (fuzz_one_in(8)) fuzz_config_access(rig, SLOT);
        break;
    case 4: abar = fuzz_bar(rig, SLOT, ABAR, true); break;
    case 5: port_start(p); break;
    case 6:
        if (fuzz_one_in(30)) pci_bus_reset(rig->pci);
        break;
    case 7:
    case 8: complete_some(); break;
    default: hostile_command(p); break;
    }
}

/* ---- a real driver, and what becomes of it when things go wrong ---- */

static void replayed_event(void)
{
    if (fuzz_one_in(4)) complete_some();
}

static void replay(void)
{
    unsigned wild = fuzz_one_in(20) ? 0 : 1u << fuzz_below(9);
    uint64_t before = disk[0].submits;
    if (!wild) disk[0].failing = false;
    fuzz_replay(rig, SLOT, &ahci_seed, 1, 0, wild, wild ? replayed_event : complete_all);
    if (!wild) fuzz_check(disk[0].submits >= before + 30); /* the recording is still one of this device */
    complete_all();
    pci_bus_reset(rig->pci);
    abar = fuzz_bar(rig, SLOT, ABAR, true);
}

/* ---- the honest driver: on port 0 ---- */

struct piece {
    uint32_t at, len; /* in the slot's buffer */
};
struct order {
    bool active, write, queued;
    uint64_t offset;
    uint32_t bytes;
    unsigned pieces;
    struct piece piece[BUFFER_SIZE / 2];
};
static struct order order[32];
static uint8_t model[DISK_SIZE];

static uint32_t ci_and_sact(void)
{
    return get(port_reg(0, 0x38)) | get(port_reg(0, 0x34));
}

/* Cuts the buffer into pieces of an even number of bytes: a few large ones, or very many small ones. */
static void cut(struct order *o)
{
    uint32_t left = o->bytes, at = 0, most = fuzz_one_in(3) ? 8 : 5000;
    for (o->pieces = 0; left; o->pieces++) {
        uint32_t n = 2 + 2 * (uint32_t)fuzz_below(most / 2);
        if (o->pieces == 1000 || n > left) n = left;
        o->piece[o->pieces] = (struct piece){at, n};
        at += n;
        left -= n;
    }
    /* In any order: what is next on the disk need not be next in memory. */
    for (unsigned i = o->pieces; i > 1; i--) {
        unsigned k = (unsigned)fuzz_below(i);
        struct piece t = o->piece[k];
        o->piece[k] = o->piece[i - 1];
        o->piece[i - 1] = t;
    }
}

static bool free_range(uint64_t offset, uint32_t bytes)
{
    for (unsigned i = 0; i < 32; i++) {
        const struct order *o = &order[i];
        if (o->active && offset < o->offset + o->bytes && o->offset < offset + bytes) return false;
    }
    return true;
}

static void fill_table(unsigned s, const struct order *o)
{
    uint64_t lba = o->offset / 512, count = o->bytes / 512;
    uint8_t fis[20] = {0x27, 0x80, o->queued ? (o->write ? 0x61 : 0x60) : o->write ? 0x35 : 0x25};
    for (unsigned i = 0; i < 3; i++) fis[4 + i] = (uint8_t)(lba >> 8 * i);
    fis[7] = 0x40;
    fis[o->queued ? 3 : 12] = (uint8_t)count;
    if (o->queued) fis[12] = (uint8_t)(s << 3);
    put(TABLE(0, s), fis, sizeof fis);
    for (unsigned i = 0; i < o->pieces; i++) {
        uint64_t at = TABLE(0, s) + 0x80 + i * 16ull;
        put32(at, (uint32_t)(BUFFER(0, s) + o->piece[i].at));
        put32(at + 4, 0);
        put32(at + 12, o->piece[i].len - 1);
    }
    put32(LIST(0) + s * 32, 5 | (o->write ? 0x40 : 0) | (uint32_t)o->pieces << 16);
    put32(LIST(0) + s * 32 + 4, 0);
    put32(LIST(0) + s * 32 + 8, (uint32_t)TABLE(0, s));
    put32(LIST(0) + s * 32 + 12, 0);
}

static void honest_issue(void)
{
    unsigned s = (unsigned)fuzz_below(32);
    struct order *o = &order[s];
    if (o->active) return;
    bool queued = fuzz_one_in(2);
    for (unsigned i = 0; i < 32; i++)
        if (order[i].active) queued = order[i].queued; /* the two kinds don't mix */
    o->queued = queued;
    o->write = fuzz_one_in(2);
    o->bytes = 512 * (1 + (uint32_t)fuzz_below(BUFFER_SIZE / 512));
    o->offset = 512 * fuzz_below((DISK_SIZE - o->bytes) / 512 + 1);
    if (!free_range(o->offset, o->bytes)) return;
    cut(o);
    uint64_t at = o->offset;
    for (unsigned i = 0; i < o->pieces; at += o->piece[i++].len)
        for (uint32_t k = 0; o->write && k < o->piece[i].len; k += 2) {
            uint16_t v = (uint16_t)fuzz_bits();
            put(BUFFER(0, s) + o->piece[i].at + k, &v, 2);
            memcpy(model + at + k, &v, 2);
        }
    fill_table(s, o);
    o->active = true;
    if (o->queued) set(port_reg(0, 0x34), 1u << s);
    set(port_reg(0, 0x38), 1u << s);
}

static void verify(unsigned s)
{
    struct order *o = &order[s];
    uint8_t got[BUFFER_SIZE];
    uint64_t at = o->offset;
    for (unsigned i = 0; i < o->pieces; at += o->piece[i++].len) {
        take(BUFFER(0, s) + o->piece[i].at, got, o->piece[i].len);
        fuzz_check(memcmp(got, model + at, o->piece[i].len) == 0);
        uint8_t *w = rig->written + BUFFER(0, s) + o->piece[i].at;
        if (!o->write) fuzz_check(!memchr(w, 0, o->piece[i].len));
        memset(w, 0, o->piece[i].len);
    }
    if (!o->queued) {
        uint32_t moved;
        take(LIST(0) + s * 32 + 4, &moved, 4);
        fuzz_check(moved == o->bytes);
    }
    o->active = false;
}

/* What an interrupt handler does. */
static void honest_interrupt(void)
{
    uint32_t hba = get(8);
    if (!(hba & 1)) return;
    uint32_t is = get(port_reg(0, 0x10)), running;
    set(port_reg(0, 0x10), is);
    running = ci_and_sact();
    if (is & (1u << 30)) { /* the disk reported an error: stop, and believe what the disk holds */
        fuzz_check(get(port_reg(0, 0x20)) & 1);
        set(port_reg(0, 0x18), 0x10);
        complete_all();
        fuzz_check(!(get(port_reg(0, 0x18)) & 0x8000) && ci_and_sact() == 0);
        for (unsigned i = 0; i < 32; i++)
            if (order[i].active) memcpy(model + order[i].offset, disk[0].data + order[i].offset, order[i].bytes);
        memset(order, 0, sizeof order);
        if (fuzz_one_in(2)) set(port_reg(0, 0x2c), 0x301), set(port_reg(0, 0x2c), 0x300);
        port_start(0);
    } else {
        fuzz_check((is & ~0x0000006fu) == 0 || is & (1u << 22));
        for (unsigned i = 0; i < 32; i++)
            if (order[i].active && !(running >> i & 1)) verify(i);
    }
    if (disk[0].n && fuzz_one_in(3)) complete_one(&disk[0]); /* in the gap */
    set(8, hba);
}

static void honest_case(void)
{
    memset(order, 0, sizeof order);
    for (unsigned i = 0; i < DISK_SIZE; i += 8) {
        uint64_t v = i * 0x9e3779b97f4a7c15ull;
        memcpy(model + i, &v, 8);
    }
    memcpy(disk[0].data, model, DISK_SIZE);
    port_start(0);
    set(4, 0x80000002);
    for (unsigned i = 0; i < 120; i++) {
        honest_issue();
        if (fuzz_one_in(3) && disk[0].n) complete_one(&disk[0]);
        /* A line that is up says that there is something to do, and the other way round. */
        bool any = get(port_reg(0, 0x10)) & get(port_reg(0, 0x14));
        fuzz_check(!any || rig->line[pci_gsi(SLOT)]);
        if (fuzz_one_in(2)) honest_interrupt();
    }
    for (unsigned i = 0; i < 64; i++) {
        complete_all();
        honest_interrupt();
    }
    fuzz_check(ci_and_sact() == 0);
    for (unsigned i = 0; i < 32; i++) fuzz_check(!order[i].active);
    fuzz_check(memcmp(model, disk[0].data, DISK_SIZE) == 0);
}

void fuzz_case(void)
{
    struct nerr e;
    struct ahci *a;
    struct ahci_disk d[DISKS];
    bool honest = fuzz_one_in(3), replaying = fuzz_one_in(3);
    if (replaying) fuzz_ram = FUZZ_SEED_RAM;
    rig = fuzz_rig_new();
    for (unsigned i = 0; i < DISKS; i++) {
        disk[i].info =
            (struct block_info){.size = DISK_SIZE, .logical_block = i == 1 ? 4096 : 512, .physical_block = 4096};
        disk[i].info.readonly = i == 2;
        disk[i].info.can_discard = i != 2;
        disk[i].n = 0;
        disk[i].failing = fuzz_one_in(2);
        d[i] = (struct ahci_disk){.block = &disk[i], .serial = "fuzz"};
    }
    fuzz_check(ahci_create(rig->pci, SLOT, "ahci", d, DISKS, &a, &e) == 0);
    abar = fuzz_bar(rig, SLOT, ABAR, true);
    if (replaying) replay();
    if (honest)
        honest_case();
    else if (!replaying)
        for (unsigned i = 0; i < 150; i++) hostile_step();
    complete_all();
    fuzz_check(atomic_load(&a->in_flight) == 0);
    ahci_destroy(a);
    fuzz_rig_free(rig);
}
