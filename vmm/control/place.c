#define _GNU_SOURCE
#include "vmm/control/place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/name.h"
#include "vmm/backend/unix.h"

#define DIRECTORIES 3
#define LOCK_TRIES 300 /* of 10 ms: the lock is held for as long as a socket takes to be made */
#define SUFFIX ".sock"

/* ---- directories ---- */

struct directories {
    char path[DIRECTORIES][CONTROL_PATH_MAX];
    unsigned n;
};

static void add(struct directories *d, const char *base, const char *rest)
{
    int n = snprintf(d->path[d->n], CONTROL_PATH_MAX, "%s%s", base, rest);
    if (n > 0 && n < CONTROL_PATH_MAX) d->n++;
}

/* In the order in which they are tried. */
static void candidates(struct directories *d)
{
    const char *own = getenv("NACELLE_RUN_DIR"), *session = getenv("XDG_RUNTIME_DIR");
    char uid[32];
    struct stat s;
    d->n = 0;
    if (own && *own) {
        add(d, own, "");
        return;
    }
    /* Under sudo -E it may be another user's: what root makes there, its owner could not use. */
    if (session && *session == '/' && stat(session, &s) == 0 && s.st_uid == geteuid()) add(d, session, "/nacelle");
    if (geteuid() == 0) add(d, "/run/nacelle", "");
    snprintf(uid, sizeof(uid), "%u", (unsigned)geteuid());
    add(d, "/tmp/nacelle-", uid);
}

/* A directory that others may write to is none: they could put their own sockets in our place. */
static int check_directory(const char *path, bool make, struct nerr *e)
{
    struct stat s;
    if (make && mkdir(path, 0700) && errno != EEXIST)
        return nerr_set(e, -errno, "cannot make %s: %s", path, strerror(errno));
    if (lstat(path, &s)) return nerr_set(e, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(s.st_mode)) return nerr_set(e, -ENOTDIR, "%s is no directory", path);
    if (s.st_uid != geteuid()) return nerr_set(e, -EPERM, "%s belongs to another user", path);
    if (s.st_mode & 022) return nerr_set(e, -EPERM, "%s can be written to by other users", path);
    return 0;
}

/* Held while a socket is made or removed, so that nobody takes a socket that does not listen yet for a dead one. */
static int lock_directory(const char *path)
{
    char name[CONTROL_PATH_MAX + 8];
    snprintf(name, sizeof(name), "%s/.lock", path);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return -errno;
    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    close(fd);
    return -EBUSY;
}

/* ---- names ---- */

bool control_name_good(const char *name)
{
    return name_good(name, CONTROL_VM_NAME_MAX) && name[0] != '.' && name[0] != '-';
}

static int socket_path(const char *directory, const char *name, char path[CONTROL_PATH_MAX], struct nerr *e)
{
    int n = snprintf(path, CONTROL_PATH_MAX, "%s/%s" SUFFIX, directory, name);
    if (n > 0 && n < CONTROL_PATH_MAX) return 0;
    return nerr_set(e, -ENAMETOOLONG, "the socket %s/%s" SUFFIX " would have too long a name", directory, name);
}

static pid_t peer(int fd)
{
    struct ucred who;
    socklen_t n = sizeof(who);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) ? 0 : who.pid;
}

/* 0, or -EEXIST when somebody listens there. */
static int check_free(const char *path, const char *name, struct nerr *e)
{
    int fd = unix_connect(path);
    if (fd < 0 && fd != -EAGAIN) return 0;
    pid_t pid = fd >= 0 ? peer(fd) : 0;
    if (fd >= 0) close(fd);
    return nerr_set(
        e, -EEXIST,
        "a machine named '%s' is running (pid %d); choose another --name, or end it with: nacelle ctl %s quit", name,
        (int)pid, name);
}

/* ---- claim and release ---- */

static int remember(struct control_place *p, struct nerr *e)
{
    struct stat s;
    if (lstat(p->path, &s)) return nerr_set(e, -errno, "%s: %s", p->path, strerror(errno));
    p->dev = s.st_dev;
    p->ino = s.st_ino;
    p->made = s.st_mtim;
    return 0;
}

static int listen_at(const char *option, struct control_place *p, struct nerr *e)
{
    int r = unix_listen(option, p->path, &p->fd, e);
    if (!r) r = remember(p, e);
    if (r && p->fd >= 0) {
        close(p->fd);
        p->fd = -1;
    }
    return r;
}

static int claim_in(const char *directory, struct control_place *p, struct nerr *e)
{
    int r = check_directory(directory, true, e);
    if (!r) r = socket_path(directory, p->name, p->path, e);
    if (r) return r;
    int lock = lock_directory(directory);
    if (lock < 0) return nerr_set(e, lock, "%s/.lock: %s", directory, strerror(-lock));
    r = check_free(p->path, p->name, e);
    if (!r) r = listen_at("control socket", p, e);
    close(lock);
    return r;
}

/* A machine of that name may have found another directory, with another environment. */
static int check_elsewhere(const struct directories *d, const char *name, struct nerr *e)
{
    char path[CONTROL_PATH_MAX];
    struct nerr ignored;
    int r = 0;
    for (unsigned i = 0; i < d->n && !r; i++)
        if (!check_directory(d->path[i], false, &ignored) && !socket_path(d->path[i], name, path, &ignored))
            r = check_free(path, name, e);
    return r;
}

int control_claim(const char *name, const char *path, struct control_place *out, struct nerr *e)
{
    struct directories d;
    *out = (struct control_place){.fd = -1};
    if (name)
        snprintf(out->name, sizeof(out->name), "%s", name);
    else
        snprintf(out->name, sizeof(out->name), "vm-%d", (int)getpid());
    if (path && !*path) return nerr_set(e, -EEXIST, "--control: the path is empty; give a file, or none");
    if (path) {
        if (snprintf(out->path, sizeof(out->path), "%s", path) >= (int)sizeof(out->path))
            return nerr_set(e, -EEXIST, "--control: the path %.60s... is too long for a socket; give a shorter one",
                            path);
        return listen_at("--control", out, e) ? -EEXIST : 0;
    }
    candidates(&d);
    int r = check_elsewhere(&d, out->name, e);
    /* A process of that number in another PID namespace that shares the directory. */
    for (unsigned i = 2; !name && r == -EEXIST && i < 1000; i++) {
        snprintf(out->name, sizeof(out->name), "vm-%d-%u", (int)getpid(), i);
        r = check_elsewhere(&d, out->name, e);
    }
    if (r) return r;
    nerr_set(e, -ENOENT, "no directory for it has a short enough name");
    r = -ENOENT;
    for (unsigned i = 0; i < d.n && r && r != -EEXIST; i++) r = claim_in(d.path[i], out, e);
    return r;
}

void control_release(struct control_place *p)
{
    struct stat s;
    if (p->fd < 0) return;
    /* Before it stops to listen, so that nobody takes it for a dead one and its name twice. */
    bool same = lstat(p->path, &s) == 0 && s.st_dev == p->dev && s.st_ino == p->ino &&
                s.st_mtim.tv_sec == p->made.tv_sec && s.st_mtim.tv_nsec == p->made.tv_nsec;
    if (same) unlink(p->path);
    close(p->fd);
    p->fd = -1;
}

/* ---- finding machines ---- */

int control_locate(const char *name, char path[CONTROL_PATH_MAX], struct nerr *e)
{
    struct directories d;
    struct nerr ignored;
    struct stat s;
    if (strchr(name, '/')) {
        if (snprintf(path, CONTROL_PATH_MAX, "%s", name) < CONTROL_PATH_MAX) return 0;
        return nerr_set(e, -ENAMETOOLONG, "the path %.60s... is too long for a socket", name);
    }
    candidates(&d);
    for (unsigned i = 0; i < d.n && control_name_good(name); i++)
        if (!check_directory(d.path[i], false, &ignored) && !socket_path(d.path[i], name, path, &ignored) &&
            lstat(path, &s) == 0)
            return 0;
    return nerr_set(e, -ENOENT, "there is no machine named '%.64s'; 'nacelle ps' lists those there are", name);
}

/* Looked at once more under the lock: its machine may have been about to listen. */
static bool remove_dead(const char *directory, const char *path)
{
    int lock = lock_directory(directory);
    if (lock < 0) return false;
    int fd = unix_connect(path);
    bool gone = fd == -ECONNREFUSED && unlink(path) == 0;
    if (fd >= 0) close(fd);
    close(lock);
    return gone;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_socket(const struct dirent *d)
{
    size_t n = strlen(d->d_name), k = sizeof(SUFFIX) - 1;
    return n > k && strcmp(d->d_name + n - k, SUFFIX) == 0;
}

static void each_in(const char *directory, void (*fn)(void *ctx, const char *name, int fd), void *ctx,
                    unsigned *removed)
{
    struct dirent **list;
    struct nerr ignored;
    char name[CONTROL_VM_NAME_MAX + 1], path[CONTROL_PATH_MAX];
    int n = scandir(directory, &list, is_socket, by_name);
    for (int i = 0; i < n; i++) {
        int len = (int)(strlen(list[i]->d_name) - (sizeof(SUFFIX) - 1));
        snprintf(name, sizeof(name), "%.*s", len, list[i]->d_name);
        free(list[i]);
        if (len > CONTROL_VM_NAME_MAX || !control_name_good(name) || socket_path(directory, name, path, &ignored))
            continue;
        int fd = unix_connect(path);
        if (fd == -ECONNREFUSED) {
            if (remove_dead(directory, path) && removed) (*removed)++;
            continue;
        }
        if (fd >= 0 || fd == -EAGAIN) fn(ctx, name, fd < 0 ? -1 : fd);
    }
    if (n >= 0) free(list);
}

void control_each(void (*fn)(void *ctx, const char *name, int fd), void *ctx, unsigned *removed)
{
    struct directories d;
    struct nerr ignored;
    if (removed) *removed = 0;
    candidates(&d);
    for (unsigned i = 0; i < d.n; i++)
        if (!check_directory(d.path[i], false, &ignored)) each_in(d.path[i], fn, ctx, removed);
}
