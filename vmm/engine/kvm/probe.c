/* Does this host's KVM run guest code at the speed of the CPU? Some nested clouds offer a /dev/kvm that creates VMs but emulates
 * every instruction, a thousand times slower. A tiny VM tells: 64-bit code in ring 0 with paging on runs a short loop of loads, stores,
 * calls and arithmetic, and the same bytes run here. What is compared is CPU time, so that a busy host does not look like a slow one. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "vmm/engine/kvm/kvm.h"

#define MEMORY 0x6000u
#define PML4 0x0u
#define PDPT 0x1000u
#define PD 0x2000u
#define CODE 0x3000u
#define DATA 0x4000u
#define STACK_TOP 0x6000u

#define LOOPS 20000u
/* What the CPU needs for the loop is some 30 us; an emulator does not get far in this: */
#define CPU_LIMIT_NS 6000000u
#define WALL_LIMIT_NS 14000000u
#define SLICE_NS 1000000
/* A guest may be this much slower (nested paging, the emulated CPUs of the lab), plus the price of entering it and of first touches. */
#define TIMES_SLOWER 20u
#define ENTRY_NS 1000000u

#define CR0_PE 0x1ull
#define CR0_PG 0x80000000ull
#define CR4_PAE 0x20ull
#define EFER_LME 0x100ull
#define EFER_LMA 0x400ull

/* rbx: a word to work on; ecx: iterations. The code is at home at any address. */
static const uint8_t loop_code[] = {
    0x48, 0xff, 0x03,             /* l: inc qword [rbx] */
    0x48, 0x03, 0x03,             /*    add rax, [rbx] */
    0x48, 0x0f, 0xaf, 0xc1,       /*    imul rax, rcx */
    0xe8, 0x05, 0x00, 0x00, 0x00, /*    call f */
    0xff, 0xc9,                   /*    dec ecx */
    0x75, 0xed,                   /*    jnz l */
    0xc3,                         /*    ret */
    0x48, 0x89, 0x43, 0x08,       /* f: mov [rbx + 8], rax */
    0xc3,                         /*    ret */
};
/* s: mov ecx, LOOPS; call l; out 0x10, al; jmp s */
static const uint8_t guest_start[] = {
    0xb9, LOOPS & 0xff, LOOPS >> 8 & 0xff, LOOPS >> 16, 0x00, 0xe8, 0x16, 0x00, 0x00, 0x00, 0xe6, 0x10, 0xeb, 0xf2};
#define LOOP_AT 0x20u

struct probe {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *memory;
    timer_t timer;
    bool has_timer;
};

/* ---- the tiny VM ---- */

static void put64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, sizeof(v));
}

static void fill(uint8_t *m)
{
    put64(m + PML4, PDPT | 3);
    put64(m + PDPT, PD | 3);
    put64(m + PD, 0x83); /* the first 2 MiB, as one page */
    memcpy(m + CODE, guest_start, sizeof(guest_start));
    memcpy(m + CODE + LOOP_AT, loop_code, sizeof(loop_code));
}

static int set_registers(const struct probe *p)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = CODE, .rflags = 2, .rbx = DATA, .rcx = LOOPS, .rsp = STACK_TOP};
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    int e = kvm_ioctl(p->vcpu, KVM_GET_SREGS, &s);
    if (e < 0) return e;
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr0 = CR0_PE | CR0_PG;
    s.cr3 = PML4;
    s.cr4 = CR4_PAE;
    s.efer = EFER_LME | EFER_LMA;
    e = kvm_ioctl(p->vcpu, KVM_SET_SREGS, &s);
    return e < 0 ? e : kvm_ioctl(p->vcpu, KVM_SET_REGS, &r);
}

static int build(struct probe *p)
{
    p->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->memory == MAP_FAILED) return -ENOMEM;
    fill(p->memory);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)p->memory};
    int r = kvm_ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region);
    if (r < 0) return r;
    p->vcpu = kvm_ioctl_n(p->vm, KVM_CREATE_VCPU, 0);
    if (p->vcpu < 0) return p->vcpu;
    r = kvm_ioctl_n(p->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (r < (int)sizeof(struct kvm_run)) return r < 0 ? r : -EINVAL;
    p->run_size = (size_t)r;
    p->run = kvm_sys->mmap(p->vcpu, p->run_size, 0);
    return p->run ? set_registers(p) : -ENOMEM;
}

static void tear_down(struct probe *p)
{
    if (p->has_timer) timer_delete(p->timer);
    if (p->run) kvm_sys->munmap(p->run, p->run_size);
    if (p->vcpu >= 0) kvm_sys->close(p->vcpu);
    if (p->vm >= 0) kvm_sys->close(p->vm);
    if (p->memory && p->memory != MAP_FAILED) munmap(p->memory, MEMORY);
}

/* ---- time ---- */

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The same loop on this CPU. */
static uint64_t native_ns(void)
{
    uint64_t word[2] = {0, 0};
    uint32_t n = LOOPS;
    uint64_t before = cpu_ns();
    __asm__ volatile("1: incq (%[w])\n"
                     "   addq (%[w]), %%rax\n"
                     "   imulq %%rcx, %%rax\n"
                     "   movq %%rax, 8(%[w])\n"
                     "   decl %%ecx\n"
                     "   jnz 1b\n"
                     : "+c"(n)
                     : [w] "r"(word)
                     : "rax", "memory", "cc");
    return cpu_ns() - before;
}

/* Calls the thread out of KVM_RUN, again and again, so that it can look at the clocks. */
static int set_timer(struct probe *p)
{
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KVM_KICK_SIGNAL};
    struct itimerspec t = {.it_value.tv_nsec = SLICE_NS, .it_interval.tv_nsec = SLICE_NS};
    ev._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &ev, &p->timer)) return -errno;
    p->has_timer = true;
    return timer_settime(p->timer, 0, &t, NULL) ? -errno : 0;
}

struct pace {
    uint64_t wall, cpu; /* clocks at the beginning of the measurement */
    uint64_t pass;      /* CPU clock at the beginning of this pass of the loop */
    bool fast;
};

/* One KVM_RUN: the end of a pass, or a look at the clocks. A pass that was fast enough settles it: slow ones may be the first touches of
 * memory, or a host that is a busy VM itself and loses CPU time to others without knowing it. */
static int turn(const struct probe *p, uint64_t native, struct pace *t)
{
    int r = kvm_ioctl_n(p->vcpu, KVM_RUN, 0);
    uint64_t now = cpu_ns();
    if (r < 0) return r == -EINTR ? 0 : r;
    if (p->run->exit_reason != KVM_EXIT_IO) return -EIO;
    t->fast = now - t->pass <= ENTRY_NS + native * TIMES_SLOWER;
    t->pass = now;
    return 0;
}

static uint64_t iterations_done(const struct probe *p)
{
    struct kvm_regs r = {0};
    return kvm_ioctl(p->vcpu, KVM_GET_REGS, &r) < 0 || r.rcx > LOOPS ? 0 : LOOPS - r.rcx;
}

static int compare(const struct probe *p, struct nerr *e)
{
    uint64_t native = native_ns();
    struct pace t = {.wall = clock_mono_ns(), .cpu = cpu_ns()};
    int r = 0;
    for (t.pass = t.cpu; !r && !t.fast; r = turn(p, native, &t))
        if (cpu_ns() - t.cpu > CPU_LIMIT_NS || clock_mono_ns() - t.wall > WALL_LIMIT_NS) break;
    if (r) return nerr_set(e, r, "KVM does not run 64-bit code here: %s", strerror(-r));
    if (t.fast) return 0;
    uint64_t should = clock_muldiv(native, iterations_done(p) + 1, LOOPS) + 1;
    return nerr_set(e, -ENOTSUP, "KVM emulates guest code instead of running it: %llu times slower than this CPU",
                    (unsigned long long)((cpu_ns() - t.pass) / should));
}

static int measure(int kvm, struct nerr *e)
{
    struct probe p = {.kvm = kvm, .vm = -1, .vcpu = -1};
    sigset_t own, before;
    sigemptyset(&own);
    sigaddset(&own, KVM_KICK_SIGNAL);
    int r = kvm_signals_init(e);
    if (r) return r;
    pthread_sigmask(SIG_UNBLOCK, &own, &before);
    p.vm = kvm_create_vm(kvm, e);
    if (p.vm < 0) {
        r = p.vm;
    } else {
        r = build(&p);
        if (r >= 0) r = set_timer(&p);
        if (r < 0)
            r = nerr_set(e, r, "KVM cannot create a small VM to measure: %s", strerror(-r));
        else
            r = compare(&p, e);
    }
    tear_down(&p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

int kvm_probe(bool speed, struct nerr *e)
{
    int fd = kvm_open_checked(e);
    if (fd < 0) return fd;
    int r = speed ? measure(fd, e) : 0;
    kvm_sys->close(fd);
    return r;
}
