/* Runs cases on the software engine, through vmm/engine/engine.h only.
 *
 * The guest is nothing but tables: the same virtual layout as the native side, user pages, and an IDT whose handlers
 * are `out imm8` to port 0xe0 + vector, so that every case ends in an I/O exit that tells the vector, with the
 * interrupted state on the kernel stack. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/diff/worker.h"
#include "vmm/engine/engine.h"

/* Guest-physical layout; all of it is mapped at KERNEL_VA for the supervisor only. */
#define KERNEL_VA 0xffff800000000000ull
#define PA_PML4 0x1000
#define PA_PDPT 0x2000
#define PA_PD 0x3000
#define PA_PT_DATA 0x4000
#define PA_PT_CODE 0x5000
#define PA_PDPT_K 0x6000
#define PA_PD_K 0x7000
#define PA_GDT 0x8000
#define PA_LDT 0x8400
#define PA_IDT 0x9000
#define PA_TSS 0xa000
#define PA_STUBS 0xb000
#define PA_STACK_TOP 0x10000
#define PA_FRAMES 0x100000
#define RAM_SIZE (2ull << 20)
#define GPA_MMIO 0xd0000000ull
#define EXIT_PORT 0xe0
#define EXITS_MAX 20000

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_PS 0x80ull
#define PTE_NX (1ull << 63)

static struct guest_memory memory;
static struct engine *engine;
static struct vcpu *vcpu;
static struct cpu_state start, state;
static uint8_t mmio_page[PAGE];
static struct vcpu_exit leave;

static int irq_none(void *ctx)
{
    (void)ctx;
    return -1;
}
static bool nmi_none(void *ctx)
{
    (void)ctx;
    return false;
}
static uint8_t cr8_get(void *ctx)
{
    (void)ctx;
    return 0;
}
static void cr8_set(void *ctx, uint8_t v)
{
    (void)ctx;
    (void)v;
}
static bool msr_read(void *ctx, uint32_t msr, uint64_t *value)
{
    (void)ctx;
    (void)msr;
    (void)value;
    return false;
}
static bool msr_write(void *ctx, uint32_t msr, uint64_t value)
{
    (void)ctx;
    (void)msr;
    (void)value;
    return false;
}
static void tsc_offset_set(void *ctx, uint64_t offset)
{
    (void)ctx;
    (void)offset;
}
static const struct vcpu_irq_port no_irqs = {
    .pending = irq_none,
    .acknowledge = irq_none,
    .take_nmi = nmi_none,
    .get_cr8 = cr8_get,
    .set_cr8 = cr8_set,
    .msr_read = msr_read,
    .msr_write = msr_write,
    .set_tsc_offset = tsc_offset_set,
};

static void *ram(uint64_t pa)
{
    return memory.slot[0].host + pa;
}

static void write_u64(uint64_t pa, uint64_t v)
{
    memcpy(ram(pa), &v, 8);
}

static void build_page_tables(void)
{
    unsigned frame = 0;
    write_u64(PA_PML4, PA_PDPT | PTE_P | PTE_W | PTE_U);
    write_u64(PA_PDPT, PA_PD | PTE_P | PTE_W | PTE_U);
    write_u64(PA_PD + (DATA_BASE >> 21) * 8, PA_PT_DATA | PTE_P | PTE_W | PTE_U);
    write_u64(PA_PD + (CODE_BASE >> 21) * 8, PA_PT_CODE | PTE_P | PTE_W | PTE_U);
    write_u64(PA_PML4 + 256 * 8, PA_PDPT_K | PTE_P | PTE_W);
    write_u64(PA_PDPT_K, PA_PD_K | PTE_P | PTE_W);
    write_u64(PA_PD_K, 0 | PTE_P | PTE_W | PTE_PS);
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        uint64_t pte = 0;
        if (data_page_kind[i] == PK_MMIO)
            pte = GPA_MMIO | PTE_P | PTE_W | PTE_U | PTE_NX;
        else if (data_page_kind[i] != PK_NONE)
            pte = (PA_FRAMES + frame * PAGE) | PTE_P | PTE_U | PTE_NX | (data_page_kind[i] == PK_RW ? PTE_W : 0);
        frame += data_page_kind[i] != PK_NONE;
        write_u64(PA_PT_DATA + i * 8, pte);
    }
    for (unsigned i = 0; i < CODE_PAGES; i++)
        write_u64(PA_PT_CODE + i * 8, (PA_FRAMES + (frame + i) * PAGE) | PTE_P | PTE_W | PTE_U);
}

/* The descriptors Linux gives a user program, so that selectors mean the same on both sides. */
static void build_descriptors(void)
{
    static const uint64_t gdt[16] = {0,
                                     0x00cf9b000000ffff,
                                     0x00af9b000000ffff,
                                     0x00cf93000000ffff,
                                     0x00cffb000000ffff,
                                     0x00cff3000000ffff,
                                     0x00affb000000ffff};
    uint64_t tss = KERNEL_VA + PA_TSS;
    memcpy(ram(PA_GDT), gdt, sizeof(gdt));
    write_u64(PA_GDT + 0x40, 0x67 | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56);
    write_u64(PA_GDT + 0x48, tss >> 32);
    write_u64(PA_GDT + 0x78, 0x0040f50000000000); /* where Linux keeps the CPU's number */
    uint64_t ldt = KERNEL_VA + PA_LDT;
    write_u64(PA_GDT + 0x50, 0x17 | (ldt & 0xffffff) << 16 | 0x82ull << 40 | (ldt >> 24 & 0xff) << 56);
    write_u64(PA_GDT + 0x58, ldt >> 32);
    write_u64(PA_LDT, LIMIT_CODE16 | (CODE_BASE & 0xffffff) << 16 | 0xfbull << 40 | (CODE_BASE >> 24) << 56);
    write_u64(PA_LDT + 8, LIMIT_DATA16 | (DATA_BASE & 0xffffff) << 16 | 0xf3ull << 40 | (DATA_BASE >> 24) << 56);
    write_u64(PA_LDT + 16, LIMIT_DATA16 | (DATA_BASE & 0xffffff) << 16 | 0x40f3ull << 40 | (DATA_BASE >> 24) << 56);
    write_u64(PA_TSS + 4, KERNEL_VA + PA_STACK_TOP);
    uint16_t iomap = 0x68; /* beyond the limit: no port is open to user mode */
    memcpy(ram(PA_TSS + 0x66), &iomap, 2);
    for (unsigned v = 0; v < 32; v++) {
        uint64_t at = KERNEL_VA + PA_STUBS + v * 16;
        uint64_t dpl = v == 3 || v == 4 ? 3 : 0;
        uint8_t stub[4] = {0xe6, (uint8_t)(EXIT_PORT + v), 0xeb, 0xfe};
        memcpy(ram(PA_STUBS + v * 16), stub, sizeof(stub));
        write_u64(PA_IDT + v * 16,
                  (at & 0xffff) | 0x10ull << 16 | (0x8eull | dpl << 5) << 40 | (at >> 16 & 0xffff) << 48);
        write_u64(PA_IDT + v * 16 + 8, at >> 32);
    }
}

static void start_state(struct cpu_state *s)
{
    cpu_state_reset(s);
    s->cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    s->cr3 = PA_PML4;
    s->cr4 = 0x20 | 0x200 | 0x400 | 0x10000 | 0x40000; /* PAE OSFXSR OSXMMEXCPT FSGSBASE OSXSAVE */
    s->efer = 0xd01;                                   /* SCE LME LMA NXE */
    s->xcr0 = host.xcomp;
    s->gdt = (struct cpu_table){KERNEL_VA + PA_GDT, 0x7f};
    s->idt = (struct cpu_table){KERNEL_VA + PA_IDT, 0xfff};
    s->tr = (struct cpu_segment){.selector = 0x40, .attr = 0x8b, .limit = 0x67, .base = KERNEL_VA + PA_TSS};
    s->ldtr = (struct cpu_segment){.selector = 0x50, .attr = 0x82, .limit = 0x17, .base = KERNEL_VA + PA_LDT};
}

static void load_segments(struct cpu_state *s, const struct diff_case *c)
{
    if (c->mode == MODE_16) {
        struct cpu_segment d16 = {.selector = SEL_DATA16, .attr = 0xf3, .limit = LIMIT_DATA16, .base = DATA_BASE};
        for (unsigned i = 0; i < SEG_COUNT; i++) s->seg[i] = d16;
        if (c->stack32) {
            s->seg[SEG_SS].selector = SEL_STACK32;
            s->seg[SEG_SS].attr |= SEG_ATTR_DB;
        }
        s->seg[SEG_CS] =
            (struct cpu_segment){.selector = SEL_CODE16, .attr = 0xfb, .limit = LIMIT_CODE16, .base = CODE_BASE};
        return;
    }
    bool m32 = c->mode == MODE_32;
    struct cpu_segment null = {.attr = SEG_ATTR_NULL};
    struct cpu_segment data = {.selector = SEL_DATA, .attr = 0xc0f3, .limit = 0xffffffff};
    s->seg[SEG_CS] = (struct cpu_segment){
        .selector = m32 ? SEL_CODE32 : SEL_CODE64, .attr = m32 ? 0xc0fb : 0xa0fb, .limit = 0xffffffff};
    s->seg[SEG_SS] = data;
    s->seg[SEG_DS] = s->seg[SEG_ES] = m32 ? data : null;
    s->seg[SEG_FS] = s->seg[SEG_GS] = m32 ? data : null;
    s->seg[SEG_FS].base = c->fs_base;
    s->seg[SEG_GS].base = c->gs_base;
}

/* Kicks the vCPU out of a case that has used too much of the CPU: one that loops natively, too, mostly. */
#define CASE_CPU_NS 6000000000ull
#define CASE_CPU_NS_HANG 300000000ull /* when the host CPU did not get out of it either */
const volatile uint32_t *soft_peer_status;
static _Atomic uint64_t case_began; /* CPU time of the process, 0 between cases */
static _Atomic bool case_kicked;

static uint64_t cpu_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *watchdog(void *arg)
{
    for (;; usleep(50000)) {
        uint64_t began = atomic_load(&case_began);
        bool hangs = soft_peer_status && (*soft_peer_status == RUN_HANG || *soft_peer_status == RUN_SKIP);
        if (!began || cpu_time() - began < (hangs ? CASE_CPU_NS_HANG : CASE_CPU_NS)) continue;
        atomic_store(&case_kicked, true);
        engine_soft.kick(vcpu);
    }
    return arg;
}

int soft_init(char *text)
{
    struct nerr e = {{0}};
    if (guest_memory_create(&memory, RAM_SIZE, &e)) {
        snprintf(text, 120, "guest memory: %.100s", e.text);
        return -1;
    }
    struct engine_config cfg = {.memory = &memory, .vcpus = 1};
    if (engine_soft.create(&cfg, &engine, &e) || engine_soft.vcpu_create(engine, 0, &no_irqs, &vcpu, &e)) {
        snprintf(text, 120, "engine: %.100s", e.text);
        return -1;
    }
    pthread_t dog;
    if (pthread_create(&dog, NULL, watchdog, NULL)) return -1;
    build_descriptors();
    start_state(&start);
    return 0;
}

static bool serve_mmio(void)
{
    uint64_t off = leave.mmio.addr.v - GPA_MMIO;
    unsigned len = leave.mmio.len;
    if (leave.mmio.addr.v < GPA_MMIO || off + len > PAGE || len > 8) return false;
    if (leave.mmio.write)
        memcpy(mmio_page + off, leave.mmio.data, len);
    else
        memcpy(leave.mmio.data, mmio_page + off, len);
    return true;
}

/* Runs to the I/O exit of an exception stub. */
static bool run_to_exception(struct diff_result *r)
{
    for (unsigned n = 0; n < EXITS_MAX; n++) {
        engine_soft.run(vcpu, &leave);
        switch (leave.kind) {
        case VCPU_EXIT_IO:
            if (leave.io.write && leave.io.port >= EXIT_PORT && leave.io.port < EXIT_PORT + 32) {
                r->vector = leave.io.port - EXIT_PORT;
                return true;
            }
            snprintf(r->text, sizeof(r->text), "I/O exit on port %#x", leave.io.port);
            return false;
        case VCPU_EXIT_MMIO:
            if (serve_mmio()) break;
            snprintf(r->text, sizeof(r->text), "MMIO exit at %#llx, %u bytes", (unsigned long long)leave.mmio.addr.v,
                     leave.mmio.len);
            return false;
        case VCPU_EXIT_PAUSE: break;
        case VCPU_EXIT_KICKED:
            if (!atomic_load(&case_kicked)) break;
            r->status = RUN_HANG;
            return false;
        case VCPU_EXIT_FAIL: snprintf(r->text, sizeof(r->text), "engine failed: %.100s", leave.fail); return false;
        default:
            snprintf(r->text, sizeof(r->text), "exit of kind %d%s", leave.kind,
                     leave.kind == VCPU_EXIT_SHUTDOWN ? " (triple fault)" : "");
            return false;
        }
    }
    snprintf(r->text, sizeof(r->text), "no end after %u exits", EXITS_MAX);
    return false;
}

static void read_result(struct diff_result *r)
{
    static const uint32_t with_error = 1u << 8 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17;
    uint64_t frame[6], sp = state.gpr[4] - KERNEL_VA;
    memcpy(r->gpr, state.gpr, sizeof(r->gpr));
    bool error = with_error >> r->vector & 1;
    if (sp > PA_STACK_TOP - 40 || sp < PA_STACK_TOP - 0x1000) {
        r->status = RUN_FAIL;
        snprintf(r->text, sizeof(r->text), "kernel RSP %#llx", (unsigned long long)state.gpr[4]);
        return;
    }
    memcpy(frame, ram(sp), sizeof(frame));
    const uint64_t *f = frame + error; /* RIP CS RFLAGS RSP SS */
    r->error = error ? (uint32_t)frame[0] : 0;
    r->rip = f[0];
    r->cs = (uint16_t)f[1];
    r->rflags = f[2];
    r->gpr[4] = f[3];
    r->ss = (uint16_t)f[4];
    r->ds = state.seg[SEG_DS].selector;
    r->es = state.seg[SEG_ES].selector;
    r->fs = state.seg[SEG_FS].selector;
    r->gs = state.seg[SEG_GS].selector;
    r->fs_base = state.seg[SEG_FS].base;
    r->gs_base = state.seg[SEG_GS].base;
    r->cr2 = r->vector == 14 ? state.cr2 : 0;
    memcpy(r->xsave, state.xsave, XSAVE_BYTES);
    xsave_normalise(r->xsave);
}

void soft_run(const struct diff_case *c, struct diff_result *r)
{
    struct nerr e = {{0}};
    unsigned mmio = (unsigned)mem_page_index(DATA_BASE + 7 * PAGE);
    build_page_tables();
    case_fill_memory(c, r->mem);
    memcpy(ram(PA_FRAMES), r->mem, MEM_SIZE);
    memcpy(mmio_page, r->mem + mmio * PAGE, PAGE);
    engine_soft.memory_written(engine, GPA(PA_FRAMES), MEM_SIZE);
    state = start;
    load_segments(&state, c);
    memcpy(state.gpr, c->gpr, sizeof(state.gpr));
    state.rip = c->rip - code_base(c->mode);
    state.rflags = c->rflags;
    memset(state.xsave, 0, sizeof(state.xsave));
    memcpy(state.xsave, c->xsave, XSAVE_BYTES);
    r->status = RUN_FAIL;
    if (engine_soft.set_state(vcpu, &state, &e)) {
        snprintf(r->text, sizeof(r->text), "set_state: %.100s", e.text);
        return;
    }
    atomic_store(&case_kicked, false);
    atomic_store(&case_began, cpu_time());
    bool ended = run_to_exception(r);
    atomic_store(&case_began, 0);
    if (!ended) return;
    engine_soft.get_state(vcpu, &state);
    r->status = RUN_DONE;
    read_result(r);
    memcpy(r->mem, ram(PA_FRAMES), MEM_SIZE);
    memcpy(r->mem + mmio * PAGE, mmio_page, PAGE);
}
