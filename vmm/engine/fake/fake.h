/* The scripted engine: replays a list of exits per vCPU, so that devices and the machine can be tested without a CPU.
 *
 * The script is process-wide, since engines are created through struct engine_ops: set it before machine_create(), one machine at
 * a time. Steps are used, not copied: they must live as long as the machine.
 *
 * A vCPU takes one step per run(). A VCPU_EXIT_HLT step returns HLT until the vCPU's interrupt port has something, acknowledges it,
 * and goes on with the next step. After the last step it halts for good. A kick is honoured at any point. */
#ifndef NACELLE_VMM_ENGINE_FAKE_H
#define NACELLE_VMM_ENGINE_FAKE_H

#include "vmm/engine/engine.h"

struct fake_step {
    struct vcpu_exit exit;
    /* Called on the vCPU's thread at its next run(), with the exit as the VMM left it (data of reads filled in). May be NULL. */
    void (*done)(void *ctx, unsigned vcpu, const struct vcpu_exit *exit);
    void *ctx;
    /* Run instead of returning an exit: the vCPU goes on with the next step afterwards. May be NULL. */
    void (*action)(void *ctx, unsigned vcpu);
};

void fake_script(unsigned vcpu, struct fake_step *steps, unsigned count);
void fake_script_clear(void);

/* Steps. */
struct fake_step fake_out(uint16_t port, uint8_t size, uint32_t value);
struct fake_step fake_in(uint16_t port, uint8_t size, void (*done)(void *, unsigned, const struct vcpu_exit *),
                         void *ctx);
struct fake_step fake_store(uint64_t gpa, uint8_t len, uint64_t value);
struct fake_step fake_load(uint64_t gpa, uint8_t len, void (*done)(void *, unsigned, const struct vcpu_exit *),
                           void *ctx);
struct fake_step fake_exit(enum vcpu_exit_kind kind);
struct fake_step fake_do(void (*action)(void *, unsigned), void *ctx);

/* From `done` or `action` of this vCPU: the next step is number `step`. */
void fake_jump(unsigned vcpu, unsigned step);

/* What happened to vCPU n since its creation. Any thread. */
struct fake_record {
    unsigned runs, kicks, interrupts, states_set;
    int last_vector;         /* last acknowledged, -1 none */
    bool halted;             /* waits in a HLT step or after the script's end */
    struct cpu_state *state; /* last set; the engine's; stable while the vCPU does not run */
};
void fake_record(unsigned vcpu, struct fake_record *r);
/* The port of vCPU n, for steps that act as the guest's MSR writes. NULL when there is none. */
const struct vcpu_irq_port *fake_port(unsigned vcpu);

#endif
