/* Private header of the software CPU engine (same-ISA binary translator); see docs/design/0002-soft-engine.md.
 *
 * Rules for all of engine/soft/ but the files of SOFT_FPU_EXEMPT in mk/build.mk:
 *  - The guest's x87/SSE/AVX registers stay in the host's while C code runs. So these files are compiled with
 *    -mgeneral-regs-only and call nothing outside this folder (no libc, not even memcpy/memset: use soft_copy/
 *    soft_zero below) unless soft_fpu_park() was called before. `make lint` checks it with nm.
 *  - Each vCPU is run by one host thread, and its struct soft_cpu is touched by others only through the atomics.
 */
#ifndef NACELLE_SOFT_H
#define NACELLE_SOFT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/engine/engine.h"
#include "vmm/engine/soft/features.h"
#include "vmm/engine/soft/insn.h"

/* ---- RFLAGS, CR, EFER bits (SDM vol. 1 3.4.3, vol. 3 2.5) ---- */
#define FL_CF (1u << 0)
#define FL_1 (1u << 1)
#define FL_PF (1u << 2)
#define FL_AF (1u << 4)
#define FL_ZF (1u << 6)
#define FL_SF (1u << 7)
#define FL_TF (1u << 8)
#define FL_IF (1u << 9)
#define FL_DF (1u << 10)
#define FL_OF (1u << 11)
#define FL_IOPL (3u << 12)
#define FL_NT (1u << 14)
#define FL_RF (1u << 16)
#define FL_VM (1u << 17)
#define FL_AC (1u << 18)
#define FL_VIF (1u << 19)
#define FL_VIP (1u << 20)
#define FL_ID (1u << 21)
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)
#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_EM (1u << 2)
#define CR0_TS (1u << 3)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_AM (1u << 18)
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CR0_PG (1u << 31)
#define CR4_VME (1u << 0)
#define CR4_PVI (1u << 1)
#define CR4_TSD (1u << 2)
#define CR4_DE (1u << 3)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_MCE (1u << 6)
#define CR4_PGE (1u << 7)
#define CR4_PCE (1u << 8)
#define CR4_OSFXSR (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_UMIP (1u << 11)
#define CR4_FSGSBASE (1u << 16)
#define CR4_PCIDE (1u << 17)
#define CR4_OSXSAVE (1u << 18)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define EFER_SCE (1u << 0)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NXE (1u << 11)

enum { R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI, R_R8, R_R9, R_R10, R_R11, R_R12, R_R13, R_R14, R_R15 };

/* Exception vectors */
enum {
    EXC_DE = 0,
    EXC_DB = 1,
    EXC_NMI = 2,
    EXC_BP = 3,
    EXC_OF = 4,
    EXC_BR = 5,
    EXC_UD = 6,
    EXC_NM = 7,
    EXC_DF = 8,
    EXC_TS = 10,
    EXC_NP = 11,
    EXC_SS = 12,
    EXC_GP = 13,
    EXC_PF = 14,
    EXC_MF = 16,
    EXC_AC = 17,
    EXC_MC = 18,
    EXC_XM = 19,
};

/* #PF error code */
#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u

/* Result of handling one instruction or event in C. */
enum soft_result {
    SOFT_OK = 0,   /* done, RIP is where execution goes on */
    SOFT_FAULT,    /* cpu->exc holds an exception to deliver; RIP is at the faulting instruction (traps: after it) */
    SOFT_EXIT,     /* cpu->exit was filled: leave to the VMM. RIP as if the instruction were done, or at the
                      instruction when it must be started again after the VMM supplied data (see soft_io.*) */
    SOFT_RESTART,  /* RIP unchanged: execute the same instruction again (REP interrupted, state changed) */
    SOFT_NOT_MINE, /* not an instruction this function handles */
};

/* Access kinds and MMU indices. */
enum soft_access { ACC_READ = 0, ACC_WRITE = 1, ACC_EXEC = 2 };
/* Which permissions an access runs with; each has a TLB of its own. */
enum soft_mmu_idx {
    MMU_USER = 0,
    MMU_KERNEL = 1 /* CPL<3, SMAP enforced */,
    MMU_KERNEL_AC = 2 /* CPL<3, user pages allowed */,
    MMU_IDX_COUNT
};

#define TLB_BITS 12
#define TLB_SIZE (1u << TLB_BITS)
/* A tag that no access matches. It is no page address, and not canonical, so that of the inline check's range [tag, tag + 4096) no
 * legal address is part. An illegal one that the guest makes up there gets through, with the same value as delta (always set
 * both): 2 * TLB_INVALID + n is not canonical either, so the host raises the #GP that the guest has earned. */
#define TLB_INVALID 0x4000000000000001ull

/* One entry of the software TLB (GVA -> HVA). A tag is the page's GVA, or TLB_INVALID when an access of that
 * kind must take the slow path (no permission, MMIO, write to a page with code in it, watched page). */
struct tlb_entry {
    uint64_t tag_read;
    uint64_t tag_write;
    uint64_t delta; /* HVA - GVA */
    uint64_t gpa;   /* page-aligned, with TLB_* flags in the low bits */
};
#define TLB_GLOBAL 1u    /* survives soft_tlb_flush_nonglobal() */
#define TLB_LARGE 2u     /* part of a page larger than 4 KiB: INVLPG anywhere in that page ends it */
#define TLB_LARGE_RAM 4u /* all of the 2 MiB around may be read, with the same HVA - GVA */
#define TLB_WRITE_OK 8u  /* writes are permitted and D is set, whatever tag_write says (code pages keep it invalid) */

#define SOFT_WALK_SLOTS 64u

/* The guest's MAXPHYADDR: what CPUID must advertise, and where the reserved bits of paging entries begin. */
#define SOFT_PHYS_BITS 46

/* MMIO pieces (1, 2, 4 or 8 bytes) that one instruction can read, and can write: enough for XSAVE with AVX-512 state, the
 * largest there is. Reads past it give ones, writes past it are lost. */
#define SOFT_IO_PIECES 360

/* Per-site inline caches used by translated code: a slot for each memory access in it, as long as they last, by mmu index and kind of
 * access. The lower half of each pool holds HVA - GVA as delta, the upper half host page addresses. Only the TLB stub
 * (stubs.c) fills them, and it notes which, so that dropping all costs what was used. Slot 0 is shared by all accesses through RSP
 * that have not missed it often: most stack accesses go to the page of the last one. */
#define SITE_COUNT 65536u
struct site_slot {
    uint64_t tag; /* page GVA or TLB_INVALID */
    uint64_t delta;
};

/* The same for sites that read from many pages of the guest's large ones (site.c): the tag is a multiple of 2 MiB. Shared by sites. */
#define LARGE_SLOTS 64u
#define LARGE_SHIFT 21
#define LARGE_SIZE (1u << LARGE_SHIFT)

/* Sites under observation (site.c): executions left, misses so far, meta offset of the site (0: free); in the second trial: the slot for a
 * large page, as an offset in struct soft_cpu, where ranges that cross a page go (meta offset of the link, or 0), misses that came after a
 * hit, and whether the last execution was one (1 or 0). */
#define SITE_TRIALS 128u
struct site_trial {
    uint32_t left, misses, site, large, link, turns, hit;
};

/* Targets of indirect branches, per mmu index: slot = low 16 bits of the target's RIP. */
#define JUMP_CACHE_SIZE 65536u
struct jump_slot {
    uint64_t neg_rip; /* -RIP; JUMP_EMPTY(slot) when empty */
    uint64_t host;
};
#define JUMP_EMPTY(slot) ((slot) == 0 ? 1ull : 0ull) /* is -RIP for no RIP whose low bits are `slot` */

enum { SHADOW_STI = 1, SHADOW_MOV_SS = 2 /* delays debug traps as well */ };

struct soft_exception {
    bool pending;
    uint8_t vector;
    bool has_error;
    bool soft_int;   /* INT n / INT3 / INTO: RIP to push is after the instruction (cpu->rip already is) */
    bool is_trap_db; /* #DB: dr6 bits in `dr6` */
    uint32_t error;
    uint64_t cr2; /* for #PF */
    uint64_t dr6; /* for #DB: bits to set in DR6 */
};

struct soft_engine;

struct soft_cpu {
    /* --- addressed by translated code as %gs:offset --- */
    uint64_t gpr[16];
    uint64_t rip; /* guest RIP (offset in CS) */
    uint64_t
        rflags; /* all of RFLAGS but IF as bits; use soft_get_rflags()/soft_set_rflags(). While translated code runs the
                            arithmetic flags and DF are the host's, and those bits are 0 here (soft_give_flags()) */
    uint8_t always_zero; /* makes a word of the next one: IF << 8 */
    uint8_t if_flag;     /* RFLAGS.IF, 0 or 1 */
    uint8_t irq_shadow;  /* the next instruction is in the shadow of SHADOW_STI or SHADOW_MOV_SS; else 0 */
    uint8_t cpl;
    _Atomic uint32_t inbox_flag;   /* another vCPU posted something (code invalidation, page protection) */
    _Atomic uint32_t exit_request; /* non-zero: translated code leaves at the next safe point */
    uint32_t
        irq_waiting; /* an interrupt is pending but IF was 0 when it was looked at; read together with exit_request */
    uint64_t saved[16]; /* true guest values of registers lent out as scratch */
    uint64_t tmp[8];
    uint64_t host_rsp;
    uint64_t host_pc;   /* where to enter translated code */
    uint64_t exit_info; /* what the exit is about: a block exit, a memory site, ... */
    struct cpu_segment seg[SEG_COUNT];
    uint64_t tsc_offset;
    uint8_t bounce[128] __attribute__((aligned(64)));
    struct site_slot site[MMU_IDX_COUNT][2][SITE_COUNT];
    struct site_slot large[MMU_IDX_COUNT][2][LARGE_SLOTS]; /* [1]: with host addresses */
    uint32_t large_filled[MMU_IDX_COUNT];                  /* some of them are */
    struct site_trial trial[SITE_TRIALS];
    uint32_t sites_filled[MMU_IDX_COUNT][2];
    uint32_t site_list[MMU_IDX_COUNT][2][SITE_COUNT]; /* offsets of the pool's filled slots in this struct, each once */
    struct tlb_entry tlb[MMU_IDX_COUNT][TLB_SIZE];
    struct jump_slot jump[MMU_IDX_COUNT][JUMP_CACHE_SIZE]; /* sparsely touched */

    /* --- C only --- */
    struct cpu_segment tr, ldtr;
    struct cpu_table gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
    uint64_t pdpte[4]; /* PAE paging: loaded at MOV CR3 (SDM vol. 3 4.4.1) */
    uint64_t dr[8];
    struct {
        uint8_t now, told; /* CR8; and what the local APIC thinks it is */
        bool known;        /* both are right: until the APIC is accessed in another way */
    } cr8;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    unsigned vcpus; /* of the VM (topology in CPUID) and the TSC's frequency: set before soft_cpuid_init() */
    uint64_t tsc_khz;
    uint64_t halt_tsc; /* host TSC when run() last came back with VCPU_EXIT_HLT; else 0 */
    struct {
        uint64_t system_msr;             /* KVM's clock: where the guest wants it */
        uint64_t tsc_base, wall_base_ns; /* host TSC and UTC at the VM's creation, the same on all vCPUs */
        uint32_t version;
    } pvclock;
    struct soft_cpuid cpuid;
    struct soft_msr msr;
    uint32_t mode;   /* translation mode key, made by soft_update_mode() (run.c) */
    uint8_t mmu_idx; /* enum soft_mmu_idx for data accesses at the current CPL/AC; kept by soft_update_mode() */
    bool halted, nmi_blocked;
    struct soft_exception exc;
    struct vcpu_exit *exit;

    /* I/O that the VMM carries out: a read leaves with SOFT_EXIT and RIP unchanged; when the instruction is
     * executed again the data is here. Writes leave after they are complete. See run.c. */
    struct {
        bool have; /* a completed read is waiting in `data` */
        bool
            in; /* it is a plain IN that waits: the answer goes to RAX and execution on at in_next, without starting it again */
        uint64_t in_next;
        bool is_mmio;
        uint64_t addr; /* GPA or port */
        uint32_t len;
        uint32_t next; /* replay position: reads of one instruction are replayed in order */
        uint32_t count;
        struct {
            uint64_t addr;
            uint8_t len;
            uint8_t data[8];
        } replay[SOFT_IO_PIECES];
        /* MMIO writes of the current instruction, in order. The run loop turns each into a VCPU_EXIT_MMIO once the instruction
         * has retired (SOFT_OK, SOFT_EXIT for a write, or SOFT_RESTART), and forgets them when it faulted or waits for a read. */
        uint32_t writes;
        struct {
            uint64_t addr;
            uint8_t len;
            uint8_t data[8];
        } write[SOFT_IO_PIECES];
        uint8_t pio[1024];
        uint32_t pio_len;
    } io;

    uint64_t late_db; /* those of an instruction that left with an exit or cast a MOV SS shadow: the trap comes later */
    bool
        no_step_trap; /* the instruction entered a handler and TF was cleared on the way: no single-step trap after it */
    uint64_t pending_db; /* DR6 bits of data breakpoints hit by the current instruction: a #DB trap is due after it */
    /* What the TLBs hold, so that a flush costs in proportion to use (tlb.c). One bit per entry; an entry is in one of the two maps. */
    struct {
        uint64_t local[MMU_IDX_COUNT][TLB_SIZE / 64];
        uint64_t global[MMU_IDX_COUNT][TLB_SIZE / 64];
        uint64_t large_4m[1024], large_1g; /* Bloom filters of the large pages that have entries, by GVA */
        uint32_t used;       /* bit per mmu index: something was filled since its site slots were cleared */
        uint32_t local_used; /* the same for pages that are not global */
        uint32_t site_searches[MMU_IDX_COUNT]; /* of its filled slots for one page, since they were cleared */
        uint64_t
            evicted[MMU_IDX_COUNT]
                   [16]; /* Bloom filters of pages that lost their entry to another page: sites may still hold them */
        uint64_t walk_epoch; /* changes with every flush: ends all of walk[] */
        struct
            soft_walk_slot { /* paging-structure cache: where the page table of a 2 MiB region is (SDM vol. 3 4.10.3) */
            uint64_t tag;    /* GVA >> 21 with walk_epoch in the upper bits; 0: empty */
            uint64_t gpa;    /* of the page table */
            const uint8_t *host;
            uint64_t rights, nx; /* of the levels above */
        } walk[SOFT_WALK_SLOTS];
    } track;

    const struct vcpu_irq_port *port;
    struct soft_engine *engine;
    unsigned id;
    bool fpu_live;                 /* the guest's FPU state is in the host registers (else in xsave[]) */
    _Atomic uint32_t in_run;       /* between the start and the end of run(): it may hold TLB entries in use */
    _Atomic uint32_t kick_request; /* run() must return VCPU_EXIT_KICKED */
    uint64_t stat[32];             /* enum soft_stat in run.c */
    uint8_t *xsave;                /* 64-aligned, host XSAVE standard format */
    struct soft_private *priv;     /* code cache, block tables: translate.c and friends */
};

/* ---- small utilities (header-only, no libc) ---- */
static inline void soft_copy(void *dst, const void *src, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n)::"memory");
}
static inline void soft_zero(void *dst, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}

static inline uint64_t soft_get_rflags(const struct soft_cpu *cpu)
{
    return (cpu->rflags & ~(uint64_t)FL_IF) | FL_1 | (cpu->if_flag ? FL_IF : 0);
}
/* Sets every bit; calls soft_update_mode() itself when AC, TF or DF changed. (run.c) */
void soft_set_rflags(struct soft_cpu *cpu, uint64_t v);

static inline bool soft_long_mode(const struct soft_cpu *cpu)
{
    return cpu->efer & EFER_LMA;
}
static inline bool soft_code64(const struct soft_cpu *cpu)
{
    return soft_long_mode(cpu) && (cpu->seg[SEG_CS].attr & SEG_ATTR_L);
}

/* Register an exception; returns SOFT_FAULT so that `return soft_raise(...)` works. */
static inline enum soft_result soft_raise(struct soft_cpu *cpu, uint8_t vector)
{
    cpu->exc = (struct soft_exception){.pending = true, .vector = vector};
    return SOFT_FAULT;
}
static inline enum soft_result soft_raise_err(struct soft_cpu *cpu, uint8_t vector, uint32_t error)
{
    cpu->exc = (struct soft_exception){.pending = true, .vector = vector, .has_error = true, .error = error};
    return SOFT_FAULT;
}

/* Before the local APIC is asked or anything outside the engine runs: it hears of a CR8 that changed. (control.c) */
void soft_tell_cr8(struct soft_cpu *cpu);

/* The VM's memory slots. (engine.c) */
const struct guest_memory *soft_memory(const struct soft_cpu *cpu);

/* RIP of the instruction after `in`, in the mode's width. */
static inline void soft_advance(struct soft_cpu *cpu, const struct insn *in)
{
    uint64_t next = in->rip + in->len;
    cpu->rip = in->code_size == 8 ? next : in->code_size == 4 ? (uint32_t)next : (uint16_t)next;
}

/* MMIO bookkeeping around one execution of an instruction that C code handles. begin: before every attempt, also the repeated ones: replay
 * starts over, writes of a failed attempt are forgotten. retire: the instruction (or one iteration of a REP) is complete; reads it made are
 * used up. The run loop calls both; the string instructions call retire between iterations. */
static inline void soft_io_begin(struct soft_cpu *cpu)
{
    cpu->io.next = 0;
    cpu->io.writes = 0;
    cpu->pending_db = 0;
}
static inline void soft_io_retire(struct soft_cpu *cpu)
{
    cpu->io.next = 0;
    cpu->io.count = 0;
}

/* ---- mmu.c: the guest's page tables (three-table walk) and the software TLB ---- */
struct mmu_result {
    gpa_t gpa;          /* of the byte asked for */
    uint32_t page_size; /* bytes mapped by the leaf */
    bool writable;      /* a write may go on without another walk: permitted and D is set */
    bool readable;      /* a data read with this mmu index is permitted */
    bool global;
};
/* Walks CR3 for one access with the permissions of `mmu_idx`; sets A (and D for writes) atomically. SOFT_OK or SOFT_FAULT with #PF registered.
 * Handles no paging, 32-bit (PSE), PAE and 4-level paging, NX, WP, SMEP, SMAP, reserved bits. `probe`: no
 * exception registered, no D bit set; just SOFT_FAULT. */
enum soft_result soft_walk(struct soft_cpu *cpu, gva_t a, enum soft_access acc, enum soft_mmu_idx idx, bool probe,
                           struct mmu_result *r);
/* Looks up or fills the TLB for one access that stays in a page. On SOFT_OK *host is the HVA, or NULL when the page
 * is no RAM, (for writes) holds translated code, or is watched by a data breakpoint: then *gpa tells where it is and the caller goes through soft_load/soft_store. */
enum soft_result soft_tlb_lookup(struct soft_cpu *cpu, gva_t a, enum soft_access acc, enum soft_mmu_idx idx,
                                 uint8_t **host, gpa_t *gpa);
/* Is the page in the TLB, to be read, and part of a large page of RAM (TLB_LARGE_RAM)? */
bool soft_tlb_large_ram(const struct soft_cpu *cpu, unsigned idx, uint64_t page);
bool soft_tlb_goes_on(struct soft_cpu *cpu, gva_t from, gva_t page, enum soft_access acc);
void soft_tlb_init(struct soft_cpu *cpu); /* a new vCPU: everything empty; needed once before any other use */
void soft_tlb_flush_all(
    struct soft_cpu *cpu); /* also global entries; needed after any change of CR0.PG/WP, CR4, EFER.NXE, DR0-3, DR7 */
void soft_tlb_flush_nonglobal(struct soft_cpu *cpu); /* of the current address space */
/* MOV CR3. pcid: 0 without CR4.PCIDE. keep: what was known of that PCID's address space still counts. */
void soft_tlb_switch(struct soft_cpu *cpu, uint32_t pcid, bool keep);
#define EVERY_PCID 0x1000u
void soft_tlb_forget(struct soft_cpu *cpu, uint32_t pcid); /* INVPCID of any PCID, or of all; global entries stay */
void soft_tlb_flush_page(struct soft_cpu *cpu, gva_t a);   /* INVLPG */
/* Something beside the TLB (fetches) depends on a large page at `a`: INVLPG anywhere in it must end that, too. Called by soft_walk(). */
void soft_tlb_note_large(struct soft_cpu *cpu, uint64_t a, uint32_t page_size);
/* Makes writes to this guest page take the slow path in this vCPU's TLBs (it holds code now). */
void soft_tlb_protect_page(struct soft_cpu *cpu, gpa_t page);

/* Data accesses by C code: any size up to 4096, any alignment, page-crossing, MMIO (replayed), code pages, data breakpoints, #AC. LINEAR
 * addresses: the segment base and limit were applied before (soft_linear). Nothing is written unless all
 * of it can be written. SOFT_OK, SOFT_FAULT, or SOFT_EXIT (MMIO read needed: leave and restart). */
enum soft_result soft_load(struct soft_cpu *cpu, gva_t a, void *dst, uint32_t len, enum soft_mmu_idx idx);
enum soft_result soft_store(struct soft_cpu *cpu, gva_t a, const void *src, uint32_t len, enum soft_mmu_idx idx);
/* For accesses made without these: remembers in pending_db which data breakpoints one has hit. */
void soft_note_access(struct soft_cpu *cpu, gva_t a, uint32_t len, bool write);
/* Checks that a later soft_store() of this range cannot fault (it does the walk, sets D). */
enum soft_result soft_probe_store(struct soft_cpu *cpu, gva_t a, uint32_t len, enum soft_mmu_idx idx);
static inline enum soft_result soft_load_u64(struct soft_cpu *cpu, uint64_t a, uint64_t *v, uint32_t len)
{
    *v = 0;
    return soft_load(cpu, GVA(a), v, len, (enum soft_mmu_idx)cpu->mmu_idx);
}
static inline enum soft_result soft_store_u64(struct soft_cpu *cpu, uint64_t a, uint64_t v, uint32_t len)
{
    return soft_store(cpu, GVA(a), &v, len, (enum soft_mmu_idx)cpu->mmu_idx);
}
/* System accesses (descriptor tables, TSS, IDT): supervisor permissions whatever the CPL. */
enum soft_result soft_load_sys(struct soft_cpu *cpu, uint64_t a, void *dst, uint32_t len);
enum soft_result soft_store_sys(struct soft_cpu *cpu, uint64_t a, const void *src, uint32_t len);

/* ---- cache.c (translator side), called by mmu.c ---- */
/* The guest wrote RAM [a, a+len) that the page flags say holds translated code: drop what overlaps, on all vCPUs. Call after the write. */
void soft_code_written(struct soft_cpu *cpu, gpa_t a, uint32_t len);
bool soft_page_has_code(struct soft_cpu *cpu, gpa_t page);
/* Between a write and the question whether the page has code by now: whoever translates it asks the other way round, so one of the two sees
 * the other. */
static inline void soft_write_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
/* space.c, called by tlb.c: ends what translated code concluded from the mappings. shift 0: from all of the current address space, `global`: of
 * all; else only from the region of 1 << shift bytes around `a`. */
void soft_translation_flush(struct soft_cpu *cpu, bool global, unsigned shift, gva_t a);
void soft_translation_switch(struct soft_cpu *cpu, uint32_t pcid, bool keep);
void soft_translation_forget(struct soft_cpu *cpu, uint32_t pcid);

/* ---- segment.c: addressing with segments, segment loads, far transfers ---- */
/* Linear address of `off` in segment `seg` for an access of `len` bytes: base added, truncated to the mode's width, canonical/limit/type checks
 * (#GP/#SS). In 64-bit mode only FS/GS have a base. */
enum soft_result soft_linear(struct soft_cpu *cpu, enum cpu_seg seg, uint64_t off, uint32_t len, enum soft_access acc,
                             uint64_t *linear);
/* Effective address (offset) of the instruction's memory operand, truncated to addr_size. */
uint64_t soft_effective_address(const struct soft_cpu *cpu, const struct insn *in);
enum soft_result soft_load_segment(struct soft_cpu *cpu, enum cpu_seg seg, uint16_t selector);
/* Sets RIP for a near transfer in the current CS: truncation, canonical or limit check (#GP(0)). */
enum soft_result soft_near_jump(struct soft_cpu *cpu, uint64_t target, uint32_t op_size);

/* ---- exception.c ---- */
/* Delivers cpu->exc (with double and triple fault logic), through real-mode IVT, 32-bit or 64-bit IDT, TSS and IST. SOFT_OK, or SOFT_EXIT with
 * VCPU_EXIT_SHUTDOWN in cpu->exit. */
enum soft_result soft_deliver_exception(struct soft_cpu *cpu);
/* Delivers an external interrupt (vector) or NMI (2). */
enum soft_result soft_deliver_interrupt(struct soft_cpu *cpu, uint8_t vector);

/* ---- instruction handlers: each returns SOFT_NOT_MINE for mnemonics it does not know ---- */
/* system.c etc.: CR/DR/MSR moves, LGDT.., LTR, CLTS, INVLPG, INVPCID, CPUID, RDTSC(P), RDPMC, RDPID, HLT, SYSCALL/SYSRET/SYSENTER/SYSEXIT, IRET,
 * INT n/INT3/INT1/INTO/UD*, far JMP/CALL/RET, MOV/POP/PUSH to and from segment registers, LDS.., LAR/LSL/VERR/VERW, SWAPGS, CLI/STI, CLAC/STAC, PUSHF/POPF, RD/WRFSBASE..,
 * XSETBV/XGETBV, XSAVE*, XRSTOR*, FXSAVE/FXRSTOR (memory images at any address), WBINVD, MONITOR/MWAIT (#UD), SMSW/LMSW, ARPL, IN/OUT. */
enum soft_result soft_system_insn(struct soft_cpu *cpu, const struct insn *in);
/* general.c: near JMP/CALL/RET/Jcc/LOOP/JCXZ, PUSH/POP/PUSHA/POPA/ENTER/LEAVE, MOVS/STOS/LODS/CMPS/SCAS/INS/OUTS with REP,
 * XLAT, BOUND, BCD (DAA DAS AAA AAS AAM AAD), MOV with moffs, SALC, INTO.. in all modes (16, 32, 64). */
enum soft_result soft_general_insn(struct soft_cpu *cpu, const struct insn *in);
/* Both, by groups. Each knows its own by mnemonic and operands, so the order matters only to speed. (system.c) */
#define SOFT_HANDLERS 11u
typedef enum soft_result soft_handler(struct soft_cpu *cpu, const struct insn *in);
extern soft_handler *const soft_handlers[SOFT_HANDLERS];

/* cpuid.c: what CPUID tells, made once from the host's own; which CR4, EFER and XCR0 bits exist follows from it. Needs cpu->id, vcpus, tsc_khz. */
void soft_cpuid_init(struct soft_cpu *cpu);
/* msr.c: MSRs that struct cpu_state doesn't have, to their reset values. At creation and after INIT or reset. */
void soft_msr_reset(struct soft_cpu *cpu);

/* ---- run.c ---- */
void soft_update_mode(
    struct soft_cpu *cpu); /* after any change of CR0/CR4/EFER/CS/SS/DS/ES/CPL/AC/TF/XCR0/DR7/paging */
/* Saves the guest's FPU state to cpu->xsave and gives the host a clean one (when live). */
void soft_fpu_park(struct soft_cpu *cpu);
/* Puts the guest's FPU state into the host registers (when not live). */
void soft_fpu_resume(struct soft_cpu *cpu);

/* ---- register access by operand (header-only) ---- */
/* 32-bit writes zero the upper half, as in 64-bit mode (harmless in the others: it is zero there). */
static inline void soft_gpr_write(struct soft_cpu *cpu, unsigned reg, uint64_t v, unsigned size)
{
    uint64_t *r = &cpu->gpr[reg];
    switch (size) {
    case 8: *r = v; break;
    case 4: *r = (uint32_t)v; break;
    case 2: *r = (*r & ~0xffffull) | (uint16_t)v; break;
    default: *r = (*r & ~0xffull) | (uint8_t)v; break;
    }
}
static inline void soft_reg_write(struct soft_cpu *cpu, const struct insn_op *o, uint64_t v)
{
    if (o->reg_class == RC_GPR_HIGH8)
        cpu->gpr[o->reg] = (cpu->gpr[o->reg] & ~0xff00ull) | ((v & 0xff) << 8);
    else
        soft_gpr_write(cpu, o->reg, v, o->size);
}

#endif
