#include "cli/keyvalue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/name.h"

/* Cuts the first item off *rest, in place: a doubled comma becomes one, a single one ends the item. */
static char *next_item(char **rest)
{
    char *start = *rest, *in = start, *out = start;
    while (*in && !(in[0] == ',' && in[1] != ',')) {
        if (in[0] == ',') in++;
        *out++ = *in++;
    }
    *rest = *in ? in + 1 : NULL;
    *out = 0;
    return start;
}

int cli_keyvalues_parse(const char *option, const char *text, struct cli_keyvalues *out, struct nerr *e)
{
    memset(out, 0, sizeof(*out));
    char *rest = out->text = strdup(text);
    if (!rest) return nerr_set(e, -ENOMEM, "%s: out of memory", option);
    int r = 0;
    while (rest && !r) {
        char *item = next_item(&rest);
        char *equals = strchr(item, '=');
        if (equals) *equals = 0;
        if (!*item)
            r = nerr_set(e, -EINVAL,
                         "%s: there is an empty item in '%s'; give KEY=VALUE,... (a comma in a value is ,,)", option,
                         text);
        else if (out->pairs == CLI_KEYVALUES_MAX)
            r = nerr_set(e, -EINVAL, "%s: more than %d items", option, CLI_KEYVALUES_MAX);
        else
            out->pair[out->pairs++] = (struct cli_keyvalue){.key = item, .value = equals ? equals + 1 : NULL};
    }
    if (r) cli_keyvalues_free(out);
    return r;
}

void cli_keyvalues_free(struct cli_keyvalues *kv)
{
    free(kv->text);
    memset(kv, 0, sizeof(*kv));
}

const char *cli_keyvalue_whole(struct cli_keyvalues *all, unsigned i)
{
    struct cli_keyvalue *kv = &all->pair[i];
    if (kv->value) all->text[kv->value - all->text - 1] = '=';
    kv->value = NULL;
    return kv->key;
}

static bool in_list(const char *const *list, const char *word)
{
    for (; list && *list; list++)
        if (strcmp(*list, word) == 0) return true;
    return false;
}

int cli_keyvalues_unique(const char *option, const struct cli_keyvalues *kv, const char *const *repeatable,
                         struct nerr *e)
{
    for (unsigned i = 0; i < kv->pairs; i++)
        for (unsigned j = 0; j < i; j++)
            if (strcmp(kv->pair[i].key, kv->pair[j].key) == 0 && !in_list(repeatable, kv->pair[i].key))
                return nerr_set(e, -EINVAL, "%s: %s is given twice; give it once", option, kv->pair[i].key);
    return 0;
}

int cli_keyvalue_bool(const char *option, const struct cli_keyvalue *kv, bool *out, struct nerr *e)
{
    static const char *const on[] = {"on", "yes", "true", NULL}, *const off[] = {"off", "no", "false", NULL};
    *out = !kv->value || in_list(on, kv->value);
    if (*out || in_list(off, kv->value)) return 0;
    return nerr_set(e, -EINVAL, "%s: %s=%s is neither; give %s=on or %s=off", option, kv->key, kv->value, kv->key,
                    kv->key);
}

static bool scale(char suffix, unsigned base, uint64_t *n)
{
    const char *at = strchr("KkMmGgTt", suffix);
    if (!at) return false;
    for (int steps = (int)(at - "KkMmGgTt") / 2; steps >= 0; steps--)
        if (__builtin_mul_overflow(*n, (uint64_t)base, n)) return false;
    return true;
}

int cli_keyvalue_count(const char *option, const struct cli_keyvalue *kv, unsigned base, uint64_t *out, struct nerr *e)
{
    const char *v = kv->value ? kv->value : "";
    char *end = (char *)v;
    errno = 0;
    unsigned long long n = *v >= '0' && *v <= '9' ? strtoull(v, &end, 10) : 0;
    *out = n;
    bool good = end != v && errno == 0;
    if (good && *end) good = scale(*end, base, out) && !end[1];
    if (good && *out > CLI_COUNT_MAX)
        return nerr_set(e, -ERANGE, "%s: %s=%s is too large; give at most %llu", option, kv->key, v, CLI_COUNT_MAX);
    if (good) return 0;
    return nerr_set(e, -EINVAL, "%s: %s=%s is no number; give digits, with K, M, G or T behind them if you like",
                    option, kv->key, v);
}

int cli_keyvalue_text(const char *option, const struct cli_keyvalue *kv, const char **out, struct nerr *e)
{
    if (!kv->value || !*kv->value)
        return nerr_set(e, -EINVAL, "%s: %s needs a value: %s=...", option, kv->key, kv->key);
    *out = kv->value;
    return 0;
}

int cli_keyvalue_name(const char *option, const struct cli_keyvalue *kv, char *out, size_t size, struct nerr *e)
{
    const char *v = kv->value ? kv->value : "";
    if (!name_good(v, size - 1))
        return nerr_set(e, -EINVAL, "%s: %s=%s is no name; give 1 to %zu letters, digits, '.', '_' or '-'", option,
                        kv->key, v, size - 1);
    memcpy(out, v, strlen(v) + 1);
    return 0;
}

int cli_keyvalue_choice(const char *option, const struct cli_keyvalue *kv, const char *const *words, unsigned *out,
                        struct nerr *e)
{
    char list[256] = "";
    for (unsigned i = 0; words[i]; i++) {
        if (kv->value && strcmp(kv->value, words[i]) == 0) {
            *out = i;
            return 0;
        }
        size_t n = strlen(list);
        snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "", words[i]);
    }
    return nerr_set(e, -EINVAL, "%s: %s=%s is unknown; give one of: %s", option, kv->key, kv->value ? kv->value : "",
                    list);
}
