/* Runs cases on the host CPU: the oracle.
 *
 * The whole state is loaded with XRSTOR and IRETQ (which loads RIP, RSP, RFLAGS and CS in one step, in user mode too),
 * and every case ends in a signal: the closing int3, or the fault it runs into. The kernel's signal frame then holds the complete
 * state, exception vector, error code and CR2. The handler never returns into the case but to native_run().
 *
 * System calls from generated code are stopped by syscall user dispatch, since a case that jumps into the
 * middle of an instruction may well execute one.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/diff/worker.h"

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

#define ALTSTACK_SIZE 65536
#define TICK_US 20000

/* Shared with the assembly below. */
struct native_frame {
    uint64_t gpr[16];
    uint64_t iret[5]; /* RIP CS RFLAGS RSP SS */
    uint64_t fs_base, gs_base;
};
struct native_frame nat_frame __attribute__((used));
uint8_t nat_xsave[4096] __attribute__((aligned(64), used));
uint64_t nat_xmask __attribute__((used)), nat_host_rsp __attribute__((used)), nat_host_fs __attribute__((used));
uint64_t nat_fs __attribute__((used)), nat_gs __attribute__((used));
uint32_t nat_ds __attribute__((used)), nat_es __attribute__((used));
uint32_t nat_sel_fs __attribute__((used)), nat_sel_gs __attribute__((used));
uint32_t nat_data_sel __attribute__((used));       /* loaded into DS, ES and, for 32-bit code, FS and GS */
volatile uint8_t nat_inside __attribute__((used)); /* the case runs; also the selector of syscall user dispatch */
volatile uint32_t nat_ticks __attribute__((used));

void native_enter(void);
void native_signal(void);
void native_restorer(void);
extern const char native_text[], native_text_end[];
void native_signal_c(int sig, siginfo_t *info, void *uc);

static struct diff_result *cur;
static bool dispatch_on, have_ldt;

/* arch_prctl by hand: %fs is the guest's while these run, so no libc call (errno) may be made. */
__asm__(".text\n"
        ".p2align 4\n"
        "native_text:\n"
        "native_enter:\n"
        "    push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "    mov %rsp, nat_host_rsp(%rip)\n"
        "    mov $158, %eax\n mov $0x1001, %edi\n mov 176+nat_frame(%rip), %rsi\n syscall\n" /* ARCH_SET_GS */
        "    mov $158, %eax\n mov $0x1002, %edi\n mov 168+nat_frame(%rip), %rsi\n syscall\n" /* ARCH_SET_FS */
        "    mov nat_data_sel(%rip), %eax\n mov %eax, %ds\n mov %eax, %es\n"
        "    test %eax, %eax\n jz 3f\n mov %eax, %fs\n mov %eax, %gs\n3:\n"
        "    mov nat_xmask(%rip), %eax\n xor %edx, %edx\n xrstor64 nat_xsave(%rip)\n"
        "    lea nat_frame(%rip), %rdi\n"
        "    lea 128(%rdi), %rsp\n"
        "    mov 0(%rdi), %rax\n mov 8(%rdi), %rcx\n mov 16(%rdi), %rdx\n mov 24(%rdi), %rbx\n"
        "    mov 40(%rdi), %rbp\n mov 48(%rdi), %rsi\n mov 64(%rdi), %r8\n mov 72(%rdi), %r9\n"
        "    mov 80(%rdi), %r10\n mov 88(%rdi), %r11\n mov 96(%rdi), %r12\n mov 104(%rdi), %r13\n"
        "    mov 112(%rdi), %r14\n mov 120(%rdi), %r15\n mov 56(%rdi), %rdi\n"
        "    movb $1, nat_inside(%rip)\n"
        "    iretq\n"
        "native_signal:\n"                              /* edi sig, rsi info, rdx ucontext */
        "    pushfq\n andl $~0x44000, (%rsp)\n popfq\n" /* AC and NT may still be the guest's */
        "    cmpb $0, nat_inside(%rip)\n jne 1f\n ret\n"
        "1:  cmp $26, %edi\n jne 2f\n" /* SIGVTALRM: let the case go on for a while */
        "    incl nat_ticks(%rip)\n cmpl $10, nat_ticks(%rip)\n jae 2f\n ret\n"
        "2:  movb $0, nat_inside(%rip)\n"
        "    mov %edi, %r13d\n mov %rsi, %r14\n mov %rdx, %r12\n"
        "    mov %ds, %eax\n mov %eax, nat_ds(%rip)\n mov %es, %eax\n mov %eax, nat_es(%rip)\n"
        "    mov %fs, %eax\n mov %eax, nat_sel_fs(%rip)\n mov %gs, %eax\n mov %eax, nat_sel_gs(%rip)\n"
        "    mov $158, %eax\n mov $0x1003, %edi\n lea nat_fs(%rip), %rsi\n syscall\n"
        "    mov $158, %eax\n mov $0x1004, %edi\n lea nat_gs(%rip), %rsi\n syscall\n"
        "    xor %eax, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %fs\n mov %eax, %gs\n"
        "    mov $158, %eax\n mov $0x1002, %edi\n mov nat_host_fs(%rip), %rsi\n syscall\n"
        "    mov %r13d, %edi\n mov %r14, %rsi\n mov %r12, %rdx\n"
        "    and $-16, %rsp\n call native_signal_c\n"
        "    mov nat_host_rsp(%rip), %rsp\n"
        "    pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
        "    cld\n ret\n"
        "native_restorer:\n"
        "    mov $15, %eax\n syscall\n nop\n" /* the range allowed to make system calls is one of return addresses */
        "native_text_end:\n");

_Static_assert(offsetof(struct native_frame, fs_base) == 168, "offsets in the assembly above");
_Static_assert(offsetof(struct native_frame, gs_base) == 176, "offsets in the assembly above");

/* Page-fault error codes as the kernel reports them are the CPU's own. */
void native_signal_c(int sig, siginfo_t *info, void *ucontext)
{
    const ucontext_t *uc = ucontext;
    const greg_t *g = uc->uc_mcontext.gregs;
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    (void)info;
    for (unsigned i = 0; i < 16; i++) cur->gpr[i] = (uint64_t)g[order[i]];
    cur->rip = (uint64_t)g[REG_RIP];
    cur->rflags = (uint64_t)g[REG_EFL];
    uint64_t sels = (uint64_t)g[REG_CSGSFS]; /* cs gs fs ss, 16 bits each */
    cur->cs = (uint16_t)sels;
    cur->ss = (uint16_t)(sels >> 48);
    cur->ds = (uint16_t)nat_ds;
    cur->es = (uint16_t)nat_es;
    cur->fs = (uint16_t)nat_sel_fs;
    cur->gs = (uint16_t)nat_sel_gs;
    cur->fs_base = nat_fs;
    cur->gs_base = nat_gs;
    cur->vector = (uint32_t)g[REG_TRAPNO];
    cur->error = (uint32_t)g[REG_ERR];
    cur->cr2 = cur->vector == 14 ? (uint64_t)g[REG_CR2] : 0;
    memcpy(cur->xsave, uc->uc_mcontext.fpregs, XSAVE_BYTES);
    /* A fault of the harness itself must not pass for a result. */
    if (cur->rip >= (uint64_t)(uintptr_t)native_text && cur->rip < (uint64_t)(uintptr_t)native_text_end) _exit(98);
    cur->status = sig == SIGSYS ? RUN_SKIP : sig == SIGVTALRM ? RUN_HANG : RUN_DONE;
}

struct raw_sigaction {
    void (*handler)(void);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
};

static int map_window(void)
{
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        int prot = data_page_kind[i] == PK_NONE ? PROT_NONE
                   : data_page_kind[i] == PK_RO ? PROT_READ
                                                : PROT_READ | PROT_WRITE;
        /* PROT_NONE would report "not present" too, but a hole is the plainest thing */
        if (prot != PROT_NONE && mmap((void *)(uintptr_t)(DATA_BASE + i * PAGE), PAGE, prot,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
            return -1;
    }
    if (mmap((void *)(uintptr_t)CODE_BASE, CODE_PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
        return -1;
    return 0;
}

/* The LDT of MODE_16. Kernels can be built without it: then such cases are skipped. */
static bool make_ldt(void)
{
    struct user_desc code = {
        .entry_number = SEL_CODE16 >> 3, .base_addr = CODE_BASE, .limit = LIMIT_CODE16, .contents = 2};
    struct user_desc data = {.entry_number = SEL_DATA16 >> 3, .base_addr = DATA_BASE, .limit = LIMIT_DATA16};
    struct user_desc stack = data;
    stack.entry_number = SEL_STACK32 >> 3;
    stack.seg_32bit = 1;
    return !syscall(SYS_modify_ldt, 1, &stack, sizeof(stack)) && !syscall(SYS_modify_ldt, 1, &code, sizeof(code)) &&
           !syscall(SYS_modify_ldt, 1, &data, sizeof(data));
}

int native_init(char *text)
{
    static const int sigs[] = {SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGBUS, SIGSYS, SIGVTALRM};
    if (map_window()) {
        snprintf(text, 120, "cannot map the test window: %s", strerror(errno));
        return -1;
    }
    stack_t ss = {.ss_sp = malloc(ALTSTACK_SIZE), .ss_size = ALTSTACK_SIZE};
    if (!ss.ss_sp || sigaltstack(&ss, NULL)) return -1;
    for (unsigned i = 0; i < sizeof(sigs) / sizeof(*sigs); i++) {
        struct raw_sigaction sa = {.handler = native_signal,
                                   .flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | 0x04000000 /* SA_RESTORER */,
                                   .restorer = native_restorer};
        if (syscall(SYS_rt_sigaction, sigs[i], &sa, NULL, 8)) return -1;
    }
    syscall(SYS_arch_prctl, ARCH_GET_FS, &nat_host_fs);
    nat_xmask = host.xcomp;
    have_ldt = make_ldt();
    dispatch_on = prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, (unsigned long)native_text,
                        (unsigned long)(native_text_end - native_text), &nat_inside) == 0;
    struct itimerval tick = {.it_interval.tv_usec = TICK_US, .it_value.tv_usec = TICK_US};
    setitimer(ITIMER_VIRTUAL, &tick, NULL);
    return 0;
}

/* Without syscall user dispatch: no case that contains the bytes of a system call anywhere. */
static bool has_syscall_bytes(const struct diff_case *c)
{
    for (unsigned i = 0; i + 1 < c->code_len; i++)
        if ((c->code[i] == 0x0f && (c->code[i + 1] == 0x05 || c->code[i + 1] == 0x34)) ||
            (c->code[i] == 0xcd && c->code[i + 1] == 0x80))
            return true;
    return false;
}

static void copy_window(uint8_t *image, bool in)
{
    for (uint64_t va = DATA_BASE; va < DATA_BASE + DATA_PAGES * PAGE; va += PAGE) {
        int p = mem_page_index(va);
        if (p < 0) continue;
        bool ro = data_page_kind[(va - DATA_BASE) / PAGE] == PK_RO;
        uint8_t *at = image + (unsigned)p * PAGE, *win = (uint8_t *)(uintptr_t)va;
        if (in && ro && memcmp(win, at, PAGE)) {
            mprotect(win, PAGE, PROT_READ | PROT_WRITE);
            memcpy(win, at, PAGE);
            mprotect(win, PAGE, PROT_READ);
        } else if (in && !ro) {
            memcpy(win, at, PAGE);
        } else if (!in) {
            memcpy(at, win, PAGE);
        }
    }
    uint8_t *at = image + (MEM_PAGES - CODE_PAGES) * PAGE, *code = (uint8_t *)(uintptr_t)CODE_BASE;
    memcpy(in ? code : at, in ? at : code, CODE_PAGES * PAGE);
}

void native_run(const struct diff_case *c, struct diff_result *r)
{
    if ((!dispatch_on && has_syscall_bytes(c)) || (c->mode == MODE_16 && !have_ldt)) {
        r->status = RUN_SKIP;
        return;
    }
    cur = r;
    case_fill_memory(c, r->mem);
    copy_window(r->mem, true);
    memcpy(nat_xsave, c->xsave, XSAVE_BYTES);
    memcpy(nat_frame.gpr, c->gpr, sizeof(nat_frame.gpr));
    nat_frame.iret[0] = c->rip - code_base(c->mode);
    nat_frame.iret[1] = c->mode == MODE_64 ? SEL_CODE64 : c->mode == MODE_32 ? SEL_CODE32 : SEL_CODE16;
    nat_frame.iret[2] = c->rflags;
    nat_frame.iret[3] = c->gpr[4];
    nat_frame.iret[4] = c->mode != MODE_16 ? SEL_DATA : c->stack32 ? SEL_STACK32 : SEL_DATA16;
    nat_frame.fs_base = c->fs_base;
    nat_frame.gs_base = c->gs_base;
    nat_data_sel = c->mode == MODE_64 ? 0 : c->mode == MODE_32 ? SEL_DATA : SEL_DATA16;
    nat_ticks = 0;
    native_enter();
    copy_window(r->mem, false);
    xsave_normalise(r->xsave);
}
