/* Shared by the files of nacelle doctor. */
#ifndef NACELLE_CLI_DOCTOR_INTERNAL_H
#define NACELLE_CLI_DOCTOR_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "cli/doctor.h"

#define DOCTOR_PATH_MAX 4096

/* A check fills the finding that has its name and empty facts already. */
typedef void doctor_check_fn(const struct doctor_env *env, struct doctor_finding *f);

doctor_check_fn doctor_cpu, doctor_kvm, doctor_nested_paging, doctor_nested;
doctor_check_fn doctor_huge_2m, doctor_huge_1g, doctor_thp, doctor_ksm, doctor_numa, doctor_userfaultfd;
doctor_check_fn doctor_cgroup, doctor_iommu, doctor_vfio, doctor_io_uring, doctor_tun, doctor_vhost_net;
doctor_check_fn doctor_storage_daemon, doctor_etcd;

void doctor_set(struct doctor_finding *f, enum doctor_state state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void doctor_advise(struct doctor_finding *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void doctor_fact(struct doctor_finding *f, const char *key, double value);
void doctor_fact_text(struct doctor_finding *f, const char *key, const char *value);

/* root + path into `full` (DOCTOR_PATH_MAX bytes). Returns full. */
char *doctor_path(const struct doctor_env *env, char *full, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
bool doctor_exists(const struct doctor_env *env, const char *path);
/* The file's beginning as text, without the last newline. False when it cannot be read. */
bool doctor_read(const struct doctor_env *env, const char *path, char *text, size_t size);
/* A file that holds one decimal number, such as most of sysfs; -1 when it cannot be read or is none. */
long long doctor_number(const struct doctor_env *env, const char *path);
/* How many entries of a directory begin with `prefix` and, where `digits` is set, go on with digits to the end. */
unsigned doctor_count(const struct doctor_env *env, const char *path, const char *prefix, bool digits);
/* Whether `words` (separated by blanks) has `word`. */
bool doctor_has_word(const char *words, const char *word);

#endif
