/* Which guest pages were written. Where the host offers a ring per vCPU it is used: what it costs follows the pages written, not
 * the size of memory; else KVM's bitmaps. Either way the result gathers in bitmaps of our own, to which the VMM's own writes are added. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/engine/kvm/kvm.h"

static uint64_t pages(const struct engine *g, unsigned slot)
{
    return g->memory->slot[slot].size >> PAGE_SHIFT;
}

static size_t words(const struct engine *g, unsigned slot)
{
    return (size_t)((pages(g, slot) + 63) / 64);
}

static void mark(struct engine *g, unsigned slot, uint64_t page)
{
    if (slot < g->memory->slots && page < pages(g, slot) && g->dirty[slot])
        g->dirty[slot][page / 64] |= 1ull << (page % 64);
}

/* ---- rings ---- */

/* Before any vCPU is created. Returns the bytes of one, 0 where there are none. */
int kvm_dirty_init(struct engine *g)
{
    static const uint32_t kinds[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};
    const uint32_t bytes = KVM_DIRTY_RING_ENTRIES * sizeof(struct kvm_dirty_gfn);
    for (unsigned i = 0; i < 2; i++) {
        struct kvm_enable_cap c = {.cap = kinds[i], .args = {bytes}};
        int most = kvm_ioctl_n(g->vm_fd, KVM_CHECK_EXTENSION, kinds[i]);
        if (most >= (int)bytes && kvm_ioctl(g->vm_fd, KVM_ENABLE_CAP, &c) >= 0) return (int)bytes;
    }
    return 0;
}

int kvm_dirty_vcpu(struct vcpu *v, struct nerr *e)
{
    if (!v->engine->ring_bytes) return 0;
    v->ring = kvm_sys->mmap(v->fd, v->engine->ring_bytes, (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE));
    return v->ring ? 0 : nerr_set(e, -ENOMEM, "no memory for the dirty ring of vCPU %u", v->id);
}

void kvm_dirty_vcpu_fini(struct vcpu *v)
{
    if (v->ring) kvm_sys->munmap(v->ring, v->engine->ring_bytes);
}

static unsigned harvest(struct vcpu *v)
{
    unsigned n = 0;
    if (!v->ring) return 0;
    for (; n < KVM_DIRTY_RING_ENTRIES; n++) {
        struct kvm_dirty_gfn *d = &v->ring[v->ring_next % KVM_DIRTY_RING_ENTRIES];
        if (!(__atomic_load_n(&d->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY)) break;
        mark(v->engine, d->slot & 0xffff, d->offset);
        __atomic_store_n(&d->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        v->ring_next++;
    }
    return n;
}

/* With dirty_lock held. */
static int harvest_all(struct engine *g)
{
    unsigned n = 0;
    for (unsigned i = 0; i < g->vcpus; i++)
        if (g->vcpu[i]) n += harvest(g->vcpu[i]);
    return n ? kvm_ioctl_n(g->vm_fd, KVM_RESET_DIRTY_RINGS, 0) : 0;
}

void kvm_dirty_ring_full(struct engine *g)
{
    pthread_mutex_lock(&g->dirty_lock);
    (void)harvest_all(g);
    pthread_mutex_unlock(&g->dirty_lock);
}

/* ---- bitmaps ---- */

static int fetch_bitmap(struct engine *g, unsigned slot)
{
    uint64_t *fresh = calloc(words(g, slot), 8);
    if (!fresh) return -ENOMEM;
    struct kvm_dirty_log l = {.slot = slot, .dirty_bitmap = fresh};
    int r = kvm_ioctl(g->vm_fd, KVM_GET_DIRTY_LOG, &l);
    for (size_t i = 0; r >= 0 && i < words(g, slot); i++) g->dirty[slot][i] |= fresh[i];
    free(fresh);
    return r;
}

static int fetch(struct engine *g)
{
    int r = 0;
    if (g->ring_bytes) return harvest_all(g);
    for (unsigned i = 0; i < g->memory->slots && r >= 0; i++)
        if (g->dirty[i]) r = fetch_bitmap(g, i);
    return r;
}

/* ---- engine.h ---- */

void kvm_memory_written(struct engine *g, gpa_t a, uint64_t len)
{
    if (!len || !g->tracking) return;
    pthread_mutex_lock(&g->dirty_lock);
    for (unsigned i = 0; i < g->memory->slots && g->tracking; i++) {
        const struct memory_slot *s = &g->memory->slot[i];
        uint64_t first = a.v > s->base.v ? a.v - s->base.v : 0;
        if (a.v + len <= s->base.v || first >= s->size) continue;
        uint64_t end = a.v + len - s->base.v < s->size ? a.v + len - s->base.v : s->size;
        for (uint64_t p = first >> PAGE_SHIFT; p <= (end - 1) >> PAGE_SHIFT; p++) mark(g, i, p);
    }
    pthread_mutex_unlock(&g->dirty_lock);
}

static void free_bitmaps(struct engine *g)
{
    for (unsigned i = 0; i < GUEST_MEMORY_MAX_SLOTS; i++) {
        free(g->dirty[i]);
        g->dirty[i] = NULL;
    }
}

void kvm_dirty_fini(struct engine *g)
{
    free_bitmaps(g);
    pthread_mutex_destroy(&g->dirty_lock);
}

static int switch_log(struct engine *g, bool on)
{
    int r = 0;
    for (unsigned i = 0; i < g->memory->slots && r >= 0; i++) {
        if (g->memory->slot[i].readonly) continue;
        if (on) g->dirty[i] = calloc(words(g, i), 8);
        r = on && !g->dirty[i] ? -ENOMEM : kvm_memory_slot(g, i, on);
    }
    return r;
}

int kvm_dirty_track(struct engine *g, bool on, struct nerr *e)
{
    int r = 0;
    pthread_mutex_lock(&g->dirty_lock);
    if (on != g->tracking) {
        r = switch_log(g, on);
        if (r < 0 && on) (void)switch_log(g, false);
        g->tracking = on && r >= 0;
        if (!g->tracking) {
            (void)harvest_all(g);
            free_bitmaps(g);
        }
    }
    pthread_mutex_unlock(&g->dirty_lock);
    return r < 0 ? nerr_set(e, r, "KVM cannot track written memory: %s", strerror(-r)) : 0;
}

/* Takes the bits of one word and reports runs; `run` carries one over from word to word. */
struct run {
    uint64_t first, count;
};

static void flush(const struct engine *g, unsigned slot, struct run *run, void (*fn)(void *, gpa_t, uint64_t),
                  void *ctx)
{
    if (run->count) fn(ctx, GPA(g->memory->slot[slot].base.v + (run->first << PAGE_SHIFT)), run->count << PAGE_SHIFT);
    run->count = 0;
}

static void report(struct engine *g, unsigned slot, void (*fn)(void *, gpa_t, uint64_t), void *ctx)
{
    struct run run = {0};
    for (size_t w = 0; w < words(g, slot); w++) {
        for (uint64_t m = g->dirty[slot][w]; m; m &= m - 1) {
            uint64_t page = w * 64 + (unsigned)__builtin_ctzll(m);
            if (run.count && run.first + run.count != page) flush(g, slot, &run, fn, ctx);
            if (!run.count) run.first = page;
            run.count++;
        }
        g->dirty[slot][w] = 0;
    }
    flush(g, slot, &run, fn, ctx);
}

int kvm_dirty_collect(struct engine *g, void (*fn)(void *ctx, gpa_t a, uint64_t len), void *ctx, struct nerr *e)
{
    pthread_mutex_lock(&g->dirty_lock);
    int r = g->tracking ? fetch(g) : -EINVAL;
    for (unsigned i = 0; i < g->memory->slots && r >= 0; i++)
        if (g->dirty[i]) report(g, i, fn, ctx);
    pthread_mutex_unlock(&g->dirty_lock);
    return r < 0 ? nerr_set(e, r, "KVM does not say which memory was written: %s", strerror(-r)) : 0;
}
