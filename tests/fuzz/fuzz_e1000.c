/* The e1000, by a hostile driver, which writes anything anywhere, and by an honest one, whose frames must come out as they went in, with
 * every offload. Number of cases in make test: 3000. */
#include "net_backend.h"
#include "tests/unit/e1000_regs.h"
#include "vmm/emulated/e1000.h"

const char *const fuzz_name = "fuzz_e1000";

FUZZ_SEED(e1000_seed, "e1000.seed");

#define SLOT 1
#define RING 64u
#define TX_RING 0x10000u
#define RX_RING 0x20000u
#define TX_DATA 0x40000u
#define RX_DATA 0x100000u

static struct fuzz_rig *rig;
static struct event_loop *loop;
static uint64_t bar;

static const uint16_t tasty[] = {0x0,    0x8,    0x10,   0x14,   0x18,   0x20,   0x38,   0xc0,   0xc4,   0xc8,   0xd0,
                                 0xd8,   0x100,  0x400,  0x410,  0x1000, 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820,
                                 0x282c, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x4000, 0x4074, 0x4088,
                                 0x5000, 0x5200, 0x53fc, 0x5400, 0x5404, 0x547c, 0x5600, 0x57fc, 0x5ffc, 0x6000};

static void set(uint64_t reg, uint32_t v)
{
    bus_write(&rig->bus, BUS_MMIO, bar + reg, 4, v);
}

static void anywhere(void)
{
    uint64_t reg = fuzz_one_in(4) ? fuzz_below(0x20000) : tasty[fuzz_below(sizeof tasty / sizeof tasty[0])];
    unsigned size = fuzz_one_in(8) ? 1u << fuzz_below(4) : 4;
    if (fuzz_one_in(16)) reg += fuzz_below(4);
    if (reg + size > 0x20000) return;
    if (fuzz_one_in(3)) {
        bus_read(&rig->bus, BUS_MMIO, bar + reg, size);
        return;
    }
    uint64_t v = fuzz_one_in(2) ? fuzz_odd_number() : fuzz_below(512);
    if (reg == TDBAL || reg == RDBAL) v = fuzz_one_in(4) ? fuzz_address() : fuzz_below(FUZZ_RAM);
    if ((reg == TDLEN || reg == RDLEN) && !fuzz_one_in(4)) v = (1 + fuzz_below(32)) * 128;
    if (reg == TCTL || reg == RCTL) v |= 2;
    bus_write(&rig->bus, BUS_MMIO, bar + reg, size, v);
}

/* Descriptors that are nearly right do more than random ones. */
static void descriptors(uint64_t at, unsigned n)
{
    for (unsigned i = 0; i < n && at + 16 <= FUZZ_RAM; i++, at += 16) {
        uint64_t addr = fuzz_one_in(6) ? fuzz_address() : fuzz_below(FUZZ_RAM);
        uint32_t lower = (uint32_t)(fuzz_one_in(6) ? fuzz_bits() : fuzz_below(3000)), upper = (uint32_t)fuzz_bits();
        lower |= (uint32_t)fuzz_below(256) << 24;
        if (fuzz_one_in(2)) lower |= 0x20100000; /* extended data */
        if (fuzz_one_in(6)) {                    /* a context, most of it plausible */
            lower = (lower & ~0x00f00000u) | 0x20000000;
            addr = 14 | 24u << 8 | 33u << 16 | (34ull | 50u << 8) << 32;
            if (fuzz_one_in(3)) addr ^= 1ull << fuzz_below(64);
            upper = 1460u << 16 | 54u << 8;
            if (fuzz_one_in(3)) upper = (uint32_t)fuzz_bits();
        }
        uint8_t *p = guest_memory_ptr(&rig->memory, GPA(at), 16, true);
        memcpy(p, &addr, 8);
        memcpy(p + 8, &lower, 4);
        memcpy(p + 12, &upper, 4);
    }
}

static void hostile(void)
{
    unsigned steps = 100 + (unsigned)fuzz_below(200);
    fuzz_fill(rig, fuzz_below(FUZZ_RAM - 65536), 65536);
    for (unsigned i = 0; i < steps; i++) {
        switch (fuzz_below(8)) {
        case 0: descriptors(fuzz_below(FUZZ_RAM) & ~15ull, 1 + (unsigned)fuzz_below(64)); break;
        case 1: { /* a ring as it should be, with what it holds */
            uint64_t ring = fuzz_below(FUZZ_RAM - 4096) & ~127ull;
            bool tx = fuzz_one_in(2);
            descriptors(ring, RING);
            set(tx ? TDBAL : RDBAL, (uint32_t)ring);
            set((tx ? TDBAL : RDBAL) + 4, 0);
            set(tx ? TDLEN : RDLEN, RING * 16);
            set(tx ? TDH : RDH, (uint32_t)fuzz_below(RING));
            set(tx ? TCTL : RCTL, 2 | (tx ? 8 : (uint32_t)fuzz_bits()));
            set(tx ? TDT : RDT, (uint32_t)fuzz_below(RING));
            break;
        }
        case 2: fuzz_net_event(); break;
        case 3:
            if (fuzz_one_in(4)) fuzz_loop_turn(loop);
            break;
        case 4:
            if (fuzz_one_in(4)) fuzz_config_access(rig, SLOT);
            bar = fuzz_bar(rig, SLOT, 0, !fuzz_one_in(20));
            break;
        default: anywhere(); break;
        }
        fuzz_check(!fuzz_net.in_batch);
    }
}

/* ---- the honest driver ---- */

static unsigned tail, head_rx;

static void tx(uint64_t addr, uint32_t lower, uint32_t upper)
{
    uint8_t *p = guest_memory_ptr(&rig->memory, GPA(TX_RING + tail * 16), 16, true);
    memcpy(p, &addr, 8);
    memcpy(p + 8, &lower, 4);
    memcpy(p + 12, &upper, 4);
    tail = (tail + 1) % RING;
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v;
}

/* A TCP frame of `len` bytes, without checksums and (for segmentation) lengths, as drivers leave it. */
static void make_frame(uint8_t *f, size_t len, bool tso)
{
    for (size_t i = 0; i < len; i++) f[i] = (uint8_t)fuzz_bits();
    put16(f + 12, 0x0800);
    f[14] = 0x45;
    put16(f + 16, tso ? 0 : (unsigned)len - 14);
    put16(f + 20, 0);
    f[23] = 6;
    put16(f + 24, 0);
    f[46] = 0x50;
}

static void honest_send(void)
{
    static uint8_t frame[60000];
    bool tso = fuzz_one_in(2);
    size_t len = 54 + (tso ? 1 + fuzz_below(50000) : fuzz_below(1460));
    unsigned pieces = 0;
    make_frame(frame, len, tso);
    memcpy(guest_memory_ptr(&rig->memory, GPA(TX_DATA), len, true), frame, len);
    uint64_t before = fuzz_net.sent;
    tx(14 | 24u << 8 | 33u << 16 | (34ull | 50u << 8) << 32, 0x20000000 | (tso ? 0x04000000 : 0) | 0x03000000,
       1460u << 16 | 54u << 8);
    for (size_t at = 0; at < len; pieces++) {
        size_t n = pieces == 20 || fuzz_one_in(8) ? len - at : 1 + fuzz_below(len - at);
        tx(TX_DATA + at, 0x20100000 | (tso ? 0x04000000 : 0) | (uint32_t)n | (at + n == len ? 0x09000000 : 0), 3 << 8);
        at += n;
        if (fuzz_one_in(4)) set(TDT, tail);
    }
    set(TDT, tail);
    for (int i = 0; i < 10 && fuzz_net.sent == before; i++) fuzz_loop_turn(loop);
    fuzz_check(fuzz_net.sent == before + 1 && fuzz_net.last_len == len);
    struct offload_frame f;
    fuzz_check(offload_parse(fuzz_net.last, len, &f) && f.end == len && f.l4 == 34 && f.l4_len == 20);
    fuzz_check(offload_sum(fuzz_net.last + 14, 20, 0) == 0xffff); /* the IP checksum is there */
    const struct net_header *h = &fuzz_net.last_header;
    fuzz_check(h->flags == NET_HDR_NEEDS_CSUM && h->csum_start == 34 && h->csum_offset == 16);
    fuzz_check(h->gso_type == (tso ? NET_GSO_TCPV4 : 0) && (!tso || (h->gso_size == 1460 && h->hdr_len == 54)));
    fuzz_check(memcmp(fuzz_net.last + 54, frame + 54, len - 54) == 0);
    fuzz_check(memcmp(fuzz_net.last, frame, 16) == 0);
}

static void honest_receive(void)
{
    uint8_t frame[1514];
    size_t len = 60 + fuzz_below(sizeof frame - 60);
    for (size_t i = 0; i < len; i++) frame[i] = (uint8_t)fuzz_bits();
    memset(frame, 0xff, 6);
    struct net_header h = {0};
    uint64_t before = fuzz_net.received;
    fuzz_net_frame(frame, len, &h);
    fuzz_check(fuzz_net.received == before + 1);
    size_t at = 0;
    bool last = false;
    while (!last) {
        uint8_t *p = guest_memory_ptr(&rig->memory, GPA(RX_RING + head_rx * 16), 16, true);
        size_t n = (size_t)p[8] | (size_t)p[9] << 8;
        fuzz_check(p[12] & 1);
        last = p[12] & 2;
        p[12] = 0;
        size_t have = at >= len ? 0 : n < len - at ? n : len - at;
        fuzz_check(memcmp(guest_memory_ptr(&rig->memory, GPA(RX_DATA + head_rx * 4096ull), 4096, false), frame + at,
                          have) == 0);
        at += n;
        set(RDT, head_rx);
        head_rx = (head_rx + 1) % RING;
    }
    fuzz_check(at == len + 4);
}

static void honest(void)
{
    set(CTRL, 0x04000000);
    set(CTRL, 0x41);
    tail = head_rx = 0;
    fuzz_net.full = false;
    for (unsigned i = 0; i < RING; i++) {
        uint64_t a = RX_DATA + i * 4096ull;
        memset(guest_memory_ptr(&rig->memory, GPA(RX_RING + i * 16), 16, true), 0, 16);
        memcpy(guest_memory_ptr(&rig->memory, GPA(RX_RING + i * 16), 8, true), &a, 8);
    }
    set(TDBAL, TX_RING), set(TDBAL + 4, 0), set(TDLEN, RING * 16), set(TDH, 0), set(TDT, 0);
    set(RDBAL, RX_RING), set(RDBAL + 4, 0), set(RDLEN, RING * 16), set(RDH, 0), set(RDT, RING - 1);
    set(TCTL, 2);
    set(RCTL, 0x8002 | (uint32_t)fuzz_below(4) << 16);
    for (int i = 0; i < 6; i++) fuzz_one_in(2) ? honest_send() : honest_receive();
}

void fuzz_case(void)
{
    struct nerr e;
    struct e1000 *d;
    bool replaying = fuzz_one_in(3);
    if (replaying) fuzz_ram = FUZZ_SEED_RAM;
    rig = fuzz_rig_new();
    fuzz_net_rig = rig;
    loop = event_loop_create(&e);
    struct e1000_options o = {.name = "net0", .mac = {2, 0, 0, 0, 0, 1}};
    fuzz_check(loop && e1000_create(rig->pci, SLOT, &o, loop, &d, &e) == 0);
    bar = fuzz_bar(rig, SLOT, 0, true);
    if (replaying)
        fuzz_net_replay(rig, SLOT, loop, &e1000_seed, 1);
    else if (!fuzz_one_in(4))
        hostile();
    /* Whatever was done to it, a reset makes it a card again. */
    pci_bus_reset(rig->pci);
    fuzz_loop_turn(loop);
    bar = fuzz_bar(rig, SLOT, 0, true);
    honest();
    e1000_destroy(d);
    event_loop_destroy(loop);
    fuzz_rig_free(rig);
}
