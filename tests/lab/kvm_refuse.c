/* A preloaded library: KVM as it is on hosts that we do not have. NACELLE_KVM_REFUSE says how:
 *
 *     cap N          the capability N is not there
 *     vcpus N        no VM may have more than N vCPUs
 *     memory N       guest memory is refused with the error N, as is
 *     vcpu N         creating a vCPU
 *     run N          running one
 *     internal N     running a vCPU for the 100th time ends in an internal error of kind N
 *     entry N        ... in the CPU's refusal, for reason N, to enter the guest
 *     exit N         ... in an exit of kind N */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RUNS 100

/* Whether `what` is asked for; then *n. */
static int asked(const char *what, long *n)
{
    const char *s = getenv("NACELLE_KVM_REFUSE");
    size_t len = strlen(what);
    if (!s || strncmp(s, what, len) != 0 || s[len] != ' ') return 0;
    *n = strtol(s + len, NULL, 10);
    return 1;
}

static int refuse(long error)
{
    errno = (int)error;
    return -1;
}

/* The run's shared page says that this happened. */
static int pretend(int fd)
{
    long n;
    struct kvm_run *run = mmap(NULL, sizeof(*run), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (run == MAP_FAILED) return -1;
    if (asked("internal", &n)) {
        run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        run->internal.suberror = (unsigned)n;
        run->internal.ndata = 2;
        run->internal.data[0] = 0x80000b0e;
        run->internal.data[1] = 0x31;
    } else if (asked("entry", &n)) {
        run->exit_reason = KVM_EXIT_FAIL_ENTRY;
        run->fail_entry.hardware_entry_failure_reason = (unsigned long)n;
    } else if (asked("exit", &n)) {
        run->exit_reason = (unsigned)n;
    }
    munmap(run, sizeof(*run));
    return 0;
}

static int run(int fd, unsigned long request, void *arg)
{
    static unsigned runs;
    long n;
    if (asked("run", &n)) return refuse(n);
    int r = (int)syscall(SYS_ioctl, fd, request, arg);
    int strange = asked("internal", &n) || asked("entry", &n) || asked("exit", &n);
    return r == 0 && strange && __atomic_add_fetch(&runs, 1, __ATOMIC_SEQ_CST) == RUNS ? pretend(fd) : r;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list more;
    long n;
    va_start(more, request);
    void *arg = va_arg(more, void *);
    va_end(more);
    if (request == KVM_CHECK_EXTENSION && asked("cap", &n) && n == (long)arg) return 0;
    if (request == KVM_CHECK_EXTENSION && (long)arg == KVM_CAP_MAX_VCPUS && asked("vcpus", &n)) return (int)n;
    if (request == KVM_SET_USER_MEMORY_REGION && asked("memory", &n)) return refuse(n);
    if (request == KVM_CREATE_VCPU && asked("vcpu", &n)) return refuse(n);
    if (request == KVM_RUN) return run(fd, request, arg);
    return (int)syscall(SYS_ioctl, fd, request, arg);
}
