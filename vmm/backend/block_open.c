/* Which driver an image needs: its format is looked at once, here, and from then on is passed explicitly. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "vmm/backend/block_internal.h"

struct magic {
    unsigned offset, len;
    const char *bytes, *format;
};

/* Formats that begin with a number of their own. Those that end with one (old VHD) cannot be told from raw by it. */
static const struct magic magics[] = {
    {0, 4, "QFI\xfb", "qcow2"},
    {0, 4, "KDMV", "vmdk"},
    {0, 4, "COWD", "vmdk"},
    {0, 8, "vhdxfile", "vhdx"},
    {0, 8, "conectix", "vpc"},
    {64, 4, "\x7f\x10\xda\xbe", "vdi"},
    {0, 4, "QED\0", "qed"},
    {0, 6, "LUKS\xba\xbe", "luks"},
    {0, 16, "WithoutFreeSpace", "parallels"},
    {0, 16, "WithouFreSpacExt", "parallels"},
};

const char *block_probe(const uint8_t *head, size_t len)
{
    for (unsigned i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
        const struct magic *m = &magics[i];
        if (m->offset + m->len <= len && memcmp(head + m->offset, m->bytes, m->len) == 0) return m->format;
    }
    return "raw";
}

static int probe_file(const char *path, const char **format, struct nerr *e)
{
    uint8_t head[BLOCK_SECTOR];
    /* O_NONBLOCK: a FIFO must not hold us; what it is we say below. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return nerr_set(e, -ENOENT, "disk %s: no such file; create an empty one with 'truncate -s 10G %s'", path, path);
    if (fd < 0) return nerr_set(e, -errno, "disk %s: cannot open it: %s", path, strerror(errno));
    struct stat st;
    ssize_t n = fstat(fd, &st) ? -1 : 0;
    if (n == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) n = pread(fd, head, sizeof(head), 0);
    int err = errno;
    close(fd);
    if (n < 0) return nerr_set(e, -err, "disk %s: cannot read it: %s", path, strerror(err));
    *format = block_probe(head, (size_t)n);
    return 0;
}

static bool is_nbd(const char *path)
{
    return strncmp(path, "nbd:", 4) == 0 || strncmp(path, "nbd+unix:", 9) == 0;
}

static int open_raw(struct block *b, const struct block_config *cfg, struct nerr *e)
{
    int r = block_file_open(b, cfg, e);
    if (r) return r;
    if (cfg->aio != BLOCK_AIO_THREADS) {
        struct nerr why;
        r = block_uring_open(b, &why);
        if (r && cfg->aio == BLOCK_AIO_URING) {
            *e = why;
        } else if (r) {
            nc_debug("%s; using threads", why.text);
            r = block_pool_open(b, e);
        }
    } else {
        r = block_pool_open(b, e);
    }
    if (r) block_file_close(b);
    return r;
}

int block_open_driver(struct block *b, const struct block_config *cfg, struct nerr *e)
{
    const char *format = cfg->format;
    bool nbd = is_nbd(cfg->path);
    if (!format && nbd) format = "raw";
    if (!format) {
        format = "raw";
        int r = probe_file(cfg->path, &format, e);
        if (r) return r;
        b->file.guessed = strcmp(format, "raw") == 0;
    }
    if (nbd || strcmp(format, "qcow2") == 0) return block_daemon_open(b, cfg, format, e);
    if (strcmp(format, "raw") == 0) return open_raw(b, cfg, e);
    return nerr_set(e, -EINVAL,
                    "disk %s: format %s is not supported; convert it with 'qemu-img convert -O qcow2 %s NEW', or say "
                    "format=raw if these bytes are the disk's own",
                    cfg->path, format, cfg->path);
}
