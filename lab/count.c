/* A plug-in for the box's QEMU that counts the instructions the box executes, so that what a program costs can be told
 * exactly, whatever the machine's load. Counts start at the start mark and are written, one line each, at every later mark and
 * at the first VMRUN (the first entry of a guest of KVM in the box):
 *
 *     NAME user kernel guest runs
 *
 * user and kernel: instructions of the box itself by the half of the address space they are in; guest: what its KVM's guests
 * executed (of these `guest` alone tells, not user and kernel); runs: VMRUNs, which is the number of exits.
 * A mark is the instruction nopl imm32(%rax,%rax,1) (Intel SDM volume 2: 0F 1F /0), which does nothing: imm32 is
 * 0x4e4c0000 + number, with number 0 for the start. A REP string instruction counts as none, since the emulator runs it as a loop.
 * The counters are not atomic: the box must have one CPU.
 *
 * Debian has no package with QEMU's plug-in header, so what is used of version 1 of its interface (QEMU's docs/devel/tcg-plugins.rst) is
 * declared here. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0, CB_NO_REGS = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*cb)(uint64_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *where, uint64_t value);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned, void *),
                                                   int flags, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv);

#define MARK 0x4e4c0000u
#define MARK_MASK 0xffff0000u

/* Everything executed, by half of the address space; guests included. */
static uint64_t low, high;
/* At the start mark; of these, what guests executed; at the last VMRUN. */
static uint64_t low_start, high_start, guest_low, guest_high, low_run, high_run;
static uint64_t runs;
static bool counting, in_guest;
static FILE *out;

static void report(const char *name)
{
    fprintf(out, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", name, low - low_start - guest_low,
            high - high_start - guest_high, guest_low + guest_high, runs);
    fflush(out);
}

static void leave_guest(void)
{
    if (!in_guest) return;
    guest_low += low - low_run;
    guest_high += high - high_run;
    in_guest = false;
}

static void on_mark(unsigned cpu, void *data)
{
    uint32_t number = (uint32_t)(uintptr_t)data;
    char name[32];
    (void)cpu;
    if (number == 0) {
        low_start = low;
        high_start = high;
        guest_low = guest_high = runs = 0;
        counting = true;
        in_guest = false;
    } else if (counting) {
        bool was = in_guest;
        leave_guest();
        snprintf(name, sizeof(name), "mark%" PRIu32, number);
        report(name);
        low_run = low;
        high_run = high;
        in_guest = was;
    }
}

static void on_vmrun(unsigned cpu, void *data)
{
    (void)cpu;
    (void)data;
    if (!counting) return;
    if (runs++ == 0) report("vmrun");
    low_run = low;
    high_run = high;
    in_guest = true;
}

static void on_exit(unsigned cpu, void *data)
{
    (void)cpu;
    (void)data;
    leave_guest();
}

/* MOVS, CMPS, STOS, LODS, SCAS (A4-A7, AA-AF without A8, A9), INS, OUTS (6C-6F) behind a REP prefix. */
static bool is_rep_string(const uint8_t *b, size_t n)
{
    bool rep = false;
    size_t i = 0;
    for (; i < n && (b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0x66 || b[i] == 0x67 || b[i] == 0x2e || b[i] == 0x65); i++)
        rep |= b[i] == 0xf2 || b[i] == 0xf3;
    if (i < n && (b[i] & 0xf0) == 0x40) i++;
    if (!rep || i >= n) return false;
    return (b[i] >= 0xa4 && b[i] <= 0xa7) || (b[i] >= 0xaa && b[i] <= 0xaf) || (b[i] >= 0x6c && b[i] <= 0x6f);
}

static void translate(uint64_t id, struct qemu_plugin_tb *tb)
{
    static uint64_t known_exit[4]; /* where the box goes on after an exit: KVM has a VMRUN for each kind of guest */
    size_t n = qemu_plugin_tb_n_insns(tb), counted = 0;
    bool is_high = false;
    (void)id;
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const uint8_t *b = qemu_plugin_insn_data(insn);
        size_t size = qemu_plugin_insn_size(insn);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        uint32_t value;
        is_high = address >> 63;
        counted += !is_rep_string(b, size);
        if (size == 8 && b[0] == 0x0f && b[1] == 0x1f && b[2] == 0x84 && b[3] == 0x00) {
            memcpy(&value, b + 4, sizeof(value));
            if ((value & MARK_MASK) == MARK)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, CB_NO_REGS,
                                                       (void *)(uintptr_t)(value & ~MARK_MASK));
        }
        if (size == 3 && b[0] == 0x0f && b[1] == 0x01 && b[2] == 0xd8) {
            for (unsigned k = 0; k < 4 && known_exit[k] != address + 3; k++)
                if (!known_exit[k]) known_exit[k] = address + 3;
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmrun, CB_NO_REGS, NULL);
        }
        for (unsigned k = 0; k < 4; k++)
            if (known_exit[k] && known_exit[k] == address && i == 0)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_exit, CB_NO_REGS, NULL);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, is_high ? &high : &low, counted);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0) out = fopen(argv[i] + 4, "w");
    if (!out) {
        fprintf(stderr, "count: needs out=FILE\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    return 0;
}
