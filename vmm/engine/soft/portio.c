/* Port I/O: permission, and the protocol that carries it out of run() and back (soft.h, cpu->io). */
#include "vmm/engine/soft/portio.h"

#include "vmm/engine/soft/system.h"

/* The TSS's I/O permission bitmap; its offset is the word at 102 of a 32-bit or 64-bit TSS (SDM vol. 1 19.5.2). Two bytes are read always,
 * so both must lie within the limit. */
static enum soft_result check_bitmap(struct soft_cpu *cpu, uint16_t port, unsigned size)
{
    uint16_t at = 0, bits = 0;
    bool wide = !(cpu->tr.attr & SEG_ATTR_NULL) && (cpu->tr.attr & 8);
    if (!wide || cpu->tr.limit < 103) return sys_gp0(cpu);
    enum soft_result r = soft_load_sys(cpu, cpu->tr.base + 102, &at, 2);
    if (r != SOFT_OK) return r;
    uint32_t off = at + port / 8u;
    if (off + 1 > cpu->tr.limit) return sys_gp0(cpu);
    r = soft_load_sys(cpu, cpu->tr.base + off, &bits, 2);
    if (r != SOFT_OK) return r;
    unsigned mask = ((1u << size) - 1) << (port & 7);
    return bits & mask ? sys_gp0(cpu) : SOFT_OK;
}

enum soft_result soft_port_check(struct soft_cpu *cpu, uint16_t port, unsigned size)
{
    if (!soft_protected(cpu) || cpu->cpl <= soft_iopl(cpu)) return SOFT_OK;
    return check_bitmap(cpu, port, size);
}

/* I/O breakpoints: R/W = 2 with CR4.DE; the trap comes after the instruction (SDM vol. 3 17.2.4, 17.3.1.2). */
static void note_breakpoints(struct soft_cpu *cpu, uint16_t port, unsigned size)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    if (!(cpu->dr[7] & 0xff) || !(cpu->cr4 & CR4_DE)) return;
    for (unsigned i = 0; i < 4; i++) {
        unsigned kind = cpu->dr[7] >> (16 + 4 * i) & 3;
        uint64_t len = lengths[cpu->dr[7] >> (18 + 4 * i) & 3], at = cpu->dr[i] & ~(len - 1);
        if ((cpu->dr[7] >> (2 * i) & 3) && kind == 2 && port < at + len && at < (uint64_t)port + size)
            cpu->pending_db |= 1u << i;
    }
}

static enum soft_result leave(struct soft_cpu *cpu, uint16_t port, unsigned size, bool write)
{
    struct vcpu_exit *e = cpu->exit;
    e->kind = VCPU_EXIT_IO;
    e->io.port = port;
    e->io.size = (uint8_t)size;
    e->io.write = write;
    e->io.count = 1;
    return SOFT_EXIT;
}

enum soft_result soft_port_read(struct soft_cpu *cpu, uint16_t port, unsigned size, uint32_t *v)
{
    enum soft_result r = soft_port_check(cpu, port, size);
    if (r != SOFT_OK) return r;
    bool mine = cpu->io.have && !cpu->io.is_mmio && cpu->io.addr == port && cpu->io.pio_len == size;
    cpu->io.have = false; /* an answer to something else (the instruction was interrupted) is void */
    if (!mine) return leave(cpu, port, size, false);
    note_breakpoints(cpu, port, size);
    *v = 0;
    soft_copy(v, cpu->io.pio, size);
    return SOFT_OK;
}

enum soft_result soft_port_write(struct soft_cpu *cpu, uint16_t port, unsigned size, uint32_t v)
{
    enum soft_result r = soft_port_check(cpu, port, size);
    if (r != SOFT_OK) return r;
    note_breakpoints(cpu, port, size);
    leave(cpu, port, size, true);
    soft_copy(cpu->exit->io.data, &v, size);
    return SOFT_EXIT;
}

void soft_port_complete(struct soft_cpu *cpu, const struct vcpu_exit *exit)
{
    uint32_t len = (uint32_t)exit->io.size * exit->io.count;
    if (exit->kind != VCPU_EXIT_IO || exit->io.write || len > sizeof cpu->io.pio) return;
    cpu->io.have = true;
    cpu->io.is_mmio = false;
    cpu->io.addr = exit->io.port;
    cpu->io.pio_len = len;
    soft_copy(cpu->io.pio, exit->io.data, len);
}
