/* The paravirtual clock that Linux knows under the name of kvmclock (Linux: Documentation/virt/kvm/x86/msr.rst and cpuid.rst, whose
 * interface this is an own implementation of). It tells a guest the TSC's frequency and the time of day without
 * measuring: on AMD no CPUID leaf does the former, and calibrating against the PIT costs a tenth of a second of every boot.
 *
 * Guest time is the host's TSC since the VM's creation, scaled to nanoseconds, so all vCPUs agree and the guest's page has to be written
 * once only, and again when this vCPU's TSC is moved. */
#include "vmm/engine/soft/pvclock.h"

#include "vmm/engine/soft/ram.h"

enum { MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01 };
#define ENABLE 1ull
#define FLAG_STABLE 1u /* readings of different vCPUs may be compared */
#define NS 1000000000ull

struct time_info {
    uint32_t version, pad0; /* odd while being written */
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};

struct wall_clock {
    uint32_t version, sec, nsec;
};

/* ns = (tsc << shift) * mul >> 32 */
static void set_scale(const struct soft_cpu *cpu, struct time_info *t)
{
    uint64_t khz = cpu->tsc_khz;
    t->tsc_shift = 0;
    for (; khz <= 1000000; khz <<= 1) t->tsc_shift++;
    t->tsc_to_system_mul = (uint32_t)((1000000ull << 32) / khz);
}

/* Version odd, the rest, version even: what readers on other vCPUs expect. False: not in writable RAM. */
static bool publish(struct soft_cpu *cpu, uint64_t gpa, const void *image, uint32_t size)
{
    uint32_t *p = gpa & 3 ? NULL : (uint32_t *)(void *)soft_ram(soft_memory(cpu), gpa, size, true);
    if (!p) return false;
    uint32_t version = cpu->pvclock.version += 2;
    __atomic_store_n(p, version - 1, __ATOMIC_SEQ_CST);
    soft_copy(p + 1, (const uint8_t *)image + 4, size - 4);
    __atomic_store_n(p, version, __ATOMIC_SEQ_CST);
    bool code =
        soft_page_has_code(cpu, GPA(gpa & PAGE_MASK)) || soft_page_has_code(cpu, GPA((gpa + size - 1) & PAGE_MASK));
    if (code) soft_code_written(cpu, GPA(gpa), size);
    return true;
}

static bool write_system_time(struct soft_cpu *cpu, uint64_t v)
{
    struct time_info t = {.tsc_timestamp = cpu->pvclock.tsc_base + cpu->tsc_offset, .flags = FLAG_STABLE};
    set_scale(cpu, &t);
    if ((v & ENABLE) && !publish(cpu, v & ~ENABLE, &t, sizeof t)) return false;
    cpu->pvclock.system_msr = v;
    return true;
}

/* The time of day when guest time was zero. */
static bool write_wall_clock(struct soft_cpu *cpu, uint64_t gpa)
{
    uint64_t ns = cpu->pvclock.wall_base_ns;
    struct wall_clock w = {.sec = (uint32_t)(ns / NS), .nsec = (uint32_t)(ns % NS)};
    return publish(cpu, gpa, &w, sizeof w);
}

bool soft_pvclock_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *v)
{
    *v = msr == MSR_SYSTEM_TIME ? cpu->pvclock.system_msr : 0;
    return cpu->tsc_khz && (msr == MSR_SYSTEM_TIME || msr == MSR_WALL_CLOCK);
}

bool soft_pvclock_write(struct soft_cpu *cpu, uint32_t msr, uint64_t v)
{
    if (!cpu->tsc_khz) return false;
    if (msr == MSR_SYSTEM_TIME) return write_system_time(cpu, v);
    return msr == MSR_WALL_CLOCK && write_wall_clock(cpu, v);
}
