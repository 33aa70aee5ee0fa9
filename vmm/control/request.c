#include "vmm/control/request.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "common/name.h"

const char *control_class(int error)
{
    switch (-error) {
    case EINVAL:
    case ERANGE: return "argument";
    case ENOENT:
    case ENODEV: return "not-found";
    case EEXIST: return "exists";
    case EBUSY:
    case EAGAIN:
    case ETXTBSY: return "busy";
    case ENOTSUP:
    case ENOSYS: return "unsupported";
    default: return "failed";
    }
}

/* ---- the line as text ---- */

/* Bytes of the well-formed character at s (RFC 3629), 0: none. */
static size_t utf8(const unsigned char *s, size_t left)
{
    unsigned n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (!n || n > left) return 0;
    for (unsigned i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void control_clean_text(char *text)
{
    size_t len = strlen(text), to = 0;
    for (size_t i = 0; i < len;) {
        size_t n = utf8((const unsigned char *)text + i, len - i);
        memmove(text + to, text + i, n);
        to += n;
        i += n ? n : 1;
    }
    text[to] = 0;
}

/* The JSON reader takes some things for text that are none, and ends strings at an escaped NUL: looked for here. */
static int check_text(const char *line, size_t len, struct nerr *e)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)line[i];
        size_t n = utf8((const unsigned char *)line + i, len - i);
        if (!n) return nerr_set(e, -EINVAL, "byte %zu of the line is not UTF-8", i + 1);
        if (c < 0x20 && c != '\t' && c != '\r')
            return nerr_set(e, -EINVAL, "byte %zu of the line is the control character %u", i + 1, c);
        if (c == '\\') {
            if (len - i >= 6 && memcmp(line + i, "\\u0000", 6) == 0)
                return nerr_set(e, -EINVAL, "\\u0000 at byte %zu: texts have no NUL in them", i + 1);
            n = i + 1 < len && (unsigned char)line[i + 1] < 0x80 && (unsigned char)line[i + 1] >= 0x20 ? 2 : 1;
        }
        i += n;
    }
    return 0;
}

/* ---- values ---- */

bool control_boolean(const char *text, bool *out)
{
    static const char *const words[] = {"off", "on", "no", "yes", "false", "true"};
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(words[i], text) == 0) {
            *out = i & 1;
            return true;
        }
    return false;
}

bool control_number(const struct control_argument *a, const char *text, uint64_t *out)
{
    static const char suffixes[] = "KkMmGgTt";
    uint64_t n = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n)) return false;
    if (p == text) return false;
    if (*p) {
        const char *s = strchr(suffixes, *p);
        if (!s || p[1]) return false;
        for (long steps = (s - suffixes) / 2; steps >= 0; steps--)
            if (__builtin_mul_overflow(n, (uint64_t)a->base, &n)) return false;
    }
    *out = n;
    return n >= a->min && n <= a->max;
}

static bool json_number(const struct control_argument *a, double d, uint64_t *out)
{
    if (!isfinite(d) || d < 0 || d > (double)CONTROL_NUMBER_MAX || d != floor(d)) return false;
    *out = (uint64_t)d;
    return *out >= a->min && *out <= a->max;
}

static int bad_number(const struct control_command *c, const struct control_argument *a, const char *what,
                      struct nerr *e)
{
    return nerr_set(e, -EINVAL, "%s: %s=%.40s is not possible; give a whole number from %llu to %llu%s%s", c->name,
                    a->name, what, (unsigned long long)a->min, (unsigned long long)a->max, a->unit ? " " : "",
                    a->unit ? a->unit : "");
}

static int take_number(const struct control_command *c, const struct control_argument *a, const cJSON *v,
                       struct control_value *out, struct nerr *e)
{
    char text[40];
    if (cJSON_IsString(v))
        return control_number(a, v->valuestring, &out->number) ? 0 : bad_number(c, a, v->valuestring, e);
    if (!cJSON_IsNumber(v)) return nerr_set(e, -EINVAL, "%s: %s is not a number", c->name, a->name);
    if (json_number(a, v->valuedouble, &out->number)) return 0;
    snprintf(text, sizeof(text), "%.17g", v->valuedouble);
    return bad_number(c, a, text, e);
}

static int take_boolean(const struct control_command *c, const struct control_argument *a, const cJSON *v,
                        struct control_value *out, struct nerr *e)
{
    out->on = cJSON_IsTrue(v);
    if (cJSON_IsBool(v) || (cJSON_IsString(v) && control_boolean(v->valuestring, &out->on))) return 0;
    return nerr_set(e, -EINVAL, "%s: %s is neither on nor off", c->name, a->name);
}

static int take_choice(const struct control_command *c, const struct control_argument *a, const char *text,
                       struct control_value *out, struct nerr *e)
{
    char list[200] = "";
    for (unsigned i = 0; a->choices[i]; i++) {
        if (strcmp(a->choices[i], text) == 0) {
            out->choice = i;
            return 0;
        }
        size_t n = strlen(list);
        snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "", a->choices[i]);
    }
    return nerr_set(e, -EINVAL, "%s: %s=%.40s is unknown; give one of: %s", c->name, a->name, text, list);
}

static int take_text(const struct control_command *c, const struct control_argument *a, const char *text,
                     struct nerr *e)
{
    size_t n = strlen(text);
    if (a->type == CONTROL_NAME) {
        if (name_good(text, CONTROL_NAME_MAX)) return 0;
        return nerr_set(e, -EINVAL, "%s: %s=%.40s is no name; give 1 to %d letters, digits, '.', '_' or '-'", c->name,
                        a->name, text, CONTROL_NAME_MAX);
    }
    if (!n) return nerr_set(e, -EINVAL, "%s: %s is empty", c->name, a->name);
    if (n > a->max)
        return nerr_set(e, -EINVAL, "%s: %s has %zu bytes; give at most %llu", c->name, a->name, n,
                        (unsigned long long)a->max);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return nerr_set(e, -EINVAL, "%s: %s has a control character in it", c->name, a->name);
    return 0;
}

static int take(const struct control_command *c, const struct control_argument *a, const cJSON *v,
                struct control_value *out, struct nerr *e)
{
    out->given = true;
    if (a->type == CONTROL_NUMBER) return take_number(c, a, v, out, e);
    if (a->type == CONTROL_BOOLEAN) return take_boolean(c, a, v, out, e);
    if (!cJSON_IsString(v)) return nerr_set(e, -EINVAL, "%s: %s is not a text", c->name, a->name);
    out->text = v->valuestring;
    return a->type == CONTROL_CHOICE ? take_choice(c, a, out->text, out, e) : take_text(c, a, out->text, e);
}

/* ---- requests ---- */

static int unknown_argument(const struct control_command *c, const char *name, struct nerr *e)
{
    char list[320] = "";
    for (unsigned i = 0; i < c->narguments; i++) {
        size_t n = strlen(list);
        snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "", c->arguments[i].name);
    }
    return nerr_set(e, -EINVAL, "%s: there is no argument '%.40s'; there %s", c->name, name,
                    c->narguments ? list : "are none");
}

static int take_arguments(struct control_request *q, const cJSON *arguments, struct nerr *e)
{
    const struct control_command *c = q->command;
    const cJSON *v;
    cJSON_ArrayForEach(v, arguments)
    {
        const struct control_argument *a = control_find_argument(c, v->string);
        if (!a) return unknown_argument(c, v->string, e);
        struct control_value *out = &q->value[a - c->arguments];
        if (out->given) return nerr_set(e, -EINVAL, "%s: %s is given twice", c->name, a->name);
        int r = take(c, a, v, out, e);
        if (r) return r;
    }
    for (unsigned i = 0; i < c->narguments; i++)
        if (c->arguments[i].required && !q->value[i].given)
            return nerr_set(e, -EINVAL, "%s: %s is missing: %s", c->name, c->arguments[i].name,
                            c->arguments[i].meaning);
    return 0;
}

/* The members of a request, each at most once. */
static int members(struct control_request *q, const cJSON **execute, const cJSON **arguments, const char **class,
                   struct nerr *e)
{
    const cJSON *v;
    *class = "request";
    if (!cJSON_IsObject(q->root))
        return nerr_set(e, -EINVAL, "this is no request; give {\"execute\":\"NAME\",\"arguments\":{...}}");
    cJSON_ArrayForEach(v, q->root)
    {
        const cJSON **to = strcmp(v->string, "execute") == 0     ? execute
                           : strcmp(v->string, "arguments") == 0 ? arguments
                           : strcmp(v->string, "id") == 0        ? (const cJSON **)&q->id
                                                                 : NULL;
        if (!to)
            return nerr_set(e, -EINVAL, "there is no member '%.40s' in requests; there are execute, arguments and id",
                            v->string);
        if (*to) {
            *class = "syntax";
            return nerr_set(e, -EINVAL, "the member %s is there twice", v->string);
        }
        *to = v;
    }
    if (!cJSON_IsString(*execute))
        return nerr_set(e, -EINVAL, "the member execute %s",
                        *execute ? "is not a text" : "is missing: the command's name");
    if (*arguments && !cJSON_IsObject(*arguments)) return nerr_set(e, -EINVAL, "the member arguments is not an object");
    return 0;
}

static int parse(char *text, size_t len, struct control_request *q, const char **class, struct nerr *e)
{
    const char *end = NULL;
    const cJSON *execute = NULL, *arguments = NULL;
    *class = "syntax";
    int r = check_text(text, len, e);
    if (r) return r;
    q->root = cJSON_ParseWithOpts(text, &end, true);
    if (!q->root) return nerr_set(e, -EINVAL, "no JSON from byte %td of the line on", end ? end - text + 1 : 1);
    r = members(q, &execute, &arguments, class, e);
    if (r) return r;
    *class = "unknown-command";
    const char *name = cJSON_GetStringValue(execute);
    q->command = name ? control_find(name) : NULL;
    if (!q->command)
        return nerr_set(e, -EINVAL, "there is no command '%.40s'; see 'nacelle ctl --help'", name ? name : "");
    *class = "argument";
    return take_arguments(q, arguments, e);
}

int control_request_parse(const char *line, size_t len, struct control_request *q, const char **class, struct nerr *e)
{
    memset(q, 0, sizeof(*q));
    *class = "failed";
    char *text = malloc(len + 1);
    if (!text) return nerr_set(e, -ENOMEM, "out of memory");
    memcpy(text, line, len);
    text[len] = 0;
    int r = parse(text, len, q, class, e);
    free(text);
    return r;
}

void control_request_free(struct control_request *q)
{
    cJSON_Delete(q->root);
    memset(q, 0, sizeof(*q));
}

const struct control_value *control_value(const struct control_request *q, const char *name)
{
    const struct control_argument *a = control_find_argument(q->command, name);
    return a ? &q->value[a - q->command->arguments] : NULL;
}
