/* The commands of the control socket, carried out on a machine. On the event loop's thread. */
#ifndef NACELLE_CONTROL_COMMANDS_H
#define NACELLE_CONTROL_COMMANDS_H

#include "vmm/control/request.h"

struct cJSON;
struct machine;

struct control;

struct control_machine {
    struct machine *machine;
    struct control *server; /* for answers that come later */
    const char *name;       /* as in nacelle ps */
};

/* struct control_config's execute; ctx is a struct control_machine. */
int control_execute(void *ctx, const struct control_request *q, struct cJSON *reply, struct nerr *e);
/* Whether a command of the schema is known here (all but `events`, which is the server's own). */
bool control_carries_out(const char *command);

#endif
