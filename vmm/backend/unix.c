#define _GNU_SOURCE
#include "vmm/backend/unix.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 64

static bool address(const char *path, struct sockaddr_un *a)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a->sun_path)) return false;
    strcpy(a->sun_path, path);
    return true;
}

int unix_connect(const char *path)
{
    struct sockaddr_un a;
    if (!address(path, &a)) return -ENAMETOOLONG;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0) return fd;
    int err = errno;
    close(fd);
    return -err;
}

/* A socket file that stayed behind when its process died. */
static bool stale(const char *path)
{
    struct stat s;
    if (lstat(path, &s) || !S_ISSOCK(s.st_mode)) return false;
    int fd = unix_connect(path);
    if (fd >= 0) close(fd);
    return fd == -ECONNREFUSED;
}

int unix_listen(const char *option, const char *path, int *out, struct nerr *e)
{
    struct sockaddr_un a;
    if (!address(path, &a))
        return nerr_set(e, -ENAMETOOLONG, "%s: the path %.60s... is too long for a socket; give at most %zu characters",
                        option, path, sizeof(a.sun_path) - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return nerr_set(e, -errno, "%s: no socket: %s", option, strerror(errno));
    fchmod(fd, S_IRUSR | S_IWUSR); /* before it has a name: nobody else gets in between */
    int r = bind(fd, (struct sockaddr *)&a, sizeof(a));
    if (r && errno == EADDRINUSE && stale(path) && unlink(path) == 0) r = bind(fd, (struct sockaddr *)&a, sizeof(a));
    if (!r) r = listen(fd, BACKLOG);
    if (!r) {
        *out = fd;
        return 0;
    }
    int err = errno;
    close(fd);
    if (err == EADDRINUSE)
        return nerr_set(e, -err, "%s: %s is in use or no socket of ours; give another path or remove it", option, path);
    return nerr_set(e, -err, "%s: cannot listen at %s: %s", option, path, strerror(err));
}
