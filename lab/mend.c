/* A plug-in for the box's QEMU that mends two faults of QEMU 7.2's emulated CPUs in its memory, as it starts. Each makes guests of the
 * box's KVM crash now and then, whatever their VMM is (docs/lab.md has how they were found).
 *
 * 1. CPUs clear a flag of the first CPU. When a CPU loads an x87 status word without errors (every FXRSTOR and XRSTOR of a context switch
 *    does), cpu_clear_ignne() clears a bit in the first CPU's second word of hidden flags, not atomically, from a thread that is not that
 *    CPU's. The same word says whether nested paging is on. When the first CPU's VMRUN or #VMEXIT comes in between, nested paging stays off
 *    in the guest, or on in the host, which then ends up in its exit once more. The bit is set by writes to port F0h only (external
 *    FERR#, AT style), which nothing in the box does: the function may as well return at once.
 *
 * 2. An injected interrupt is delivered twice. VMRUN with an external interrupt to inject (APM volume 2, 15.20) delivers it at once, but leaves
 *    its vector behind as if it were an exception still to come. When something makes the CPU's thread leave its translated code before the
 *    guest's next exit, it is delivered once more, whether the guest's IF is set or not: in Linux' entry code, for one, before SWAPGS.
 *    The function that delivers, do_interrupt_x86_hardirq(), only passes its arguments on. Ours is put in its place, does the same, and
 *    then says that no exception is pending. Its other caller does that anyway.
 *
 * Where things are is read from QEMU's own code, and a QEMU whose code is not as expected is left as it is; a line in its log says so.
 *
 * Debian has no package with QEMU's plug-in header, so what is used of version 1 of its interface is declared here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv);

#define ANY 0xfff
#define ANY4 ANY, ANY, ANY, ANY
#define LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/* QEMU's function of that name when its code is the pattern; NULL otherwise. */
static uint8_t *find(const char *name, const uint16_t *pattern, size_t n)
{
    uint8_t *code = dlsym(RTLD_DEFAULT, name);
    for (size_t i = 0; code && i < n; i++)
        if (pattern[i] != ANY && pattern[i] != code[i]) return NULL;
    return code;
}

static bool replace(uint8_t *code, const uint8_t *bytes, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)code & -page;
    size_t size = ((uintptr_t)code + n - start + page - 1) & -page;
    if (mprotect((void *)start, size, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) return false;
    memcpy(code, bytes, n);
    return mprotect((void *)start, size, PROT_READ | PROT_EXEC) == 0;
}

static bool mend_ignne(void)
{
    static const uint16_t code[] = {
        0x48, 0x83, 0xec, 0x08,                   /* sub $8,%rsp */
        0x48, 0x8b, 0x3d, ANY4,                   /* mov cpus(%rip),%rdi */
        0x4c, 0x8d, 0x05, ANY4,                   /* lea ...,%r8 */
        0xb9, ANY4,                               /* mov $line,%ecx */
        0x48, 0x8d, 0x15, ANY4,                   /* lea ...,%rdx */
        0x48, 0x8d, 0x35, ANY4,                   /* lea ...,%rsi */
        0xe8, ANY4,                               /* call object_dynamic_cast_assert */
        0x81, 0xa0, ANY4, 0x7f, 0xff, 0xff, 0xff, /* andl $~0x80,hflags2_in_cpu(%rax) */
        0x48, 0x83, 0xc4, 0x08, 0xc3,             /* add $8,%rsp; ret */
    };
    uint8_t *function = find("cpu_clear_ignne", code, LENGTH(code));
    return function && replace(function, &(uint8_t){0xc3}, 1);
}

typedef void deliver_fn(char *cpu, int vector, int software, int error_code, uintptr_t next_eip, int hardware);

static deliver_fn *deliver;       /* do_interrupt_all() */
static uint32_t env_in_cpu;       /* offset of the x86 state in a CPU */
static uint32_t exception_in_cpu; /* offset of the pending exception's number, -1 for none */

static void deliver_hardirq(char *env, int vector, int hardware)
{
    char *cpu = env - env_in_cpu;
    deliver(cpu, vector, 0, 0, 0, hardware);
    memcpy(cpu + exception_in_cpu, &(int32_t){-1}, sizeof(int32_t));
}

static bool mend_hardirq(void)
{
    static const uint16_t hardirq_code[] = {
        0x41, 0x89, 0xd1,                         /* mov %edx,%r9d */
        0x48, 0x81, 0xef, ANY4,                   /* sub $env_in_cpu,%rdi */
        0x45, 0x31, 0xc0, 0x31, 0xc9, 0x31, 0xd2, /* xor %r8d,%r8d; xor %ecx,%ecx; xor %edx,%edx */
        0xe9, ANY4,                               /* jmp do_interrupt_all */
    };
    static const uint16_t noexc_code[] = {
        0x48, 0x83, 0xec, 0x08,                   /* sub $8,%rsp */
        0xc7, 0x87, ANY4, 0xff, 0xff, 0xff, 0xff, /* movl $-1,exception_in_cpu(%rdi) */
    };
    uint8_t *hardirq = find("do_interrupt_x86_hardirq", hardirq_code, LENGTH(hardirq_code));
    uint8_t *noexc = find("cpu_loop_exit_noexc", noexc_code, LENGTH(noexc_code));
    if (!hardirq || !noexc) return false;

    int32_t distance;
    memcpy(&env_in_cpu, hardirq + 6, sizeof(env_in_cpu));
    memcpy(&distance, hardirq + LENGTH(hardirq_code) - sizeof(distance), sizeof(distance));
    memcpy(&exception_in_cpu, noexc + 6, sizeof(exception_in_cpu));
    deliver = (deliver_fn *)(void *)(hardirq + LENGTH(hardirq_code) + distance);

    uint8_t jump[14] = {0xff, 0x25}; /* jmp *0(%rip), and the address behind it */
    deliver_fn *const ours = (deliver_fn *)(void *)deliver_hardirq;
    memcpy(jump + 6, &ours, sizeof(ours));
    return replace(hardirq, jump, sizeof(jump));
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    bool ignne = mend_ignne(), hardirq = mend_hardirq();
    (void)id;
    (void)info;
    (void)argc;
    (void)argv;
    if (!ignne || !hardirq)
        fprintf(stderr, "lab/mend: %s%s%s not as in QEMU 7.2: guests of KVM may crash (docs/lab.md)\n",
                ignne ? "" : "cpu_clear_ignne", ignne || hardirq ? "" : ", ",
                hardirq ? "" : "do_interrupt_x86_hardirq");
    return 0;
}
