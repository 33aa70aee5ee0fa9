/* A port: registers, command list, received FISes (AHCI 1.3.1 3.3, 4, 5). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/emulated/ahci_internal.h"

/* Offsets into the received FIS area (4.2.1) */
#define RFIS_PIO 0x20
#define RFIS_REGISTER 0x40
#define RFIS_SDB 0x58

#define FIS_HOST 0x27
#define FIS_REGISTER 0x34
#define FIS_PIO 0x5f
#define FIS_SDB 0xa1
#define FIS_INTERRUPT 0x40
#define FIS_DATA_IN 0x20

#define HEADER_SIZE 32
#define HEADER_WRITE (1u << 6)
#define HEADER_RESET (1u << 8)
#define HEADER_CLEAR_BUSY (1u << 10)
#define TABLE_PRDT 0x80

#define SSTS_UP 0x133u /* device there, 6 Gbit/s, active */
#define SERR_X (1u << 26)
#define SERR_N (1u << 16)
#define SIGNATURE_ATA 0x00000101u
#define TFD_IDLE (0x0100u | ATA_DRDY | ATA_DSC) /* as after the diagnostics of a reset */
#define TFD_NO_LINK 0x7fu

enum {
    REG_CLB = 0x00,
    REG_CLBU = 0x04,
    REG_FB = 0x08,
    REG_FBU = 0x0c,
    REG_IS = 0x10,
    REG_IE = 0x14,
    REG_CMD = 0x18,
    REG_TFD = 0x20,
    REG_SIG = 0x24,
    REG_SSTS = 0x28,
    REG_SCTL = 0x2c,
    REG_SERR = 0x30,
    REG_SACT = 0x34,
    REG_CI = 0x38,
};

static const struct dma_space *dma(const struct ahci_port *p)
{
    return pci_dma(p->hba->pci);
}

static void raise_irq(struct ahci_port *p, uint32_t bits)
{
    p->is |= bits;
    ahci_port_irq(p);
}

/* ---- FISes to the driver ---- */

static void receive(struct ahci_port *p, unsigned off, const void *fis, unsigned len)
{
    uint64_t at = (p->fb | (uint64_t)p->fbu << 32) + off;
    if (p->cmd & CMD_FRE && pci_bus_master(p->hba->pci)) dma_write(dma(p), GPA(at), fis, len);
}

static void fill_registers(const struct ahci_port *p, const struct ahci_slot *s, uint8_t *f, uint16_t count,
                           uint64_t lba)
{
    f[2] = (uint8_t)p->tfd;
    f[3] = (uint8_t)(p->tfd >> 8);
    for (unsigned i = 0; i < 3; i++) {
        f[4 + i] = (uint8_t)(lba >> 8 * i);
        f[8 + i] = (uint8_t)(lba >> (24 + 8 * i));
    }
    f[7] = s ? s->ata.device : 0;
    f[12] = (uint8_t)count;
    f[13] = (uint8_t)(count >> 8);
}

static void send_register(struct ahci_port *p, const struct ahci_slot *s, uint16_t count, uint64_t lba, bool interrupt)
{
    uint8_t f[20] = {FIS_REGISTER, interrupt ? FIS_INTERRUPT : 0};
    fill_registers(p, s, f, count, lba);
    receive(p, RFIS_REGISTER, f, sizeof f);
    if (interrupt) p->is |= IS_DHR;
}

/* Sent once, behind the last data; status in byte 2 is what it was before them. */
static void send_pio(struct ahci_port *p, const struct ahci_slot *s)
{
    uint8_t f[20] = {FIS_PIO, FIS_INTERRUPT | (s->write ? 0 : FIS_DATA_IN)};
    fill_registers(p, s, f, s->ata.count, s->ata.lba);
    f[2] = ATA_DRDY | ATA_DSC | ATA_DRQ;
    f[15] = (uint8_t)p->tfd;
    f[16] = (uint8_t)s->moved;
    f[17] = (uint8_t)(s->moved >> 8);
    receive(p, RFIS_PIO, f, sizeof f);
    p->is |= IS_PS;
}

static void send_device_bits(struct ahci_port *p, uint32_t finished)
{
    uint8_t f[8] = {FIS_SDB, FIS_INTERRUPT, (uint8_t)(p->tfd & 0x77), (uint8_t)(p->tfd >> 8)};
    for (unsigned i = 0; i < 4; i++) f[4 + i] = (uint8_t)(finished >> 8 * i);
    receive(p, RFIS_SDB, f, sizeof f);
    p->sact &= ~finished;
    p->is |= IS_SDB;
}

/* ---- the end of a command ---- */

static void run(struct ahci_port *p);

static void link_up(struct ahci_port *p)
{
    p->link_wanted = false;
    p->ssts = SSTS_UP;
    p->sig = SIGNATURE_ATA;
    p->tfd = TFD_IDLE;
    p->serr |= SERR_X | SERR_N;
    send_register(p, NULL, 1, 1, false);
    raise_irq(p, IS_PC | IS_PRC);
}

/* Nothing is in flight any more: a stop and a reset that waited for that are over. */
static void settle(struct ahci_port *p)
{
    if (p->in_flight) return;
    if (!(p->cmd & CMD_ST)) p->cmd &= ~CMD_CR;
    if (p->link_wanted) link_up(p);
}

static void retire(struct ahci_slot *s)
{
    s->active = false;
    if (!s->queued) s->port->busy = false;
}

static void count_done(const struct ahci_slot *s, bool ok)
{
    struct device_stats *st = pci_stats(s->port->hba->pci);
    device_count(&st->requests, 1);
    device_count(s->write ? &st->bytes_out : &st->bytes_in, s->moved);
    if (!ok) device_count(&st->errors, 1);
}

/* A slot's entry in the command list. */
static uint64_t header_at(const struct ahci_port *p, unsigned n)
{
    return (p->clb | (uint64_t)p->clbu << 32) + n * HEADER_SIZE;
}

static void write_count(const struct ahci_slot *s)
{
    dma_write(dma(s->port), GPA(header_at(s->port, s->n) + 4), &s->moved, sizeof s->moved);
}

static void queued_failed(struct ahci_slot *s)
{
    uint8_t *log = s->port->ncq_log;
    fill_registers(s->port, s, log, s->ata.count, s->ata.lba);
    log[0] = (uint8_t)s->n;
}

/* `code` is for the error register of a command that did not fail. */
static void end(struct ahci_slot *s, uint8_t error, uint8_t code, uint16_t count, uint64_t lba)
{
    struct ahci_port *p = s->port;
    p->tfd = (uint32_t)(error ? error : code) << 8 | ATA_DRDY | ATA_DSC | (error ? ATA_ERR : 0);
    count_done(s, !error);
    if (s->prd_interrupt) p->is |= IS_DP;
    if (error) {
        p->failed = true;
        p->is |= IS_TFE;
    }
    if (s->queued) {
        if (error) queued_failed(s);
        send_device_bits(p, error ? 0 : 1u << s->n);
    } else {
        write_count(s);
        if (!error) p->ci &= ~(1u << s->n);
        if (s->pio && !error) send_pio(p, s);
        if (!s->pio || s->write || error) send_register(p, s, count, lba, true);
    }
    retire(s);
    ahci_port_irq(p);
}

void ahci_slot_done(struct ahci_slot *s, uint8_t error)
{
    end(s, error, 0, s->ata.count, s->ata.lba);
}

void ahci_slot_done_with(struct ahci_slot *s, uint8_t code, uint16_t count, uint64_t lba)
{
    end(s, 0, code, count, lba);
}

/* The port stops with the command as it is (6.2.2): the driver resets it. */
void ahci_slot_fatal(struct ahci_slot *s, uint32_t is_bit)
{
    s->port->failed = true;
    count_done(s, false);
    retire(s);
    raise_irq(s->port, is_bit);
}

/* ---- data ---- */

/* Makes prd_addr/prd_left the next descriptor. 1: there; 0: none left; -1: the table is no memory. */
static int next_descriptor(struct ahci_slot *s)
{
    uint8_t d[16];
    uint32_t low, high, bytes;
    if (s->prd_next == s->prds) return 0;
    uint64_t at = s->table + TABLE_PRDT + (uint64_t)s->prd_next++ * sizeof d;
    if (!dma_read(dma(s->port), GPA(at), d, sizeof d)) return -1;
    memcpy(&low, d, 4);
    memcpy(&high, d + 4, 4);
    memcpy(&bytes, d + 12, 4);
    s->prd_interrupt |= bytes >> 31;
    s->prd_addr = (low & ~1u) | (uint64_t)high << 32;
    s->prd_left = ((bytes & 0x3fffff) | 1) + 1; /* bit 0 is always set: an even count */
    return 1;
}

/* A pointer to up to `want` bytes of the command's data, NULL when there are none (told as fatal). */
static void *next_piece(struct ahci_slot *s, uint64_t want, uint32_t *len, uint64_t *gpa)
{
    int r = s->prd_left ? 1 : next_descriptor(s);
    if (r <= 0) {
        ahci_slot_fatal(s, r ? IS_HBF : IS_OF);
        return NULL;
    }
    *len = want < s->prd_left ? (uint32_t)want : s->prd_left;
    *gpa = s->prd_addr;
    void *p = dma_ptr(dma(s->port), GPA(*gpa), *len, !s->write);
    if (!p) {
        ahci_slot_fatal(s, IS_HBD);
        return NULL;
    }
    s->prd_addr += *len;
    s->prd_left -= *len;
    return p;
}

bool ahci_slot_copy(struct ahci_slot *s, void *buf, unsigned len, bool to_guest)
{
    uint32_t n;
    uint64_t gpa;
    s->write = !to_guest;
    for (unsigned at = 0; at < len; at += n) {
        void *p = next_piece(s, len - at, &n, &gpa);
        if (!p) return false;
        memcpy(to_guest ? p : (uint8_t *)buf + at, to_guest ? (uint8_t *)buf + at : p, n);
        if (to_guest) dma_written(dma(s->port), GPA(gpa), n);
    }
    s->moved += len;
    return true;
}

/* What the last request left over comes first. */
static uint64_t carry_over(struct ahci_slot *s)
{
    unsigned first = s->rest.iov_len ? 1 : 0, left = s->iovs - s->used;
    uint64_t total = 0;
    memmove(&s->iov[first], &s->iov[s->used], left * sizeof s->iov[0]);
    memmove(&s->gpa[first], &s->gpa[s->used], left * sizeof s->gpa[0]);
    if (first) {
        s->iov[0] = s->rest;
        s->gpa[0] = s->rest_gpa;
        s->rest.iov_len = 0;
    }
    s->iovs = left + first;
    for (unsigned i = 0; i < s->iovs; i++) total += s->iov[i].iov_len;
    return total;
}

/* The back end takes whole sectors: keeps what is behind the last one for the next request. */
static void keep_rest(struct ahci_slot *s, uint64_t excess)
{
    s->used = s->iovs;
    while (excess) {
        struct iovec *v = &s->iov[s->used - 1];
        if (v->iov_len <= excess) {
            excess -= v->iov_len;
            s->used--;
            continue;
        }
        v->iov_len -= excess;
        s->rest = (struct iovec){(uint8_t *)v->iov_base + v->iov_len, excess};
        s->rest_gpa = s->gpa[s->used - 1] + v->iov_len;
        excess = 0;
    }
}

/* Collects pieces for one request, as many bytes as it returns; 0: the command has failed. */
static uint64_t collect(struct ahci_slot *s)
{
    uint64_t total = carry_over(s);
    uint32_t n;
    while (s->iovs < AHCI_IOVS && total < s->left) {
        void *p = next_piece(s, s->left - total, &n, &s->gpa[s->iovs]);
        if (!p) return 0;
        s->iov[s->iovs++] = (struct iovec){p, n};
        total += n;
    }
    uint64_t excess = total % s->port->sector;
    if (excess == total) { /* descriptors of a few bytes only: no driver makes them */
        ahci_slot_fatal(s, IS_IF);
        return 0;
    }
    keep_rest(s, excess);
    return total - excess;
}

/* ---- the back end ---- */

static void slot_returned(struct block_request *r, int result);

static void hand_over(struct ahci_slot *s, uint64_t length)
{
    struct block_request *r = &s->request;
    r->offset = s->offset;
    r->length = length;
    r->iov = s->iov;
    r->iovs = s->used;
    r->done = slot_returned;
    s->epoch = s->port->epoch;
    s->port->in_flight++;
    atomic_fetch_add(&s->port->hba->in_flight, 1);
    block_submit(s->port->block, r);
}

void ahci_slot_submit(struct ahci_slot *s)
{
    uint64_t n = collect(s);
    if (n) hand_over(s, n);
}

void ahci_slot_submit_bare(struct ahci_slot *s, uint64_t length)
{
    s->used = 0;
    hand_over(s, length);
}

static void slot_goes_on(struct ahci_slot *s, int result)
{
    const struct block_request *r = &s->request;
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
        s->moved += result ? 0 : (uint32_t)r->length;
        s->left -= r->length;
        s->offset += r->length;
    }
    if (result)
        ahci_slot_done(s, ATA_UNC); /* for writes, too: an error that no system tries again to get rid of */
    else if (s->left)
        ahci_slot_submit(s);
    else if (r->op != BLOCK_DISCARD || !ata_next_range(s))
        ahci_slot_done(s, 0);
}

static void slot_returned(struct block_request *r, int result)
{
    struct ahci_slot *s = (struct ahci_slot *)r; /* its first member */
    struct ahci_port *p = s->port;
    if (r->op == BLOCK_READ)
        for (unsigned i = 0; i < s->used; i++) dma_written(dma(p), GPA(s->gpa[i]), s->iov[i].iov_len);
    pthread_mutex_lock(&p->lock);
    p->in_flight--;
    /* A disk that reported an error aborts what else is queued: nobody hears of that either, and it is tried again. */
    if (s->epoch == p->epoch && !p->failed)
        slot_goes_on(s, result);
    else
        s->active = false;
    settle(p);
    run(p);
    atomic_fetch_sub(&p->hba->in_flight, 1); /* last: who sees 0 sees the port settled */
    pthread_mutex_unlock(&p->lock);
}

/* ---- the command list ---- */

static void decode(const uint8_t *f, struct ata_command *c)
{
    *c = (struct ata_command){
        .command = f[2],
        .device = f[7],
        .control = f[15],
        .feature = (uint16_t)(f[3] | f[11] << 8),
        .count = (uint16_t)(f[12] | f[13] << 8),
    };
    for (unsigned i = 0; i < 3; i++) c->lba |= (uint64_t)f[4 + i] << 8 * i | (uint64_t)f[8 + i] << (24 + 8 * i);
}

/* Software reset (ACS-3 9.3): SRST set by one FIS, cleared by the next. */
static void control_fis(struct ahci_port *p, unsigned n, uint8_t control)
{
    p->ci &= ~(1u << n);
    if (control & 4) {
        p->srst = true;
    } else if (p->srst) {
        p->srst = false;
        ata_power_on(p);
        p->tfd = TFD_IDLE;
        p->sig = SIGNATURE_ATA;
        send_register(p, NULL, 1, 1, false);
    }
}

static bool is_queued(uint8_t command)
{
    return command == 0x60 || command == 0x61;
}

static bool queue_empty(const struct ahci_port *p)
{
    for (unsigned i = 0; i < AHCI_SLOTS; i++)
        if (p->slot[i].active) return false;
    return true;
}

static void bad_list(struct ahci_port *p, uint32_t bit)
{
    p->failed = true;
    raise_irq(p, bit);
}

/* A command's entry in the list (4.2.2), decoded. */
struct header {
    unsigned fis_words; /* of 32 bits */
    unsigned prds;
    uint64_t table;
};

static bool read_header(struct ahci_port *p, unsigned n, struct header *h)
{
    uint32_t word[HEADER_SIZE / 4];
    if (!dma_read(dma(p), GPA(header_at(p, n)), word, sizeof word)) return false;
    *h = (struct header){
        .fis_words = word[0] & 0x1f, .prds = word[0] >> 16, .table = (word[2] & ~0x7fu) | (uint64_t)word[3] << 32};
    return true;
}

static void start(struct ahci_port *p, unsigned n, const struct header *h, const uint8_t *fis)
{
    struct ahci_slot *s = &p->slot[n];
    s->table = h->table;
    s->prds = h->prds;
    s->prd_next = s->prd_left = s->moved = 0;
    s->offset = s->left = 0;
    s->iovs = s->used = s->range = s->ranges = 0;
    s->rest.iov_len = 0;
    s->prd_interrupt = s->pio = s->write = false;
    s->request.fua = s->request.may_unmap = false;
    decode(fis, &s->ata);
    s->queued = is_queued(s->ata.command);
    s->active = true;
    if (s->queued)
        p->ci &= ~(1u << n); /* the disk has taken it into its queue */
    else
        p->busy = true;
    ata_execute(s);
}

/* False: no more commands can begin now. */
static bool begin(struct ahci_port *p, unsigned n)
{
    struct header h;
    uint8_t fis[64];
    if (!read_header(p, n, &h) || !dma_read(dma(p), GPA(h.table), fis, sizeof fis)) return bad_list(p, IS_HBF), false;
    if (h.fis_words < 5 || fis[0] != FIS_HOST) return bad_list(p, IS_IF), false;
    bool command = fis[1] & 0x80;
    if (!(command && is_queued(fis[2])) && !queue_empty(p)) return false; /* goes on when the queue has run empty */
    p->next = (n + 1) % AHCI_SLOTS;
    p->cmd = (p->cmd & ~0x1f00u) | n << 8;
    if (command)
        start(p, n, &h, fis);
    else
        control_fis(p, n, fis[15]);
    return true;
}

/* Starts what the driver has issued, from the slot behind the last one on. */
static void run(struct ahci_port *p)
{
    while (p->cmd & CMD_ST && !p->failed && !p->busy && p->ssts == SSTS_UP && pci_bus_master(p->hba->pci)) {
        unsigned i = 0, n = 0;
        for (; i < AHCI_SLOTS; i++) {
            n = (p->next + i) % AHCI_SLOTS;
            if (p->ci >> n & 1 && !p->slot[n].active) break;
        }
        if (i == AHCI_SLOTS || !begin(p, n)) return;
    }
}

/* ---- registers ---- */

/* What is under way goes on in the back end, but nobody hears of it; CR says when it is over. */
static void stop(struct ahci_port *p)
{
    p->epoch++;
    p->ci = p->sact = 0;
    p->busy = p->failed = false;
}

static void write_command(struct ahci_port *p, uint32_t v)
{
    uint32_t old = p->cmd;
    p->cmd = (old & ~(CMD_ST | CMD_FRE | CMD_FR)) | (v & (CMD_ST | CMD_FRE)) | (v & CMD_FRE ? CMD_FR : 0);
    if (v & CMD_CLO && !(old & CMD_ST)) p->tfd &= ~(ATA_BSY | ATA_DRQ);
    if (v & ~old & CMD_ST) {
        p->cmd |= CMD_CR;
        p->next = 0;
    }
    if (old & ~v & CMD_ST) {
        stop(p);
        settle(p);
    }
}

/* COMRESET (3.3.11): while DET is 1. */
static void write_control(struct ahci_port *p, uint32_t v)
{
    uint32_t old = p->sctl & 0xf, det = v & 0xf;
    p->sctl = v & 0xfff;
    if (det == old) return;
    if (det) {
        stop(p);
        p->link_wanted = p->srst = false;
        p->ssts = det == 4 ? 4 : 0;
        p->tfd = TFD_NO_LINK;
        p->sig = ~0u;
    } else {
        ata_power_on(p);
        p->link_wanted = true;
        settle(p);
    }
}

uint32_t ahci_port_read(struct ahci_port *p, unsigned reg)
{
    uint32_t v = 0;
    pthread_mutex_lock(&p->lock);
    switch (reg) {
    case REG_CLB: v = p->clb; break;
    case REG_CLBU: v = p->clbu; break;
    case REG_FB: v = p->fb; break;
    case REG_FBU: v = p->fbu; break;
    case REG_IS: v = p->is; break;
    case REG_IE: v = p->ie; break;
    case REG_CMD: v = p->cmd; break;
    case REG_TFD: v = p->tfd | (p->busy ? ATA_BSY : 0); break;
    case REG_SIG: v = p->sig; break;
    case REG_SSTS: v = p->ssts; break;
    case REG_SCTL: v = p->sctl; break;
    case REG_SERR: v = p->serr; break;
    case REG_SACT: v = p->sact; break;
    case REG_CI: v = p->ci; break;
    default: break;
    }
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void write_register(struct ahci_port *p, unsigned reg, uint32_t v)
{
    switch (reg) {
    case REG_CLB: p->clb = v & ~0x3ffu; break;
    case REG_CLBU: p->clbu = v; break;
    case REG_FB: p->fb = v & ~0xffu; break;
    case REG_FBU: p->fbu = v; break;
    case REG_IS: p->is &= ~(v & ~(IS_PC | IS_PRC)); break; /* those two follow SERR */
    case REG_IE: p->ie = v & IS_ALL; break;
    case REG_CMD: write_command(p, v); break;
    case REG_SCTL: write_control(p, v); break;
    case REG_SERR:
        p->serr &= ~v;
        if (!(p->serr & SERR_X)) p->is &= ~IS_PC;
        if (!(p->serr & SERR_N)) p->is &= ~IS_PRC;
        break;
    case REG_SACT:
        if (p->cmd & CMD_ST) p->sact |= v;
        break;
    case REG_CI:
        if (p->cmd & CMD_ST) p->ci |= v;
        break;
    default: return;
    }
    ahci_port_irq(p);
}

void ahci_port_write(struct ahci_port *p, unsigned reg, uint32_t v)
{
    bool doorbell = reg == REG_CI || reg == REG_CMD;
    if (reg == REG_CI) device_count(&pci_stats(p->hba->pci)->notifications, 1);
    if (doorbell) block_plug(p->block);
    pthread_mutex_lock(&p->lock);
    write_register(p, reg, v);
    if (doorbell) run(p);
    pthread_mutex_unlock(&p->lock);
    if (doorbell) block_unplug_reap(p->block);
}

/* ---- life ---- */

void ahci_port_reset(struct ahci_port *p)
{
    pthread_mutex_lock(&p->lock);
    stop(p);
    p->clb = p->clbu = p->fb = p->fbu = p->is = p->ie = p->serr = p->sctl = 0;
    p->cmd = CMD_SUD | CMD_POD | (p->in_flight ? CMD_CR : 0);
    p->ssts = 0;
    p->sig = ~0u;
    p->tfd = TFD_NO_LINK;
    p->next = 0;
    p->srst = false;
    p->link_wanted = true;
    ata_power_on(p);
    settle(p);
    ahci_port_irq(p);
    pthread_mutex_unlock(&p->lock);
}

int ahci_port_init(struct ahci_port *p, struct ahci *a, unsigned n, const struct ahci_disk *d, struct nerr *e)
{
    struct block_info info;
    block_info(d->block, &info);
    p->hba = a;
    p->n = n;
    p->block = d->block;
    p->sector = info.logical_block;
    p->physical = info.physical_block;
    p->sectors = info.size / info.logical_block;
    p->readonly = info.readonly;
    p->can_trim = info.can_discard && !info.readonly;
    strncpy(p->serial, d->serial ? d->serial : "", sizeof p->serial - 1);
    pthread_mutex_init(&p->lock, NULL);
    p->slot = calloc(AHCI_SLOTS, sizeof *p->slot);
    if (!p->slot) return nerr_set(e, -ENOMEM, "out of memory for an AHCI port");
    for (unsigned i = 0; i < AHCI_SLOTS; i++) {
        p->slot[i].port = p;
        p->slot[i].n = i;
    }
    return 0;
}

void ahci_port_fini(struct ahci_port *p)
{
    if (!p->hba) return;
    free(p->slot);
    pthread_mutex_destroy(&p->lock);
}
