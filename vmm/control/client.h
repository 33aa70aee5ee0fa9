/* The client's end of a control socket: one request, one reply. Blocks, up to a time-out. One thread per link. */
#ifndef NACELLE_CONTROL_CLIENT_H
#define NACELLE_CONTROL_CLIENT_H

#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"

struct cJSON;

struct control_link {
    int fd;
    pid_t pid; /* of the process that listens; 0: unknown */
    char *in;
    size_t bytes, room;
};

/* Connects and reads the greeting. On failure there is nothing to close. Takes `fd` over when it is not negative, else connects to `path`. -ENOENT:
 * nobody listens there; -ETIMEDOUT: no answer within `ms` (`pid` is there in that case). */
int control_connect(struct control_link *l, const char *path, int fd, int ms, struct nerr *e);
/* Sends a request line and waits for its reply, the caller's to cJSON_Delete(): an object with `return` or `error`. -ETIMEDOUT: none came within
 * `ms`; -ECONNRESET: the machine ended the connection; -EPROTO: what came is no reply. */
int control_ask(struct control_link *l, const struct cJSON *request, int ms, struct cJSON **reply, struct nerr *e);
void control_disconnect(struct control_link *l);

#endif
