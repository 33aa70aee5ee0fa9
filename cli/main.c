/* nacelle: finds the verb and runs it. */
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/log.h"

static int version_verb(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("nacelle %s\n", cli_version);
    return 0;
}

static void version_help(FILE *out)
{
    fputs("Usage: nacelle version\n\nSays which version this is.\n", out);
}

static const struct cli_verb cli_version_verb = {"version", "say which version this is", version_verb, version_help};

static const struct cli_verb *const verbs[] = {&cli_run, &cli_ps, &cli_ctl, &cli_doctor, &cli_version_verb};

static void help(FILE *out)
{
    fputs("Usage: nacelle VERB [options]\n\n", out);
    for (unsigned i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        fprintf(out, "  %-10s %s\n", verbs[i]->name, verbs[i]->summary);
    fprintf(out, "  %-10s %s\n", "help", "explain a verb: nacelle help VERB");
    fputs("\nThe manual page is nacelle(1).\n", out);
}

static const struct cli_verb *find(const char *name)
{
    for (unsigned i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(verbs[i]->name, name) == 0) return verbs[i];
    return NULL;
}

static int unknown(const char *name)
{
    nc_error("unknown verb '%s'; see 'nacelle help'", name);
    return CLI_USAGE_STATUS;
}

/* Standard descriptors that the caller closed are opened on /dev/null: otherwise the next file opened, the kernel for
 * example, would become standard input. */
static bool open_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_WRONLY : O_RDONLY) != fd) return false;
    return true;
}

int main(int argc, char **argv)
{
    if (!open_standard_files()) return 1;
    if (argc < 2) {
        help(stderr);
        return CLI_USAGE_STATUS;
    }
    const char *word = argv[1];
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) word = "version";
    if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        const struct cli_verb *about = argc > 2 ? find(argv[2]) : NULL;
        if (argc > 2 && !about) return unknown(argv[2]);
        (about ? about->help : help)(stdout);
        return 0;
    }
    const struct cli_verb *v = find(word);
    return v ? v->run(argc - 1, argv + 1) : unknown(word);
}
