/* The disk behind a port: ATA commands (ACS-3 chapter 7). */
#include <string.h>

#include "vmm/emulated/ahci_internal.h"

#define BLOCK 512u /* identify data, logs and range lists come in these */
#define LBA28 0x0fffffffull

#define FEATURE_WRITE_CACHE (1u << 5)
#define FEATURE_LOOK_AHEAD (1u << 6)
#define FEATURE_POWER (1u << 3)
#define FEATURE_SMART (1u << 0)
#define SMART_MID 0x4f
#define SMART_HIGH 0xc2

/* ---- identify (7.12.7) ---- */

/* Two characters per word, the first in its high byte, padded with spaces. */
static void put_string(uint16_t *w, unsigned words, const char *s)
{
    for (unsigned i = 0; i < words; i++) {
        uint8_t a = *s ? (uint8_t)*s++ : ' ', b = *s ? (uint8_t)*s++ : ' ';
        w[i] = (uint16_t)(a << 8 | b);
    }
}

static void put_number(uint16_t *w, uint64_t v, unsigned words)
{
    for (unsigned i = 0; i < words; i++) w[i] = (uint16_t)(v >> 16 * i);
}

/* A name for the world: NAA 5 with the serial number's hash (FNV-1a), so that links in /dev/disk/by-id stay the same. */
static uint64_t world_wide_name(const char *serial)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *serial; serial++) h = (h ^ (uint8_t)*serial) * 0x100000001b3ull;
    return 5ull << 60 | (h & 0x0fffffffffffffffull);
}

static unsigned log2_of(uint32_t v)
{
    unsigned n = 0;
    while (v > 1) {
        v >>= 1;
        n++;
    }
    return n;
}

static void identify_sizes(const struct ahci_port *p, uint16_t *w)
{
    uint64_t low = p->sectors > LBA28 ? LBA28 : p->sectors;
    uint64_t cylinders = low / (16 * 63);
    w[1] = cylinders > 16383 ? 16383 : (uint16_t)cylinders;
    w[3] = 16;
    w[6] = 63;
    put_number(w + 60, low, 2);
    put_number(w + 100, p->sectors, 4);
    w[106] = 0x4000;
    if (p->physical > p->sector) w[106] |= (uint16_t)(0x2000 | log2_of(p->physical / p->sector));
    if (p->sector > BLOCK) {
        w[106] |= 0x1000;
        put_number(w + 117, p->sector / 2, 2);
    }
}

static void identify_features(const struct ahci_port *p, uint16_t *w)
{
    w[82] = FEATURE_SMART | FEATURE_POWER | FEATURE_WRITE_CACHE | FEATURE_LOOK_AHEAD;
    w[83] = 0x7400; /* FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses */
    w[84] = 0x4160; /* world wide name, WRITE DMA FUA EXT, general purpose logging */
    w[85] = (uint16_t)(FEATURE_POWER | (p->smart ? FEATURE_SMART : 0) | (p->write_cache ? FEATURE_WRITE_CACHE : 0) |
                       (p->look_ahead ? FEATURE_LOOK_AHEAD : 0));
    w[86] = 0xb400; /* as word 83, and words 119 and 120 are valid */
    w[87] = 0x4160;
    w[119] = w[120] = 0x4000;
    if (p->can_trim) {
        w[105] = AHCI_TRIM_BLOCKS;
        w[169] = 1;
    }
}

static void identify(const struct ahci_port *p, uint16_t w[256])
{
    memset(w, 0, BLOCK);
    w[0] = 0x0040; /* fixed disk */
    put_string(w + 10, 10, p->serial);
    put_string(w + 23, 4, "1");
    put_string(w + 27, 20, "Nacelle disk");
    w[47] = 0x8010;
    w[49] = 0x0f00; /* LBA, DMA, IORDY */
    w[50] = 0x4000;
    w[53] = 0x0006;
    w[59] = p->multiple ? 0x0100 | p->multiple : 0;
    w[63] = 0x0007;
    w[64] = 0x0003;
    w[65] = w[66] = w[67] = w[68] = 120;
    w[75] = AHCI_SLOTS - 1;
    w[76] = 0x010e; /* NCQ, three generations of speed */
    w[77] = 0x0006;
    w[80] = 0x01f0; /* up to ATA8-ACS */
    w[88] = 0x407f; /* Ultra DMA, for what it is worth on a serial link */
    w[217] = 1;     /* no rotating medium */
    w[222] = 0x1020;
    identify_sizes(p, w);
    identify_features(p, w);
    uint64_t name = world_wide_name(p->serial);
    for (unsigned i = 0; i < 4; i++) w[108 + i] = (uint16_t)(name >> (48 - 16 * i));
    uint8_t sum = 0xa5;
    for (unsigned i = 0; i < 255; i++) sum = (uint8_t)(sum + (w[i] & 0xff) + (w[i] >> 8));
    w[255] = (uint16_t)(0xa5 | (uint8_t)-sum << 8);
}

/* ---- small answers ---- */

static void answer(struct ahci_slot *s, void *data, bool pio)
{
    s->pio = pio;
    if (ahci_slot_copy(s, data, BLOCK, true)) ahci_slot_done(s, 0);
}

static void do_identify(struct ahci_slot *s)
{
    uint16_t w[256];
    identify(s->port, w);
    answer(s, w, true);
}

static void checksum(uint8_t *p)
{
    uint8_t sum = 0;
    for (unsigned i = 0; i < BLOCK - 1; i++) sum = (uint8_t)(sum + p[i]);
    p[BLOCK - 1] = (uint8_t)-sum;
}

/* READ LOG EXT (7.24): the directory, and how the last queued command failed (page 10h, ACS-3 A.14). */
static void do_read_log(struct ahci_slot *s)
{
    uint8_t data[BLOCK] = {0}, log = (uint8_t)s->ata.lba;
    uint64_t page = (s->ata.lba >> 8 & 0xff) | (s->ata.lba >> 24 & 0xff00);
    if (s->ata.count != 1 || page || (log != 0x00 && log != 0x10)) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    if (log == 0x00) {
        data[0] = 1;
        data[0x20] = 1; /* page 10h has one block */
    } else {
        memcpy(data, s->port->ncq_log, sizeof s->port->ncq_log);
        checksum(data);
    }
    answer(s, data, s->ata.command == 0x2f);
}

/* SMART (7.48): just enough for tools to read "passed". */
static void do_smart(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;
    uint8_t data[BLOCK] = {0};
    bool key = (s->ata.lba >> 8 & 0xff) == SMART_MID && (s->ata.lba >> 16 & 0xff) == SMART_HIGH;
    uint8_t feature = (uint8_t)s->ata.feature;
    if (!key || (!p->smart && feature != 0xd8)) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    switch (feature) {
    case 0xd0: /* read data */
    case 0xd1: /* read thresholds */
        data[0] = 1;
        checksum(data);
        answer(s, data, true);
        return;
    case 0xd2: /* autosave */
    case 0xda: /* return status: the key unchanged is "good" */ break;
    case 0xd8: p->smart = true; break;
    case 0xd9: p->smart = false; break;
    default: ahci_slot_done(s, ATA_ABRT); return;
    }
    ahci_slot_done(s, 0);
}

/* SET FEATURES (7.45) */
static void do_set_features(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;
    switch ((uint8_t)s->ata.feature) {
    case 0x02: p->write_cache = true; break;
    case 0x82: p->write_cache = false; break;
    case 0xaa: p->look_ahead = true; break;
    case 0x55: p->look_ahead = false; break;
    case 0x03: break; /* transfer mode: all are the same */
    default: ahci_slot_done(s, ATA_ABRT); return;
    }
    ahci_slot_done(s, 0);
}

static void do_set_multiple(struct ahci_slot *s)
{
    uint8_t n = (uint8_t)s->ata.count;
    if (n > 16 || n & (n - 1)) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    s->port->multiple = n;
    ahci_slot_done(s, 0);
}

static void do_nothing(struct ahci_slot *s)
{
    ahci_slot_done(s, 0);
}

static void do_check_power(struct ahci_slot *s)
{
    ahci_slot_done_with(s, 0, 0xff, s->ata.lba); /* active */
}

static void do_diagnostic(struct ahci_slot *s)
{
    ahci_slot_done_with(s, 1, 1, 1); /* passed; the signature */
}

/* ---- data ---- */

static bool in_range(const struct ahci_port *p, uint64_t lba, uint64_t sectors)
{
    return lba < p->sectors && sectors <= p->sectors - lba;
}

static void transfer(struct ahci_slot *s, uint64_t lba, uint32_t sectors, bool write, bool fua)
{
    struct ahci_port *p = s->port;
    s->write = write;
    if (!in_range(p, lba, sectors)) {
        ahci_slot_done(s, ATA_IDNF);
    } else if (write && p->readonly) {
        ahci_slot_done(s, ATA_ABRT);
    } else {
        s->request.op = write ? BLOCK_WRITE : BLOCK_READ;
        s->request.fua = write && (fua || !p->write_cache);
        s->offset = lba * p->sector;
        s->left = (uint64_t)sectors * p->sector;
        ahci_slot_submit(s);
    }
}

static uint64_t lba28(const struct ata_command *c)
{
    return (c->lba & 0xffffff) | (uint64_t)(c->device & 0xf) << 24;
}

static uint32_t count8(const struct ata_command *c)
{
    return c->count & 0xff ? c->count & 0xff : 256;
}

static uint32_t count16(uint16_t count)
{
    return count ? count : 65536;
}

static void do_read(struct ahci_slot *s)
{
    transfer(s, lba28(&s->ata), count8(&s->ata), false, false);
}

static void do_write(struct ahci_slot *s)
{
    transfer(s, lba28(&s->ata), count8(&s->ata), true, false);
}

static void do_read_ext(struct ahci_slot *s)
{
    transfer(s, s->ata.lba, count16(s->ata.count), false, false);
}

static void do_write_ext(struct ahci_slot *s)
{
    transfer(s, s->ata.lba, count16(s->ata.count), true, s->ata.command == 0x3d || s->ata.command == 0xce);
}

/* The tag, in the count register, must be the slot's; the sector count is in the feature register (SATA 3.1 13.6). */
static void do_queued(struct ahci_slot *s)
{
    if (s->ata.count >> 3 != s->n) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    transfer(s, s->ata.lba, count16(s->ata.feature), s->ata.command == 0x61, s->ata.device & 0x80);
}

static void do_pio(struct ahci_slot *s)
{
    static void (*const as[256])(struct ahci_slot * s) = {
        [0x20] = do_read,  [0x21] = do_read,  [0x24] = do_read_ext,  [0x29] = do_read_ext,
        [0x30] = do_write, [0x31] = do_write, [0x34] = do_write_ext, [0x39] = do_write_ext,
        [0xc4] = do_read,  [0xc5] = do_write, [0xce] = do_write_ext,
    };
    bool multiple = s->ata.command >= 0xc4 || s->ata.command == 0x29 || s->ata.command == 0x39;
    if (multiple && !s->port->multiple) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    s->pio = true;
    as[s->ata.command](s);
}

static void do_verify(struct ahci_slot *s)
{
    bool ext = s->ata.command == 0x42;
    uint64_t lba = ext ? s->ata.lba : lba28(&s->ata);
    ahci_slot_done(s, in_range(s->port, lba, ext ? count16(s->ata.count) : count8(&s->ata)) ? 0 : ATA_IDNF);
}

static void do_flush(struct ahci_slot *s)
{
    s->request.op = BLOCK_FLUSH;
    ahci_slot_submit_bare(s, 0);
}

/* DATA SET MANAGEMENT with TRIM (7.5): blocks of 64 ranges of a 48-bit address and a 16-bit count. */
static void do_trim(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;
    unsigned blocks = s->ata.count;
    if (!p->can_trim || !(s->ata.feature & 1) || blocks < 1 || blocks > AHCI_TRIM_BLOCKS) {
        ahci_slot_done(s, ATA_ABRT);
        return;
    }
    if (!ahci_slot_copy(s, s->trim, blocks * BLOCK, false)) return;
    s->range = 0;
    s->ranges = blocks * (BLOCK / 8);
    for (unsigned i = 0; i < s->ranges; i++) {
        uint64_t lba = s->trim[i] & 0xffffffffffffull, n = s->trim[i] >> 48;
        if (n && !in_range(p, lba, n)) {
            ahci_slot_done(s, ATA_IDNF);
            return;
        }
    }
    if (!ata_next_range(s)) ahci_slot_done(s, 0);
}

bool ata_next_range(struct ahci_slot *s)
{
    while (s->range < s->ranges) {
        uint64_t r = s->trim[s->range++];
        if (!(r >> 48)) continue;
        s->request.op = BLOCK_DISCARD;
        s->offset = (r & 0xffffffffffffull) * s->port->sector;
        ahci_slot_submit_bare(s, (r >> 48) * s->port->sector);
        return true;
    }
    return false;
}

/* ---- all of them; what is not here is aborted ---- */

static void (*const commands[256])(struct ahci_slot *s) = {
    [0x06] = do_trim,
    [0x10] = do_nothing /* recalibrate */,
    [0x20] = do_pio,
    [0x21] = do_pio,
    [0x24] = do_pio,
    [0x25] = do_read_ext,
    [0x29] = do_pio,
    [0x2f] = do_read_log,
    [0x30] = do_pio,
    [0x31] = do_pio,
    [0x34] = do_pio,
    [0x35] = do_write_ext,
    [0x39] = do_pio,
    [0x3d] = do_write_ext,
    [0x40] = do_verify,
    [0x41] = do_verify,
    [0x42] = do_verify,
    [0x47] = do_read_log,
    [0x60] = do_queued,
    [0x61] = do_queued,
    [0x70] = do_nothing /* seek */,
    [0x90] = do_diagnostic,
    [0x91] = do_nothing /* geometry */,
    [0xb0] = do_smart,
    [0xc4] = do_pio,
    [0xc5] = do_pio,
    [0xc6] = do_set_multiple,
    [0xc8] = do_read,
    [0xc9] = do_read,
    [0xca] = do_write,
    [0xcb] = do_write,
    [0xce] = do_pio,
    [0xe0] = do_nothing /* standby, idle, sleep */,
    [0xe1] = do_nothing,
    [0xe2] = do_nothing,
    [0xe3] = do_nothing,
    [0xe5] = do_check_power,
    [0xe6] = do_nothing,
    [0xe7] = do_flush,
    [0xea] = do_flush,
    [0xec] = do_identify,
    [0xef] = do_set_features,
};

void ata_execute(struct ahci_slot *s)
{
    void (*run)(struct ahci_slot * s) = commands[s->ata.command];
    if (run)
        run(s);
    else
        ahci_slot_done(s, ATA_ABRT);
}

void ata_power_on(struct ahci_port *p)
{
    p->write_cache = p->look_ahead = p->smart = true;
    p->multiple = 16;
    memset(p->ncq_log, 0, sizeof p->ncq_log);
}
