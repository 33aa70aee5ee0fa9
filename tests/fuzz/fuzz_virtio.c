/* virtio disk, console, entropy and vsock devices by a driver that lies in every way it can: rings, indices, descriptors, tables, registers,
 * requests, with resets at any time and a back end that answers when it likes. Afterwards the device must come out of a reset, and serve a
 * driver that keeps the rules.
 * Number of cases in make test: 4000. */
#define _GNU_SOURCE
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/event.h"
#include "common/log.h"
#include "seed.h"
#include "vmm/backend/block.h"
#include "vmm/backend/unix.h"
/* devices.h has another struct of this name than the uapi header. */
#define virtio_blk_config our_blk_config
#include "vmm/virtio/devices.h"
#undef virtio_blk_config

const char *const fuzz_name = "fuzz_virtio";

FUZZ_SEED(blk_split, "virtio-blk-split.seed");
FUZZ_SEED(blk_packed, "virtio-blk-packed.seed");
FUZZ_SEED(console, "console.seed");
FUZZ_SEED(rng, "rng.seed");
FUZZ_SEED(vsock, "vsock.seed");

#define SLOT 1
#define RINGS 0x1000u
#define RING_SPACE 0x4000u
#define BUFFERS 0x80000u
#define MAX_QUEUES 4u
#define CID 7u
#define DISK_SIZE (256u * 1024)

static struct fuzz_rig *rig;
static struct event_loop *loop;
static bool exact; /* a recording is played to the letter: nothing fails behind the device */
static uint64_t common, notify_base, config;

/* ---- a disk in memory that answers late, in any order ---- */

struct block {
    struct block_request *waiting[4096];
    unsigned n;
    bool inside; /* submit is not to be called from done() of a drained disk in a circle */
};
static struct block disk;
static unsigned disk_submits;
static uint8_t disk_data[DISK_SIZE];

void block_info(const struct block *b, struct block_info *out)
{
    (void)b;
    *out = (struct block_info){.size = DISK_SIZE,
                               .logical_block = 512,
                               .physical_block = 4096,
                               .can_discard = true,
                               .can_write_zeroes = true,
                               .format = "raw"};
}
void block_plug(struct block *b)
{
    (void)b;
}

void block_submit(struct block *b, struct block_request *r)
{
    const uint8_t *ram = rig->memory.slot[0].host;
    uint64_t sum = 0;
    fuzz_check(b->n < 4096);
    fuzz_check(r->op < BLOCK_OPS && r->offset <= DISK_SIZE && r->length <= DISK_SIZE - r->offset);
    fuzz_check(r->length % 512 == 0 && r->offset % 512 == 0);
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
        for (unsigned i = 0; i < r->iovs; i++) {
            const uint8_t *p = r->iov[i].iov_base;
            fuzz_check(p >= ram && p < ram + FUZZ_RAM && r->iov[i].iov_len <= (size_t)(ram + FUZZ_RAM - p));
            sum += r->iov[i].iov_len;
        }
        fuzz_check(sum == r->length && sum);
    }
    b->waiting[b->n++] = r;
    disk_submits++;
}

static void answer_one(struct block *b)
{
    unsigned which = (unsigned)fuzz_below(b->n);
    struct block_request *r = b->waiting[which];
    b->waiting[which] = b->waiting[--b->n];
    uint64_t at = r->offset;
    for (unsigned i = 0; (r->op == BLOCK_READ || r->op == BLOCK_WRITE) && i < r->iovs; i++) {
        if (r->op == BLOCK_READ)
            memmove(r->iov[i].iov_base, disk_data + at, r->iov[i].iov_len);
        else
            memmove(disk_data + at, r->iov[i].iov_base, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
    if (r->op == BLOCK_WRITE_ZEROES) memset(disk_data + r->offset, 0, r->length);
    r->done(r, fuzz_one_in(20) ? -5 : fuzz_one_in(50) ? -95 : 0);
}

void block_unplug_reap(struct block *b)
{
    while (b->n && fuzz_one_in(2)) answer_one(b);
}
void block_count_into(struct block *b, struct device_stats *s)
{
    (void)b;
    (void)s;
}
void block_drain(struct block *b)
{
    while (b->n) answer_one(b);
}
void block_close(struct block *b)
{
    block_drain(b);
}

/* ---- a console's other end ---- */

struct chardev {
    struct char_port port;
};
static struct chardev chars;

int char_open(const struct char_config *cfg, struct event_loop *l, const struct char_port *port, struct chardev **out,
              struct nerr *e)
{
    (void)cfg, (void)l, (void)e;
    chars.port = *port;
    *out = &chars;
    return 0;
}
void char_close(struct chardev *c)
{
    (void)c;
}
size_t char_write(struct chardev *c, const void *data, size_t len)
{
    (void)c, (void)data;
    return !exact && fuzz_one_in(4) ? fuzz_below(len + 1) : len;
}
void char_input_ready(struct chardev *c)
{
    (void)c;
}

/* ---- sockets: the other ends are ours ---- */

#define ENDS 64
static int end[ENDS];
static unsigned ends, vsock_connects;

static int new_end(void)
{
    int fd[2];
    if (ends == ENDS || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd)) return -11;
    end[ends++] = fd[1];
    return fd[0];
}
int unix_connect(const char *path)
{
    (void)path;
    vsock_connects++;
    return !exact && fuzz_one_in(4) ? -111 : new_end();
}
/* Programs do not come by accept(): there is no name in the file system that they could come by. */
int unix_listen(const char *option, const char *path, int *fd, struct nerr *e)
{
    (void)option, (void)path, (void)e;
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr a = {.sa_family = AF_UNIX};
    fuzz_check(bind(*fd, &a, sizeof(a.sa_family)) == 0 && listen(*fd, 8) == 0); /* a name of the kernel's choice */
    return 0;
}

static void socket_event(void)
{
    static uint8_t data[200000];
    if (!ends) return;
    unsigned i = (unsigned)fuzz_below(ends);
    switch (fuzz_below(4)) {
    case 0:
        close(end[i]);
        end[i] = end[--ends];
        break;
    case 1: shutdown(end[i], fuzz_one_in(2) ? SHUT_WR : SHUT_RD); break;
    case 2: (void)!read(end[i], data, fuzz_below(sizeof(data))); break;
    default: (void)!send(end[i], data, fuzz_below(sizeof(data)), MSG_NOSIGNAL);
    }
}

/* ---- the devices ---- */

enum kind { BLK, RNG, CONSOLE, VSOCK, KINDS };
static enum kind kind;
static void *dev;
static unsigned queues;

static void create(void)
{
    struct nerr e;
    int r = -1;
    queues = kind == BLK ? 3 : kind == RNG ? 1 : kind == CONSOLE ? 2 : 3;
    if (kind == BLK) {
        struct our_blk_config c = {.name = "blk", .block = &disk, .serial = "serial", .queues = queues};
        r = virtio_blk_create(rig->pci, SLOT, &c, (struct virtio_blk **)&dev, &e);
    } else if (kind == RNG) {
        struct virtio_rng_config c = {.name = "rng", .loop = loop, .rate = fuzz_one_in(2) ? 100000 : 0};
        r = virtio_rng_create(rig->pci, SLOT, &c, (struct virtio_rng **)&dev, &e);
    } else if (kind == CONSOLE) {
        struct virtio_console_options c = {.name = "console", .loop = loop, .kind = CHAR_PTY};
        r = virtio_console_create(rig->pci, SLOT, &c, (struct virtio_console **)&dev, &e);
    } else {
        struct virtio_vsock_options c = {.name = "vsock", .loop = loop, .cid = CID, .path = "nowhere"};
        r = virtio_vsock_create(rig->pci, SLOT, &c, (struct virtio_vsock **)&dev, &e);
    }
    fuzz_check(r == 0);
}

static void destroy(void)
{
    switch (kind) {
    case BLK: virtio_blk_destroy(dev); break;
    case RNG: virtio_rng_destroy(dev); break;
    case CONSOLE: virtio_console_destroy(dev); break;
    default: virtio_vsock_destroy(dev);
    }
    while (ends) close(end[--ends]);
}

static void turn_stop(void *ctx)
{
    event_loop_stop(ctx);
}
/* A post runs before the sockets of its turn do: so the stop comes a turn later. */
static void turn_again(void *ctx)
{
    fuzz_check(event_loop_post(ctx, turn_stop, ctx) == 0);
}
static void turn(void)
{
    struct nerr e;
    fuzz_check(event_loop_post(loop, turn_again, loop) == 0 && event_loop_run(loop, &e) == 0);
}

/* Something happens behind the device. */
static void event(void)
{
    uint8_t data[300] = {1};
    turn();
    if (kind == BLK && disk.n) answer_one(&disk);
    if (kind == BLK && fuzz_one_in(50)) virtio_blk_resized(dev);
    if (kind == VSOCK) socket_event();
    if (kind == CONSOLE) {
        size_t n = fuzz_below(sizeof(data));
        fuzz_check(chars.port.input(chars.port.ctx, data, n) <= n);
        if (fuzz_one_in(2)) chars.port.writable(chars.port.ctx);
    }
}

/* ---- the driver ---- */

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
    uint8_t *p = guest_memory_ptr(&rig->memory, GPA(a), n, true);
    fuzz_check(p);
    return p;
}
static void put16(uint64_t a, uint16_t v)
{
    memcpy(mem(a, 2), &v, 2);
}

static void find(void)
{
    uint64_t bar = fuzz_bar(rig, SLOT, 4, true);
    common = notify_base = config = bar;
    for (unsigned c = fuzz_config_read(rig, SLOT, 0x34, 1); c; c = fuzz_config_read(rig, SLOT, c + 1, 1)) {
        uint64_t at = bar + fuzz_config_read(rig, SLOT, c + 8, 4);
        if (fuzz_config_read(rig, SLOT, c, 1) != 9) continue;
        switch (fuzz_config_read(rig, SLOT, c + 3, 1)) {
        case VIRTIO_PCI_CAP_COMMON_CFG: common = at; break;
        case VIRTIO_PCI_CAP_DEVICE_CFG: config = at; break;
        case VIRTIO_PCI_CAP_NOTIFY_CFG: notify_base = at; break;
        default: break;
        }
    }
}

/* Where queue n's three areas are. */
static uint64_t area(unsigned n, unsigned which)
{
    return RINGS + n * RING_SPACE + which * 0x1400;
}

static bool packed, moved; /* moved: the BAR may be anywhere */
static unsigned size[MAX_QUEUES];
static uint16_t avail[MAX_QUEUES];
static bool wrap[MAX_QUEUES];

static void setup(unsigned n, bool honest)
{
    size[n] = honest ? 64 : 1u << fuzz_below(9);
    avail[n] = 0;
    wrap[n] = true;
    memset(mem(area(n, 0), RING_SPACE), 0, RING_SPACE);
    set(VIRTIO_PCI_COMMON_Q_SELECT, 2, n);
    if (honest && get(VIRTIO_PCI_COMMON_Q_SIZE, 2) < size[n]) size[n] = (unsigned)get(VIRTIO_PCI_COMMON_Q_SIZE, 2);
    set(VIRTIO_PCI_COMMON_Q_SIZE, 2, !honest && fuzz_one_in(30) ? fuzz_odd_number() : size[n]);
    set(VIRTIO_PCI_COMMON_Q_MSIX, 2, n + 1);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t a = !honest && fuzz_one_in(60) ? fuzz_address() : area(n, i);
        set(VIRTIO_PCI_COMMON_Q_DESCLO + 8 * i, 4, (uint32_t)a);
        set(VIRTIO_PCI_COMMON_Q_DESCHI + 8 * i, 4, a >> 32);
    }
    set(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

/* Up to DRIVER_OK, with a subset of what is offered. False: still in reset, since requests are out. */
static bool start(uint64_t features, bool honest)
{
    set(VIRTIO_PCI_COMMON_STATUS, 1, 0);
    if (get(VIRTIO_PCI_COMMON_STATUS, 1)) return false;
    set(VIRTIO_PCI_COMMON_STATUS, 1, 3);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t must = i ? 1 : 0; /* version 1 */
        set(VIRTIO_PCI_COMMON_DFSELECT, 4, i);
        set(VIRTIO_PCI_COMMON_GFSELECT, 4, i);
        set(VIRTIO_PCI_COMMON_GF, 4, ((uint32_t)(features >> 32 * i) & get(VIRTIO_PCI_COMMON_DF, 4)) | must);
    }
    packed = features >> VIRTIO_F_RING_PACKED & 1;
    set(VIRTIO_PCI_COMMON_STATUS, 1, 11);
    for (unsigned i = 0; i < queues; i++) setup(i, honest);
    set(VIRTIO_PCI_COMMON_STATUS, 1, 15);
    return true;
}

static void kick(unsigned n)
{
    bus_write(&rig->bus, BUS_MMIO, notify_base + 4 * n, 2, n);
}

/* How seldom the driver lies, for this case: what lies beyond the first lie must be reached, too. */
static uint64_t honesty;
static bool lie(uint64_t n)
{
    return fuzz_one_in(n * honesty);
}

static uint64_t somewhere(void)
{
    return lie(100) ? fuzz_address() : BUFFERS + fuzz_below(FUZZ_RAM - BUFFERS - 70000);
}

/* What a request of this device could begin with. */
static void write_head(uint64_t at)
{
    uint8_t *p = mem(at, 64);
    if (kind == BLK) {
        static const uint32_t types[] = {0, 1, 4, 8, 11, 13, 14, 2};
        struct virtio_blk_outhdr h = {.type = lie(30) ? (uint32_t)fuzz_bits() : types[fuzz_below(8)],
                                      .sector = lie(20) ? fuzz_odd_number() : fuzz_below(DISK_SIZE / 512)};
        struct virtio_blk_discard_write_zeroes w = {.sector = lie(10) ? fuzz_odd_number() : fuzz_below(400),
                                                    .num_sectors = (uint32_t)fuzz_below(200)};
        if (fuzz_one_in(4)) w.flags = 1;
        memcpy(p, &h, sizeof(h));
        memcpy(p + 16, &w, sizeof(w));
        memcpy(p + 32, &w, sizeof(w));
    } else if (kind == VSOCK) {
        struct virtio_vsock_hdr h = {.src_cid = lie(40) ? fuzz_bits() : CID,
                                     .dst_cid = lie(40) ? fuzz_bits() : 2,
                                     .src_port = (uint32_t)fuzz_below(3),
                                     .dst_port = (uint32_t)fuzz_below(2),
                                     .len = (uint32_t)(lie(20) ? fuzz_odd_number() : 0),
                                     .type = lie(40) ? 2 : 1,
                                     .op = (uint16_t)(fuzz_one_in(3)   ? 1
                                                      : fuzz_one_in(2) ? VIRTIO_VSOCK_OP_RW
                                                                       : fuzz_below(9)),
                                     .flags = (uint32_t)fuzz_below(5),
                                     .buf_alloc = (uint32_t)(fuzz_one_in(5) ? fuzz_odd_number() : 100000),
                                     .fwd_cnt = (uint32_t)(fuzz_one_in(5) ? fuzz_odd_number() : 0)};
        if (h.op == VIRTIO_VSOCK_OP_RW && fuzz_one_in(2)) h.len = (uint32_t)fuzz_below(2000);
        memcpy(p, &h, sizeof(h));
    }
}

static uint16_t flags(bool write, bool next)
{
    if (lie(150)) return (uint16_t)fuzz_bits();
    return (uint16_t)((write ? VRING_DESC_F_WRITE : 0) | (next ? VRING_DESC_F_NEXT : 0));
}

static uint32_t some_length(unsigned i, bool reads)
{
    if (lie(80)) return (uint32_t)fuzz_odd_number();
    if (kind == BLK && i == 0) return lie(10) ? 48 : 16;
    if (kind == VSOCK && i == 0 && reads) return 44;
    return fuzz_one_in(2) ? (uint32_t)(512 * (1 + fuzz_below(8))) : (uint32_t)(1 + fuzz_below(5000));
}

/* A chain that could make sense, most of the time. Its elements go to `at` one by one, as far as a table goes, or round the ring. */
static void chain(unsigned n)
{
    unsigned reads = kind == RNG || (n == 0 && kind != BLK) ? 0 : 1 + (unsigned)fuzz_below(3);
    unsigned writes = reads && kind != BLK ? 0 : 1 + (unsigned)fuzz_below(3), all = reads + writes;
    bool indirect = fuzz_one_in(3);
    uint64_t table = BUFFERS + 16 * fuzz_below(4096), head = BUFFERS + 0x20000 + fuzz_below(0x10000);
    uint16_t mine = (uint16_t)(1u << (wrap[n] ? VRING_PACKED_DESC_F_AVAIL : VRING_PACKED_DESC_F_USED));
    unsigned first = packed ? avail[n] % size[n] : (unsigned)fuzz_below(size[n]), slot = first;
    uint16_t first_flags = 0;
    write_head(head);
    if (lie(60)) all = 1 + (unsigned)fuzz_below(40);
    for (unsigned i = 0; i < all; i++) {
        bool write = i >= reads, next = i + 1 < all;
        struct vring_desc d = {i == 0 && reads ? head : somewhere(), some_length(i, reads), flags(write, next), 0};
        if (kind == BLK && !next) d.len = 1;
        if (indirect) {
            uint16_t f = d.flags;
            d.next = (uint16_t)(i + 1);
            if (packed) d.flags = 0, d.next = f & (uint16_t)~VRING_DESC_F_NEXT;
            memcpy(mem(table + 16 * i, 16), &d, 16);
            continue;
        }
        unsigned after = (slot + 1) % size[n];
        uint16_t f = (uint16_t)(d.flags | mine);
        d.next = (uint16_t)(lie(200) ? fuzz_bits() : after);
        if (packed) {
            d.flags = (uint16_t)fuzz_below(size[n]);
            d.next = f;
            if (i == 0) first_flags = f;
            if (i == 0) d.next = 0;
        }
        memcpy(mem(area(n, 0) + 16 * slot, 16), &d, 16);
        if (after == 0) mine ^= 1u << VRING_PACKED_DESC_F_AVAIL | 1u << VRING_PACKED_DESC_F_USED;
        slot = after;
    }
    if (indirect) {
        struct vring_desc d = {lie(100) ? fuzz_address() : table, lie(60) ? (uint32_t)fuzz_odd_number() : 16 * all,
                               VRING_DESC_F_INDIRECT, 0};
        if (packed) d.flags = 3, d.next = 0, first_flags = VRING_DESC_F_INDIRECT | mine;
        memcpy(mem(area(n, 0) + 16 * slot, 16), &d, 16);
        slot = (slot + 1) % size[n];
    }
    if (packed) {
        put16(area(n, 0) + 16 * first + 14, first_flags);
        if (slot <= first) wrap[n] = !wrap[n];
        avail[n] = (uint16_t)slot;
        return;
    }
    put16(area(n, 1) + 4 + 2 * (avail[n] & (size[n] - 1)), (uint16_t)(lie(200) ? fuzz_bits() : first));
    avail[n] = (uint16_t)(avail[n] + 1);
    put16(area(n, 1) + 2, lie(200) ? (uint16_t)fuzz_bits() : avail[n]);
}

static void hostile(void)
{
    uint64_t features = fuzz_one_in(2) ? ~0ull : fuzz_bits();
    honesty = fuzz_one_in(2) ? 1 : fuzz_one_in(2) ? 10 : 1000;
    if (!start(features, false)) return;
    unsigned steps = 20 + (unsigned)fuzz_below(150);
    for (unsigned i = 0; i < steps; i++) {
        unsigned n = (unsigned)fuzz_below(queues);
        switch (fuzz_below(24)) {
        case 0:
        case 1:
        case 2:
        case 3: event(); break;
        case 4:
            if (fuzz_one_in(4)) start(fuzz_bits(), false);
            break;
        case 5: bus_read(&rig->bus, BUS_MMIO, common + fuzz_below(0x4000), 1u << fuzz_below(4)); break;
        case 6:
            if (lie(6))
                bus_write(&rig->bus, BUS_MMIO, common + fuzz_below(fuzz_one_in(2) ? 64 : 0x4000), 1u << fuzz_below(4),
                          fuzz_odd_number());
            break;
        case 7: bus_write(&rig->bus, BUS_MMIO, config + fuzz_below(72), 1u << fuzz_below(3), fuzz_bits()); break;
        case 8:
            if (lie(20)) fuzz_fill(rig, area(n, 0), RING_SPACE);
            break;
        case 9:
            if (lie(4)) put16(area(n, (unsigned)fuzz_below(3)) + 2 * fuzz_below(8), (uint16_t)fuzz_odd_number());
            break;
        case 10: /* a queue's own reset, and its return */
            if (!lie(3)) break;
            set(VIRTIO_PCI_COMMON_Q_SELECT, 2, n);
            set(58, 2, 1);
            if (fuzz_one_in(2)) setup(n, false);
            break;
        case 11:
            if (!lie(8)) break;
            fuzz_config_access(rig, SLOT);
            moved = true;
            break;
        default: chain(n);
        }
        if (fuzz_one_in(2)) kick(n);
        if (get(VIRTIO_PCI_COMMON_STATUS, 1) & VIRTIO_CONFIG_S_NEEDS_RESET && fuzz_one_in(4)) start(features, false);
    }
}

/* ---- a real driver, and what becomes of it when things go wrong ---- */

static void replayed_event(void)
{
    if (fuzz_one_in(8)) event();
}
/* So that no buffer is given to the device before the one that it was given then has come back. */
static void replayed_at_once(void)
{
    static const uint8_t input[4096];
    static uint8_t output[65536];
    block_drain(&disk);
    if (kind == CONSOLE)
        while (chars.port.input(chars.port.ctx, input, sizeof(input))) continue;
    if (kind == VSOCK)
        for (unsigned i = 0; i < ends; i++)
            while (read(end[i], output, sizeof(output)) > 0) continue;
    if (kind == RNG || kind == VSOCK) turn();
}

/* What the drivers did while they were recorded, at least. */
static void check_replayed(void)
{
    static const char *const names[KINDS] = {"blk", "rng", "console", "vsock"};
    const struct device_stats *s = pci_stats(pci_find(rig->pci, names[kind]));
    uint64_t in = atomic_load(&s->bytes_in), out = atomic_load(&s->bytes_out);
    if (kind == BLK) fuzz_check(disk_submits >= 30);
    if (kind == RNG) fuzz_check(in >= 64);
    if (kind == CONSOLE) fuzz_check(out >= 700 && in >= 4096); /* the numbers up to 200 */
    if (kind == VSOCK) fuzz_check(out >= 25000 && vsock_connects >= 2);
}

static void replay(void)
{
    const struct fuzz_seed seed[] = {blk_split, blk_packed, rng, console, vsock};
    unsigned which = kind == BLK ? (unsigned)fuzz_below(2) : 1 + (unsigned)kind,
             wild = fuzz_one_in(20) ? 0 : 1u << fuzz_below(8);
    honesty = 1;
    disk_submits = vsock_connects = 0;
    exact = !wild;
    fuzz_replay(rig, SLOT, seed, sizeof(seed) / sizeof(seed[0]), which, wild, wild ? replayed_event : replayed_at_once);
    if (exact) check_replayed();
    exact = false;
    moved = true;
    find();
}

/* ---- afterwards ---- */

static void add_honest(unsigned n, const struct vring_desc *d, unsigned count)
{
    for (unsigned i = 0; i < count; i++) memcpy(mem(area(n, 0) + 16 * i, 16), &d[i], 16);
    put16(area(n, 1) + 4 + 2 * (avail[n] & (size[n] - 1)), 0);
    avail[n] = (uint16_t)(avail[n] + 1);
    put16(area(n, 1) + 2, avail[n]);
    kick(n);
}

static bool was_used(unsigned n)
{
    uint16_t idx;
    memcpy(&idx, mem(area(n, 2) + 2, 2), 2);
    return idx == avail[n];
}

/* The rules are kept now, and the request must be served: from split rings, which the others of this file's tests lie in as well. */
static void honest(void)
{
    uint64_t out = BUFFERS, in = BUFFERS + 8192;
    memset(mem(out, 16384), 0, 16384);
    if (kind == BLK) {
        struct virtio_blk_outhdr h = {.type = VIRTIO_BLK_T_OUT, .sector = 3};
        memcpy(mem(out, 16), &h, 16);
        memset(mem(out + 16, 512), 0x5a, 512);
        *mem(in, 1) = 9;
        struct vring_desc w[3] = {{out, 16, 1, 1}, {out + 16, 512, 1, 2}, {in, 1, 2, 0}};
        for (int tries = 0; tries < 50 && *mem(in, 1); tries++) { /* the disk fails at times */
            add_honest(0, w, 3);
            block_drain(&disk);
            fuzz_check(was_used(0) && *mem(in, 1) <= 2);
        }
        fuzz_check(*mem(in, 1) == 0 && disk_data[3 * 512] == 0x5a && disk_data[4 * 512 - 1] == 0x5a);
        fuzz_check(rig->written[in]);
    } else if (kind == CONSOLE) {
        struct vring_desc w = {in, 100, 2, 0};
        add_honest(0, &w, 1);
        fuzz_check(chars.port.input(chars.port.ctx, (const uint8_t *)"hello", 5) == 5);
        fuzz_check(was_used(0) && memcmp(mem(in, 5), "hello", 5) == 0 && rig->written[in]);
    } else if (kind == VSOCK) {
        struct virtio_vsock_hdr h = {.src_cid = CID, .dst_cid = 2, .src_port = 9, .dst_port = 9, .type = 1, .op = 7};
        memcpy(mem(out, sizeof(h)), &h, sizeof(h));
        struct vring_desc t = {out, sizeof(h), 0, 0}, r = {in, 4096, 2, 0};
        add_honest(1, &t, 1);
        add_honest(0, &r, 1);
        memcpy(&h, mem(in, sizeof(h)), sizeof(h));
        fuzz_check(was_used(1) && was_used(0));
        fuzz_check(h.op == VIRTIO_VSOCK_OP_RST && h.src_port == 9 && h.dst_cid == CID);
    }
}

void fuzz_case(void)
{
    struct nerr e;
    nc_log_level(LOG_LEVEL_ERROR); /* each broken rule is a line otherwise */
    disk.n = 0;
    moved = false;
    loop = event_loop_create(&e);
    kind = (enum kind)fuzz_below(KINDS);
    bool replaying = fuzz_one_in(2);
    if (replaying) fuzz_ram = FUZZ_SEED_RAM;
    rig = fuzz_rig_new();
    fuzz_check(loop);
    create();
    find();
    if (replaying) {
        replay();
    } else {
        fuzz_fill(rig, BUFFERS, 65536);
        hostile();
    }
    turn();
    block_drain(&disk);
    if (moved || fuzz_one_in(4)) pci_bus_reset(rig->pci);
    find();
    fuzz_check(start(fuzz_bits() & ~(1ull << VIRTIO_F_RING_PACKED), true)); /* nothing keeps it from its reset now */
    fuzz_check(get(VIRTIO_PCI_COMMON_STATUS, 1) == 15);
    honest();
    destroy();
    fuzz_check(disk.n == 0);
    event_loop_destroy(loop);
    fuzz_rig_free(rig);
}
