/* Where control sockets are: a directory of the user's own, with one socket per machine. See docs/control.md. One thread. */
#ifndef NACELLE_CONTROL_PLACE_H
#define NACELLE_CONTROL_PLACE_H

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "common/error.h"

#define CONTROL_VM_NAME_MAX 63
#define CONTROL_PATH_MAX 108 /* of a socket's address, with its NUL */

struct control_place {
    int fd; /* listening; -1: none */
    char name[CONTROL_VM_NAME_MAX + 1];
    char path[CONTROL_PATH_MAX];
    dev_t dev; /* of the socket's file, so that no other one is removed */
    ino_t ino;
    struct timespec made;
};

/* 1 to CONTROL_VM_NAME_MAX letters, digits, '.', '_', '-', not beginning with '.' or '-'. */
bool control_name_good(const char *name);

/* Takes the name (NULL: vm-PID) and listens in the first directory that can be made, or at `path` when that is not NULL. A socket that a dead
 * process left is replaced. -EEXIST: a machine of that name runs, or the path is in use; other errors: no directory can be had. */
int control_claim(const char *name, const char *path, struct control_place *out, struct nerr *e);
/* Closes and removes the socket. One that was not claimed is fine (fd -1). */
void control_release(struct control_place *p);

/* The socket of a machine by name, or by a path that has a slash in it. -ENOENT: there is none. */
int control_locate(const char *name, char path[CONTROL_PATH_MAX], struct nerr *e);
/* Calls fn for each machine that has a socket, and removes sockets that nobody listens at (`removed` counts them; may be NULL). `fd` is connected, and fn's to
 * close; -1: somebody listens, but takes no connection now. */
void control_each(void (*fn)(void *ctx, const char *name, int fd), void *ctx, unsigned *removed);

#endif
