/* nacelle doctor: how checks read the host, and how they say what they found. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/doctor_internal.h"

void doctor_set(struct doctor_finding *f, enum doctor_state state, const char *fmt, ...)
{
    va_list ap;
    f->state = state;
    va_start(ap, fmt);
    vsnprintf(f->found, sizeof(f->found), fmt, ap);
    va_end(ap);
}

void doctor_advise(struct doctor_finding *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->advice, sizeof(f->advice), fmt, ap);
    va_end(ap);
}

void doctor_fact(struct doctor_finding *f, const char *key, double value)
{
    cJSON_AddNumberToObject(f->facts, key, value);
}

void doctor_fact_text(struct doctor_finding *f, const char *key, const char *value)
{
    cJSON_AddStringToObject(f->facts, key, value);
}

char *doctor_path(const struct doctor_env *env, char *full, const char *fmt, ...)
{
    va_list ap;
    int n = snprintf(full, DOCTOR_PATH_MAX, "%s", env->root);
    if (n < 0 || n >= DOCTOR_PATH_MAX) n = 0;
    va_start(ap, fmt);
    vsnprintf(full + n, DOCTOR_PATH_MAX - (size_t)n, fmt, ap);
    va_end(ap);
    return full;
}

bool doctor_exists(const struct doctor_env *env, const char *path)
{
    char full[DOCTOR_PATH_MAX];
    return access(doctor_path(env, full, "%s", path), F_OK) == 0;
}

bool doctor_read(const struct doctor_env *env, const char *path, char *text, size_t size)
{
    char full[DOCTOR_PATH_MAX];
    size_t have = 0;
    text[0] = 0;
    int fd = open(doctor_path(env, full, "%s", path), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    while (have < size - 1) {
        ssize_t n = read(fd, text + have, size - 1 - have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        have += (size_t)n;
    }
    close(fd);
    text[have] = 0;
    if (have && text[have - 1] == '\n') text[have - 1] = 0;
    return true;
}

long long doctor_number(const struct doctor_env *env, const char *path)
{
    char text[64], *end;
    if (!doctor_read(env, path, text, sizeof(text)) || !text[0]) return -1;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    return errno || *end || n < 0 ? -1 : n;
}

unsigned doctor_count(const struct doctor_env *env, const char *path, const char *prefix, bool digits)
{
    char full[DOCTOR_PATH_MAX];
    unsigned count = 0;
    size_t skip = strlen(prefix);
    DIR *dir = opendir(doctor_path(env, full, "%s", path));
    if (!dir) return 0;
    for (struct dirent *d = readdir(dir); d; d = readdir(dir)) {
        if (d->d_name[0] == '.' || strncmp(d->d_name, prefix, skip) != 0) continue;
        const char *rest = d->d_name + skip;
        if (!digits || (*rest && rest[strspn(rest, "0123456789")] == 0)) count++;
    }
    closedir(dir);
    return count;
}

bool doctor_has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = strstr(words, word); p; p = strstr(p + 1, word)) {
        bool starts = p == words || p[-1] == ' ' || p[-1] == '\t' || p[-1] == '\n';
        bool ends = p[n] == 0 || p[n] == ' ' || p[n] == '\n';
        if (starts && ends) return true;
    }
    return false;
}
