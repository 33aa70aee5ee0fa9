#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static int bad_size(const char *option, const char *text, struct nerr *e)
{
    return nerr_set(e, -EINVAL, "%s: '%s' is no size; give a number with K, M, G or T, such as 512M", option, text);
}

int cli_parse_size(const char *option, const char *text, uint64_t *bytes, struct nerr *e)
{
    if (*text < '0' || *text > '9') return bad_size(option, text, e);
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno == ERANGE) return nerr_set(e, -ERANGE, "%s: '%s' is too large; give less", option, text);
    unsigned shift = 0;
    switch (*end) {
    case 'k':
    case 'K': shift = 10; break;
    case 'm':
    case 'M': shift = 20; break;
    case 'g':
    case 'G': shift = 30; break;
    case 't':
    case 'T': shift = 40; break;
    case 0: shift = 20; break; /* MiB, as every other VMM has it */
    default: return bad_size(option, text, e);
    }
    if (*end && end[1]) return bad_size(option, text, e);
    if (n > UINT64_MAX >> shift) return nerr_set(e, -ERANGE, "%s: '%s' is too large; give less", option, text);
    *bytes = (uint64_t)n << shift;
    return 0;
}

int cli_parse_number(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *value, struct nerr *e)
{
    char *end = NULL;
    int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
    errno = 0;
    unsigned long long n = *text >= '0' && *text <= '9' ? strtoull(text, &end, base) : 0;
    if (!end || *end || end == text || (base == 16 && !text[2]))
        return nerr_set(e, -EINVAL, "%s: '%s' is no number; give %llu to %llu", option, text, (unsigned long long)min,
                        (unsigned long long)max);
    if (errno == ERANGE || n < min || n > max)
        return nerr_set(e, -ERANGE, "%s: %s is out of range; give %llu to %llu", option, text, (unsigned long long)min,
                        (unsigned long long)max);
    *value = n;
    return 0;
}
