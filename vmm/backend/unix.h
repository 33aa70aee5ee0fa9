/* Local sockets by path name. Any thread. */
#ifndef NACELLE_VMM_UNIX_H
#define NACELLE_VMM_UNIX_H

#include "common/error.h"

/* A listening stream socket (non-blocking, close-on-exec, for its owner only) at `path`, in `*fd`. A socket that nobody listens at any more is
 * replaced; anything else there is an error. `option` is for messages. */
int unix_listen(const char *option, const char *path, int *fd, struct nerr *e);
/* Connects without waiting: a descriptor, or negative errno. */
int unix_connect(const char *path);

#endif
