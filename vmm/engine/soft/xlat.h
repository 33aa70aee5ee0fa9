/* The translator's private header: decoded instructions with what the translator needs to know about
 * them, blocks, memory sites, the per-vCPU code cache. See docs/design/0002-soft-engine.md. */
#ifndef NACELLE_SOFT_XLAT_H
#define NACELLE_SOFT_XLAT_H

#include "vmm/engine/soft/soft.h"

#define BLOCK_MAX_INSNS 64
#define NEST_MAX_INSNS 128          /* of a block made of loops in loops */
#define CODE_CACHE_SIZE (96u << 20) /* bytes of host code per vCPU; flushed whole when full */
#define BLOCKS_MAX (CODE_CACHE_SIZE / BLOCK_MIN)
#define BLOCK_MIN 32u /* bytes of host code that a block takes at least: kill_block() (cache.c) writes over its entry */
#define META_SIZE (80u << 20) /* bytes of block, site and instruction records per vCPU */
#define BLOCK_HASH_BITS 18    /* a compiler's run makes 160,000 blocks */
#define PAGE_HASH_BITS 14
#define ITLB_SIZE 256
#define JUMP_HASH_SIZE 65536 /* index: low 16 bits of the target, taken with MOVZX because that keeps the flags */
#define STEP_CACHE_SIZE 4096

/* What the translator does with an instruction. */
enum xkind {
    XK_COPY, /* no memory, no control flow: emitted as it is */
    XK_MEM,  /* one ModRM memory operand: re-encoded on a host address */
    XK_NOP,
    XK_LEA_RIP, /* LEA r, [rip+x]: a constant */
    XK_PUSH,    /* PUSH r / imm */
    XK_POP,     /* POP r */
    XK_LEAVE,
    XK_JMP, /* direct */
    XK_JCC,
    XK_CALL, /* direct */
    XK_RET,
    XK_JMP_IND, /* through a register or memory */
    XK_CALL_IND,
    XK_SPECIAL, /* a C handler executes it; ends the block */
    XK_STEP,    /* soft_step() executes it; ends the block */
    /* Special instructions that translated code carries out itself (translate_sys.c); soft_decode() never says so. */
    XK_PUSH_MEM, /* PUSH m */
    XK_PUSHF,
    XK_SYS,  /* CLI, STI, SWAPGS, RDTSC, RDTSCP */
    XK_REP,  /* REP STOS, REP MOVS inside a page */
    XK_GATE, /* STAC, CLAC, SYSCALL, SYSRET: to another mode; ends the block */
};

/* Which CPU facility an instruction needs (mode bits can forbid it). */
enum xgate { GATE_NONE, GATE_X87, GATE_FWAIT, GATE_MMX, GATE_SSE, GATE_AVX, GATE_AVX512 };

enum xenc { ENC_LEGACY, ENC_VEX, ENC_XOP, ENC_EVEX };

/* How a mask selects bytes of the memory operand (decode_mask.c). */
enum xmask {
    MASK_NONE,
    MASK_LANES,  /* opmask: element i (modulo the elements there are in memory) */
    MASK_PACKED, /* opmask: as many elements as it has bits set (VPCOMPRESS, VPEXPAND) */
    MASK_VECTOR, /* the elements' sign bits in a vector register */
};

struct xinsn {
    struct insn in;
    uint8_t kind, gate, enc;
    uint8_t handler;             /* XK_SPECIAL: which of soft_handlers[] took it last time, from 1 on */
    uint8_t cc;                  /* JCC: condition code 0..15 */
    uint8_t modrm_off, tail_off; /* offsets in bytes[]: ModRM; first byte after ModRM/SIB/disp */
    uint16_t mem_size;           /* bytes the memory operand covers */
    bool mem_read, mem_write;
    bool bit_string; /* BT/BTS/BTR/BTC mem, reg: address depends on the bit offset too */
    bool no_rex;     /* uses AH..BH: no REX prefix possible */
    bool uses_vsib, masked;
    bool aligned, aligned_unless_mm; /* memory must be aligned to mem_size (the latter: but not with MXCSR.MM) */
    uint8_t mask, mask_reg;          /* enum xmask */
    uint8_t mask_unit, mask_bits;    /* bytes of memory per mask bit; mask bits there are */
    bool mask_whole;                 /* all of the operand must be writable, selected or not */
    bool w_ignored;        /* 16/32-bit code: VEX.W or EVEX.W would mean 64-bit registers, and counts for nothing */
    bool is4_bit7_ignored; /* 16/32-bit code: the register number in the last byte has three bits */
    bool checks_mf;        /* a pending x87 exception comes before anything else about it */
    uint16_t reg_read;     /* GPRs whose old value matters (partial writes included) */
    uint16_t reg_write;    /* GPRs written in any way */
    uint16_t reg_kill;     /* GPRs fully overwritten without being read */
    uint16_t fl_read, fl_kill, fl_write; /* FL_ARITH bits */
};

/* Decodes the instruction in bytes[0..avail) for the code size of `code_size`. 0; -1 undefined; -2 needs more bytes. */
int soft_decode(const uint8_t *bytes, unsigned avail, unsigned code_size, uint64_t rip, struct xinsn *x);
void soft_decode_init(void);

/* Translation mode key: what, besides the address, code depends on. */
#define MODE_IDX_MASK 3u  /* enum soft_mmu_idx */
#define MODE_SIZE_SHIFT 2 /* 0: 16, 1: 32, 2: 64 bit */
#define MODE_SIZE_MASK (3u << 2)
#define MODE_NO_X87 (1u << 4) /* TS or EM */
#define MODE_NO_SSE (1u << 5) /* TS, EM or !OSFXSR */
#define MODE_NO_AVX (1u << 6)
#define MODE_NO_AVX512 (1u << 7)
#define MODE_AC (1u << 8)       /* #AC checks on */
#define MODE_NO_MERGE (1u << 9) /* every access checked on its own */
#define MODE_NO_MMX (1u << 10)
#define MODE_FLAT (1u << 11) /* 32-bit code: CS, DS, ES, SS flat */
#define MODE_STEP (1u << 12) /* one instruction at a time (TF, DF, breakpoints, modes the translator leaves out) */
#define MODE_SMAP (1u << 13) /* CR4.SMAP: then the kernel's two mmu indices are told apart by AC alone */
#define MODE_TSD (1u << 14)  /* CR4.TSD */
#define MODE_SCE (1u << 15)  /* EFER.SCE */
#define MODE_NEST (1u << 16) /* a whole nest of loops (translate_nest.c); never part of what the CPU is in */

#define NO_BLOCK 0u

/* One translated block. Lives in the meta arena; referred to by its offset there (never 0). */
struct block {
    uint64_t rip;
    uint64_t gpa;  /* of its first byte */
    uint64_t gpa2; /* page of the bytes after a page border, or ~0 */
    uint32_t mode;
    uint32_t host;  /* offset of its entry in the code cache */
    uint32_t strip; /* and of that to the strips of its loop (translate_loop.c), or 0 */
    uint32_t host_end;
    uint32_t next_hash, next_page, next_page2;
    uint32_t map; /* meta offset of its struct imap[] */
    uint16_t map_count;
    uint16_t guest_len; /* bytes of guest code it depends on (in its first page) */
    bool dead;
    bool global; /* its page is mapped global (both, where it has two) */
};
#define NO_PAGE (~0ull)

/* Host-pc to guest-pc map: one record per guest instruction. */
struct imap {
    uint32_t host;     /* offset of the instruction's first host byte */
    uint16_t guest;    /* offset from block->rip */
    uint16_t borrowed; /* GPRs whose true value is in saved[] */
};

/* One memory check in translated code. `s` holds the linear address at `retry`. */
#define SITE_WRITE 1
#define SITE_MERGED 2
#define SITE_FLAGS 4    /* the guest's flags are in RAX as LAHF/SETO left them; RAX is in saved[] */
#define SITE_HOSTPAGE 8 /* slot.delta holds the host page address instead of HVA - GVA */
#define SITE_RETRY \
    16 /* the check computes more than what the slot holds: do all of it again (bit strings; not with HOSTPAGE) */
#define SITE_SHARED 32   /* the slot is one of those that all stack accesses begin with */
#define SITE_UPGRADED 64 /* has its look-up in line (site.c) */
#define SITE_TRIAL 128   /* its executions are being counted */
#define SITE_HOISTED 256 /* MERGED, and stands before the first instruction it is for */
#define TRIAL_RUNS 128   /* executions that a trial counts */
#define LARGE_RUNS 1024  /* and one for a large page: enough to see both kinds of pages in an array that has both */
#define SITE_HEAT 16     /* misses of a filled slot after which a site is upgraded */
#define SITE_CHECK_BYTES \
    31u /* from `retry` to behind the check, where s is HVA - GVA, or with HOSTPAGE the host address */
struct site {
    uint32_t retry;          /* code offset where the check is done again */
    uint32_t slot;           /* offset of its site_slot in struct soft_cpu */
    uint32_t block;          /* meta offset */
    uint16_t span;           /* bytes checked - 1 */
    uint16_t guest;          /* offset of the guest instruction from block->rip */
    uint16_t borrowed, held; /* registers lent out; those of them that carry another check's result */
    uint16_t flags;
    uint8_t scratch;
    uint8_t heat; /* counts down */
};

/* An indirect branch: what to undo when its target turns out to be no address (SDM vol. 2: then it faults itself). */
struct branch {
    uint64_t rip;
    int32_t rsp_back;
};

/* A direct branch out of a block. */
struct link {
    uint64_t target;   /* guest RIP */
    uint32_t jump;     /* code offset of the rel32 to patch */
    uint32_t stub;     /* code offset the rel32 goes to while unlinked */
    uint32_t block;    /* the block it belongs to */
    uint32_t next;     /* in a list of linked branches between pages */
    uint32_t to;       /* the block it leads to, when linked */
    uint16_t to_mode;  /* of that block */
    uint8_t rounds;    /* a branch back: how often taken, or NEST_* (translate_nest.c) */
    bool no_merge : 1; /* to the variant of the code that checks every access on its own */
    bool back : 1;     /* the jump that ends its block, to where that begins or before */
    bool nest : 1;     /* to where a nest of loops begins */
    bool cross_page : 1;
    bool linked : 1;
};

enum soft_host_exit {
    HX_LINK = 0,  /* exit_info: meta offset of struct link */
    HX_LOOKUP,    /* indirect branch not in the jump cache; rip set, exit_info: meta offset of struct branch */
    HX_MEM,       /* exit_info: meta offset of struct site */
    HX_SPECIAL,   /* exit_info: meta offset of struct xinsn */
    HX_REQUEST,   /* exit_request seen; rip set */
    HX_HOSTFAULT, /* a host signal in translated code: priv->fault_* */
    HX_THUNK,     /* single-instruction thunk ended */
    HX_DEAD,      /* entered an invalidated block: exit_info: its meta offset; rip set */
};

/* What other vCPUs ask of this one. Written under `lock`, emptied by the owner. */
#define INBOX_SIZE 512
struct soft_inbox {
    _Atomic uint32_t lock;
    _Atomic uint64_t done; /* messages carried out since creation */
    uint64_t posted;
    uint32_t count;
    bool overflow; /* too many: protect and drop everything */
    struct {
        uint64_t gpa;
        uint32_t len; /* 0: protect the page; else: code written */
    } msg[INBOX_SIZE];
};

struct step_entry {
    uint64_t rip;
    uint32_t mode;
    bool valid;
    uint32_t thunk; /* code offset, 0: none */
    uint8_t scratch;
    uint32_t generation; /* of the code cache */
    struct xinsn x;
};

/* space.c: what was concluded from how pages with code are mapped */
#define SPACES 8u /* Linux uses seven PCIDs */
#define SPACE_JUMPS 256u
#define HOME_HASH_BITS 13
struct soft_space {
    uint64_t id; /* never 0 and never used again */
    uint32_t pcid;
    uint32_t saved;
    bool passing; /* not to be kept at the next switch */
    struct saved_jump {
        uint64_t neg_rip;
        uint32_t host; /* code offset */
        uint32_t slot; /* (mmu index << 16) | slot */
    } jump[SPACE_JUMPS];
};
/* A virtual page, not global, that code was fetched from; in the meta arena. */
struct home {
    uint64_t page, gpa;
    uint64_t space; /* id of the one that `links` hold for */
    uint32_t links; /* linked branches out of it into other pages, or to blocks that go on in the next page */
    uint32_t next;
};
struct fetch {
    uint64_t tag, gpa;
    uint8_t *host;
    uint64_t space; /* id; 0: a global page */
    uint8_t idx;
};

#define NEST_HEADS 512u

struct soft_private {
    uint8_t *code; /* writable and executable, private to this vCPU: engine.c says why */
    uint32_t code_used, code_stubs_end;
    /* Code that is seldom run lies apart, so that what is run lies close together: in chunks from the cache's end downwards. */
    uint32_t cold_used, cold_end; /* in the current chunk: next byte, end */
    uint32_t cold_low;            /* start of the lowest chunk */
    uint8_t *meta;
    uint32_t meta_used;
    uint32_t generation; /* bumped at each whole flush */
    uint32_t hash[1u << BLOCK_HASH_BITS];
    uint32_t page_hash[1u << PAGE_HASH_BITS];  /* blocks by guest page */
    uint32_t page2_hash[1u << PAGE_HASH_BITS]; /* blocks across a page border, by the second page */
    uint32_t *order;                           /* the blocks as they lie in the code cache, for host faults */
    uint32_t ordered;
    uint64_t
        divides[64]; /* guest-physical addresses of divisions that have trapped: there the divisor is looked at first */
    uint32_t cross_links
        [2]; /* linked branches out of global pages into others: [1] into global ones (other links: struct home) */
    uint32_t jumps_filled[2];                 /* [1]: entries for global pages */
    uint32_t jump_filled[2][JUMP_CACHE_SIZE]; /* (mmu index << 16) | slot of the filled jump cache entries */
    uint64_t code_pages[1024];                /* Bloom filter of the global pages that code was fetched from */
    uint32_t home_hash[1u << HOME_HASH_BITS]; /* pages that are not global and had code fetched from them, by address */
    uint64_t space_ids;                       /* given out so far */
    uint32_t current;                         /* space */
    struct soft_space space[SPACES];
    struct {
        uint64_t page;
        uint32_t misses;
    } near_miss[64]; /* writes to a page with code that hit no block */
    struct fetch itlb[ITLB_SIZE];
    struct step_entry step[STEP_CACHE_SIZE];
    /* stubs, as code offsets */
    uint32_t stub_enter;
    uint32_t stub_exit[8];
    uint32_t stub_tlb[MMU_IDX_COUNT][2][16];
    uint32_t stub_syscall[2], stub_sysret; /* [1]: with SMAP */
    uint64_t fault_pc;                     /* host pc of the last host fault */
    int fault_trap;                        /* and its exception vector */
    struct soft_inbox inbox;
    uint32_t next_slot[MMU_IDX_COUNT][2][2]; /* site slots given out, by plain or host-page */
    uint32_t next_trial, next_large;
    uint32_t trim_at;  /* bytes of host code that idling gives back: engine.c */
    uint64_t nest_end; /* for MODE_NEST: where the outermost loop's branch back ends */
    struct nest_head {
        uint64_t rip, end;
    } nest_head[NEST_HEADS]; /* where nests begin: other blocks end there */
    struct tr *translator;   /* working state of translate.c, made at first use */
    uint32_t pending_read;   /* a read that the VMM is to answer: */
#define PENDING_MMIO 1u
#define PENDING_PIO 2u
    uint32_t writes, write_next; /* MMIO writes of the last instruction still to be told to the VMM */
    bool no_merge_once;
    bool nmi_waiting;
    struct cpu_event event; /* set_state's: due before the next instruction */
    uint32_t pauses;
};

/* Invariant: all offsets fit because META_SIZE and CODE_CACHE_SIZE are far below 4 GiB. */
struct soft_engine {
    const struct guest_memory *memory;
    unsigned vcpus;
    struct soft_cpu *cpu[ENGINE_MAX_VCPUS];
    _Atomic uint64_t *code_map; /* per guest page: bit n set when vCPU n has translations of it */
    uint64_t code_pages;
#define CLAIM_LOCKS 64u
    _Atomic uint32_t claims[CLAIM_LOCKS]; /* vCPUs that are at it to make a page's writes seen, by hash of the page */
    uint64_t tsc_base, wall_base_ns;      /* host TSC and UTC when the engine was created */
    _Atomic uint32_t bus_lock; /* held around locked operations on operands that no single host access reaches */
};

enum soft_stat {
    ST_BLOCKS,
    ST_CACHE_FLUSH,
    ST_LINK,
    ST_LOOKUP,
    ST_MEM,
    ST_SPECIAL,
    ST_STEP,
    ST_REQUEST,
    ST_HOSTFAULT,
    ST_DEAD,
    ST_KILLED,
    ST_NOMERGE,
    ST_EXCEPTION,
    ST_INTERRUPT,
    ST_PARK,
    ST_COUNT
};

/* Bytes between the two kinds of code, and those that they take up. */
static inline uint32_t soft_code_room(const struct soft_private *p)
{
    return p->cold_low - p->code_used;
}
static inline uint32_t soft_code_bytes(const struct soft_private *p)
{
    return p->code_used + (CODE_CACHE_SIZE - p->cold_low) - (p->cold_end - p->cold_used);
}

/* Where the address of a division is kept that has trapped; it may be another's. */
static inline uint64_t *soft_divide_slot(struct soft_private *p, uint64_t gpa)
{
    return &p->divides[(gpa ^ gpa >> 6 ^ gpa >> 12) % 64];
}

static inline struct nest_head *soft_nest_head(struct soft_private *p, uint64_t rip)
{
    return &p->nest_head[(rip ^ rip >> 9) % NEST_HEADS];
}

static inline void *meta_ptr(const struct soft_private *p, uint32_t off)
{
    return p->meta + off;
}

/* cache.c */
void soft_dma_written(struct soft_engine *g, gpa_t a, uint64_t len);
uint32_t soft_meta_alloc(struct soft_private *p, uint32_t size); /* 0 when full */
void soft_cache_flush(struct soft_cpu *cpu);
bool soft_cache_low(const struct soft_private *p);
uint8_t *soft_cold_room(struct soft_private *p); /* for the cold code of one block, when the cache isn't low */
struct block *soft_find_block(struct soft_cpu *cpu, uint32_t extra_mode, enum soft_result *res);
struct block *soft_block_of_host(struct soft_cpu *cpu, uint64_t host_pc);
void soft_forward_dead(struct soft_cpu *cpu, uint32_t dead, const struct block *to);
void soft_end_blocks_at(struct soft_cpu *cpu, const struct block *nest); /* those that run into it are made anew */
void soft_retranslate(struct soft_cpu *cpu, struct block *b); /* it will be made anew when it is next wanted */
void soft_drain_inbox(struct soft_cpu *cpu);
/* Reads up to 15 instruction bytes at the current CS:RIP; *avail says how many could be had. SOFT_FAULT when not one. */
enum soft_result soft_fetch(struct soft_cpu *cpu, uint8_t *bytes, unsigned *avail);
/* space.c */
struct code_page {
    uint64_t gpa;
    uint8_t *host;
    bool global;
};
enum soft_result soft_code_page(struct soft_cpu *cpu, uint64_t linear, struct code_page *out);
void soft_link(struct soft_cpu *cpu, struct link *l, struct block *to);
void soft_fill_jump(struct soft_cpu *cpu, const struct block *b);
void soft_space_reset(struct soft_cpu *cpu);

/* translate_nest.c */
#define NEST_HEAT 16u   /* times that a branch back is followed through C before what it encloses is looked at */
#define NEST_NEVER 255u /* that cannot be made one block */
#define NEST_BYTES 1024u

/* translate.c */
/* Translates the code at rip (linear), bytes of its page at `page->host`. `next` is the page after it when the block may go on there, else
 * NULL. NULL when the caches are full or the first instruction cannot be translated in a block (then step it). */
struct block *soft_translate(struct soft_cpu *cpu, uint64_t rip, const struct code_page *page,
                             const struct code_page *next, uint32_t mode);
/* A thunk that runs one XK_COPY/XK_MEM instruction, its memory operand at the address in tmp[5]. 0 when full. */
uint32_t soft_make_thunk(struct soft_cpu *cpu, const struct xinsn *x, uint8_t *scratch);

/* site.c */
uint32_t soft_site_slot(struct soft_cpu *cpu, unsigned idx, bool write, bool hostpage); /* a new one's offset */
void soft_init_stack_slots(struct soft_cpu *cpu);
uint32_t soft_stack_slot(struct soft_cpu *cpu, unsigned idx, bool write, uint64_t rip);
/* The site missed often: give it a faster way. The FPU need not be parked. */
void soft_upgrade_site(struct soft_cpu *cpu, struct site *site);
void soft_trial_over(struct soft_cpu *cpu, struct site *site);
void soft_forget_trials(struct soft_cpu *cpu);

/* stubs.c */
void soft_make_stubs(struct soft_cpu *cpu);

/* step.c */
enum soft_result soft_step(struct soft_cpu *cpu);
enum soft_result soft_exec_insn(struct soft_cpu *cpu, struct xinsn *x);
/* vsib.c: gathers and scatters, lane by lane */
enum soft_result soft_vsib_insn(struct soft_cpu *cpu, const struct xinsn *x);

/* signals.c */
int soft_signals_init(struct nerr *e);
int soft_thread_bind(struct soft_cpu *cpu);
void soft_thread_unbind(const struct soft_cpu *cpu);

/* fpu.c */
void soft_fpu_init(void);
uint32_t soft_fpu_host_mask(void);

/* run.c */
void soft_run_loop(struct soft_cpu *cpu, struct vcpu_exit *exit);

/* The flags that translated code left with become the guest's; the other bits of RFLAGS stay. */
static inline void soft_take_flags(struct soft_cpu *cpu, uint64_t flags)
{
    cpu->rflags = (cpu->rflags & ~(uint64_t)(FL_ARITH | FL_DF)) | (flags & (FL_ARITH | FL_DF));
}

/* The opposite, before translated code is entered. */
static inline void soft_give_flags(struct soft_cpu *cpu)
{
    cpu->tmp[1] = cpu->rflags & (FL_ARITH | FL_DF);
    cpu->rflags &= ~(uint64_t)(FL_ARITH | FL_DF | FL_1);
}

static inline enum soft_host_exit soft_enter(struct soft_cpu *cpu, uint32_t host_off)
{
    typedef uint32_t enter_fn(struct soft_cpu *, void *);
    struct soft_private *p = cpu->priv;
    enter_fn *f = (enter_fn *)(uintptr_t)(p->code + p->stub_enter);
    return (enum soft_host_exit)f(cpu, p->code + host_off);
}

#endif
