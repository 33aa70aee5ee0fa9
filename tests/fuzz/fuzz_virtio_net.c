/* virtio-net, by a driver whose rings are in order and whose buffers are not: odd headers, chains, commands, sizes, resets at any time; and
 * by an honest one, whose frames must come out as they went in. (Rings that lie are fuzzed with every virtio device.)
 * Number of cases in make test: 3000. */
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "common/log.h"
#include "net_backend.h"
#include "vmm/virtio/net.h"

const char *const fuzz_name = "fuzz_virtio_net";

FUZZ_SEED(net_split, "virtio-net-split.seed");
FUZZ_SEED(net_packed, "virtio-net-packed.seed");

#define SLOT 1
#define PAIRS 2u
#define QUEUES (PAIRS * 2 + 1)
#define SIZE 64u
#define RINGS 0x10000u   /* 16 KiB per queue */
#define BUFFERS 0x80000u /* the rest */

struct queue {
    uint64_t at, notify;
    uint16_t avail, used;
    unsigned next; /* descriptor to use next; wraps: chains in use are overwritten by the hostile driver, as it likes */
};

static struct fuzz_rig *rig;
static struct event_loop *loop;
static struct virtio_net *dev;
static uint64_t bar, common, notify_base, config;
static unsigned multiplier;
static struct queue queue[QUEUES];

static void set(unsigned reg, unsigned size, uint64_t v)
{
    bus_write(&rig->bus, BUS_MMIO, common + reg, size, v);
}
static uint64_t get(unsigned reg, unsigned size)
{
    return bus_read(&rig->bus, BUS_MMIO, common + reg, size);
}
static uint8_t *mem(uint64_t a, uint64_t n)
{
    return guest_memory_ptr(&rig->memory, GPA(a), n, true);
}
static void put16(uint64_t a, uint16_t v)
{
    memcpy(mem(a, 2), &v, 2);
}
static uint16_t get16(uint64_t a)
{
    uint16_t v;
    memcpy(&v, mem(a, 2), 2);
    return v;
}

static void find(void)
{
    bar = fuzz_bar(rig, SLOT, 4, true);
    for (unsigned c = fuzz_config_read(rig, SLOT, 0x34, 1); c; c = fuzz_config_read(rig, SLOT, c + 1, 1)) {
        if (fuzz_config_read(rig, SLOT, c, 1) != 9) continue;
        uint64_t at = bar + fuzz_config_read(rig, SLOT, c + 8, 4);
        switch (fuzz_config_read(rig, SLOT, c + 3, 1)) {
        case VIRTIO_PCI_CAP_COMMON_CFG: common = at; break;
        case VIRTIO_PCI_CAP_DEVICE_CFG: config = at; break;
        case VIRTIO_PCI_CAP_NOTIFY_CFG:
            notify_base = at;
            multiplier = fuzz_config_read(rig, SLOT, c + 16, 4);
            break;
        default: break;
        }
    }
}

static void setup_queue(unsigned n)
{
    struct queue *q = &queue[n];
    *q = (struct queue){.at = RINGS + n * 0x4000ull};
    memset(mem(q->at, 0x4000), 0, 0x4000);
    set(VIRTIO_PCI_COMMON_Q_SELECT, 2, n);
    q->notify = notify_base + get(VIRTIO_PCI_COMMON_Q_NOFF, 2) * multiplier;
    set(VIRTIO_PCI_COMMON_Q_SIZE, 2, SIZE);
    set(VIRTIO_PCI_COMMON_Q_DESCLO, 4, q->at);
    set(VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
    set(VIRTIO_PCI_COMMON_Q_AVAILLO, 4, q->at + 0x1000);
    set(VIRTIO_PCI_COMMON_Q_AVAILHI, 4, 0);
    set(VIRTIO_PCI_COMMON_Q_USEDLO, 4, q->at + 0x2000);
    set(VIRTIO_PCI_COMMON_Q_USEDHI, 4, 0);
    set(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

/* From reset to DRIVER_OK with these features (and no packed rings). */
static void start(uint64_t features)
{
    features = (features & ~(1ull << VIRTIO_F_RING_PACKED)) | 1ull << VIRTIO_F_VERSION_1;
    set(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    set(VIRTIO_PCI_COMMON_STATUS, 1, 3);
    for (unsigned i = 0; i < 2; i++) {
        set(VIRTIO_PCI_COMMON_DFSELECT, 4, i);
        set(VIRTIO_PCI_COMMON_GFSELECT, 4, i);
        set(VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> 32 * i) & get(VIRTIO_PCI_COMMON_DF, 4));
    }
    set(VIRTIO_PCI_COMMON_STATUS, 1, 11);
    for (unsigned i = 0; i < QUEUES; i++) setup_queue(i);
    set(VIRTIO_PCI_COMMON_STATUS, 1, 15);
}

struct buffer {
    uint64_t addr;
    uint32_t len;
    bool write;
};

static void add(unsigned n, const struct buffer *b, unsigned count)
{
    struct queue *q = &queue[n];
    unsigned head = q->next;
    for (unsigned i = 0; i < count; i++) {
        unsigned at = q->next;
        q->next = (q->next + 1) % SIZE;
        struct vring_desc d = {b[i].addr, b[i].len, (uint16_t)((b[i].write ? 2 : 0) | (i + 1 < count ? 1 : 0)),
                               (uint16_t)q->next};
        memcpy(mem(q->at + at * 16, 16), &d, 16);
    }
    put16(q->at + 0x1004 + 2 * (q->avail % SIZE), (uint16_t)head);
    put16(q->at + 0x1002, ++q->avail);
}

static void kick(unsigned n)
{
    bus_write(&rig->bus, BUS_MMIO, queue[n].notify, 2, n);
    fuzz_check(!fuzz_net.in_batch);
}

/* The next used element's length, and where its first descriptor points. False: there is none. */
static bool used(unsigned n, uint64_t *addr, uint32_t *len)
{
    struct queue *q = &queue[n];
    uint32_t e[2];
    struct vring_desc d;
    if (get16(q->at + 0x2002) == q->used) return false;
    memcpy(e, mem(q->at + 0x2004 + 8 * (q->used++ % SIZE), 8), 8);
    fuzz_check(e[0] < SIZE);
    memcpy(&d, mem(q->at + 16 * e[0], 16), 16);
    *addr = d.addr;
    *len = e[1];
    return true;
}

/* ---- the hostile driver ---- */

static uint64_t somewhere(void)
{
    return fuzz_one_in(300) ? fuzz_address() : BUFFERS + fuzz_below(FUZZ_RAM - BUFFERS - 70000);
}

static void random_chain(unsigned n)
{
    struct buffer b[40];
    unsigned count = 1 + (unsigned)(fuzz_one_in(10) ? fuzz_below(40) : fuzz_below(4));
    bool write = n % 2 == 0 && n != QUEUES - 1;
    for (unsigned i = 0; i < count; i++) {
        b[i] = (struct buffer){somewhere(), (uint32_t)(fuzz_one_in(200) ? fuzz_odd_number() : 1 + fuzz_below(4000)),
                               write};
        if (fuzz_one_in(300)) b[i].write = !b[i].write;
        if (fuzz_one_in(8)) b[i].len = (uint32_t)(fuzz_one_in(20) ? 0 : 1 + fuzz_below(16));
    }
    if (!write && fuzz_one_in(2)) { /* a header that could be one */
        struct net_header h = {.flags = (uint8_t)fuzz_below(3),
                               .gso_type = (uint8_t)fuzz_below(6),
                               .gso_size = 1460,
                               .csum_start = 34,
                               .csum_offset = 16};
        uint64_t at = BUFFERS + fuzz_below(1 << 20);
        memcpy(mem(at, sizeof h), &h, sizeof h);
        b[0] = (struct buffer){at, sizeof h, false};
    }
    add(n, b, count);
}

static void random_command(unsigned n)
{
    uint64_t at = BUFFERS + fuzz_below(1 << 20);
    uint8_t *p = mem(at, 4096);
    uint32_t len = (uint32_t)(fuzz_one_in(4) ? fuzz_below(3000) : fuzz_below(40));
    for (unsigned i = 0; i < 64; i++) p[i] = (uint8_t)fuzz_bits();
    p[0] = (uint8_t)fuzz_below(7), p[1] = (uint8_t)fuzz_below(6);
    if (fuzz_one_in(2)) { /* a table of addresses */
        uint32_t entries = (uint32_t)fuzz_below(100);
        memcpy(p + 2, &entries, 4);
        len = 4 + entries * 6 + 4 + (uint32_t)fuzz_below(8);
    }
    struct buffer b[3] = {{at, 2, false}, {at + 2, len, false}, {at + 4000, 1, true}};
    add(n, b, 3);
    kick(n);
}

static void hostile(void)
{
    uint64_t features = fuzz_bits() | (fuzz_one_in(2) ? ~0ull : 0);
    start(features);
    unsigned steps = 50 + (unsigned)fuzz_below(200);
    for (unsigned i = 0; i < steps; i++) {
        unsigned n = (unsigned)fuzz_below(QUEUES);
        switch (fuzz_below(12)) {
        case 0: random_command(fuzz_one_in(2) ? 2 : QUEUES - 1); break;
        case 1:
        case 2: fuzz_net_event(); break;
        case 3: fuzz_loop_turn(loop); break;
        case 4:
            if (fuzz_one_in(8)) start(fuzz_bits());
            break;
        case 5: bus_read(&rig->bus, BUS_MMIO, config + fuzz_below(64), 1u << fuzz_below(3)); break;
        case 6:
            if (fuzz_one_in(10)) set((unsigned)fuzz_below(64), 1u << fuzz_below(3), fuzz_odd_number());
            break;
        case 7: kick(n); break;
        default: random_chain(n); break;
        }
        if (fuzz_one_in(3)) kick(n);
    }
}

static void replay(void)
{
    const struct fuzz_seed seed[] = {net_split, net_packed};
    fuzz_net_replay(rig, SLOT, loop, seed, 2);
    pci_bus_reset(rig->pci);
    find();
}

/* ---- the honest driver ---- */

static void honest_send(void)
{
    static uint8_t frame[40000];
    struct net_header h = {
        .flags = 1, .gso_type = NET_GSO_TCPV4, .hdr_len = 54, .gso_size = 1460, .csum_start = 34, .csum_offset = 16};
    size_t len = 60 + fuzz_below(sizeof frame - 60), at = 0;
    if (len < 1514) h.gso_type = 0, h.gso_size = h.hdr_len = 0;
    for (size_t i = 0; i < len; i += 7) frame[i] = (uint8_t)fuzz_bits();
    memcpy(mem(BUFFERS, sizeof h), &h, sizeof h);
    memcpy(mem(BUFFERS + sizeof h, len), frame, len);
    struct buffer b[20];
    unsigned n = 0;
    for (size_t all = len + sizeof h; at < all; n++) {
        size_t part = n == 19 || fuzz_one_in(6) ? all - at : 1 + fuzz_below(all - at);
        b[n] = (struct buffer){BUFFERS + at, (uint32_t)part, false};
        at += part;
    }
    uint64_t before = fuzz_net.sent, addr;
    uint32_t written;
    add(1, b, n);
    kick(1);
    fuzz_loop_turn(loop);
    fuzz_check(fuzz_net.sent == before + 1 && fuzz_net.last_len == len);
    fuzz_check(memcmp(fuzz_net.last, frame, len) == 0);
    fuzz_check(memcmp(&fuzz_net.last_header, &h, sizeof h) == 0);
    fuzz_check(used(1, &addr, &written) && written == 0 && addr == BUFFERS);
}

static void honest_receive(void)
{
    static uint8_t frame[20000], got[20000];
    size_t len = 60 + fuzz_below(sizeof frame - 60), at = 0;
    for (size_t i = 0; i < len; i += 5) frame[i] = (uint8_t)fuzz_bits();
    memset(frame, 0xff, 6);
    unsigned given = 0;
    for (size_t room = 0; room < len + sizeof(struct net_header);) {
        struct buffer b = {BUFFERS + (1u << 20) + given * 4096ull, (uint32_t)(500 + fuzz_below(3000)), true};
        add(0, &b, 1);
        room += b.len;
        given++;
    }
    kick(0);
    struct net_header h = {.flags = NET_HDR_NEEDS_CSUM,
                           .gso_type = NET_GSO_TCPV4,
                           .gso_size = 1460,
                           .csum_start = 34,
                           .csum_offset = 16},
                      seen;
    uint64_t before = fuzz_net.received, addr;
    uint32_t written;
    fuzz_net_frame(frame, len, &h);
    fuzz_check(fuzz_net.received == before + 1);
    fuzz_net.port.receive_end(fuzz_net.port.ctx);
    fuzz_check(used(0, &addr, &written) && written > sizeof seen);
    memcpy(&seen, mem(addr, sizeof seen), sizeof seen);
    memcpy(got, mem(addr + sizeof seen, written - sizeof seen), written - sizeof seen);
    at = written - sizeof seen;
    fuzz_check(seen.num_buffers == given);
    for (unsigned i = 1; i < given; i++) {
        fuzz_check(used(0, &addr, &written) && at + written <= len);
        memcpy(got + at, mem(addr, written), written);
        at += written;
    }
    seen.num_buffers = 0;
    fuzz_check(at == len && memcmp(got, frame, len) == 0 && memcmp(&seen, &h, sizeof h) == 0);
    fuzz_check(!used(0, &addr, &written));
}

void fuzz_case(void)
{
    struct nerr e;
    nc_log_level(LOG_LEVEL_ERROR); /* each broken rule is a line otherwise */
    bool replaying = fuzz_one_in(3);
    if (replaying) fuzz_ram = FUZZ_SEED_RAM;
    rig = fuzz_rig_new();
    fuzz_net_rig = rig;
    loop = event_loop_create(&e);
    struct virtio_net_options o = {.name = "net0", .mac = {2, 0, 0, 0, 0, 1}, .pairs = PAIRS};
    fuzz_check(loop && virtio_net_create(rig->pci, SLOT, &o, loop, &dev, &e) == 0);
    find();
    if (!replaying) fuzz_fill(rig, BUFFERS, 65536);
    if (replaying)
        replay();
    else if (!fuzz_one_in(4))
        hostile();
    fuzz_net.full = false;
    fuzz_loop_turn(loop);
    fuzz_loop_turn(loop);
    start(~0ull);
    for (int i = 0; i < 12; i++) fuzz_one_in(2) ? honest_send() : honest_receive();
    virtio_net_destroy(dev);
    event_loop_destroy(loop);
    fuzz_rig_free(rig);
}
