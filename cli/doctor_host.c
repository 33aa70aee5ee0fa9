/* nacelle doctor: control groups, devices to pass on, and what does the I/O. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cli/doctor_internal.h"

#define CGROUP "/sys/fs/cgroup"

/* Whether this process may make groups below its own. */
static bool cgroup_writable(const struct doctor_env *env)
{
    char text[1024], path[DOCTOR_PATH_MAX], *line;
    if (!doctor_read(env, "/proc/self/cgroup", text, sizeof(text))) return false;
    line = strstr(text, "0::/");
    if (!line || (line != text && line[-1] != '\n')) return false;
    line += 3;
    line[strcspn(line, "\n")] = 0;
    return access(doctor_path(env, path, CGROUP "%s/cgroup.procs", line), W_OK) == 0;
}

/* Those controllers that Nacelle uses and `offered` lacks, with commas. */
static void lacking(const char *offered, char *text, size_t size)
{
    static const char *const wanted[] = {"cpu", "cpuset", "memory", "io"};
    text[0] = 0;
    for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        size_t n = strlen(text);
        if (!doctor_has_word(offered, wanted[i])) snprintf(text + n, size - n, "%s%s", n ? ", " : "", wanted[i]);
    }
}

void doctor_cgroup(const struct doctor_env *env, struct doctor_finding *f)
{
    char controllers[160], missing[64];
    bool v2 = doctor_read(env, CGROUP "/cgroup.controllers", controllers, sizeof(controllers));
    bool v1 = doctor_exists(env, CGROUP "/memory") || doctor_exists(env, CGROUP "/cpu") ||
              doctor_exists(env, CGROUP "/unified");
    doctor_fact(f, "version", v2 ? 2 : v1 ? 1 : 0);
    if (!v2) {
        doctor_set(f, v1 ? DOCTOR_LIMITED : DOCTOR_MISSING,
                   v1 ? "version 1, which Nacelle does not use" : "not mounted");
        doctor_advise(f,
                      v1 ? "boot with systemd.unified_cgroup_hierarchy=1: limits on CPU, memory and I/O need version 2"
                         : "mount -t cgroup2 cgroup2 " CGROUP);
        return;
    }
    doctor_fact_text(f, "controllers", controllers);
    bool writable = cgroup_writable(env);
    cJSON_AddBoolToObject(f->facts, "writable", writable);
    lacking(controllers, missing, sizeof(missing));
    if (missing[0]) {
        doctor_set(f, DOCTOR_LIMITED, "version 2 without %s (has: %s)", missing, controllers);
        doctor_advise(
            f,
            "let the parent group enable them in its cgroup.subtree_control; cgroup_disable= on the kernel's command "
            "line or a version 1 mount takes them away");
        return;
    }
    doctor_set(f, writable ? DOCTOR_OK : DOCTOR_LIMITED, "version 2 with %s%s", controllers,
               writable ? "" : ", not writable by this user");
    if (!writable)
        doctor_advise(f, "run as root, or in a delegated group: systemd-run --user --scope -p Delegate=yes COMMAND");
}

void doctor_iommu(const struct doctor_env *env, struct doctor_finding *f)
{
    unsigned groups = doctor_count(env, "/sys/kernel/iommu_groups", "", true);
    doctor_fact(f, "groups", groups);
    if (groups) {
        doctor_set(f, DOCTOR_OK, "%u groups of devices", groups);
        return;
    }
    doctor_set(f, DOCTOR_MISSING, "none in use: devices cannot be passed to guests");
    doctor_advise(
        f,
        "switch VT-d or AMD-Vi on in the firmware and boot with intel_iommu=on or amd_iommu=on (a virtual machine needs one from its host)");
}

/* A device node that a guest's device is built on. */
static void device(const struct doctor_env *env, struct doctor_finding *f, const char *node, const char *module,
                   const char *without)
{
    char path[DOCTOR_PATH_MAX];
    int error = env->open_device(doctor_path(env, path, "%s", node));
    if (!error) {
        doctor_set(f, DOCTOR_OK, "%s can be opened", node);
        return;
    }
    bool denied = error == -EACCES || error == -EPERM;
    doctor_set(f, denied ? DOCTOR_LIMITED : DOCTOR_MISSING, "%s: %s; %s", node, strerror(-error), without);
    if (denied)
        doctor_advise(f, "run as root, or have %s belong to a group of yours", node);
    else
        doctor_advise(f, "load the module: modprobe %s (in a container: pass the device in)", module);
}

void doctor_vfio(const struct doctor_env *env, struct doctor_finding *f)
{
    device(env, f, "/dev/vfio/vfio", "vfio-pci", "no device can be passed to a guest");
}

void doctor_tun(const struct doctor_env *env, struct doctor_finding *f)
{
    device(env, f, "/dev/net/tun", "tun", "guests get user-mode networking only");
}

void doctor_vhost_net(const struct doctor_env *env, struct doctor_finding *f)
{
    device(env, f, "/dev/vhost-net", "vhost_net", "network packets go through the VMM's process");
}

void doctor_io_uring(const struct doctor_env *env, struct doctor_finding *f)
{
    int error = env->try_io_uring();
    if (!error) {
        doctor_set(f, DOCTOR_OK, "usable");
        return;
    }
    doctor_set(f, DOCTOR_MISSING, "%s; disks go through threads", strerror(-error));
    if (error == -ENOSYS)
        doctor_advise(f, "use Linux 5.6 or later, with CONFIG_IO_URING");
    else
        doctor_advise(f, "sysctl kernel.io_uring_disabled=0, or let the sandbox allow it");
}

/* Looks along env->path. */
static void program(const struct doctor_env *env, struct doctor_finding *f, const char *name, const char *without,
                    const char *advice)
{
    char full[DOCTOR_PATH_MAX];
    for (const char *p = env->path; *p;) {
        size_t n = strcspn(p, ":");
        if (n && access(doctor_path(env, full, "%.*s/%s", (int)n, p, name), X_OK) == 0) {
            const char *shown = full + strlen(env->root);
            doctor_set(f, DOCTOR_OK, "%.200s", shown);
            doctor_fact_text(f, "program", shown);
            return;
        }
        p += n + (p[n] == ':');
    }
    doctor_set(f, DOCTOR_MISSING, "not installed; %s", without);
    doctor_advise(f, "%s", advice);
}

void doctor_storage_daemon(const struct doctor_env *env, struct doctor_finding *f)
{
    program(env, f, "qemu-storage-daemon", "disks are raw files or devices only",
            "for qcow2 and network block devices: apt install qemu-system-common");
}

void doctor_etcd(const struct doctor_env *env, struct doctor_finding *f)
{
    program(env, f, "etcd", "one manager, without a stand-in",
            "for a cluster with several managers: apt install etcd-server");
}
