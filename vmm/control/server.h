/* The server's end of the control socket: lines in, lines out, several clients, nothing that blocks.
 *
 * Threads: all of it on the event loop's thread, or while the loop does not run. */
#ifndef NACELLE_CONTROL_SERVER_H
#define NACELLE_CONTROL_SERVER_H

#include "vmm/control/request.h"

#define CONTROL_MAX_CLIENTS 16
#define CONTROL_BUSY_BYTES (256u << 10) /* replies that nobody reads: no further request is served */
#define CONTROL_DROP_BYTES (1u << 20)   /* and from here on the client goes */

struct event_loop;
struct cJSON;
struct control;

struct control_config {
    struct event_loop *loop;
    int listener;        /* a listening socket, the caller's; -1: none */
    const char *name;    /* for the greeting; outlives the server */
    const char *version; /* as well */
    /* Carries out a checked request, filling `reply` (an empty object). Negative errno: the class comes from it, the message from `e`. CONTROL_LATER:
     * control_answer() with the request's ticket follows, not from inside; the client's next requests wait for it, others go on. */
    int (*execute)(void *ctx, const struct control_request *q, struct cJSON *reply, struct nerr *e);
    void *ctx;
};

#define CONTROL_LATER 1

int control_start(const struct control_config *cfg, struct control **out, struct nerr *e);
/* Lets all clients go, after what is left for them as far as that goes at once. NULL is fine. */
void control_stop(struct control *c);
/* For those that listen. The members of `data`, an object that is taken over, become the event's; may be NULL. */
void control_tell(struct control *c, const char *event, struct cJSON *data);
/* The answer to a request that was to be answered later: as `execute` would have returned it. `reply` is taken over. A client that
 * has gone meanwhile gets none. */
void control_answer(struct control *c, uint64_t ticket, int result, struct cJSON *reply, const struct nerr *e);
/* One more client on a connected stream socket, which is taken over, whoever is at its other end. */
int control_add_client(struct control *c, int fd, struct nerr *e);
unsigned control_clients(const struct control *c);

#endif
