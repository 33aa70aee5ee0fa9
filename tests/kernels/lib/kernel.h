/* A very small kernel to hang one test on. Each test kernel is one .c file with
 *
 *     // RUN: -c 2           options for the runner (default: one CPU)
 *     // STATUS: 4           exit status to expect (default 1, debug-exit 0)
 *     int main(void) { ...; return done(); }
 *
 * Most tests describe a machine state (struct ctx), enter it with IRET, and look at the state in which the next
 * exception left it: exceptions, their error codes and every register are then exact by construction. */
#ifndef KERNELS_KERNEL_H
#define KERNELS_KERNEL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "selectors.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { DE = 0, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };

#define FL_CF 0x1ul
#define FL_PF 0x4ul
#define FL_AF 0x10ul
#define FL_ZF 0x40ul
#define FL_SF 0x80ul
#define FL_TF 0x100ul
#define FL_IF 0x200ul
#define FL_DF 0x400ul
#define FL_OF 0x800ul
#define FL_IOPL 0x3000ul
#define FL_NT 0x4000ul
#define FL_RF 0x10000ul
#define FL_AC 0x40000ul
#define FL_ID 0x200000ul
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_MP 0x2ul
#define CR0_EM 0x4ul
#define CR0_TS 0x8ul
#define CR0_NE 0x20ul
#define CR0_WP 0x10000ul
#define CR0_AM 0x40000ul
#define CR0_PG 0x80000000ul
#define CR4_TSD 0x4ul
#define CR4_DE 0x8ul
#define CR4_PGE 0x80ul
#define CR4_OSFXSR 0x200ul
#define CR4_OSXMMEXCPT 0x400ul
#define CR4_UMIP 0x800ul
#define CR4_FSGSBASE 0x10000ul
#define CR4_PCIDE 0x20000ul
#define CR4_OSXSAVE 0x40000ul
#define CR4_SMEP 0x100000ul
#define CR4_SMAP 0x200000ul

#define MSR_TSC 0x10
#define MSR_APIC_BASE 0x1b
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
#define MSR_XSS 0xda0

/* ---- reporting (core.c) ---- */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %s %c %d %u %x %lx %lu %p, widths with 0 */
bool check_failed(const char *file, int line, const char *what);
/* Prints and counts a failure; the kernel goes on. Gives the truth of `cond`. */
#define CHECK(cond) ((cond) ? true : check_failed(__FILE__, __LINE__, #cond))
/* The same, printing both values. */
#define CHECK_EQ(got, want) check_eq((u64)(got), (u64)(want), __FILE__, __LINE__, #got)
bool check_eq(u64 got, u64 want, const char *file, int line, const char *what);
void skip(const char *why); /* a part that this machine can't run (CPUID): printed, and shown by the runner */
/* True where this is known to get `what` wrong; then it is printed, and shown by the runner. The manual decides; tests/lab/KVM-DIFFERENCES.md has the
 * references. */
enum {
    TCG = 1,  /* QEMU's emulation as such (RUNNER=qemu) */
    LAB = 2,  /* KVM on the SVM of QEMU's emulation: the CPU of the lab (the runner puts "lab" on the command line) */
    ONKVM = 4 /* KVM itself, wherever it runs ("kvm") */
};
bool left_out(unsigned where, const char *what);
int done(void);                                 /* value for main(): 0 when nothing failed */
void leave(u32 code) __attribute__((noreturn)); /* debug exit; the process ends with (code << 1) | 1 */
void panic(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* ---- contexts and traps (trap.c, trap.S) ---- */
struct ctx {
    u64 gpr[16];
    u64 rip, rflags, cs, ss;     /* trap.S knows these offsets */
    u64 vector, error, cr2, dr6; /* out: what ended the run */
};
struct frame {
    u64 gpr[16];
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

/* A piece of code under test: `name` is its first byte; it ends in a trap with vector END. */
#define END 0x81
#define STR_(x) #x
#define STR(x) STR_(x)
#define CODE_BITS(bits, name, text)                                                                              \
    __asm__(".pushsection .text.cases, \"ax\", @progbits\n.balign 64\n.code" #bits "\n.global " #name "\n" #name \
            ":\n" text "\nint $0x81\n.code64\n.popsection");                                                     \
    extern u8 name[]
#define CODE(name, text) CODE_BITS(64, name, text)
#define LABEL(name) extern u8 name[] /* a label inside a CODE */

/* Kernel (CPL 0), 64-bit user, and 32-bit user contexts at `code`; registers hold recognisable values, the stack is
 * ctx_stack. 32-bit code is copied below 4 GiB first: see ctx_user32(). */
void ctx_kernel(struct ctx *c, const void *code);
void ctx_user(struct ctx *c, const void *code);
/* Copies `len` bytes of code to USER32_CODE; data page at USER32_DATA; stack ends at USER32_STACK. */
void ctx_user32(struct ctx *c, const void *code, u64 len);
#define USER32_CODE 0x50000000ul
#define USER32_DATA 0x50002000ul
#define USER32_STACK 0x50004000ul
extern u8 ctx_stack[16384] __attribute__((aligned(4096)));

/* Runs until the next exception or unclaimed interrupt on this CPU, whose state is then in *c. Gives the vector. */
u64 ctx_run(struct ctx *c);
/* Runs and checks that nothing but this fault happened: vector, error code, RIP, every GPR and RFLAGS as before. */
#define FAULTS(c, vec, err) ctx_faults(c, vec, err, 0, __FILE__, __LINE__)
/* The same, but these bits of RFLAGS may be anything. */
#define FAULTS_BUT_FLAGS(c, vec, err, loose) ctx_faults(c, vec, err, loose, __FILE__, __LINE__)
bool ctx_faults(struct ctx *c, u64 vec, u64 err, u64 loose_flags, const char *file, int line);
/* The same for code that gets to its END. */
#define COMPLETES(c) ctx_completes(c, __FILE__, __LINE__)
bool ctx_completes(struct ctx *c, const char *file, int line);

/* C handlers; may change the frame. NULL takes the handler away. */
typedef void trap_handler(struct frame *f);
void on_vector(unsigned vector, trap_handler *fn);
struct idt_gate {
    u16 offset_low, selector;
    u8 ist, attr;
    u16 offset_mid;
    u32 offset_high, reserved;
} __attribute__((packed));
extern struct idt_gate idt[256];
void idt_set(unsigned vector, const void *entry, unsigned dpl, unsigned ist);
/* Exceptions (all but NMI and #DF, which always do) on stack IST1, for tests whose own stack is unusable. */
void exceptions_on_ist(bool on);
struct tss {
    u32 reserved0;
    u64 rsp[3], ist[8], reserved1; /* ist[0] is reserved */
    u16 reserved2, iomap;
    u8 io_bitmap[8193];
} __attribute__((packed));
extern struct tss tss[MAX_CPUS];
extern u64 gdt[GDT_BYTES / 8];
unsigned cpu_index(void); /* of the running CPU, from TR */
extern u8 trap_stubs[];
extern u64 boot_pml4[512];

/* ---- memory (page.c) ---- */
#define PAGE 4096ul
#define PTE_P 1ul
#define PTE_W 2ul
#define PTE_U 4ul
#define PTE_PWT 8ul
#define PTE_PCD 16ul
#define PTE_A 32ul
#define PTE_D 64ul
#define PTE_PS 128ul
#define PTE_G 256ul
#define PTE_NX (1ul << 63)
#define PTE_ADDR 0x000ffffffffff000ul
#define USER_ALIAS 0x8000000000ul
/* The address at which user code sees kernel memory. */
#define user(p) ((void *)((u64)(p) + USER_ALIAS))
#define TEST_VA 0x40000000ul              /* 1 GiB: free virtual addresses for tests, up to 3 GiB */
void *page_alloc(void);                   /* zeroed */
void *pages_alloc(unsigned n, u64 align); /* physically contiguous */
/* The entry that maps `va` at level 1 (4 KiB), 2 (2 MiB), 3 (1 GiB) or 4; makes tables on the way. */
u64 *pte_of(u64 va, unsigned level);
void map_page(u64 va, u64 pa, u64 flags); /* 4 KiB, and INVLPG */
void *phys(u64 pa);

/* ---- the CPU's instructions (cpu.h holds the inline ones) ---- */
#include "cpu.h"

/* ---- APIC and timers (apic.c), other CPUs (smp.c) ---- */
#define LAPIC 0xfee00000ul
u32 apic_read(u32 reg); /* xAPIC register offsets in both modes */
void apic_write(u32 reg, u32 v);
void apic_ipi(u32 apic_id, u32 low);
void apic_enable(void); /* software-enables the LAPIC, spurious vector 0xff; masks the PICs */
void apic_eoi(void);
bool x2apic_enable(void);
void delay_us(u64 us); /* by the PIT, so that it does not trust what is under test */
u64 tsc_khz(void);     /* measured against the PIT, once */
u64 tsc_khz_now(void); /* measured again */
void pic_mask_all(void);
unsigned cpus(void); /* from cpus=N on the command line; 1 without */
const char *command_line(void);
void smp_start(void);                                      /* starts the other CPUs; they wait for work */
void smp_run(unsigned cpu, void (*fn)(void *), void *arg); /* asynchronously */
void smp_wait(unsigned cpu);
void smp_sipi(u32 apic_id, u8 vector); /* INIT, SIPI, SIPI */

void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
u64 random64(u64 *seed); /* xorshift64*; never 0 in, never 0 out */

#endif
