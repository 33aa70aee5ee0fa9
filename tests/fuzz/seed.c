/* Replays seeds, with mistakes. */
#include "seed.h"

#include "vmm/bus/pci_internal.h"

#define MAX_EVENTS 40000
#define MAX_BYTES 4096

struct event {
    char kind;
    uint8_t bar;
    uint64_t off, value;
    unsigned size;
    const uint8_t *bytes; /* of kind M */
};

/* The events of one seed at a time; which it is. */
static struct event event[MAX_EVENTS];
static unsigned events;
static const uint8_t *parsed;

static uint64_t number(const uint8_t **p, const uint8_t *end)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        fuzz_check(*p < end);
        uint8_t b = *(*p)++;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128) break;
    }
    return v;
}

static void parse(const struct fuzz_seed *s)
{
    if (parsed == s->begin) return;
    const uint8_t *p = s->begin;
    for (events = 0; p < s->end; events++) {
        struct event *e = &event[events];
        fuzz_check(events + 1 < MAX_EVENTS && s->end - p >= 2);
        *e = (struct event){.kind = (char)p[0], .bar = p[1]};
        p += 2;
        e->off = number(&p, s->end);
        e->size = (unsigned)number(&p, s->end);
        fuzz_check(e->bar < PCI_BARS && strchr("WCRM", e->kind));
        if (e->kind == 'W' || e->kind == 'C') {
            e->value = number(&p, s->end);
        } else if (e->kind == 'M') {
            fuzz_check(e->size <= MAX_BYTES && e->size <= (size_t)(s->end - p));
            e->bytes = p;
            p += e->size;
        }
    }
    parsed = s->begin;
}

/* Inside the BAR and naturally aligned to no more than the bus demands: what an engine hands out. */
static void access_bar(struct fuzz_rig *r, unsigned slot, const struct event *e)
{
    const struct pci_function *f = r->pci->function[slot];
    const struct pci_bar *b = &f->d.bar[e->bar];
    if (f->bar_at[e->bar] == PCI_NOWHERE || e->off >= b->size || e->size > b->size - e->off) return;
    if (b->kind == PCI_BAR_IO && e->size > 4) return;
    enum bus_space space = b->kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO;
    if (e->kind == 'W')
        bus_write(&r->bus, space, f->bar_at[e->bar] + e->off, e->size, e->value);
    else
        bus_read(&r->bus, space, f->bar_at[e->bar] + e->off, e->size);
}

static void perform(struct fuzz_rig *r, unsigned slot, const struct event *e)
{
    if (e->kind == 'M')
        guest_memory_write(&r->memory, GPA(e->off), e->bytes, e->size);
    else if (e->kind == 'C')
        fuzz_config_write(r, slot, (unsigned)e->off, e->size, (uint32_t)e->value);
    else
        access_bar(r, slot, e);
}

static void flip(uint8_t *p, unsigned len)
{
    for (unsigned n = 1 + (unsigned)fuzz_below(3); n && len; n--) p[fuzz_below(len)] ^= (uint8_t)(1u << fuzz_below(8));
}

/* One mistake in what is written. */
static void change(struct event *e, uint8_t bytes[MAX_BYTES])
{
    if (e->kind == 'M') {
        memcpy(bytes, e->bytes, e->size);
        e->bytes = bytes;
        switch (fuzz_below(6)) {
        case 0: e->off = fuzz_one_in(2) ? fuzz_address() : e->off + fuzz_below(64) - 32; break;
        case 1: e->size = (unsigned)fuzz_below(e->size + 1); break;
        case 2: { /* a whole field */
            uint64_t v = fuzz_odd_number();
            size_t at = fuzz_below(e->size) & ~1ull, room = e->size - at;
            memcpy(bytes + at, &v, room < 8 ? room : fuzz_one_in(2) ? 8 : 2);
            break;
        }
        default: flip(bytes, e->size);
        }
        return;
    }
    switch (fuzz_below(5)) {
    case 0: e->size = 1u << fuzz_below(e->kind == 'C' ? 3 : 4); break;
    case 1: e->off += (1 + fuzz_below(8)) * (fuzz_one_in(2) ? e->size : 1); break;
    case 2: e->value = fuzz_odd_number(); break;
    case 3: e->bar = (uint8_t)fuzz_below(PCI_BARS); break;
    default: e->value ^= 1ull << fuzz_below(8ull * e->size < 64 ? 8ull * e->size : 64);
    }
    if (e->kind == 'C') e->off = e->off % (4096 - 8);
}

void fuzz_replay(struct fuzz_rig *r, unsigned slot, const struct fuzz_seed *seed, unsigned seeds, unsigned first,
                 unsigned wild, void (*between)(void))
{
    static uint8_t bytes[MAX_BYTES];
    parse(&seed[first]);
    unsigned steps = wild ? events + (unsigned)fuzz_below(events) : events;
    for (unsigned i = 0; i < events && steps; i++, steps--) {
        struct event e = event[i];
        unsigned times = 1;
        if (wild && fuzz_one_in(wild)) {
            switch (fuzz_below(8)) {
            case 0: times = 0; break;
            case 1: times = 2 + (unsigned)fuzz_below(3); break;
            case 2: i = (unsigned)fuzz_below(events); break;
            case 3: /* the same driver with another device, or the other way round */
                if (!fuzz_one_in(4)) break;
                parse(&seed[fuzz_below(seeds)]);
                i = (unsigned)fuzz_below(events);
                break;
            default: change(&e, bytes);
            }
        }
        while (times--) perform(r, slot, &e);
        between();
    }
}
