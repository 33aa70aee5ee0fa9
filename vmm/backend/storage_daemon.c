#define _GNU_SOURCE
#include "vmm/backend/storage_daemon.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "vmm/backend/block.h"

#define PROGRAM "qemu-storage-daemon"
#define LISTEN_FD 3 /* in the daemon */
#define KILLED_SECONDS 2

/* ---- what it shall open, as its --blockdev options: JSON, so that no character of a file name means anything ---- */

static void set_cache(cJSON *node, const struct block_config *cfg)
{
    cJSON *cache = cJSON_AddObjectToObject(node, "cache");
    cJSON_AddBoolToObject(cache, "direct", cfg->cache == BLOCK_CACHE_NONE);
    cJSON_AddBoolToObject(cache, "no-flush", cfg->cache == BLOCK_CACHE_UNSAFE);
    cJSON_AddBoolToObject(node, "read-only", cfg->readonly);
    cJSON_AddStringToObject(node, "discard", cfg->discard ? "unmap" : "ignore");
}

static bool add_text(cJSON *node, const char *key, const char *from, size_t n)
{
    char text[512];
    if (!n || n >= sizeof(text)) return false;
    memcpy(text, from, n);
    text[n] = 0;
    return cJSON_AddStringToObject(node, key, text);
}

/* nbd://HOST[:PORT][/EXPORT] and nbd+unix:///[EXPORT]?socket=PATH */
static bool add_nbd(cJSON *node, const char *uri)
{
    cJSON_AddStringToObject(node, "driver", "nbd");
    cJSON *server = cJSON_AddObjectToObject(node, "server");
    const char *export;
    size_t export_len;
    if (strncmp(uri, "nbd+unix:///", 12) == 0) {
        export = uri + 12;
        const char *socket = strstr(export, "?socket=");
        if (!socket) return false;
        export_len = (size_t)(socket - export);
        cJSON_AddStringToObject(server, "type", "unix");
        if (!add_text(server, "path", socket + 8, strlen(socket + 8))) return false;
    } else if (strncmp(uri, "nbd://", 6) == 0) {
        const char *host = uri + 6, *end = host + strcspn(host, "/");
        const char *host_end = end;
        if (*host == '[') { /* an IPv6 address */
            host++;
            host_end = memchr(host, ']', (size_t)(end - host));
            if (!host_end) return false;
        } else {
            host_end = host + strcspn(host, ":/");
        }
        const char *port = memchr(host_end, ':', (size_t)(end - host_end));
        export = *end ? end + 1 : end;
        export_len = strlen(export);
        cJSON_AddStringToObject(server, "type", "inet");
        if (!add_text(server, "host", host, (size_t)(host_end - host))) return false;
        if (!(port ? add_text(server, "port", port + 1, (size_t)(end - port - 1))
                   : add_text(server, "port", "10809", 5)))
            return false;
    } else {
        return false;
    }
    return !export_len || add_text(node, "export", export, export_len);
}

static int protocol_node(const struct block_config *cfg, cJSON *node, struct nerr *e)
{
    cJSON_AddStringToObject(node, "node-name", "file");
    set_cache(node, cfg);
    if (strncmp(cfg->path, "nbd", 3) == 0 && strchr(cfg->path, ':')) {
        if (add_nbd(node, cfg->path)) return 0;
        return nerr_set(e, -EINVAL, "disk %s: give nbd://HOST[:PORT][/NAME] or nbd+unix:///[NAME]?socket=PATH",
                        cfg->path);
    }
    cJSON_AddStringToObject(node, "driver", "file");
    cJSON_AddStringToObject(node, "filename", cfg->path);
    cJSON_AddStringToObject(node, "locking", "on");
    return 0;
}

static void format_node(const struct block_config *cfg, const char *format, cJSON *node)
{
    cJSON_AddStringToObject(node, "node-name", "disk");
    cJSON_AddStringToObject(node, "driver", format);
    cJSON_AddStringToObject(node, "file", "file");
    set_cache(node, cfg);
}

static int describe(const struct block_config *cfg, const char *format, char *texts[2], struct nerr *e)
{
    cJSON *file = cJSON_CreateObject(), *disk = cJSON_CreateObject();
    int r = protocol_node(cfg, file, e);
    format_node(cfg, format, disk);
    texts[0] = r ? NULL : cJSON_PrintUnformatted(file);
    texts[1] = r ? NULL : cJSON_PrintUnformatted(disk);
    cJSON_Delete(file);
    cJSON_Delete(disk);
    if (!r && (!texts[0] || !texts[1])) r = nerr_set(e, -ENOMEM, "disk %s: out of memory", cfg->path);
    return r;
}

/* ---- the process ---- */

/* In the child, between fork and exec: nothing but system calls, since another thread may have held any lock. */
static void become_daemon(pid_t parent, int listener, int messages, char *const argv[])
{
    sigset_t none;
    sigemptyset(&none);
    for (int s = 1; s < NSIG; s++) signal(s, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); /* a Ctrl-C at the terminal is for the VMM, which then ends us in order */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int null = open("/dev/null", O_RDONLY);
    if (getppid() == parent && null >= 0 && dup2(null, 0) == 0 && dup2(messages, 1) == 1 && dup2(messages, 2) == 2 &&
        (listener == LISTEN_FD ? fcntl(listener, F_SETFD, 0) == 0 : dup2(listener, LISTEN_FD) == LISTEN_FD)) {
        syscall(SYS_close_range, LISTEN_FD + 1, ~0u, 0);
        execvp(argv[0], argv);
    }
    syscall(SYS_exit_group, 127); /* the child's end, not the VMM's */
}

/* A socket that nobody else can reach: in a directory of our own, and unlinked as soon as both ends are there. */
static int make_sockets(const char *path, int *listener, int *sock, struct nerr *e)
{
    char dir[64];
    const char *tmp = getenv("TMPDIR");
    if (!tmp || strlen(tmp) > 30) tmp = "/tmp";
    snprintf(dir, sizeof(dir), "%s/nacelle-XXXXXX", tmp);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    *listener = *sock = -1;
    if (!mkdtemp(dir))
        return nerr_set(e, -errno, "disk %s: cannot make a directory in %s: %s; set TMPDIR to one that can be written",
                        path, tmp, strerror(errno));
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", dir);
    *listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = 0;
    if (*listener < 0 || *sock < 0 || bind(*listener, (struct sockaddr *)&a, sizeof(a)) || listen(*listener, 1) ||
        connect(*sock, (struct sockaddr *)&a, sizeof(a)))
        r = nerr_set(e, -errno, "disk %s: cannot make a socket in %s: %s; set TMPDIR to another directory", path, tmp,
                     strerror(errno));
    unlink(a.sun_path);
    rmdir(dir);
    return r;
}

static int spawn(struct storage_daemon *d, int listener, const struct block_config *cfg, char *texts[2], struct nerr *e)
{
    char export[128];
    snprintf(export, sizeof(export), "vhost-user-blk,id=e,node-name=disk,addr.type=fd,addr.str=%d,writable=%s",
             LISTEN_FD, cfg->readonly ? "off" : "on");
    char *argv[] = {PROGRAM, "--blockdev", texts[0], "--blockdev", texts[1], "--export", export, NULL};
    pid_t parent = getpid();
    d->pid = fork();
    if (d->pid == 0) become_daemon(parent, listener, d->messages, argv);
    if (d->pid > 0) return 0;
    d->pid = 0;
    return nerr_set(e, -errno, "disk %s: cannot start " PROGRAM ": %s", cfg->path, strerror(errno));
}

int storage_daemon_start(const struct block_config *cfg, const char *format, struct storage_daemon *d, struct nerr *e)
{
    char *texts[2] = {NULL, NULL};
    int listener = -1;
    *d = (struct storage_daemon){.sock = -1};
    d->messages = memfd_create("qemu-storage-daemon messages", MFD_CLOEXEC);
    int r = d->messages < 0 ? nerr_set(e, -errno, "disk %s: memfd: %s", cfg->path, strerror(errno)) : 0;
    if (!r) r = describe(cfg, format, texts, e);
    if (!r) r = make_sockets(cfg->path, &listener, &d->sock, e);
    if (!r) r = spawn(d, listener, cfg, texts, e);
    if (listener >= 0) close(listener); /* the daemon has the only one: with its end our connection ends */
    free(texts[0]);
    free(texts[1]);
    if (r) storage_daemon_stop(d, 0);
    return r;
}

void storage_daemon_complaint(const struct storage_daemon *d, char *text, unsigned size)
{
    ssize_t n = pread(d->messages, text, size - 1, 0);
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    char *start = strstr(text, PROGRAM ": ");
    if (start == text) memmove(text, text + strlen(PROGRAM ": "), strlen(text + strlen(PROGRAM ": ")) + 1);
    /* The option that it quotes is ours, not the user's. */
    start = strncmp(text, "--blockdev {", strlen("--blockdev {")) == 0 ? strstr(text, "}: ") : NULL;
    if (start) memmove(text, start + 3, strlen(start + 3) + 1);
}

static bool ended(struct storage_daemon *d)
{
    if (waitpid(d->pid, NULL, WNOHANG) != 0) d->pid = 0; /* ended, or somebody else has waited for it */
    return !d->pid;
}

static bool ends_within(struct storage_daemon *d, unsigned seconds)
{
    for (unsigned i = 0; i < seconds * 200 && !ended(d); i++) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    return !d->pid;
}

void storage_daemon_stop(struct storage_daemon *d, unsigned seconds)
{
    if (d->sock >= 0) close(d->sock);
    d->sock = -1;
    if (d->pid) {
        if (seconds) kill(d->pid, SIGTERM);
        if (!ends_within(d, seconds)) {
            if (seconds) nc_warn(PROGRAM " did not end within %u s; it is killed", seconds);
            kill(d->pid, SIGKILL);
            ends_within(d, KILLED_SECONDS); /* one that waits in the host's kernel ends when that lets it */
        }
        d->pid = 0;
    }
    if (d->messages >= 0) close(d->messages);
    d->messages = -1;
}
