/* Working state of the translation of one block; shared by analyze.c, translate*.c, reencode.c. */
#ifndef NACELLE_SOFT_TR_H
#define NACELLE_SOFT_TR_H

#include "vmm/engine/soft/emit.h"
#include "vmm/engine/soft/xlat.h"

#define MAX_GROUPS 32
#define MAX_COLD 640
#define NO_GROUP 0xff
#define NO_REG 0xff
/* A short loop's rounds are written several times, one after the other, so that rounds are counted, and branches taken, once for all of them: */
#define COPIES_MOST 4u
#define COPIED_MOST 96u /* instructions of the copies together */

/* Memory accesses through the same registers, checked together: one check of [base+lo, base+hi) at `anchor` serves them all. While it is
 * live, `reg` holds HVA - GVA of the page; for accesses with an index register, the host address of the range. */
struct group {
    uint8_t base, index, scale;  /* index: INSN_NOREG for plain ones */
    uint8_t anchor, first, last; /* instruction indexes; the check stands before `anchor` */
    uint8_t count;
    uint8_t reg; /* scratch register while live, NO_REG before and when dissolved */
    bool write, no_rex, open, dissolved;
    bool strip;      /* checked before the loop's rounds (translate_loop.c) */
    int32_t stride;  /* strip: bytes that the address moves in a round */
    int32_t lo, hi;  /* relative to the base register's value at `anchor` */
    int32_t moved;   /* how far the base has moved since `first` (analysis only) */
    int32_t hoisted; /* how much of lo and hi is due to the check standing before `first` */
};

struct access {
    uint8_t group; /* NO_GROUP: checked on its own */
    int32_t rel;   /* offset in the group's frame at its first access */
};

enum cold_kind { COLD_SITE, COLD_LINK, COLD_REQUEST, COLD_STI, COLD_LOOKUP, COLD_SPECIAL, COLD_LOCAL };
struct cold {
    uint8_t kind;
    uint8_t *jump; /* rel32 to patch to the cold code */
    uint32_t meta; /* site or link */
    uint8_t scratch, idx, write;
    uint16_t borrowed;
    uint64_t rip;
    bool flags;   /* COLD_SPECIAL: the guest's flags are in RAX */
    uint8_t more; /* COLD_SPECIAL: other jumps that lead here */
    uint8_t *other[7];
};

/* An instruction of a nest of loops, as a place to jump to and as a jump. */
#define NO_LABEL 0xff
struct label {
    uint8_t to;            /* jumps: index of the target in the block, or NO_LABEL */
    bool here;             /* jumps of the block lead here */
    bool back;             /* some of them from behind */
    bool counted;          /* the head of an inner loop whose checks stand before it, for some rounds */
    bool stays;            /* counted: checked again after those, as it can be no block of its own; else it leaves */
    uint8_t end;           /* counted: the branch back */
    uint8_t *entry, *host; /* for jumps from before it; from behind */
    uint8_t copies, copy;  /* counted: how often its rounds are written one after the other; those written so far */
};
/* A jump forward in a nest, to be patched. */
struct nest_fix {
    uint8_t *at;
    uint8_t to;
};

struct tr {
    struct soft_cpu *cpu;
    struct soft_private *p;
    struct emitter e, apart; /* `apart`: where cold code goes */
    struct block *b;
    uint32_t b_off; /* meta offset of b */
    uint32_t mode;
    uint8_t idx; /* mmu index */
    bool failed; /* meta arena full */
    unsigned n;
    struct xinsn x[NEST_MAX_INSNS];
    uint16_t fl_live[NEST_MAX_INSNS + 1]; /* flags live before instruction i */
    struct access acc[NEST_MAX_INSNS];
    unsigned groups;
    struct group g[MAX_GROUPS];
    uint16_t borrowed;  /* registers whose guest value is in saved[] */
    uint16_t held;      /* those of them that carry a group's delta */
    uint16_t loop_lent; /* registers lent out for the whole of a loop of one block */
    uint8_t *loop;      /* where its back edge goes; NULL: no such loop */
    /* A loop in strips: */
    uint8_t *strip;                /* where its checks are done; NULL: in each round */
    uint8_t *to_strip;             /* rel32 of the jump there from the first rounds */
    uint8_t strip_rounds;          /* register that counts the rounds left; NO_REG: not in strips */
    bool loop_low;                 /* an instruction in the loop can't have a REX prefix */
    struct group kept[MAX_GROUPS]; /* the groups as they were before the first rounds were translated */
    uint8_t copies, copy; /* of a round that are made at once: how many; how many are written, and that of the rest */
    uint8_t *to_rest;     /* rel32 of the jump to the rounds that are made one by one */
    /* A nest of loops: */
    bool nest, before_nest; /* this is one; one begins behind this block */
    uint8_t nest_count;     /* register that counts rounds of inner loops; NO_REG: none do */
    uint16_t nest_held;     /* registers that carry what checks before the nest found, and nest_count */
    uint16_t inner_lent;    /* registers lent out for the inner loop that is being translated, beside loop_lent */
    uint16_t inner_held;    /* those that carry what its checks found */
    bool unreachable;       /* the place that is being translated */
    struct label label[NEST_MAX_INSNS];
    unsigned fixes;
    struct nest_fix fix[NEST_MAX_INSNS];
    uint8_t again; /* instruction to go on from, for another copy of an inner loop's round; NO_LABEL: the next one */
    uint8_t *out[COPIES_MOST]; /* jumps out of the copies */
    uint8_t ahead; /* in later copies: rounds by which the guest's addresses are ahead of the host's that strips keep */
    unsigned colds;
    struct cold cold[MAX_COLD];
    struct imap map[2 * (NEST_MAX_INSNS * COPIES_MOST) + 1];
    unsigned maps;
    uint64_t next_rip; /* after the last instruction */
};

/* analyze.c */
void tr_analyze(struct tr *t);
/* Effect of instruction x on register r as the base of addresses: 0 none, 1 moved by *by, 2 clobbered. */
int tr_base_effect(const struct xinsn *x, unsigned r, int32_t *by);
/* The plain [base+disp] access of x (stack operations included); false when it has none. */
bool tr_plain_access(const struct tr *t, const struct xinsn *x, uint8_t *base, int32_t *disp, uint16_t *size,
                     bool *write);
static inline bool tr_is_stack(const struct xinsn *x)
{
    return x->kind == XK_PUSH || x->kind == XK_POP || x->kind == XK_CALL || x->kind == XK_RET || x->kind == XK_LEAVE ||
           x->kind == XK_PUSH_MEM || x->kind == XK_PUSHF;
}

static inline bool tr_is_jump(const struct xinsn *x)
{
    return x->kind == XK_JMP || x->kind == XK_JCC;
}

/* translate.c */
uint32_t tr_new_link(struct tr *t, uint64_t target);
uint32_t tr_keep_insn(struct tr *t, unsigned i); /* a copy of the instruction for C; 0 when there is no room */
void tr_note_map(struct tr *t, unsigned i);      /* what follows is instruction i; at most two each */
void tr_move_rsp(struct tr *t, int32_t by);
void tr_link_jump(struct tr *t, uint64_t target, uint32_t mode);
void tr_side_exit(struct tr *t, unsigned cc, uint64_t target);
struct cold *tr_new_cold(struct tr *t, enum cold_kind kind,
                         uint8_t *jump); /* with the registers lent out now; never NULL */
struct host_mem tr_access_now(struct tr *t, unsigned i, uint16_t forbidden);
void tr_sti_check(struct tr *t, unsigned i);
/* Code, out of the way, that leaves for C to do the instruction kept as `info`; the n jumps lead there. `flags`: they are stashed. */
void tr_cold_special(struct tr *t, uint8_t *const *jump, unsigned n, uint32_t info, bool flags);

/* translate_sys.c */
void tr_promote(const struct tr *t, struct xinsn *x); /* from XK_SPECIAL to what can be done in translated code */
bool tr_is_sti(const struct xinsn *x);
void tr_emit_sys(struct tr *t, unsigned i);
static inline bool tr_is_divide(const struct xinsn *x)
{
    return x->in.mnemonic == ZYDIS_MNEMONIC_DIV || x->in.mnemonic == ZYDIS_MNEMONIC_IDIV;
}
/* Before a division that has trapped: leaves when the divisor (a register, or at *m) is zero. Keeps the flags. */
void tr_divide_check(struct tr *t, unsigned i, const struct host_mem *m);
void emit_unstash_flags(struct emitter *e);
/* r1 = RFLAGS as PUSHF and SYSCALL see it; uses r2 and the host's stack. Keeps the flags. */
void emit_flags_image(struct emitter *e, unsigned r1, unsigned r2);

/* Leaves before instruction i when exit_request is set. */
void tr_request_check(struct tr *t, unsigned i);

/* translate_loop.c: blocks that jump back to themselves */
bool tr_is_self_loop(const struct tr *t);
void tr_begin_loop(struct tr *t);
void tr_begin_strip(struct tr *t);  /* when strip_rounds is a register: before the loop is translated again */
bool tr_copy_round(struct tr *t);   /* before each copy of the strip's round; false: that was the last */
unsigned tr_copies(unsigned insns); /* how often to write a loop of so many instructions */
void tr_fresh_groups(struct tr *t, unsigned from,
                     unsigned to); /* those checked in [from, to) are to be checked again */
void tr_back_edge(struct tr *t, unsigned cc);
/* Can the group's check stand before the loop of the instructions [from, to)? Makes the group one whose check stands there. */
bool tr_plan_strip(const struct tr *t, struct group *g, unsigned from, unsigned to);
/* Is there a jump out of the loop or nest in [from, to)? */
bool tr_may_leave(const struct tr *t, unsigned from, unsigned to);
/* Before the branch back: a host address of a group whose check stands before the loop moves along with the guest's. Keeps the flags. */
void tr_next_round(struct tr *t, const struct group *g);
unsigned tr_take(uint16_t *from, bool low); /* one of the registers `from`; NO_REG: none of them will do */

/* translate_nest.c: loops in loops */
bool tr_plan_nest(struct tr *t, uint64_t rip); /* after the instructions are decoded; false: this is none */
void tr_begin_nest(struct tr *t);
void tr_nest_label(struct tr *t, unsigned i); /* before instruction i */
void tr_nest_jump(struct tr *t, unsigned i);  /* JMP and JCC */
void tr_patch_nest(struct tr *t);             /* after the last instruction */

/* reencode.c: emits instruction x with its memory operand replaced by m (m NULL: as it is). */
void emit_reencoded(struct emitter *e, const struct xinsn *x, const struct host_mem *m);

/* translate_mem.c */
void tr_restore(struct tr *t, uint16_t regs); /* back to guest values */
unsigned tr_borrow(struct tr *t, unsigned i, uint16_t forbidden,
                   bool low_only); /* a scratch register for instruction i */
void tr_begin_groups(struct tr *t, unsigned i);
void tr_end_groups(struct tr *t, unsigned i);
void tr_check_group(struct tr *t, unsigned i, const struct group *g, unsigned s); /* its check alone, into s */
/* Makes instruction i's access safe: afterwards *m addresses its operand on the host. `disp_extra` moves it. */
void tr_access(struct tr *t, unsigned i, uint16_t forbidden, struct host_mem *m);

#endif
