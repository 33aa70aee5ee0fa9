/* Host signals raised by translated code (division, x87 and SSE exceptions, misaligned vector accesses, instructions this host
 * does not have) end the run of the block; hostfault.c makes a guest exception of them. */
#define _GNU_SOURCE
#include "vmm/engine/soft/xlat.h"

#include <asm/prctl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ALT_STACK_SIZE (64u << 10)

static _Thread_local struct soft_cpu *current;

static void on_fault(int sig, siginfo_t *si, void *uc_)
{
    ucontext_t *uc = uc_;
    greg_t *r = uc->uc_mcontext.gregs;
    struct soft_cpu *cpu = current;
    (void)si;
    if (cpu) {
        struct soft_private *p = cpu->priv;
        uint64_t pc = (uint64_t)r[REG_RIP], code = (uint64_t)(uintptr_t)p->code;
        if (pc - code >= p->code_stubs_end && pc - code < CODE_CACHE_SIZE) {
            p->fault_pc = pc;
            p->fault_trap = (int)r[REG_TRAPNO];
            r[REG_RIP] = (greg_t)(code + p->stub_exit[HX_HOSTFAULT]);
            r[REG_EFL] &= ~(greg_t)FL_TF;
            return;
        }
    }
    signal(sig, SIG_DFL); /* a bug of ours: let it be seen */
}

int soft_signals_init(struct nerr *e)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = on_fault;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i], &sa, NULL))
            return nerr_set(e, -errno, "cannot install a handler for signal %d: %s", signals[i], strerror(errno));
    return 0;
}

static pthread_key_t stack_key;
static pthread_once_t stack_once = PTHREAD_ONCE_INIT;

static void free_stack(void *stack)
{
    stack_t off = {.ss_flags = SS_DISABLE};
    sigaltstack(&off, NULL);
    munmap(stack, ALT_STACK_SIZE);
}

static void make_key(void)
{
    pthread_key_create(&stack_key, free_stack);
}

/* The guest's RSP is in RSP while translated code runs: every handler needs a stack of its own. %gs points to the vCPU. */
int soft_thread_bind(struct soft_cpu *cpu)
{
    if (current == cpu) return 0;
    pthread_once(&stack_once, make_key);
    if (!pthread_getspecific(stack_key)) {
        void *stack = mmap(NULL, ALT_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) return -errno;
        stack_t ss = {.ss_sp = stack, .ss_size = ALT_STACK_SIZE};
        if (sigaltstack(&ss, NULL)) {
            int err = -errno;
            munmap(stack, ALT_STACK_SIZE);
            return err;
        }
        pthread_setspecific(stack_key, stack);
    }
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, cpu)) return -errno;
    current = cpu;
    return 0;
}

void soft_thread_unbind(const struct soft_cpu *cpu)
{
    if (current == cpu) current = NULL;
}
