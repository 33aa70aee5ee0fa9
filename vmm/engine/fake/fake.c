#include "vmm/engine/fake/fake.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct script {
    struct fake_step *steps;
    unsigned count;
};

struct vcpu {
    unsigned id, step;
    bool step_returned; /* steps[step] was handed out: its `done` is due */
    const struct vcpu_irq_port *port;
    struct vcpu_exit *last;
    struct cpu_state *state;
    _Atomic bool kicked, halted;
    _Atomic unsigned runs, kicks, interrupts, states_set;
    _Atomic int last_vector;
};

struct engine {
    unsigned vcpus;
    struct vcpu *vcpu[ENGINE_MAX_VCPUS];
};

static struct script script[ENGINE_MAX_VCPUS];
static struct engine *current; /* for fake_record() and fake_port() */

void fake_script(unsigned vcpu, struct fake_step *steps, unsigned count)
{
    if (vcpu < ENGINE_MAX_VCPUS) script[vcpu] = (struct script){steps, count};
}

void fake_script_clear(void)
{
    memset(script, 0, sizeof(script));
}

struct fake_step fake_out(uint16_t port, uint8_t size, uint32_t value)
{
    struct fake_step s = {
        .exit = {.kind = VCPU_EXIT_IO, .io = {.port = port, .size = size, .write = true, .count = 1}}};
    memcpy(s.exit.io.data, &value, sizeof(value));
    return s;
}

struct fake_step fake_in(uint16_t port, uint8_t size, void (*done)(void *, unsigned, const struct vcpu_exit *),
                         void *ctx)
{
    return (struct fake_step){
        .exit = {.kind = VCPU_EXIT_IO, .io = {.port = port, .size = size, .count = 1}}, .done = done, .ctx = ctx};
}

struct fake_step fake_store(uint64_t gpa, uint8_t len, uint64_t value)
{
    struct fake_step s = {.exit = {.kind = VCPU_EXIT_MMIO, .mmio = {.addr = GPA(gpa), .len = len, .write = true}}};
    memcpy(s.exit.mmio.data, &value, sizeof(value));
    return s;
}

struct fake_step fake_load(uint64_t gpa, uint8_t len, void (*done)(void *, unsigned, const struct vcpu_exit *),
                           void *ctx)
{
    return (struct fake_step){
        .exit = {.kind = VCPU_EXIT_MMIO, .mmio = {.addr = GPA(gpa), .len = len}}, .done = done, .ctx = ctx};
}

struct fake_step fake_exit(enum vcpu_exit_kind kind)
{
    return (struct fake_step){.exit = {.kind = kind}};
}

struct fake_step fake_do(void (*action)(void *, unsigned), void *ctx)
{
    return (struct fake_step){.action = action, .ctx = ctx};
}

static struct vcpu *find(unsigned id)
{
    return current && id < ENGINE_MAX_VCPUS ? current->vcpu[id] : NULL;
}

void fake_record(unsigned id, struct fake_record *r)
{
    struct vcpu *v = find(id);
    memset(r, 0, sizeof(*r));
    r->last_vector = -1;
    if (v)
        *r = (struct fake_record){.runs = v->runs,
                                  .kicks = v->kicks,
                                  .interrupts = v->interrupts,
                                  .states_set = v->states_set,
                                  .last_vector = v->last_vector,
                                  .halted = v->halted,
                                  .state = v->state};
}

const struct vcpu_irq_port *fake_port(unsigned id)
{
    struct vcpu *v = find(id);
    return v ? v->port : NULL;
}

void fake_jump(unsigned id, unsigned step)
{
    struct vcpu *v = find(id);
    if (v) v->step = step;
}

/* ---- engine_ops ---- */

static int fake_create(const struct engine_config *cfg, struct engine **out, struct nerr *e)
{
    struct engine *g = calloc(1, sizeof(*g));
    if (!g) return nerr_set(e, -ENOMEM, "fake engine: out of memory");
    g->vcpus = cfg->vcpus;
    current = g;
    *out = g;
    return 0;
}

static void fake_destroy(struct engine *g)
{
    for (unsigned i = 0; i < ENGINE_MAX_VCPUS; i++) {
        if (g->vcpu[i]) free(g->vcpu[i]->state);
        free(g->vcpu[i]);
    }
    if (current == g) current = NULL;
    free(g);
}

static int fake_vcpu_create(struct engine *g, unsigned id, const struct vcpu_irq_port *port, struct vcpu **out,
                            struct nerr *e)
{
    if (id >= ENGINE_MAX_VCPUS) return nerr_set(e, -EINVAL, "fake engine: vCPU %u is too many", id);
    struct vcpu *v = calloc(1, sizeof(*v));
    struct cpu_state *s = aligned_alloc(_Alignof(struct cpu_state), sizeof(*s));
    if (!v || !s) {
        free(v);
        free(s);
        return nerr_set(e, -ENOMEM, "fake engine: out of memory");
    }
    cpu_state_reset(s);
    v->id = id;
    v->port = port;
    v->state = s;
    v->last_vector = -1;
    g->vcpu[id] = v;
    *out = v;
    return 0;
}

static int fake_get_state(struct vcpu *v, struct cpu_state *s)
{
    *s = *v->state;
    return 0;
}

static int fake_set_state(struct vcpu *v, const struct cpu_state *s, struct nerr *e)
{
    (void)e;
    *v->state = *s;
    v->states_set++;
    return 0;
}

/* True when the halted vCPU was woken; takes what woke it. */
static bool take_interrupt(struct vcpu *v)
{
    if (!v->port) return false;
    if (v->port->take_nmi(v->port->ctx)) {
        v->last_vector = 2;
        return true;
    }
    if (v->port->pending(v->port->ctx) < 0) return false;
    int vector = v->port->acknowledge(v->port->ctx);
    if (vector >= 0) v->last_vector = vector;
    return vector >= 0;
}

static void finish_step(struct vcpu *v, struct fake_step *s)
{
    if (!v->step_returned) return;
    v->step_returned = false;
    v->step++;
    if (s->done) s->done(s->ctx, v->id, v->last);
}

static void fake_run(struct vcpu *v, struct vcpu_exit *exit)
{
    const struct script *sc = &script[v->id];
    v->runs++;
    for (;;) {
        if (v->step_returned) finish_step(v, &sc->steps[v->step]);
        if (atomic_exchange(&v->kicked, false)) {
            exit->kind = VCPU_EXIT_KICKED;
            return;
        }
        if (v->step >= sc->count) {
            v->halted = true;
            exit->kind = VCPU_EXIT_HLT;
            return;
        }
        struct fake_step *s = &sc->steps[v->step];
        if (s->action) {
            v->step++;
            s->action(s->ctx, v->id);
            continue;
        }
        if (s->exit.kind == VCPU_EXIT_HLT) {
            v->halted = !take_interrupt(v);
            if (!v->halted) {
                v->step++;
                continue;
            }
            exit->kind = VCPU_EXIT_HLT;
            return;
        }
        *exit = s->exit;
        v->last = exit;
        v->step_returned = true;
        return;
    }
}

static void fake_kick(struct vcpu *v)
{
    v->kicks++;
    v->kicked = true;
}

static void fake_interrupt(struct vcpu *v)
{
    v->interrupts++;
}

static unsigned fake_stats(struct vcpu *v, struct engine_stat *s, unsigned max)
{
    if (max < 1) return 0;
    s[0] = (struct engine_stat){"steps", v->step};
    return 1;
}

static void fake_memory_written(struct engine *g, gpa_t a, uint64_t len)
{
    (void)g;
    (void)a;
    (void)len; /* it keeps nothing about memory */
}

const struct engine_ops engine_fake = {
    .name = "fake",
    .create = fake_create,
    .destroy = fake_destroy,
    .vcpu_create = fake_vcpu_create,
    .get_state = fake_get_state,
    .set_state = fake_set_state,
    .run = fake_run,
    .kick = fake_kick,
    .interrupt = fake_interrupt,
    .stats = fake_stats,
    .memory_written = fake_memory_written,
};
