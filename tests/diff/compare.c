/* See compare.h. */
#include "tests/diff/compare.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#define FLAGS_ARITH 0x8d5u
#define VEC_DB 1
#define VEC_BP 3
#define VEC_SS 12
#define VEC_GP 13
#define VEC_PF 14
#define VEC_AC 17

static const char *const reg_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void differ(struct verdict *v, const char *field, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void differ(struct verdict *v, const char *field, const char *fmt, ...)
{
    size_t used = strlen(v->detail);
    va_list ap;
    if (v->equal) snprintf(v->field, sizeof(v->field), "%s", field);
    v->equal = false;
    used += (size_t)snprintf(v->detail + used, sizeof(v->detail) - used, "  %-10s ", field);
    if (used >= sizeof(v->detail) - 200) return;
    va_start(ap, fmt);
    vsnprintf(v->detail + used, sizeof(v->detail) - used, fmt, ap);
    va_end(ap);
    used = strlen(v->detail);
    snprintf(v->detail + used, sizeof(v->detail) - used, "\n");
}

static void compare_u64(struct verdict *v, const char *field, uint64_t native, uint64_t engine)
{
    if (native != engine) differ(v, field, "native %016" PRIx64 " engine %016" PRIx64, native, engine);
}

uint16_t case_mnemonic(const struct diff_case *c, const struct forms *f, unsigned n)
{
    ZydisDecodedInstruction d;
    if (n >= c->insns || !ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&f->decoder, NULL, c->code + c->insn_off[n],
                                                                     c->code_len - c->insn_off[n], &d)))
        return 0;
    return (uint16_t)d.mnemonic;
}

/* Instructions that store the place of the last x87 instruction: not compared, its bytes differ between CPUs and, in
 * translated code, by nature; nor does XSTATE_BV. Returns how many bytes of memory may differ. */
static unsigned fpu_pointer_bytes(const struct diff_case *c, const struct forms *f)
{
    unsigned bytes = 0;
    for (unsigned i = 0; i < c->insns; i++) switch (case_mnemonic(c, f, i)) {
        case ZYDIS_MNEMONIC_FNSTENV:
        case ZYDIS_MNEMONIC_FNSAVE:
        case ZYDIS_MNEMONIC_FXSAVE:
        case ZYDIS_MNEMONIC_FXSAVE64: bytes += 20; break;
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
            bytes += 21; /* and XSTATE_BV: x87 and SSE may always count as in use (SDM vol. 1, 13.6) */
            break;
        default: break;
        }
    return bytes;
}

static bool goes_halfway(unsigned mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_ENTER || mnemonic == ZYDIS_MNEMONIC_POPA || mnemonic == ZYDIS_MNEMONIC_POPAD ||
           mnemonic == ZYDIS_MNEMONIC_PUSHA || mnemonic == ZYDIS_MNEMONIC_PUSHAD;
}

/* ENTER, PUSHA and POPA may have done a part of their work when a later access of theirs faults: nothing says which. */
static bool half_done(const struct diff_case *c, const struct forms *f, const struct diff_result *native)
{
    if (native->vector == VEC_BP) return false;
    for (unsigned i = 0; i < c->insns; i++)
        if (goes_halfway(case_mnemonic(c, f, i))) return true;
    /* A jump into the middle of an instruction, or modified code, may have led to one. */
    ZydisDecodedInstruction d;
    uint64_t at = native->rip + code_base(c->mode);
    int page = mem_page_index(at);
    if (page < MEM_PAGES - CODE_PAGES) return false;
    uint64_t off = (uint64_t)page * PAGE + at % PAGE;
    return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&f->decoder, NULL, native->mem + off, MEM_SIZE - off, &d)) &&
           goes_halfway(d.mnemonic);
}

static uint64_t page_address(unsigned index)
{
    for (uint64_t va = DATA_BASE; va < DATA_BASE + DATA_PAGES * PAGE; va += PAGE)
        if (mem_page_index(va) == (int)index) return va;
    return CODE_BASE + (index - (MEM_PAGES - CODE_PAGES)) * PAGE;
}

static void compare_memory(struct verdict *v, const struct diff_case *c, const struct forms *f,
                           const struct diff_result *native, const struct diff_result *engine)
{
    if (!memcmp(native->mem, engine->mem, MEM_SIZE)) return;
    if (half_done(c, f, native)) return;
    unsigned from = 0, to = 0; /* a page that is not compared */
    for (unsigned i = 0; i < c->insns; i++)
        if (case_mnemonic(c, f, i) ==
            ZYDIS_MNEMONIC_ENTER) { /* may read what it pushed itself: on a device, nobody does that */
            from = (unsigned)mem_page_index(DATA_BASE + 7 * PAGE) * PAGE - 64; /* and on the RAM before it */
            to = from + PAGE + 64;
        }
    unsigned allowed = fpu_pointer_bytes(c, f), count = 0;
    for (unsigned i = 0; i < MEM_SIZE; i++) count += (i < from || i >= to) && native->mem[i] != engine->mem[i];
    if (count <= allowed) return;
    unsigned shown = 0;
    for (unsigned i = 0; i < MEM_SIZE && shown < 8; i += 8)
        if (memcmp(native->mem + i, engine->mem + i, 8)) {
            uint64_t a, b;
            char at[32];
            memcpy(&a, native->mem + i, 8);
            memcpy(&b, engine->mem + i, 8);
            snprintf(at, sizeof(at), "[%" PRIx64 "]", page_address(i / PAGE) + i % PAGE);
            if (shown++ == 0 && v->equal) snprintf(v->field, sizeof(v->field), "memory");
            bool first = v->equal;
            differ(v, at, "native %016" PRIx64 " engine %016" PRIx64, a, b);
            if (first) snprintf(v->field, sizeof(v->field), "memory");
        }
}

/* Flags the engine need not have right: those that the manual leaves undefined (CPUs keep the old value, which the
 * engine may have lost as dead), and at a fault those that the interrupted code would have written. */
static uint32_t flags_not_compared(const struct diff_case *c, const struct forms *f, const struct diff_result *native)
{
    struct insn_code ic;
    bool ended = native->vector == VEC_BP;
    if (c->insns > 1) return ended ? 0 : FLAGS_ARITH;
    /* A fault elsewhere: in what the instruction jumped to, or in what follows bytes that only Zydis does not know. */
    if (!ended && native->rip != c->rip - code_base(c->mode)) return FLAGS_ARITH;
    if (!forms_decode(f, c->code, c->code_len, &ic)) return 0;
    if (!ic.d.cpu_flags) return 0;
    const ZydisAccessedFlags *a = ic.d.cpu_flags;
    return (a->undefined | (ended ? 0 : a->modified | a->set_0 | a->set_1)) & FLAGS_ARITH;
}

/* CR2 of an access that is really several (an FPU image, the lanes of a mask): CPUs differ in which of them faults
 * first, so only the page counts there. */
static uint64_t cr2_mask(const struct diff_case *c, const struct forms *f)
{
    struct insn_code ic;
    uint64_t mask = ~0ull;
    for (unsigned i = 0; i < c->insns; i++) {
        if (!forms_decode(f, c->code + c->insn_off[i], c->code_len - c->insn_off[i], &ic)) continue;
        switch (ic.d.mnemonic) {
        case ZYDIS_MNEMONIC_FXSAVE:
        case ZYDIS_MNEMONIC_FXSAVE64:
        case ZYDIS_MNEMONIC_FXRSTOR:
        case ZYDIS_MNEMONIC_FXRSTOR64:
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
        case ZYDIS_MNEMONIC_IRET:
        case ZYDIS_MNEMONIC_IRETD:
        case ZYDIS_MNEMONIC_IRETQ:
        case ZYDIS_MNEMONIC_CMPSB:
        case ZYDIS_MNEMONIC_CMPSW:
        case ZYDIS_MNEMONIC_CMPSD:
        case ZYDIS_MNEMONIC_CMPSQ: return 0; /* the last byte's page, or the second operand, may be checked first */
        case ZYDIS_MNEMONIC_RET:
        case ZYDIS_MNEMONIC_CALL: /* far: offset and selector in either order */
            if (ic.d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) mask &= ~(uint64_t)(PAGE - 1);
            break;
        case ZYDIS_MNEMONIC_FNSAVE:
        case ZYDIS_MNEMONIC_FRSTOR:
        case ZYDIS_MNEMONIC_FNSTENV:
        case ZYDIS_MNEMONIC_FLDENV:
        case ZYDIS_MNEMONIC_ENTER:
        case ZYDIS_MNEMONIC_POPA:
        case ZYDIS_MNEMONIC_POPAD:
        case ZYDIS_MNEMONIC_PUSHA:
        case ZYDIS_MNEMONIC_PUSHAD: mask &= ~(uint64_t)(PAGE - 1); break;
        default:
            if (ic.d.avx.mask.mode > ZYDIS_MASK_MODE_DISABLED || strstr(ZydisMnemonicGetString(ic.d.mnemonic), "mask"))
                mask &= ~(uint64_t)(PAGE - 1);
        }
    }
    return mask;
}

/* A null selector with an RPL may come back as 0 from the host's kernel, which reloads them at will. */
static uint16_t null_selector(uint16_t s)
{
    return s < 4 ? 0 : s;
}

/* On a 16-bit stack the upper part of RSP is whatever the kernel left there (IRET loads SP only). */
static uint64_t gpr_mask(const struct diff_case *c, unsigned n)
{
    return n == 4 && c->mode == MODE_16 && !c->stack32 ? 0xffff : ~0ull;
}

static void compare_vectors(struct verdict *v, const struct diff_result *native, const struct diff_result *engine)
{
    const uint8_t *a = native->xsave, *b = engine->xsave;
    if (!memcmp(a, b, XSAVE_BYTES)) return;
    uint16_t x[2], y[2];
    uint32_t m, n;
    memcpy(x, a, 4);
    memcpy(y, b, 4);
    compare_u64(v, "fcw", x[0], y[0]);
    compare_u64(v, "fsw", x[1], y[1]);
    compare_u64(v, "ftw", a[4], b[4]);
    memcpy(&m, a + 24, 4);
    memcpy(&n, b + 24, 4);
    compare_u64(v, "mxcsr", m, n);
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(a + 32 + 16 * i, b + 32 + 16 * i, 10)) {
            uint64_t p[2] = {0}, q[2] = {0};
            memcpy(p, a + 32 + 16 * i, 10);
            memcpy(q, b + 32 + 16 * i, 10);
            differ(v, "st", "(%u) native %04" PRIx64 "%016" PRIx64 " engine %04" PRIx64 "%016" PRIx64, i, p[1], p[0],
                   q[1], q[0]);
        }
    for (unsigned i = 0; i < 8; i++) compare_u64(v, "k", xsave_get_k(a, i), xsave_get_k(b, i));
    for (unsigned i = 0; i < 32; i++) {
        uint64_t p[8], q[8];
        xsave_get_vec(a, i, (uint8_t *)p);
        xsave_get_vec(b, i, (uint8_t *)q);
        for (unsigned k = 0; k < 8; k++)
            if (p[k] != q[k])
                differ(v, "vector", "zmm%u[%u] native %016" PRIx64 " engine %016" PRIx64, i, k, p[k], q[k]);
    }
}

static void compare_status(struct verdict *v, const struct diff_result *native, const struct diff_result *engine)
{
    static const char *const name[] = {"not run", "done", "skip", "hangs", "crashes", "fails"};
    if (native->status != RUN_DONE || engine->status == RUN_SKIP) {
        /* A case that hangs natively has no result to compare. */
        v->skipped = true;
        return;
    }
    differ(v, name[engine->status % 6], "native ends with vector %u, engine: %s %s", native->vector,
           name[engine->status % 6], engine->text);
}

/* Which of two faults an access meets first is not the same on all CPUs: alignment or a non-canonical stack address (#GP
 * or #SS), the parts of an image that XRSTOR need not read, the order in which IRET and POP to a segment check. */
static bool vendors_differ(const struct diff_case *c, const struct forms *f, const struct diff_result *native,
                           const struct diff_result *engine)
{
    uint64_t off = native->rip + code_base(c->mode) - c->rip;
    bool same_rip = native->rip == engine->rip;
    int page = mem_page_index(native->rip + code_base(c->mode));
    if (native->vector == VEC_DB && page >= 0 && native->mem[(unsigned)page * PAGE + native->rip % PAGE] == 0xf1)
        return true; /* INT1 among data that was jumped to: see forms.c */
    /* Linux emulates SLDT and the like for user mode (UMIP), and calls a bad address of theirs a page fault. */
    if (native->vector == VEC_PF && (int64_t)(native->cr2 << 16) >> 16 != (int64_t)native->cr2) return true;
    if (native->vector == VEC_GP && engine->vector == VEC_SS && same_rip && !native->error) return true;
    struct insn_code ic;
    /* An operand that wraps at 4 GiB: a limit violation, or two accesses. */
    if (c->mode != MODE_64 && native->vector == VEC_PF && same_rip && native->cr2 >= 0xffffff00u &&
        (engine->vector == VEC_SS || engine->vector == VEC_GP))
        return true;
    /* The limit of Linux's per-CPU segment is the CPU's number. */
    if (c->insns == 1 && case_mnemonic(c, f, 0) == ZYDIS_MNEMONIC_LSL && native->vector == VEC_BP &&
        engine->vector == VEC_BP)
        return native->rflags & engine->rflags & 0x40;
    /* It ended among the data beside the code: they may well read flags that are undefined. */
    if (off >= c->code_len && page >= MEM_PAGES - CODE_PAGES) {
        unsigned at = (unsigned)((native->rip + code_base(c->mode) - CODE_BASE) & 0xfff);
        return page == MEM_PAGES - CODE_PAGES ? at >= 0xa00 && at < 0xe00 : at >= 0x400 && at < 0xc00;
    }
    if (off >= c->code_len) return false;
    if (!forms_decode(f, c->code + off, (unsigned)(c->code_len - off), &ic)) /* #UD, or its operand's fault */
        return c->insns == 1 && native->vector == VEC_PF;
    switch (ic.d.mnemonic) {
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return native->vector >= VEC_SS && native->vector <= VEC_PF && engine->vector != native->vector;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSD:
    case ZYDIS_MNEMONIC_CMPSQ:
        return same_rip && native->vector >= VEC_SS && native->vector <= VEC_PF && engine->vector >= VEC_SS &&
               engine->vector <= VEC_PF && engine->vector != native->vector;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_CALL:
        return same_rip && engine->vector == VEC_GP &&
               (native->vector == VEC_PF || native->vector == VEC_SS || native->vector == VEC_AC);
    case ZYDIS_MNEMONIC_POP:
        return native->vector == VEC_PF && ic.op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && /* how much it reads */
               ZydisRegisterGetClass(ic.op[0].reg.value) == ZYDIS_REGCLASS_SEGMENT;
    default: return false;
    }
}

/* A repeated string instruction that overwrites itself goes on unless it is interrupted: either outcome is right. */
static bool rewrites_itself(const struct diff_case *c, const struct forms *f, const struct diff_result *native)
{
    static uint8_t before[MEM_SIZE];
    struct insn_code ic;
    for (unsigned i = 0; i < c->insns; i++)
        if (forms_decode(f, c->code + c->insn_off[i], c->code_len - c->insn_off[i], &ic) &&
            (ic.d.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))) {
            size_t from = (MEM_PAGES - CODE_PAGES) * PAGE + (c->rip - CODE_BASE) + c->insn_off[i];
            if (from + ic.len > MEM_SIZE) continue;
            case_fill_memory(c, before);
            if (memcmp(before + from, native->mem + from, ic.len)) return true;
        }
    return false;
}

void compare_results(const struct diff_case *c, const struct forms *f, const struct diff_result *native,
                     const struct diff_result *engine, struct verdict *v)
{
    v->equal = true;
    v->skipped = false;
    v->field[0] = v->detail[0] = 0;
    if (native->status != RUN_DONE || engine->status != RUN_DONE) {
        compare_status(v, native, engine);
        return;
    }
    if (c->insns > 1 && (native->vector == VEC_AC || engine->vector == VEC_AC)) {
        v->skipped = true; /* POPF set AC: for vector operands CPUs differ, and the engine does not check them */
        return;
    }
    if (vendors_differ(c, f, native, engine)) {
        v->skipped = true;
        return;
    }
    if (rewrites_itself(c, f, native)) {
        v->skipped = true;
        return;
    }
    if (native->vector != engine->vector) {
        char what[32];
        snprintf(what, sizeof(what), "vec%u-%u", native->vector, engine->vector);
        differ(v, what, "native vector %u (error %x cr2 %" PRIx64 ") engine vector %u (error %x cr2 %" PRIx64 ")",
               native->vector, native->error, native->cr2, engine->vector, engine->error, engine->cr2);
    } else if (native->error != engine->error &&
               /* Linux makes every fault of a user program in the upper half look like a protection fault. */
               !(native->vector == VEC_PF && native->cr2 >= 0x7ffffffff000ull &&
                 (native->error & ~1u) == (engine->error & ~1u))) {
        differ(v, "error", "vector %u: native %x engine %x", native->vector, native->error, engine->error);
    }
    compare_u64(v, "rip", native->rip, engine->rip);
    compare_u64(v, "cr2", native->cr2 & cr2_mask(c, f), engine->cr2 & cr2_mask(c, f));
    for (unsigned i = 0; i < 16 && !half_done(c, f, native); i++)
        compare_u64(v, reg_name[i], native->gpr[i] & gpr_mask(c, i), engine->gpr[i] & gpr_mask(c, i));
    uint64_t flags = ~(uint64_t)flags_not_compared(c, f, native);
    if (native->vector == VEC_DB) /* RF of a single step within a repeated string instruction: CPUs differ */
        flags &= ~0x10000ull;
    if ((native->rflags ^ engine->rflags) & flags)
        differ(v, "rflags", "native %06" PRIx64 " engine %06" PRIx64 " differ in %" PRIx64, native->rflags,
               engine->rflags, (native->rflags ^ engine->rflags) & flags);
    compare_u64(v, "fs_base", native->fs_base, engine->fs_base);
    compare_u64(v, "gs_base", native->gs_base, engine->gs_base);
    compare_u64(v, "cs", native->cs, engine->cs);
    compare_u64(v, "ss", native->ss, engine->ss);
    compare_u64(v, "ds", null_selector(native->ds), null_selector(engine->ds));
    compare_u64(v, "es", null_selector(native->es), null_selector(engine->es));
    compare_u64(v, "fs", null_selector(native->fs), null_selector(engine->fs));
    compare_u64(v, "gs", null_selector(native->gs), null_selector(engine->gs));
    compare_vectors(v, native, engine);
    compare_memory(v, c, f, native, engine);
}

static unsigned print_instruction(FILE *out, const ZydisFormatter *fmt, const struct diff_case *c,
                                  const struct forms *f, unsigned off, unsigned end)
{
    struct insn_code ic;
    char text[96] = "(bad)";
    unsigned len = end - off, nops = 0;
    while (off + nops < end && c->code[off + nops] == 0x90) nops++;
    if (nops == len) {
        fprintf(out, "  %08" PRIx64 "  nop x %u\n", c->rip + off, nops);
        return len;
    }
    if (forms_decode(f, c->code + off, c->code_len - off, &ic)) {
        ZydisFormatterFormatInstruction(fmt, &ic.d, ic.op, ic.d.operand_count_visible, text, sizeof(text), c->rip + off,
                                        NULL);
        len = ic.len;
    }
    fprintf(out, "  %08" PRIx64 " ", c->rip + off);
    for (unsigned k = off; k < off + len; k++) fprintf(out, " %02x", c->code[k]);
    fprintf(out, "%*s  %s\n", len < 12 ? (int)(12 - len) * 3 : 0, "", text);
    return len;
}

void case_print(FILE *out, const struct diff_case *c, const struct forms *f)
{
    ZydisFormatter fmt;
    ZydisFormatterInit(&fmt, ZYDIS_FORMATTER_STYLE_INTEL);
    for (unsigned i = 0; i < c->insns; i++) {
        unsigned end = i + 1 < c->insns ? c->insn_off[i + 1] : c->code_len;
        for (unsigned off = c->insn_off[i]; off < end;) /* a slot of a block may hold two */
            off += print_instruction(out, &fmt, c, f, off, end);
    }
    for (unsigned i = 0; i < (c->mode == MODE_64 ? 16 : 8); i++)
        fprintf(out, "%s%-3s %016" PRIx64, i % 4 ? " " : i ? "\n  " : "  ", reg_name[i], c->gpr[i]);
    uint32_t mxcsr;
    uint16_t fpu[2];
    memcpy(&mxcsr, c->xsave + 24, 4);
    memcpy(fpu, c->xsave, 4);
    fprintf(out,
            "\n  rflags %" PRIx64 " fs_base %" PRIx64 " gs_base %" PRIx64 " mxcsr %x fcw %x fsw %x bv %x image %u\n",
            c->rflags, c->fs_base, c->gs_base, mxcsr, fpu[0], fpu[1], c->xsave[512], c->image);
}
