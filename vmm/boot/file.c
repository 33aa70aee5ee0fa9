/* Files to boot from: opened once, read at checked offsets straight into guest memory. No mmap: a file cut short while it
 * is mapped raises SIGBUS, and a copy of a big initrd would double the VMM's memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/boot/boot_internal.h"

int boot_file_open(struct boot_file *f, const char *what, const char *path, struct nerr *e)
{
    *f = (struct boot_file){.fd = -1};
    /* O_NONBLOCK: opening a FIFO by mistake must fail below and not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        int err = errno;
        return nerr_set(e, -err, "%s %s: %s; check the path", what, path, strerror(err));
    }
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return nerr_set(e, -EINVAL, "%s %s: not a regular file; give a file", what, path);
    }
    f->path = strdup(path);
    if (!f->path) {
        close(fd);
        return nerr_set(e, -ENOMEM, "%s %s: out of memory", what, path);
    }
    f->fd = fd;
    f->size = (uint64_t)st.st_size;
    return 0;
}

void boot_file_close(struct boot_file *f)
{
    if (f->path && f->fd >= 0) close(f->fd);
    free(f->path);
    *f = (struct boot_file){.fd = -1};
}

int boot_file_read(const struct boot_file *f, uint64_t off, void *dst, uint64_t len, struct nerr *e)
{
    if (off > f->size || len > f->size - off)
        return nerr_set(e, -EINVAL,
                        "%s: cut short: 0x%llx bytes at offset 0x%llx are missing (file has 0x%llx); get a whole copy",
                        f->path, (unsigned long long)len, (unsigned long long)off, (unsigned long long)f->size);
    uint8_t *p = dst;
    while (len) {
        ssize_t n = pread(f->fd, p, len, (off_t)off);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int err = errno;
            return nerr_set(e, -err, "%s: read at offset 0x%llx: %s", f->path, (unsigned long long)off, strerror(err));
        }
        if (n == 0) return nerr_set(e, -EIO, "%s: became shorter while it was read; try again", f->path);
        p += n;
        off += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}
