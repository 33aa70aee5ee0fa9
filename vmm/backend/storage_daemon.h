/* A qemu-storage-daemon process that serves one image as a vhost-user-blk device, to us alone. It ends when we do.
 * One thread at a time; starting and stopping wait for it. */
#ifndef NACELLE_VMM_STORAGE_DAEMON_H
#define NACELLE_VMM_STORAGE_DAEMON_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"

struct block_config;

struct storage_daemon {
    pid_t pid;    /* 0: none */
    int sock;     /* connected; it reads end of file when the daemon is gone */
    int messages; /* a memfd: what it wrote to standard error */
};

/* Starts it and connects; the daemon may find out only later that it cannot open the image: its end shows at `sock`, and
 * storage_daemon_complaint() says why. */
int storage_daemon_start(const struct block_config *cfg, const char *format, struct storage_daemon *d, struct nerr *e);
/* The first line that it wrote to standard error, without its name in front; "" when there is none. */
void storage_daemon_complaint(const struct storage_daemon *d, char *text, unsigned size);
/* Asks it to end, waits (at most that long, then kills it; 0: at once). Everything that was flushed is in the image then. */
void storage_daemon_stop(struct storage_daemon *d, unsigned seconds);

#endif
