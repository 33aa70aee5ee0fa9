/* gencontrol tables|markdown|man COMMANDS.json: the C tables (vmm/control/schema.h), the page docs/control.md, or the manual page nacelle-ctl(1) from
 * the one description of the control socket's commands. Runs on the build host. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

static void die(const char *what, const char *about)
{
    fprintf(stderr, "gencontrol: %s%s%s\n", what, about ? ": " : "", about ? about : "");
    exit(1);
}

static cJSON *load(const char *path)
{
    static char text[1 << 18];
    FILE *f = fopen(path, "r");
    if (!f) die("cannot read", path);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = 0;
    cJSON *root = cJSON_ParseWithOpts(text, NULL, true);
    if (!root) die("no JSON", path);
    return root;
}

static const char *text(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (v && !cJSON_IsString(v)) die("no string", key);
    return v ? v->valuestring : NULL;
}

static const char *need(const cJSON *o, const char *key)
{
    const char *t = text(o, key);
    if (!t) {
        char *about = cJSON_PrintUnformatted(o);
        fprintf(stderr, "gencontrol: '%s' is missing in %s\n", key, about);
        exit(1);
    }
    return t;
}

static double number(const cJSON *o, const char *key, double otherwise)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return v ? v->valuedouble : otherwise;
}

static bool flag(const cJSON *o, const char *key)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, key));
}

static const cJSON *list(const cJSON *o, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(o, key);
}

/* ---- C ---- */

static void quoted(const char *t)
{
    if (!t) {
        printf("NULL");
        return;
    }
    putchar('"');
    for (; *t; t++) {
        if (*t == '"' || *t == '\\') putchar('\\');
        putchar(*t);
    }
    putchar('"');
}

/* One of several in a row of a table. */
static void cell(const char *t)
{
    quoted(t);
    printf(", ");
}

/* The table NAME_N of the items, and how many they are. */
static void inner_table(const cJSON *items, const char *name, unsigned n)
{
    if (items)
        printf("%s_%u, %d", name, n, cJSON_GetArraySize(items));
    else
        printf("NULL, 0");
}

static const char *type_of(const cJSON *o)
{
    static const char *const types[][2] = {{"string", "CONTROL_STRING"}, {"name", "CONTROL_NAME"},
                                           {"number", "CONTROL_NUMBER"}, {"boolean", "CONTROL_BOOLEAN"},
                                           {"choice", "CONTROL_CHOICE"}, {"list", "CONTROL_LIST"},
                                           {"object", "CONTROL_OBJECT"}};
    const char *t = need(o, "type");
    for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(types[i][0], t) == 0) return types[i][1];
    die("unknown type", t);
    return NULL;
}

static void table_fields(const cJSON *fields, const char *name)
{
    const cJSON *f;
    char inner[64];
    unsigned n = 0;
    cJSON_ArrayForEach(f, fields)
    {
        snprintf(inner, sizeof(inner), "%s_%u", name, n++);
        if (list(f, "fields")) table_fields(list(f, "fields"), inner);
    }
    n = 0;
    printf("static const struct control_field %s[] = {\n", name);
    cJSON_ArrayForEach(f, fields)
    {
        printf("    {");
        cell(need(f, "name"));
        printf("%s, ", type_of(f));
        cell(text(f, "unit"));
        cell(need(f, "meaning"));
        inner_table(list(f, "fields"), name, n++);
        printf("},\n");
    }
    printf("};\n");
}

static void table_arguments(const cJSON *arguments, unsigned command)
{
    const cJSON *a, *c;
    unsigned n = 0;
    cJSON_ArrayForEach(a, arguments)
    {
        if (list(a, "choices")) {
            printf("static const char *const choices_%u_%u[] = {", command, n);
            cJSON_ArrayForEach(c, list(a, "choices")) printf("\"%s\", ", c->valuestring);
            printf("NULL};\n");
        }
        n++;
    }
    n = 0;
    printf("static const struct control_argument arguments_%u[] = {\n", command);
    cJSON_ArrayForEach(a, arguments)
    {
        printf("    {");
        cell(need(a, "name"));
        double most = strcmp(need(a, "type"), "number") ? 255 : 9007199254740992.0;
        printf("%s, %d, %.0f, %.0f, %.0f, ", type_of(a), flag(a, "required"), number(a, "min", 0),
               number(a, "max", most), number(a, "base", 1000));
        cell(text(a, "unit"));
        cell(text(a, "default"));
        cell(need(a, "meaning"));
        if (list(a, "choices"))
            printf("choices_%u_%u},\n", command, n);
        else
            printf("NULL},\n");
        n++;
    }
    printf("};\n");
}

static void tables(const cJSON *root)
{
    const cJSON *c;
    char name[32];
    unsigned n = 0;
    printf(
        "/* Made from vmm/control/commands.json by tools/gencontrol.c. */\n#include <stddef.h>\n\n#include \"vmm/control/schema.h\"\n\n");
    printf("const unsigned control_protocol = %.0f;\n", number(root, "protocol", 0));
    cJSON_ArrayForEach(c, list(root, "commands"))
    {
        if (list(c, "arguments")) table_arguments(list(c, "arguments"), n);
        snprintf(name, sizeof(name), "fields_%u", n++);
        if (list(c, "returns")) table_fields(list(c, "returns"), name);
    }
    n = 0;
    printf("const struct control_command control_commands[] = {\n");
    cJSON_ArrayForEach(c, list(root, "commands"))
    {
        printf("    {");
        cell(need(c, "name"));
        cell(need(c, "summary"));
        cell(text(c, "detail"));
        cell(need(c, "since"));
        inner_table(list(c, "arguments"), "arguments", n);
        printf(", ");
        inner_table(list(c, "returns"), "fields", n++);
        printf("},\n");
    }
    printf("};\nconst unsigned control_ncommands = %u;\n", n);
    printf("const struct control_error control_errors[] = {\n");
    cJSON_ArrayForEach(c, list(root, "errors"))
    {
        printf("    {");
        cell(need(c, "class"));
        quoted(need(c, "meaning"));
        printf("},\n");
    }
    printf("};\nconst unsigned control_nerrors = %d;\n", cJSON_GetArraySize(list(root, "errors")));
}

/* ---- what an argument may be, in words ---- */

static void say_type(const cJSON *a)
{
    const cJSON *c;
    const char *t = need(a, "type"), *unit = text(a, "unit");
    bool first = true;
    if (strcmp(t, "choice") == 0) {
        cJSON_ArrayForEach(c, list(a, "choices"))
        {
            printf("%s%s", first ? "" : ", ", c->valuestring);
            first = false;
        }
        return;
    }
    printf("%s", strcmp(t, "boolean") == 0 ? "on or off" : t);
    if (unit) printf(", %s", unit);
    if (number(a, "base", 0) == 1024) printf(" (K = 1024)");
    if (number(a, "base", 0) == 1000) printf(" (K = 1000)");
    if (list(a, "min")) printf(", from %.0f", number(a, "min", 0));
    if (list(a, "max")) printf(", up to %.0f%s", number(a, "max", 0), strcmp(t, "number") ? " bytes" : "");
}

/* As a sentence. */
static void sentence(const char *t, void (*put)(const char *t))
{
    char copy[512];
    snprintf(copy, sizeof(copy), "%s.", t);
    if (copy[0] >= 'a' && copy[0] <= 'z') copy[0] = (char)(copy[0] - 'a' + 'A');
    put(copy);
}

static void plain(const char *t)
{
    printf("%s", t);
}

/* ---- the page ---- */

static void page_fields(const cJSON *fields, const char *of)
{
    const cJSON *f;
    char inner[96];
    cJSON_ArrayForEach(f, fields)
    {
        printf("| `%s%s` | %s%s%s | %s |\n", of, need(f, "name"), need(f, "type"), text(f, "unit") ? ", " : "",
               text(f, "unit") ? text(f, "unit") : "", need(f, "meaning"));
        snprintf(inner, sizeof(inner), "%s%s[].", of, need(f, "name"));
        if (list(f, "fields")) page_fields(list(f, "fields"), inner);
    }
}

static void page_command(const cJSON *c)
{
    const cJSON *a;
    const char *detail = text(c, "detail");
    bool first = true;
    printf("\n### %s\n\n", need(c, "name"));
    sentence(need(c, "summary"), plain);
    printf("%s%s\n\nSince %s.", detail ? " " : "", detail ? detail : "", need(c, "since"));
    cJSON_ArrayForEach(a, list(c, "errors"))
    {
        printf("%s`%s`", first ? " Errors of its own: " : ", ", a->valuestring);
        first = false;
    }
    printf("%s\n", first ? "" : ".");
    if (list(c, "arguments"))
        printf("\n| Argument | What it takes | If left out | Meaning |\n| --- | --- | --- | --- |\n");
    cJSON_ArrayForEach(a, list(c, "arguments"))
    {
        const char *otherwise = text(a, "default");
        printf("| `%s` | ", need(a, "name"));
        say_type(a);
        printf(" | %s | %s |\n",
               flag(a, "required") ? "an error"
               : otherwise         ? otherwise
                                   : "stays as it is",
               need(a, "meaning"));
    }
    if (!list(c, "returns")) printf("\nReturns an empty object.\n");
    if (list(c, "returns")) printf("\n| Returns | Type | Meaning |\n| --- | --- | --- |\n");
    page_fields(list(c, "returns"), "");
}

static const char page_start[] =
    "<!-- Made from vmm/control/commands.json by tools/gencontrol.c: change it there, then run `make control-docs`. -->\n"
    "# The control socket\n"
    "\n"
    "Every running machine listens at a local socket. `nacelle ps` lists the machines, `nacelle ctl NAME COMMAND [KEY=VALUE]...` talks to one; other\n"
    "programs speak the protocol below, which is made of lines of JSON.\n"
    "\n"
    "    nacelle run --name web -k vmlinuz -d root.img -n user &\n"
    "    nacelle ps\n"
    "    nacelle ctl web status\n"
    "    nacelle ctl web disk-limits disk0 read_iops=100\n"
    "    nacelle ctl web net-limits net0 avg_in=10M peak_in=20M burst_in=1M\n"
    "    nacelle ctl web power-button\n"
    "\n"
    "## Where\n"
    "\n"
    "`NAME.sock` in the first of these directories that can be made: `$NACELLE_RUN_DIR` (and then no other), `$XDG_RUNTIME_DIR/nacelle`, `/run/nacelle` for\n"
    "root, `/tmp/nacelle-UID`. A machine without `--name` is called `vm-PID`. `--control PATH` puts the socket elsewhere (`nacelle ctl PATH ...` finds\n"
    "it there, `nacelle ps` does not), `--control none` leaves it out. Where no directory can be made, the machine runs without a socket, and says so.\n"
    "\n"
    "The directory and the socket belong to the user who runs the machine, and nobody else may enter (modes 0700 and 0600); a peer that is neither that user nor root\n"
    "is sent away all the same. The socket is removed when the run ends. One that a killed machine left behind is recognized, because nobody\n"
    "listens there: `nacelle ps` removes it, and the next machine of that name takes its place.\n"
    "\n"
    "## Protocol\n"
    "\n"
    "One object per line, in UTF-8, up to 65536 bytes. The server begins with a greeting, and answers requests one by one, in their order:\n"
    "\n"
    "    server: {\"nacelle\":\"0.1.0\",\"protocol\":1,\"name\":\"web\",\"pid\":4711}\n"
    "    client: {\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"disk0\",\"size\":\"20G\"},\"id\":7}\n"
    "    server: {\"return\":{\"id\":\"disk0\",\"size\":21474836480},\"id\":7}\n"
    "    client: {\"execute\":\"disk-resize\",\"arguments\":{\"id\":\"disk7\",\"size\":\"20G\"}}\n"
    "    server: {\"error\":{\"class\":\"not-found\",\"message\":\"there is no disk 'disk7'; there are: disk0\"}}\n"
    "\n"
    "- `arguments` may be left out where none is required; `id` may be any JSON value and comes back with the reply.\n"
    "- Numbers are whole ones up to 2^53. As text they may have K, M, G or T behind them; what K is, each argument says. Where on or off is asked for,\n"
    "  `true` and `false` are meant, or the texts on, off, yes, no.\n"
    "- A request is checked as a whole before anything is done: a wrong one changes nothing.\n"
    "- A line that is too long, or no JSON, is answered with an error; after one that is too long the connection is closed.\n"
    "- Up to 16 clients may be connected. Who does not read replies is not served any further, and dropped when a megabyte of events has piled up.\n"
    "\n"
    "`nacelle ctl` ends with status 0, with 1 when the reply is an error, with 2 for wrong use or when there is no such machine. Bare words stand for the required\n"
    "arguments in their order (`nacelle ctl web net-link net0 down`); `--json` prints the reply as it came.\n";

static void page_names(const char *title, const cJSON *names, const char *key)
{
    const cJSON *n;
    printf("| %s | Meaning |\n| --- | --- |\n", title);
    cJSON_ArrayForEach(n, names) printf("| `%s` | %s |\n", need(n, key), need(n, "meaning"));
}

static void markdown(const cJSON *root)
{
    const cJSON *c;
    fputs(page_start, stdout);
    printf("\n### Errors\n\n`class` is for programs, `message` one line for people.\n\n");
    page_names("Class", list(root, "errors"), "class");
    printf(
        "\n### Events\n\nAfter the command `events`, lines such as `{\"event\":\"paused\",\"time\":1700000000.25}` come between replies; `time` is seconds since "
        "1970.\n\n");
    page_names("Event", list(root, "events"), "name");
    printf("\n## Commands\n");
    cJSON_ArrayForEach(c, list(root, "commands")) page_command(c);
}

/* ---- the manual page ---- */

/* A line of roff: no dot or quote at its start, backslashes and hyphens as they are. */
static void roff(const char *t)
{
    if (*t == '.' || *t == '\'') printf("\\&");
    for (; *t; t++) {
        if (*t == '-' || *t == '\\') putchar('\\');
        if (*t == '\\')
            putchar('e');
        else if (*t != '`')
            putchar(*t);
    }
}

static void man_command(const cJSON *c)
{
    const cJSON *a;
    printf(".TP\n.B ");
    roff(need(c, "name"));
    cJSON_ArrayForEach(a, list(c, "arguments"))
    {
        printf(" ");
        if (!flag(a, "required")) printf("\\fR[\\fB");
        roff(need(a, "name"));
        printf("=\\fI...\\fB");
        if (!flag(a, "required")) printf("\\fR]\\fB");
    }
    printf("\n");
    sentence(need(c, "summary"), roff);
    printf("\n");
    if (text(c, "detail")) {
        roff(text(c, "detail"));
        printf("\n");
    }
    if (list(c, "arguments")) printf(".RS\n");
    cJSON_ArrayForEach(a, list(c, "arguments"))
    {
        printf(".TP\n.B ");
        roff(need(a, "name"));
        printf("\n");
        roff(need(a, "meaning"));
        printf(" (");
        say_type(a);
        if (flag(a, "required")) printf("; required");
        if (text(a, "default")) printf("; default: %s", text(a, "default"));
        printf(")\n");
    }
    if (list(c, "arguments")) printf(".RE\n");
}

static void man(const cJSON *root)
{
    const cJSON *c;
    fputs(
        ".\\\" Made from vmm/control/commands.json by tools/gencontrol.c: change it there, then run `make control-docs`.\n"
        ".TH NACELLE-CTL 1 \"2026\" \"Nacelle\" \"User Commands\"\n"
        ".SH NAME\nnacelle-ctl, nacelle-ps \\- look at and steer running virtual machines\n"
        ".SH SYNOPSIS\n"
        ".B nacelle ctl\n.I NAME COMMAND\n.RI [ KEY = VALUE ]...\n.RB [ \\-\\-json ]\n.br\n"
        ".B nacelle ps\n.RB [ \\-\\-json ]\n"
        ".SH DESCRIPTION\n"
        "Every machine that\n.BR nacelle (1)\n.B run\nstarts listens at a local socket.\n.B nacelle ps\n"
        "lists the running machines of this user, and removes what killed ones left behind.\n.B nacelle ctl\n"
        "sends one command to the machine called\n.I NAME\n(or, where that has a slash in it, to the socket of that path) and prints the reply.\n"
        "Bare words stand for the required arguments, in their order. Numbers may have K, M, G or T behind them.\n"
        ".PP\nThe protocol of the socket is described in docs/control.md.\n"
        ".SH OPTIONS\n.TP\n.B \\-\\-json\nPrint the reply as JSON.\n.TP\n.B \\-\\-timeout \\fISECONDS\\fR\n"
        "How long to wait for the machine (default 30).\n.SH COMMANDS\n",
        stdout);
    cJSON_ArrayForEach(c, list(root, "commands")) man_command(c);
    fputs(
        ".SH EXIT STATUS\n0: done. 1: the machine answered with an error, or went away. 2: wrong use, or there is no such machine.\n"
        ".SH FILES\n.TP\n.I NAME.sock\nin $NACELLE_RUN_DIR; else $XDG_RUNTIME_DIR/nacelle, /run/nacelle (root), /tmp/nacelle\\-UID.\n"
        ".SH SEE ALSO\n.BR nacelle (1)\n",
        stdout);
}

int main(int argc, char **argv)
{
    if (argc != 3) die("usage: gencontrol tables|markdown|man COMMANDS.json", NULL);
    cJSON *root = load(argv[2]);
    if (strcmp(argv[1], "tables") == 0)
        tables(root);
    else if (strcmp(argv[1], "markdown") == 0)
        markdown(root);
    else if (strcmp(argv[1], "man") == 0)
        man(root);
    else
        die("unknown output", argv[1]);
    cJSON_Delete(root);
    return fflush(stdout) ? 1 : 0;
}
