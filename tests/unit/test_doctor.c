/* nacelle doctor on made-up hosts: both outcomes of every check, and what is printed. */
#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/cli.h"
#include "cli/doctor.h"

#define V2_FLAGS "fpu lm pni cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
#define V3_FLAGS V2_FLAGS " avx avx2 bmi1 bmi2 f16c fma abm movbe"
#define V4_FLAGS V3_FLAGS " avx512f avx512bw avx512cd avx512dq avx512vl"
#define HUGE_2M "/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define HUGE_1G "/sys/kernel/mm/hugepages/hugepages-1048576kB/"

/* What the faked functions answer. */
static int kvm_answer, device_answer, uffd_answer, uffd_user_answer, uring_answer;
static char root[64];

static int fake_kvm(struct nerr *why)
{
    return kvm_answer ? nerr_set(why, kvm_answer, "the probe's reason") : 0;
}

static int fake_device(const char *path)
{
    if (device_answer) return device_answer;
    return access(path, F_OK) == 0 ? 0 : -ENOENT;
}

static int fake_userfaultfd(int flags)
{
    return flags ? uffd_user_answer : uffd_answer;
}

static int fake_io_uring(void)
{
    return uring_answer;
}

static struct doctor_env env = {
    .root = root,
    .path = "/opt/none::/usr/bin",
    .probe_kvm = fake_kvm,
    .open_device = fake_device,
    .try_userfaultfd = fake_userfaultfd,
    .try_io_uring = fake_io_uring,
};
static struct doctor_report report;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int start(void **state)
{
    (void)state;
    strcpy(root, "/tmp/nacelle-doctor-XXXXXX");
    kvm_answer = device_answer = uffd_answer = uffd_user_answer = uring_answer = 0;
    return mkdtemp(root) ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    doctor_free(&report);
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* Makes a file below the root, and what leads to it. `text` NULL makes a directory. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        assert_true(mkdir(full, 0755) == 0 || errno == EEXIST);
        *p = '/';
    }
    if (!text) {
        assert_true(mkdir(full, 0755) == 0 || errno == EEXIST);
        return;
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void put_cpu(const char *flags)
{
    char text[2048];
    snprintf(text, sizeof(text),
             "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\nmodel name\t: Test CPU 3000\nflags\t\t: %s\n"
             "\nprocessor\t: 1\nvendor_id\t: Second\n",
             flags);
    put("/proc/cpuinfo", text);
}

static const struct doctor_finding *look(const char *name)
{
    doctor_free(&report);
    doctor_examine(&env, &report);
    for (unsigned i = 0; i < report.count; i++)
        if (strcmp(report.finding[i].name, name) == 0) return &report.finding[i];
    fail_msg("there is no check %s", name);
    return NULL;
}

/* One check: its state, and words of what it found and advises (NULL: no advice at all). */
static void expect(const char *name, enum doctor_state state, const char *found, const char *advice)
{
    const struct doctor_finding *f = look(name);
    if (f->state != state || !strstr(f->found, found) || (advice ? !strstr(f->advice, advice) : f->advice[0] != 0))
        fail_msg("%s: %s, '%s', '%s'", name, doctor_state_name(f->state), f->found, f->advice);
}

static double fact(const char *name, const char *key)
{
    const cJSON *n = cJSON_GetObjectItem(look(name)->facts, key);
    assert_true(cJSON_IsNumber(n));
    return n->valuedouble;
}

static void test_cpu(void **state)
{
    (void)state;
    expect("cpu", DOCTOR_MISSING, "/proc/cpuinfo", "mount /proc");
    put("/sys/devices/system/cpu/cpu0", NULL);
    put("/sys/devices/system/cpu/cpu11", NULL);
    put("/sys/devices/system/cpu/cpufreq", NULL);
    put_cpu("fpu lm");
    expect("cpu", DOCTOR_LIMITED, "Test CPU 3000 (GenuineIntel), 2 CPUs, x86-64-v1, no hardware virtualization", "v2");
    put_cpu(V2_FLAGS " vmx");
    expect("cpu", DOCTOR_OK, "x86-64-v2, VT-x", NULL);
    put_cpu(V3_FLAGS " svm hypervisor");
    expect("cpu", DOCTOR_OK, "x86-64-v3, AMD-V, itself a virtual machine", NULL);
    put_cpu(V4_FLAGS);
    expect("cpu", DOCTOR_OK, "x86-64-v4", NULL);
    /* A flag whose name only begins like another is not that one. */
    put_cpu(V2_FLAGS " vmx_like avx512f");
    expect("cpu", DOCTOR_OK, "x86-64-v2, no hardware", NULL);
}

static void test_kvm(void **state)
{
    (void)state;
    put_cpu(V2_FLAGS);
    expect("kvm", DOCTOR_MISSING, "/dev/kvm does not exist", "firmware");
    put_cpu(V2_FLAGS " hypervisor");
    expect("kvm", DOCTOR_MISSING, "soft engine", "nested virtualization");
    put_cpu(V2_FLAGS " vmx");
    expect("kvm", DOCTOR_MISSING, "soft engine", "modprobe kvm_intel");
    put_cpu(V2_FLAGS " svm");
    expect("kvm", DOCTOR_MISSING, "soft engine", "modprobe kvm_amd");
    put("/dev/kvm", "");
    expect("kvm", DOCTOR_OK, "usable", NULL);
    put("/sys/module/kvm_amd", NULL);
    expect("kvm", DOCTOR_OK, "kvm_amd", NULL);
    kvm_answer = -EACCES;
    expect("kvm", DOCTOR_LIMITED, "the probe's reason", "group");
    kvm_answer = -ENOTSUP;
    expect("kvm", DOCTOR_LIMITED, "the probe's reason", "soft engine; for hardware speed");
}

static void test_paging(void **state)
{
    (void)state;
    expect("nested-paging", DOCTOR_MISSING, "no KVM module", "see kvm");
    expect("nested-kvm", DOCTOR_MISSING, "no KVM module", "see kvm");
    put("/dev/kvm", "");
    expect("nested-paging", DOCTOR_LIMITED, "neither kvm_intel nor kvm_amd", NULL);
    put("/sys/module/kvm_amd/parameters/npt", "Y\n");
    put("/sys/module/kvm_amd/parameters/nested", "1\n");
    expect("nested-paging", DOCTOR_OK, "NPT", NULL);
    expect("nested-kvm", DOCTOR_OK, "guests can", NULL);
    put("/sys/module/kvm_amd/parameters/npt", "N\n");
    put("/sys/module/kvm_amd/parameters/nested", "0\n");
    expect("nested-paging", DOCTOR_LIMITED, "shadow", "modprobe kvm_amd npt=1");
    expect("nested-kvm", DOCTOR_LIMITED, "cannot", "nested=1");
    put("/sys/module/kvm_intel/parameters/ept", "Y\n");
    expect("nested-paging", DOCTOR_OK, "EPT", NULL);
}

static void test_huge_pages(void **state)
{
    (void)state;
    expect("huge-pages-2m", DOCTOR_MISSING, "2 MiB", "HUGETLBFS");
    expect("huge-pages-1g", DOCTOR_MISSING, "1 GiB", "HUGETLBFS");
    put(HUGE_2M "nr_hugepages", "0\n");
    put(HUGE_2M "free_hugepages", "0\n");
    expect("huge-pages-2m", DOCTOR_LIMITED, "none", "echo N >");
    put(HUGE_2M "nr_hugepages", "64\n");
    put(HUGE_2M "free_hugepages", "12\n");
    expect("huge-pages-2m", DOCTOR_OK, "64 of 2 MiB set aside, 12 free", NULL);
    assert_true(fact("huge-pages-2m", "total") == 64 && fact("huge-pages-2m", "free") == 12);
    put(HUGE_2M "free_hugepages", "0\n");
    expect("huge-pages-2m", DOCTOR_LIMITED, "0 free", "in use");
    put(HUGE_2M "nr_hugepages", "what?\n");
    expect("huge-pages-2m", DOCTOR_MISSING, "2 MiB", "HUGETLBFS");
    put(HUGE_1G "nr_hugepages", "0\n");
    expect("huge-pages-1g", DOCTOR_LIMITED, "none", "hugepagesz=1G");
    put(HUGE_1G "nr_hugepages", "2\n");
    put(HUGE_1G "free_hugepages", "2\n");
    expect("huge-pages-1g", DOCTOR_OK, "2 of 1 GiB", NULL);
}

static void test_memory(void **state)
{
    (void)state;
    static const char thp[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    expect("transparent-huge", DOCTOR_MISSING, "no transparent", "CONFIG_");
    put(thp, "always [madvise] never\n");
    expect("transparent-huge", DOCTOR_OK, "mode madvise", NULL);
    put(thp, "always madvise [never]\n");
    expect("transparent-huge", DOCTOR_LIMITED, "mode never", "echo madvise");
    put(thp, "always [madvise never\n");
    expect("transparent-huge", DOCTOR_MISSING, "", "CONFIG_");

    expect("ksm", DOCTOR_MISSING, "merge", "CONFIG_KSM");
    put("/sys/kernel/mm/ksm/run", "0\n");
    expect("ksm", DOCTOR_LIMITED, "off", "echo 1");
    put("/sys/kernel/mm/ksm/run", "1\n");
    put("/sys/kernel/mm/ksm/pages_sharing", "77\n");
    expect("ksm", DOCTOR_OK, "77 pages", NULL);

    expect("numa", DOCTOR_LIMITED, "one node", "CONFIG_NUMA");
    put("/sys/devices/system/node/node0", NULL);
    put("/sys/devices/system/node/possible", "0\n");
    expect("numa", DOCTOR_OK, "1 node:", NULL);
    put("/sys/devices/system/node/node1", NULL);
    expect("numa", DOCTOR_OK, "2 nodes", NULL);
    assert_true(fact("numa", "nodes") == 2);
}

static void test_userfaultfd(void **state)
{
    (void)state;
    expect("userfaultfd", DOCTOR_OK, "usable", NULL);
    uffd_answer = -EPERM;
    expect("userfaultfd", DOCTOR_LIMITED, "user mode", "unprivileged_userfaultfd");
    uffd_user_answer = -EPERM;
    expect("userfaultfd", DOCTOR_MISSING, "", "run as root");
    uffd_answer = -ENOSYS;
    expect("userfaultfd", DOCTOR_MISSING, "kernel has none", "CONFIG_USERFAULTFD");
}

static void test_cgroup(void **state)
{
    (void)state;
    expect("cgroup", DOCTOR_MISSING, "not mounted", "mount -t cgroup2");
    put("/sys/fs/cgroup/memory", NULL);
    expect("cgroup", DOCTOR_LIMITED, "version 1", "unified_cgroup_hierarchy");
    assert_true(fact("cgroup", "version") == 1);
    put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    expect("cgroup", DOCTOR_LIMITED, "not writable", "Delegate");
    put("/proc/self/cgroup", "1:name=systemd:/x\n0::/user.slice/mine\n");
    expect("cgroup", DOCTOR_LIMITED, "not writable", "Delegate");
    put("/sys/fs/cgroup/user.slice/mine/cgroup.procs", "");
    expect("cgroup", DOCTOR_OK, "version 2 with cpuset cpu io memory pids", NULL);
    assert_true(fact("cgroup", "version") == 2);
    /* "cpuset" is not "cpu". */
    put("/sys/fs/cgroup/cgroup.controllers", "cpuset memory\n");
    expect("cgroup", DOCTOR_LIMITED, "without cpu, io (has: cpuset memory)", "subtree_control");
}

static void test_devices(void **state)
{
    (void)state;
    static const struct {
        const char *check, *node, *module;
    } device[] = {
        {"vfio", "/dev/vfio/vfio", "modprobe vfio-pci"},
        {"tun", "/dev/net/tun", "modprobe tun"},
        {"vhost-net", "/dev/vhost-net", "modprobe vhost_net"},
    };
    for (unsigned i = 0; i < sizeof(device) / sizeof(device[0]); i++) {
        device_answer = 0;
        expect(device[i].check, DOCTOR_MISSING, device[i].node, device[i].module);
        put(device[i].node, "");
        expect(device[i].check, DOCTOR_OK, "can be opened", NULL);
        device_answer = -EACCES;
        expect(device[i].check, DOCTOR_LIMITED, "Permission denied", "root");
    }
    expect("iommu", DOCTOR_MISSING, "none", "intel_iommu=on");
    put("/sys/kernel/iommu_groups/0", NULL);
    put("/sys/kernel/iommu_groups/12", NULL);
    expect("iommu", DOCTOR_OK, "2 groups", NULL);
}

static void test_io_uring(void **state)
{
    (void)state;
    expect("io_uring", DOCTOR_OK, "usable", NULL);
    uring_answer = -EPERM;
    expect("io_uring", DOCTOR_MISSING, "threads", "io_uring_disabled");
    uring_answer = -ENOSYS;
    expect("io_uring", DOCTOR_MISSING, "threads", "5.6");
}

static void test_programs(void **state)
{
    (void)state;
    static const char *const program[][2] = {{"storage-daemon", "/usr/bin/qemu-storage-daemon"},
                                             {"etcd", "/usr/bin/etcd"}};
    for (unsigned i = 0; i < 2; i++) {
        char full[512];
        expect(program[i][0], DOCTOR_MISSING, "not installed", "apt install");
        put(program[i][1], "");
        snprintf(full, sizeof(full), "%s%s", root, program[i][1]);
        assert_int_equal(chmod(full, 0644), 0);
        expect(program[i][0], DOCTOR_MISSING, "not installed", "apt install");
        assert_int_equal(chmod(full, 0755), 0);
        expect(program[i][0], DOCTOR_OK, program[i][1], NULL);
    }
}

/* What one of the two ways of printing wrote; to be freed. */
static char *printed(int json)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    assert_non_null(f);
    if (json)
        assert_int_equal(doctor_print_json(&report, f), 0);
    else
        doctor_print(&report, f);
    fclose(f);
    return text;
}

static void test_output(void **state)
{
    (void)state;
    put_cpu(V2_FLAGS " svm");
    look("cpu");
    char *text = printed(0);
    assert_non_null(strstr(text, "cpu               ok       Test CPU 3000"));
    assert_non_null(strstr(text, "-> load the module: modprobe kvm_amd\n"));
    assert_non_null(strstr(text, "Guests run on the soft engine here."));
    free(text);

    put("/dev/kvm", "");
    look("cpu");
    text = printed(1);
    cJSON *whole = cJSON_Parse(text);
    assert_non_null(whole);
    assert_string_equal(cJSON_GetObjectItem(whole, "engine")->valuestring, "kvm");
    const cJSON *list = cJSON_GetObjectItem(whole, "checks");
    assert_int_equal(cJSON_GetArraySize(list), report.count);
    const cJSON *cpu = cJSON_GetArrayItem(list, 0);
    assert_string_equal(cJSON_GetObjectItem(cpu, "name")->valuestring, "cpu");
    assert_string_equal(cJSON_GetObjectItem(cpu, "state")->valuestring, "ok");
    assert_null(cJSON_GetObjectItem(cpu, "advice"));
    assert_int_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(cpu, "facts"), "level")->valueint, 2);
    cJSON_Delete(whole);
    free(text);
}

/* Everything a host's files may hold: longer than any buffer, empty, a directory instead. */
static void test_odd_files(void **state)
{
    (void)state;
    static char big[20000];
    memset(big, 'x', sizeof(big) - 1);
    static const char *const files[] = {"/proc/cpuinfo",
                                        "/sys/kernel/mm/ksm/run",
                                        HUGE_2M "nr_hugepages",
                                        "/sys/kernel/mm/transparent_hugepage/enabled",
                                        "/sys/fs/cgroup/cgroup.controllers",
                                        "/proc/self/cgroup",
                                        "/sys/module/kvm_amd/parameters/npt"};
    put_cpu(big + sizeof(big) - 1 - 1800);
    look("cpu");
    for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++) put(files[i], big);
    look("cpu");
    for (unsigned i = 0; i < report.count; i++)
        assert_true(strlen(report.finding[i].found) < sizeof(report.finding[i].found));
    for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++) put(files[i], "");
    expect("cpu", DOCTOR_MISSING, "/proc/cpuinfo", "");
    expect("ksm", DOCTOR_MISSING, "", "");
}

/* The host this runs on: whatever it is, every check ends and says something. */
static void test_this_host(void **state)
{
    (void)state;
    doctor_free(&report);
    doctor_examine(&doctor_host, &report);
    assert_true(report.count > 10);
    for (unsigned i = 0; i < report.count; i++) {
        assert_true(report.finding[i].found[0]);
        assert_non_null(report.finding[i].facts);
    }
    assert_int_equal(report.finding[0].state == DOCTOR_MISSING, 0);
}

static void test_usage(void **state)
{
    (void)state;
    char *unknown[] = {"doctor", "--what", NULL}, *more[] = {"doctor", "now", NULL},
         *value[] = {"doctor", "--json=x", NULL};
    assert_int_equal(cli_doctor.run(2, unknown), CLI_USAGE_STATUS);
    assert_int_equal(cli_doctor.run(2, more), CLI_USAGE_STATUS);
    assert_int_equal(cli_doctor.run(2, value), CLI_USAGE_STATUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_cpu, start, stop),
        cmocka_unit_test_setup_teardown(test_kvm, start, stop),
        cmocka_unit_test_setup_teardown(test_paging, start, stop),
        cmocka_unit_test_setup_teardown(test_huge_pages, start, stop),
        cmocka_unit_test_setup_teardown(test_memory, start, stop),
        cmocka_unit_test_setup_teardown(test_userfaultfd, start, stop),
        cmocka_unit_test_setup_teardown(test_cgroup, start, stop),
        cmocka_unit_test_setup_teardown(test_devices, start, stop),
        cmocka_unit_test_setup_teardown(test_io_uring, start, stop),
        cmocka_unit_test_setup_teardown(test_programs, start, stop),
        cmocka_unit_test_setup_teardown(test_output, start, stop),
        cmocka_unit_test_setup_teardown(test_odd_files, start, stop),
        cmocka_unit_test_setup_teardown(test_this_host, start, stop),
        cmocka_unit_test(test_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
