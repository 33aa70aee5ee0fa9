#include "cli/control_print.h"

#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#define CELL 160
#define COLUMNS 16

const char *cli_bytes(double n, char text[32])
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned u = 0;
    for (; n >= 1024 && u < 5; u++) n /= 1024;
    snprintf(text, 32, n < 10 && n != (double)(long)n ? "%.1f %s" : "%.0f %s", n, unit[u]);
    return text;
}

const char *cli_seconds(double s, char text[32])
{
    unsigned long n = s < 0 ? 0 : (unsigned long)s;
    if (s < 60)
        snprintf(text, 32, "%.1f s", s);
    else if (n < 3600)
        snprintf(text, 32, "%lu:%02lu min", n / 60, n % 60);
    else if (n < 86400)
        snprintf(text, 32, "%lu:%02lu:%02lu h", n / 3600, n / 60 % 60, n % 60);
    else
        snprintf(text, 32, "%lud %lu:%02lu h", n / 86400, n / 3600 % 24, n / 60 % 60);
    return text;
}

/* What a peer says is printed: nothing in it may steer a terminal. */
static void put_text(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (; *text && n + 1 < size; text++) out[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text;
    out[n] = 0;
}

static void cell(const cJSON *v, const char *unit, char out[CELL])
{
    char text[32];
    size_t used = 0;
    const cJSON *m;
    out[0] = 0;
    if (cJSON_IsString(v))
        put_text(out, CELL, v->valuestring);
    else if (cJSON_IsBool(v))
        snprintf(out, CELL, "%s", cJSON_IsTrue(v) ? "yes" : "no");
    else if (cJSON_IsNumber(v) && unit && strcmp(unit, "bytes") == 0)
        snprintf(out, CELL, "%s", cli_bytes(v->valuedouble, text));
    else if (cJSON_IsNumber(v) && unit && strcmp(unit, "seconds") == 0)
        snprintf(out, CELL, "%s", cli_seconds(v->valuedouble, text));
    else if (cJSON_IsNumber(v))
        snprintf(out, CELL, "%.15g%s%s", v->valuedouble, unit ? " " : "", unit ? unit : "");
    else if (cJSON_IsObject(v)) { /* limits */
        cJSON_ArrayForEach(m, v)
        {
            int n = snprintf(out + used, CELL - used, "%s%s=%.0f", used ? " " : "", m->string, m->valuedouble);
            if (n < 0 || (size_t)n >= CELL - used) break;
            used += (size_t)n;
        }
        if (!v->child) snprintf(out, CELL, "none");
    }
}

static void print_list(const struct control_field *f, const cJSON *list, FILE *out)
{
    char text[CELL];
    int width[COLUMNS] = {0};
    const cJSON *item;
    unsigned columns = f->nfields < COLUMNS ? f->nfields : COLUMNS;
    if (!list || !list->child) return;
    for (unsigned k = 0; k < columns; k++) {
        width[k] = (int)strlen(f->fields[k].name);
        cJSON_ArrayForEach(item, list)
        {
            cell(cJSON_GetObjectItemCaseSensitive(item, f->fields[k].name), f->fields[k].unit, text);
            if ((int)strlen(text) > width[k]) width[k] = (int)strlen(text);
        }
    }
    fprintf(out, "%s:\n", f->name);
    for (unsigned k = 0; k < columns; k++) fprintf(out, "  %-*s", k + 1 < columns ? width[k] : 0, f->fields[k].name);
    fputc('\n', out);
    cJSON_ArrayForEach(item, list)
    {
        for (unsigned k = 0; k < columns; k++) {
            cell(cJSON_GetObjectItemCaseSensitive(item, f->fields[k].name), f->fields[k].unit, text);
            fprintf(out, "  %-*s", k + 1 < columns ? width[k] : 0, text);
        }
        fputc('\n', out);
    }
}

static void print_json(const cJSON *o, FILE *out)
{
    char *text = cJSON_Print(o);
    if (text) fprintf(out, "%s\n", text);
    free(text);
}

void cli_print_reply(const struct control_command *c, const cJSON *reply, FILE *out)
{
    char text[CELL];
    int width = 0;
    for (unsigned i = 0; i < c->nfields; i++) {
        if (strcmp(c->fields[i].name, "...") == 0) {
            print_json(reply, out);
            return;
        }
        if (c->fields[i].type != CONTROL_LIST && (int)strlen(c->fields[i].name) > width)
            width = (int)strlen(c->fields[i].name);
    }
    for (unsigned i = 0; i < c->nfields; i++) {
        const struct control_field *f = &c->fields[i];
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(reply, f->name);
        if (!v) continue;
        if (f->type == CONTROL_LIST) {
            print_list(f, v, out);
            continue;
        }
        cell(v, f->unit, text);
        fprintf(out, "%-*s  %s\n", width, f->name, text);
    }
}
