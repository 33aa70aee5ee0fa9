/* Integer programs, third part: Debian's own programs, as packaged, dynamically linked. */
#include "bench.h"

#define CC1 "/usr/lib/gcc/x86_64-linux-gnu/12/cc1"

static const char *const python[] = {"/usr/bin/python3.11", "-S", "-s", "work.py", NULL};
static const char *const perl[] = {"/usr/bin/perl", "work.pl", NULL};
static const char *const luajit[] = {"/usr/bin/luajit", "work.lua", NULL};
static const char *const gcc[] = {CC1, "-quiet", "-O2", "-fpreprocessed", "work.i", "-o", "-", NULL};

const struct bench bench_exec[] = {
    {.group = "integer", .name = "python3", .kind = BENCH_EXEC, .argv = python},
    {.group = "integer", .name = "perl", .kind = BENCH_EXEC, .argv = perl},
    {.group = "integer", .name = "luajit", .kind = BENCH_EXEC, .argv = luajit},
    {.group = "integer", .name = "gcc", .kind = BENCH_EXEC, .argv = gcc},
    {.name = NULL},
};
