/* String instructions against a model that does one byte after the other on its own copy of memory. */
#include "tests/unit/soft_rig.h"
#include "vmm/engine/soft/portio.h"
#include "vmm/engine/soft/xlat.h"

/* ---- running ---- */

static struct xinsn insn;

static void decode(const uint8_t *bytes, unsigned n, unsigned code_size)
{
    uint8_t padded[16] = {0};
    memcpy(padded, bytes, n);
    rig.cpu->rip = 0x1000;
    assert_int_equal(soft_decode(padded, 15, code_size, 0x1000, &insn), 0);
    assert_int_equal(insn.in.len, n);
}

static unsigned steps;

/* As the run loop does it: again and again while it wants to be started again. */
static enum soft_result run(void)
{
    enum soft_result r;
    steps = 0;
    do {
        soft_io_begin(rig.cpu);
        r = soft_general_insn(rig.cpu, &insn.in);
        steps++;
        if (r == SOFT_RESTART) assert_int_equal(rig.cpu->rip, 0x1000);
    } while (r == SOFT_RESTART && steps < 100000);
    return r;
}

/* ---- the model ---- */

#define PAGES 32         /* GVA 0 to 128 KiB */
#define PHYS 0x200000ull /* backed by 16 pages from here, so some are mapped twice */

struct model_page {
    int phys; /* -1: not mapped */
    bool write;
};
static struct model_page page[PAGES];
static uint8_t model_ram[16 * 4096];

struct model_op {
    unsigned opcode, size, asize, rep, code_size;
    bool back;
    uint64_t src_base, src_limit, dst_limit;
    uint64_t rax, rcx, rsi, rdi, flags;
    bool fault;
    uint8_t vector;
    uint64_t cr2;
    uint32_t error;
    unsigned items;
};

static uint64_t trunc_to(uint64_t v, unsigned size)
{
    return size == 8 ? v : v & ((1ull << (size * 8)) - 1);
}

static bool model_check(struct model_op *m, uint64_t off, bool is_src, bool write)
{
    uint64_t limit = is_src ? m->src_limit : m->dst_limit, a = off + (is_src ? m->src_base : 0);
    m->fault = true;
    m->error = 0;
    m->vector = EXC_GP;
    if (m->code_size != 8 && off + m->size - 1 > limit) return false;
    if (m->code_size != 8) a = (uint32_t)a;
    for (unsigned i = 0; i < m->size; i++) {
        uint64_t p = (a + i) >> 12;
        bool there = p < PAGES && page[p].phys >= 0;
        if (!there || (write && !page[p].write)) {
            m->vector = EXC_PF;
            m->cr2 = a + i;
            m->error = (there ? PF_P : 0) | (write ? PF_W : 0);
            return false;
        }
    }
    m->fault = false;
    return true;
}

static uint8_t *model_byte(uint64_t a)
{
    return &model_ram[page[a >> 12].phys * 4096 + (a & 4095)];
}

static uint64_t model_get(const struct model_op *m, uint64_t off, bool is_src)
{
    uint64_t v = 0, a = off + (is_src ? m->src_base : 0);
    for (unsigned i = 0; i < m->size; i++) v |= (uint64_t)*model_byte(a + i) << (8 * i);
    return v;
}

static void model_put(const struct model_op *m, uint64_t off, uint64_t v)
{
    for (unsigned i = 0; i < m->size; i++) *model_byte(off + i) = (uint8_t)(v >> (8 * i));
}

static void model_compare(struct model_op *m, uint64_t a, uint64_t b)
{
    unsigned top = m->size * 8 - 1;
    a = trunc_to(a, m->size);
    b = trunc_to(b, m->size);
    uint64_t d = trunc_to(a - b, m->size);
    unsigned ones = 0;
    for (unsigned i = 0; i < 8; i++) ones += d >> i & 1;
    m->flags = (a < b ? FL_CF : 0) | (ones % 2 ? 0 : FL_PF) | ((a & 15) < (b & 15) ? FL_AF : 0) | (d ? 0 : FL_ZF) |
               (d >> top & 1 ? FL_SF : 0) | (((a ^ b) & (a ^ d)) >> top & 1 ? FL_OF : 0);
}

static bool model_item(struct model_op *m)
{
    uint64_t src = trunc_to(m->rsi, m->asize), dst = trunc_to(m->rdi, m->asize);
    switch (m->opcode) {
    case 0xa4:
        if (!model_check(m, src, true, false) || !model_check(m, dst, false, true)) return false;
        model_put(m, dst, model_get(m, src, true));
        break;
    case 0xa6:
        if (!model_check(m, src, true, false) || !model_check(m, dst, false, false)) return false;
        model_compare(m, model_get(m, src, true), model_get(m, dst, false));
        break;
    case 0xaa:
        if (!model_check(m, dst, false, true)) return false;
        model_put(m, dst, m->rax);
        break;
    case 0xac:
        if (!model_check(m, src, true, false)) return false;
        m->rax =
            m->size >= 4 ? model_get(m, src, true) : (m->rax & ~trunc_to(~0ull, m->size)) | model_get(m, src, true);
        break;
    default:
        if (!model_check(m, dst, false, false)) return false;
        model_compare(m, m->rax, model_get(m, dst, false));
        break;
    }
    return true;
}

static uint64_t move_reg(const struct model_op *m, uint64_t v, int64_t by)
{
    uint64_t n = trunc_to(v + (uint64_t)by, m->asize);
    return m->asize == 2 ? (v & ~0xffffull) | n : n;
}

static void model_run(struct model_op *m)
{
    bool src = m->opcode == 0xa4 || m->opcode == 0xa6 || m->opcode == 0xac, dst = m->opcode != 0xac;
    int64_t by = m->back ? -(int64_t)m->size : (int64_t)m->size;
    for (;;) {
        if (m->rep && !trunc_to(m->rcx, m->asize)) return;
        if (!model_item(m)) return;
        m->items++;
        if (src) m->rsi = move_reg(m, m->rsi, by);
        if (dst) m->rdi = move_reg(m, m->rdi, by);
        if (!m->rep) return;
        m->rcx = move_reg(m, m->rcx, -1);
        bool zf = m->flags & FL_ZF;
        if ((m->opcode == 0xa6 || m->opcode == 0xae) && (m->rep == 1 ? !zf : zf)) return;
    }
}

/* ---- the comparison ---- */

static void random_memory(void)
{
    for (unsigned i = 0; i < PAGES; i++) {
        page[i].phys = rig_random() % 8 ? (int)(rig_random() % 16) : -1;
        page[i].write = rig_random() % 8;
        rig_map(i * PAGE_SIZE, PHYS + (uint64_t)(page[i].phys < 0 ? 0 : page[i].phys) * PAGE_SIZE,
                page[i].phys < 0 ? 0 : RP_P | (page[i].write ? RP_W : 0));
    }
    soft_tlb_flush_all(rig.cpu);
    unsigned alphabet = rig_random() % 2 ? 256 : 2; /* long runs of equal bytes, so that comparisons go far */
    for (unsigned i = 0; i < sizeof(model_ram); i++)
        model_ram[i] = (uint8_t)(alphabet == 2 ? rig_random() % 512 == 0 : rig_random());
    memcpy(rig_ram(PHYS), model_ram, sizeof(model_ram));
}

static uint64_t random_offset(unsigned asize)
{
    uint64_t v = rig_random() % (asize == 2 ? 16 : PAGES) * PAGE_SIZE +
                 (rig_random() % 2 ? rig_random() % 4096 : ((rig_random() % 40 - 20) & 4095));
    return v;
}

static unsigned encode(uint8_t *b, struct model_op *m)
{
    unsigned n = 0;
    if (m->asize != (m->code_size == 8 ? 8 : m->code_size)) b[n++] = 0x67;
    if (m->size == (m->code_size == 2 ? 4 : 2)) b[n++] = 0x66;
    if (rig_random() % 3 == 0) {
        b[n++] = 0x64;
        m->src_base = rig.cpu->seg[SEG_FS].base;
        m->src_limit = rig.cpu->seg[SEG_FS].limit;
    }
    if (m->rep) b[n++] = m->rep == 1 ? 0xf3 : 0xf2;
    if (m->size == 8) b[n++] = 0x48;
    b[n++] = (uint8_t)(m->opcode | (m->size > 1));
    return n;
}

static void set_mode(unsigned code_size)
{
    uint32_t *cs = &rig.cpu->seg[SEG_CS].attr;
    *cs &= ~(SEG_ATTR_L | SEG_ATTR_DB);
    *cs |= code_size == 8 ? SEG_ATTR_L : code_size == 4 ? SEG_ATTR_DB : 0;
}

static unsigned long total_items, total_faults, total_ops;

static void one_case(void)
{
    static const uint8_t ops[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae}, sizes[] = {1, 2, 4, 8};
    struct soft_cpu *c = rig.cpu;
    struct model_op m = {.opcode = ops[rig_random() % 5], .rep = rig_random() % 3, .back = rig_random() % 3 == 0};
    m.code_size = sizes[1 + rig_random() % 3];
    m.size = sizes[rig_random() % (m.code_size == 8 ? 4 : 3)];
    m.asize = m.code_size == 8 ? sizes[2 + rig_random() % 2] : sizes[1 + rig_random() % 2];
    set_mode(m.code_size);
    c->seg[SEG_FS].base = rig_random() % 2 ? 0 : rig_random() % 0x3000;
    c->seg[SEG_DS].limit = rig_random() % 4 ? 0xffffffff : (uint32_t)(rig_random() % 0x20000);
    c->seg[SEG_ES].limit = rig_random() % 4 ? 0xffffffff : (uint32_t)(rig_random() % 0x20000);
    m.src_limit = c->seg[SEG_DS].limit;
    m.dst_limit = c->seg[SEG_ES].limit;
    uint8_t bytes[16];
    unsigned n = encode(bytes, &m);
    decode(bytes, n, m.code_size);
    uint64_t dirt = m.asize == 8 ? 0 : rig_random() << (m.asize * 8); /* upper bits are no part of the address */
    if (m.code_size != 8) dirt = (uint32_t)dirt;
    m.rsi = random_offset(m.asize) | dirt;
    m.rdi = (rig_random() % 4 ? random_offset(m.asize) : trunc_to(m.rsi + rig_random() % 32 - 16, m.asize)) | dirt;
    m.rcx = (rig_random() % 3 ? rig_random() % 24 : rig_random() % 3000) | dirt;
    m.rax = rig_random() % 2 ? rig_random() : 0;
    m.flags = rig_random() & FL_ARITH;
    bool tf = rig_random() % 8 == 0;
    c->gpr[R_RSI] = m.rsi, c->gpr[R_RDI] = m.rdi, c->gpr[R_RCX] = m.rcx, c->gpr[R_RAX] = m.rax;
    c->rflags = FL_1 | m.flags | (m.back ? FL_DF : 0) | (tf ? FL_TF : 0);
    atomic_store(&c->exit_request, rig_random() % 4 == 0);
    model_run(&m);
    enum soft_result r = run();
    total_ops++;
    total_items += m.items;
    total_faults += m.fault;
    assert_int_equal(r, m.fault ? SOFT_FAULT : SOFT_OK);
    assert_int_equal(c->gpr[R_RSI], m.rsi);
    assert_int_equal(c->gpr[R_RDI], m.rdi);
    assert_int_equal(c->gpr[R_RCX], m.rcx);
    assert_int_equal(c->gpr[R_RAX], m.rax);
    assert_int_equal(c->rflags & FL_ARITH, m.flags);
    assert_int_equal(c->rip, m.fault ? 0x1000 : 0x1000 + n);
    if (m.fault) {
        if (m.vector == EXC_PF) assert_int_equal(c->exc.cr2, m.cr2);
        assert_fault(m.vector, m.error);
    } else {
        assert_false(c->exc.pending);
        if (tf && m.items) assert_int_equal(steps, m.items);
    }
    assert_memory_equal(rig_ram(PHYS), model_ram, sizeof(model_ram));
}

static void test_random(void **state)
{
    (void)state;
    soft_decode_init();
    for (unsigned i = 0; i < 60000; i++) {
        if (i % 50 == 0) random_memory();
        one_case();
    }
    assert_true(total_items > 500000 && total_faults > 3000 && total_ops - total_faults > 30000);
}

/* ---- special cases ---- */

static void plain_memory(void)
{
    soft_decode_init();
    set_mode(8);
    for (uint64_t i = 0; i < 16; i++) rig_map(0x10000 + i * PAGE_SIZE, PHYS + i * PAGE_SIZE, RP_P | RP_W | RP_U);
}

/* A big copy leaves in between only when asked to, and goes on where it was. */
static void test_interrupted(void **state)
{
    (void)state;
    plain_memory();
    for (unsigned i = 0; i < 0x6000; i++) ((uint8_t *)rig_ram(PHYS))[i] = (uint8_t)rig_random();
    decode((const uint8_t[]){0xf3, 0xa4}, 2, 8);
    rig.cpu->gpr[R_RSI] = 0x10010;
    rig.cpu->gpr[R_RDI] = 0x18020;
    rig.cpu->gpr[R_RCX] = 0x5000;
    atomic_store(&rig.cpu->exit_request, 1);
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_RESTART);
    uint64_t done = 0x5000 - rig.cpu->gpr[R_RCX];
    assert_true(done > 0 && done <= PAGE_SIZE);
    assert_int_equal(rig.cpu->gpr[R_RSI], 0x10010 + done);
    assert_int_equal(rig.cpu->gpr[R_RDI], 0x18020 + done);
    atomic_store(&rig.cpu->exit_request, 0);
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_OK);
    assert_int_equal(rig.cpu->gpr[R_RCX], 0);
    assert_memory_equal(rig_ram(PHYS + 0x8020), rig_ram(PHYS + 0x10), 0x5000);
}

/* Stores into a page with code are reported, whole range and all. */
static void test_code(void **state)
{
    (void)state;
    plain_memory();
    rig.code_page[0] = PHYS + 0x1000;
    decode((const uint8_t[]){0xf3, 0x48, 0xab}, 3, 8);
    rig.cpu->gpr[R_RDI] = 0x10ff8;
    rig.cpu->gpr[R_RCX] = 10;
    rig.cpu->gpr[R_RAX] = ~0ull;
    assert_int_equal(run(), SOFT_OK);
    assert_int_equal(rig.code_writes, 1);
    assert_int_equal(rig.code_write_gpa, PHYS + 0x1000);
    assert_int_equal(rig.code_write_len, 72);
    rig.cpu->rflags |= FL_DF;
    rig.cpu->rip = 0x1000;
    rig.cpu->gpr[R_RDI] = 0x11010;
    rig.cpu->gpr[R_RCX] = 3;
    assert_int_equal(run(), SOFT_OK);
    assert_int_equal(rig.code_write_gpa, PHYS + 0x1000);
    assert_int_equal(rig.code_write_len, 24);
}

/* MMIO source and destination: one item at a time, each access once and in order. */
static void test_mmio(void **state)
{
    (void)state;
    plain_memory();
    rig_map(0x20000, RIG_MMIO, RP_P | RP_W);
    decode((const uint8_t[]){0xf3, 0xa5}, 2, 8); /* rep movsd from MMIO to MMIO */
    rig.cpu->gpr[R_RSI] = 0x20100;
    rig.cpu->gpr[R_RDI] = 0x20200;
    rig.cpu->gpr[R_RCX] = 3;
    unsigned reads = 0, writes = 0;
    for (unsigned guard = 0; guard < 100; guard++) {
        soft_io_begin(rig.cpu);
        enum soft_result r = soft_general_insn(rig.cpu, &insn.in);
        if (r == SOFT_EXIT) {
            assert_int_equal(rig.exit.mmio.addr.v, RIG_MMIO + 0x100 + 4 * reads);
            assert_int_equal(rig.cpu->gpr[R_RCX], 3 - reads);
            assert_int_equal(rig.cpu->io.writes, 0);
            uint32_t n = rig.cpu->io.count++;
            rig.cpu->io.replay[n].addr = rig.exit.mmio.addr.v;
            rig.cpu->io.replay[n].len = rig.exit.mmio.len;
            memset(rig.cpu->io.replay[n].data, (int)(0x40 + reads++), 8);
            continue;
        }
        assert_int_equal(rig.cpu->io.writes, 1);
        assert_int_equal(rig.cpu->io.write[0].addr, RIG_MMIO + 0x200 + 4 * writes);
        assert_int_equal(rig.cpu->io.write[0].data[3], 0x40 + writes);
        writes++;
        if (r == SOFT_OK) break;
        assert_int_equal(r, SOFT_RESTART);
    }
    assert_int_equal(reads, 3);
    assert_int_equal(writes, 3);
    assert_int_equal(rig.cpu->gpr[R_RCX], 0);
}

/* The ports are portio.c's; the VMM behind them is played here: it answers 0x11111111 and counts up. */
static void test_ins(void **state)
{
    (void)state;
    plain_memory();
    uint32_t next = 0x11111111;
    *rig_leaf(0x11000, 12) = 0;
    decode((const uint8_t[]){0xf3, 0x6d}, 2, 8); /* rep insd, second page missing */
    rig.cpu->gpr[R_RDX] = 0x1f0;
    rig.cpu->gpr[R_RDI] = 0x10ff8;
    rig.cpu->gpr[R_RCX] = 4;
    enum soft_result r;
    unsigned exits = 0;
    do {
        soft_io_begin(rig.cpu);
        r = soft_general_insn(rig.cpu, &insn.in);
        if (r == SOFT_EXIT) {
            exits++;
            assert_int_equal(rig.exit.kind, VCPU_EXIT_IO);
            assert_int_equal(rig.exit.io.port, 0x1f0);
            assert_int_equal(rig.exit.io.size, 4);
            assert_false(rig.exit.io.write);
            memcpy(rig.exit.io.data, &next, 4);
            next++;
            soft_port_complete(rig.cpu, &rig.exit);
        }
    } while ((r == SOFT_EXIT || r == SOFT_RESTART) && exits < 50);
    assert_int_equal(r, SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.cr2, 0x11000);
    assert_int_equal(exits, 2); /* nothing was read that couldn't be stored */
    assert_int_equal(rig.cpu->gpr[R_RCX], 2);
    assert_int_equal(rig.cpu->gpr[R_RDI], 0x11000);
    assert_int_equal(*(uint32_t *)rig_ram(PHYS + 0xff8), 0x11111111);
    assert_int_equal(*(uint32_t *)rig_ram(PHYS + 0xffc), 0x11111112);
}

/* No right to the port is #GP and moves nothing; real CPUs look at the right before RCX, so that 0 iterations fault, too. */
static void test_port_refused(void **state)
{
    (void)state;
    plain_memory();
    static const uint8_t opcodes[] = {0x6c, 0x6d, 0x6e, 0x6f};
    for (unsigned i = 0; i < 8; i++) {
        decode((const uint8_t[]){0xf3, opcodes[i % 4]}, 2, 8);
        rig.cpu->cpl = 3; /* IOPL 0, and no TSS that would permit it */
        rig.cpu->tr.attr = SEG_ATTR_NULL;
        rig.cpu->gpr[R_RDX] = 0x1f0;
        rig.cpu->gpr[R_RSI] = rig.cpu->gpr[R_RDI] = 0x10000;
        rig.cpu->gpr[R_RCX] = i / 4 * 2;
        rig.exit.kind = VCPU_EXIT_HLT;
        soft_io_begin(rig.cpu);
        assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_FAULT);
        assert_fault(EXC_GP, 0);
        rig.cpu->exc.pending = false;
        assert_int_equal(rig.exit.kind, VCPU_EXIT_HLT);
        assert_int_equal(rig.cpu->gpr[R_RCX], i / 4 * 2);
        assert_int_equal(rig.cpu->gpr[R_RSI], 0x10000);
        assert_int_equal(rig.cpu->gpr[R_RDI], 0x10000);
        assert_int_equal(rig.cpu->rip, 0x1000);
        rig.cpu->cpl = 0; /* with the right, 0 iterations do nothing */
        rig.cpu->gpr[R_RCX] = 0;
        assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_OK);
        assert_int_equal(rig.exit.kind, VCPU_EXIT_HLT);
        assert_int_equal(rig.cpu->gpr[R_RDI], 0x10000);
        assert_int_equal(rig.cpu->rip, 0x1002);
    }
}

static void test_outs(void **state)
{
    (void)state;
    plain_memory();
    uint16_t *data = rig_ram(PHYS + 0x100);
    for (unsigned i = 0; i < 3; i++) data[i] = (uint16_t)(0x1000 + i);
    decode((const uint8_t[]){0xf3, 0x66, 0x6f}, 3, 8);
    rig.cpu->gpr[R_RDX] = 0x3f8;
    rig.cpu->gpr[R_RSI] = 0x10100;
    rig.cpu->gpr[R_RCX] = 3;
    for (unsigned i = 0; i < 3; i++) { /* each leaves complete; RIP moves with the last */
        assert_int_equal(rig.cpu->rip, 0x1000);
        assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_EXIT);
        assert_int_equal(rig.cpu->gpr[R_RCX], 2 - i);
        assert_int_equal(rig.cpu->gpr[R_RSI], 0x10102 + 2 * i);
        assert_int_equal(rig.exit.kind, VCPU_EXIT_IO);
        assert_int_equal(rig.exit.io.port, 0x3f8);
        assert_int_equal(rig.exit.io.size, 2);
        assert_true(rig.exit.io.write);
        uint16_t written;
        memcpy(&written, rig.exit.io.data, 2);
        assert_int_equal(written, 0x1000 + i);
    }
    assert_int_equal(rig.cpu->rip, 0x1003);
}

/* A watched destination: the hit ends the run of iterations, so that the trap comes after the right one. */
static void test_breakpoint(void **state)
{
    (void)state;
    plain_memory();
    rig.cpu->dr[0] = 0x10008;
    rig.cpu->dr[7] = 1 | 1ull << 16; /* one byte, writes */
    decode((const uint8_t[]){0xf3, 0xaa}, 2, 8);
    rig.cpu->gpr[R_RDI] = 0x10004;
    rig.cpu->gpr[R_RCX] = 10;
    soft_io_begin(rig.cpu);
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_RESTART);
    assert_int_equal(rig.cpu->pending_db, 1);
    assert_int_equal(rig.cpu->gpr[R_RDI], 0x10009);
    assert_int_equal(rig.cpu->gpr[R_RCX], 5);
}

static void test_alignment(void **state)
{
    (void)state;
    plain_memory();
    rig.cpu->cpl = 3;
    rig.cpu->mmu_idx = MMU_USER;
    rig.cpu->rflags |= FL_AC;
    decode((const uint8_t[]){0xf3, 0xa5}, 2, 8);
    rig.cpu->gpr[R_RSI] = 0x10000;
    rig.cpu->gpr[R_RDI] = 0x11002;
    rig.cpu->gpr[R_RCX] = 2;
    assert_int_equal(run(), SOFT_FAULT);
    assert_fault(EXC_AC, 0);
    assert_int_equal(rig.cpu->gpr[R_RCX], 2);
    rig.cpu->gpr[R_RDI] = 0x11004;
    assert_int_equal(run(), SOFT_OK);
}

/* The SSE instructions of the same names are somebody else's. */
static void test_not_mine(void **state)
{
    (void)state;
    soft_decode_init();
    decode((const uint8_t[]){0xf2, 0x0f, 0x10, 0xc1}, 4, 8); /* movsd xmm0, xmm1 */
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_NOT_MINE);
    decode((const uint8_t[]){0xf2, 0x0f, 0xc2, 0xc1, 0}, 5, 8); /* cmpsd */
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_NOT_MINE);
    decode((const uint8_t[]){0x0f, 0xa2}, 2, 8); /* cpuid */
    assert_int_equal(soft_general_insn(rig.cpu, &insn.in), SOFT_NOT_MINE);
}

#define T(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_random), T(test_interrupted),  T(test_code),       T(test_mmio),      T(test_ins),
        T(test_outs),   T(test_port_refused), T(test_breakpoint), T(test_alignment), T(test_not_mine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
