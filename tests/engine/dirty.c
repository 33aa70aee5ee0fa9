/* dirty ENGINE: a few instructions write to known pages while an engine tracks what is written; it must report these and no others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/engine/engine.h"

#define CODE 0x1000
#define FIRST 0x20000ull
#define PAGES 32

/* s: mov ax, 0x2000; mov cx, 32; l: mov ds, ax; mov byte [0], 0x55; add ax, 0x100; dec cx; jnz l; out 0xf4, al; jmp s */
static const uint8_t code[] = {0xb8, 0x00, 0x20, 0xb9, PAGES, 0x00, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0x00,
                               0x55, 0x05, 0x00, 0x01, 0x49,  0x75, 0xf3, 0xe6, 0xf4, 0xeb, 0xe9};

struct seen {
    unsigned pages, wrong;
};

static void on_dirty(void *ctx, gpa_t a, uint64_t len)
{
    struct seen *s = ctx;
    s->pages += (unsigned)(len >> PAGE_SHIFT);
    if (a.v < FIRST || a.v + len > FIRST + (PAGES + 1) * PAGE_SIZE) s->wrong++;
}

static int failed(const char *what, const char *why)
{
    printf("FAIL engine/dirty: %s: %s\n", what, why);
    return 1;
}

static bool collects(const struct engine_ops *ops, struct engine *g, unsigned want)
{
    struct nerr e;
    struct seen s = {0};
    int r = ops->dirty_collect(g, on_dirty, &s, &e);
    if (r || s.pages != want || s.wrong)
        printf("collected %u pages, wanted %u, %u wrong%s%s\n", s.pages, want, s.wrong, r ? ": " : "", r ? e.text : "");
    return !r && s.pages == want && !s.wrong;
}

int main(int argc, char **argv)
{
    const struct engine_ops *ops = argc == 2 && strcmp(argv[1], "kvm") == 0 ? &engine_kvm : &engine_soft;
    struct nerr e;
    struct guest_memory memory;
    struct engine *g;
    struct vcpu *v;
    struct vcpu_exit *x = calloc(1, sizeof(*x));
    struct cpu_state *s = aligned_alloc(64, sizeof(*s));
    if (!ops->dirty_track || (ops->probe && ops->probe(false, &e))) return 77;
    if (!x || !s || guest_memory_create(&memory, 16 << 20, &e)) return 1;
    struct engine_config cfg = {.memory = &memory, .vcpus = 1};
    memcpy(memory.slot[0].host + CODE, code, sizeof(code));
    if (ops->create(&cfg, &g, &e) || ops->vcpu_create(g, 0, NULL, &v, &e)) return failed("creation", e.text);
    cpu_state_reset(s);
    s->seg[SEG_CS].selector = 0;
    s->seg[SEG_CS].base = 0;
    s->rip = CODE;
    if (ops->set_state(v, s, &e)) return failed("state", e.text);
    ops->run(v, x); /* untracked */
    if (x->kind != VCPU_EXIT_IO) return failed("first run", x->kind == VCPU_EXIT_FAIL ? x->fail : "no port access");
    if (ops->dirty_track(g, true, &e)) return failed("tracking", e.text);
    if (!collects(ops, g, 0)) return failed("before", "pages were reported that were written earlier");
    for (unsigned i = 0; i < 3; i++) {
        ops->run(v, x);
        if (x->kind != VCPU_EXIT_IO) return failed("run", x->kind == VCPU_EXIT_FAIL ? x->fail : "no port access");
        if (!collects(ops, g, PAGES)) return failed("tracked", "not the pages that were written");
        if (!collects(ops, g, 0)) return failed("again", "pages were reported twice");
    }
    ops->run(v, x);
    ops->memory_written(g, GPA(FIRST + PAGES * PAGE_SIZE), 1); /* a device's write */
    if (!collects(ops, g, PAGES + 1)) return failed("device", "not the guest's pages and the device's");
    if (ops->dirty_track(g, false, &e)) return failed("tracking off", e.text);
    ops->run(v, x);
    if (ops->dirty_collect(g, on_dirty, &(struct seen){0}, &e) == 0) return failed("off", "something was collected");
    ops->destroy(g);
    guest_memory_destroy(&memory);
    free(x);
    free(s);
    puts("PASS engine/dirty");
    return 0;
}
