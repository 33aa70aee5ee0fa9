/* nacelle doctor: the processor, KVM and how it pages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/doctor_internal.h"

#define CPUINFO_BYTES 16384 /* the first CPU's paragraph is about 2 KiB */

/* The value of "key\t: value" in /proc/cpuinfo's first paragraph, in place. */
static bool cpuinfo(const struct doctor_env *env, const char *key, char *value, size_t size)
{
    char *text = malloc(CPUINFO_BYTES);
    bool found = false;
    value[0] = 0;
    if (!text) return false;
    doctor_read(env, "/proc/cpuinfo", text, CPUINFO_BYTES);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line && !found; line = strtok_r(NULL, "\n", &rest)) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) != 0 || (line[n] != '\t' && line[n] != ' ' && line[n] != ':')) continue;
        const char *colon = strchr(line, ':');
        if (!colon) continue;
        colon += colon[1] == ' ' ? 2 : 1;
        snprintf(value, size, "%s", colon);
        found = true;
    }
    free(text);
    return found;
}

/* The x86-64 psABI's micro-architecture levels, by the names of /proc/cpuinfo. */
static int feature_level(const char *flags)
{
    static const char *const level[][8] = {
        {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3", NULL},
        {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", NULL},
    };
    int reached = 1;
    for (unsigned i = 0; i < sizeof(level) / sizeof(level[0]); i++) {
        for (unsigned k = 0; k < 8 && level[i][k]; k++)
            if (!doctor_has_word(flags, level[i][k])) return reached;
        reached++;
    }
    return reached;
}

void doctor_cpu(const struct doctor_env *env, struct doctor_finding *f)
{
    char vendor[64], model[128], flags[4096];
    bool known = cpuinfo(env, "vendor_id", vendor, sizeof(vendor));
    if (!known || !cpuinfo(env, "flags", flags, sizeof(flags))) {
        doctor_set(f, DOCTOR_MISSING, "/proc/cpuinfo does not say what processor this is");
        doctor_advise(f, "mount /proc; Nacelle runs on x86-64 only");
        return;
    }
    if (!cpuinfo(env, "model name", model, sizeof(model))) snprintf(model, sizeof(model), "unknown model");
    int level = feature_level(flags);
    unsigned cpus = doctor_count(env, "/sys/devices/system/cpu", "cpu", true);
    bool vmx = doctor_has_word(flags, "vmx"), svm = doctor_has_word(flags, "svm");
    doctor_fact_text(f, "vendor", vendor);
    doctor_fact_text(f, "model", model);
    doctor_fact(f, "level", level);
    doctor_fact(f, "cpus", cpus);
    doctor_fact_text(f, "virtualization", vmx ? "vmx" : svm ? "svm" : "none");
    cJSON_AddBoolToObject(f->facts, "hypervisor", doctor_has_word(flags, "hypervisor"));
    doctor_set(f, level < 2 ? DOCTOR_LIMITED : DOCTOR_OK, "%s (%s), %u CPUs, x86-64-v%d, %s%s", model, vendor, cpus,
               level,
               vmx   ? "VT-x"
               : svm ? "AMD-V"
                     : "no hardware virtualization",
               doctor_has_word(flags, "hypervisor") ? ", itself a virtual machine" : "");
    if (level < 2) doctor_advise(f, "guests built for x86-64-v2, as newer distributions are, need a newer processor");
}

/* "kvm_intel", "kvm_amd", or NULL when neither is there. */
static const char *kvm_module(const struct doctor_env *env)
{
    if (doctor_exists(env, "/sys/module/kvm_intel")) return "kvm_intel";
    if (doctor_exists(env, "/sys/module/kvm_amd")) return "kvm_amd";
    return NULL;
}

static void advise_kvm(const struct doctor_env *env, struct doctor_finding *f)
{
    char flags[4096];
    cpuinfo(env, "flags", flags, sizeof(flags));
    bool vmx = doctor_has_word(flags, "vmx");
    if (vmx || doctor_has_word(flags, "svm"))
        doctor_advise(f, "load the module: modprobe %s", vmx ? "kvm_intel" : "kvm_amd");
    else if (doctor_has_word(flags, "hypervisor"))
        doctor_advise(
            f, "this is a virtual machine: let its host pass hardware virtualization on (nested virtualization)");
    else
        doctor_advise(f, "switch virtualization (VT-x, AMD-V or SVM) on in the firmware's set-up");
}

void doctor_kvm(const struct doctor_env *env, struct doctor_finding *f)
{
    struct nerr why = {""};
    if (!doctor_exists(env, "/dev/kvm")) {
        doctor_set(f, DOCTOR_MISSING, "/dev/kvm does not exist; guests run on the soft engine");
        advise_kvm(env, f);
        return;
    }
    int error = env->probe_kvm(&why);
    if (!error) {
        const char *module = kvm_module(env);
        doctor_set(f, DOCTOR_OK, "usable: runs guest code at the CPU's speed%s%s", module ? ", by " : "",
                   module ? module : "");
        return;
    }
    doctor_set(f, DOCTOR_LIMITED, "%.200s", why.text[0] ? why.text : strerror(-error));
    if (error == -EACCES || error == -EPERM)
        doctor_advise(f, "add yourself to the group that owns /dev/kvm: usermod -aG kvm USER, then log in again");
    else
        doctor_advise(f, "guests run on the soft engine; for hardware speed use a host whose KVM runs guests itself");
}

/* A switch of the KVM module: 1, 0, or -1 when the module or the switch is not there. */
static int module_switch(const struct doctor_env *env, const char *intel, const char *amd)
{
    const char *module = kvm_module(env);
    char path[128], text[16];
    if (!module) return -1;
    snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module,
             strcmp(module, "kvm_intel") == 0 ? intel : amd);
    if (!doctor_read(env, path, text, sizeof(text)) || !text[0]) return -1;
    return text[0] == 'Y' || text[0] == '1';
}

static void no_module(const struct doctor_env *env, struct doctor_finding *f)
{
    if (doctor_exists(env, "/dev/kvm")) {
        doctor_set(f, DOCTOR_LIMITED, "unknown: this KVM is neither kvm_intel nor kvm_amd");
        return;
    }
    doctor_set(f, DOCTOR_MISSING, "no KVM module is loaded");
    doctor_advise(f, "see kvm above");
}

void doctor_nested_paging(const struct doctor_env *env, struct doctor_finding *f)
{
    const char *module = kvm_module(env);
    if (!module) {
        no_module(env, f);
        return;
    }
    const char *name = strcmp(module, "kvm_intel") == 0 ? "EPT" : "NPT";
    const char *parameter = strcmp(module, "kvm_intel") == 0 ? "ept" : "npt";
    doctor_fact_text(f, "kind", name);
    if (module_switch(env, "ept", "npt") == 1) {
        doctor_set(f, DOCTOR_OK, "%s is on", name);
        return;
    }
    doctor_set(f, DOCTOR_LIMITED, "%s is off: KVM keeps shadow page tables, which is slow", name);
    doctor_advise(f, "load the module with it: modprobe -r %s; modprobe %s %s=1 (and the processor must have it)",
                  module, module, parameter);
}

void doctor_nested(const struct doctor_env *env, struct doctor_finding *f)
{
    const char *module = kvm_module(env);
    if (!module) {
        no_module(env, f);
        return;
    }
    if (module_switch(env, "nested", "nested") == 1) {
        doctor_set(f, DOCTOR_OK, "guests can run KVM themselves");
        return;
    }
    doctor_set(f, DOCTOR_LIMITED, "guests cannot run KVM themselves");
    doctor_advise(f, "only if guests should: modprobe -r %s; modprobe %s nested=1", module, module);
}
