/* nacelle doctor: huge pages, sharing, NUMA, faults handled in user space. */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>

#include "cli/doctor_internal.h"

#define SYS_HUGE "/sys/kernel/mm/hugepages/hugepages-"
#define SYS_THP "/sys/kernel/mm/transparent_hugepage/enabled"
#define SYS_KSM "/sys/kernel/mm/ksm/"

static void huge_pages(const struct doctor_env *env, struct doctor_finding *f, unsigned kib, const char *size,
                       const char *how)
{
    char path[128];
    snprintf(path, sizeof(path), SYS_HUGE "%ukB/nr_hugepages", kib);
    long long total = doctor_number(env, path);
    if (total < 0) {
        doctor_set(f, DOCTOR_MISSING, "the kernel offers no pages of %s", size);
        doctor_advise(f, "use a kernel with CONFIG_HUGETLBFS on a processor that has such pages");
        return;
    }
    snprintf(path, sizeof(path), SYS_HUGE "%ukB/free_hugepages", kib);
    long long free_pages = doctor_number(env, path);
    if (free_pages < 0) free_pages = 0;
    doctor_fact(f, "total", (double)total);
    doctor_fact(f, "free", (double)free_pages);
    if (!total) {
        doctor_set(f, DOCTOR_LIMITED, "none of %s set aside", size);
        doctor_advise(f, "%s", how);
        return;
    }
    doctor_set(f, free_pages ? DOCTOR_OK : DOCTOR_LIMITED, "%lld of %s set aside, %lld free", total, size, free_pages);
    if (!free_pages) doctor_advise(f, "all are in use; %s", how);
}

void doctor_huge_2m(const struct doctor_env *env, struct doctor_finding *f)
{
    huge_pages(env, f, 2048, "2 MiB", "set N aside: echo N > " SYS_HUGE "2048kB/nr_hugepages");
}

void doctor_huge_1g(const struct doctor_env *env, struct doctor_finding *f)
{
    huge_pages(env, f, 1048576, "1 GiB", "set N aside at boot: hugepagesz=1G hugepages=N on the kernel's command line");
}

void doctor_thp(const struct doctor_env *env, struct doctor_finding *f)
{
    char text[128], mode[32] = "";
    if (doctor_read(env, SYS_THP, text, sizeof(text))) {
        const char *open = strchr(text, '[');
        size_t n = open ? strcspn(open + 1, "]") : 0;
        if (open && open[1 + n] == ']') snprintf(mode, sizeof(mode), "%.*s", (int)(n > 31 ? 31 : n), open + 1);
    }
    if (!mode[0]) {
        doctor_set(f, DOCTOR_MISSING, "the kernel has no transparent huge pages");
        doctor_advise(f, "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
        return;
    }
    doctor_fact_text(f, "mode", mode);
    bool off = strcmp(mode, "never") == 0;
    doctor_set(f, off ? DOCTOR_LIMITED : DOCTOR_OK, "mode %s", mode);
    if (off) doctor_advise(f, "let programs ask for them: echo madvise > " SYS_THP);
}

void doctor_ksm(const struct doctor_env *env, struct doctor_finding *f)
{
    long long run = doctor_number(env, SYS_KSM "run");
    if (run < 0) {
        doctor_set(f, DOCTOR_MISSING, "the kernel cannot merge equal pages of guests");
        doctor_advise(f, "use a kernel with CONFIG_KSM");
        return;
    }
    long long shared = doctor_number(env, SYS_KSM "pages_sharing");
    doctor_fact(f, "run", (double)run);
    doctor_fact(f, "pages_sharing", (double)(shared < 0 ? 0 : shared));
    if (run == 1) {
        doctor_set(f, DOCTOR_OK, "on, %lld pages saved", shared < 0 ? 0 : shared);
        return;
    }
    doctor_set(f, DOCTOR_LIMITED, "off: equal pages of guests are not merged");
    doctor_advise(f, "to trade CPU time for memory: echo 1 > " SYS_KSM "run");
}

void doctor_numa(const struct doctor_env *env, struct doctor_finding *f)
{
    unsigned nodes = doctor_count(env, "/sys/devices/system/node", "node", true);
    doctor_fact(f, "nodes", nodes ? nodes : 1);
    if (!nodes)
        doctor_set(f, DOCTOR_LIMITED, "the kernel does not say; taken as one node");
    else
        doctor_set(f, DOCTOR_OK, nodes == 1 ? "%u node: there is nothing to place" : "%u nodes", nodes);
    if (!nodes) doctor_advise(f, "use a kernel with CONFIG_NUMA where memory belongs to several sockets");
}

void doctor_userfaultfd(const struct doctor_env *env, struct doctor_finding *f)
{
    int error = env->try_userfaultfd(0);
    if (!error) {
        doctor_set(f, DOCTOR_OK, "usable");
        return;
    }
    if (error == -ENOSYS) {
        doctor_set(f, DOCTOR_MISSING, "the kernel has none, or a sandbox hides it: no post-copy migration");
        doctor_advise(f, "use a kernel with CONFIG_USERFAULTFD, or let the sandbox allow it");
        return;
    }
    /* Linux 5.11: without the right, faults from user mode only. */
    bool user_only = env->try_userfaultfd(UFFD_USER_MODE_ONLY) == 0;
    doctor_set(f, user_only ? DOCTOR_LIMITED : DOCTOR_MISSING, "%s",
               user_only ? "only for faults from user mode, which does not do for guests on KVM" : strerror(-error));
    doctor_advise(f, "run as root, or: sysctl vm.unprivileged_userfaultfd=1");
}
