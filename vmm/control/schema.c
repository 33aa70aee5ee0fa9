#include "vmm/control/schema.h"

#include <stddef.h>
#include <string.h>

const struct control_command *control_find(const char *name)
{
    for (unsigned i = 0; i < control_ncommands; i++)
        if (strcmp(control_commands[i].name, name) == 0) return &control_commands[i];
    return NULL;
}

const struct control_argument *control_find_argument(const struct control_command *c, const char *name)
{
    for (unsigned i = 0; i < c->narguments; i++)
        if (strcmp(c->arguments[i].name, name) == 0) return &c->arguments[i];
    return NULL;
}
