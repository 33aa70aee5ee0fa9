/* Raw files and block devices: opening, locking, and the steps of a request. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/addr.h"
#include "common/clock.h"
#include "common/log.h"
#include "vmm/backend/block_internal.h"

#define MAX_RETRIES 100
#define BUSY_TRIES 50
#define BUSY_WAIT_NS 10000000
#define MAX_IOVS 1024 /* the kernel's IOV_MAX */
#define ZEROES (64u << 10)
/* A small write into the page cache that took longer than this has met throttling or a slow device: for a while others then go
 * asynchronously, so that a vCPU thread is never held up more than a small part of its time. On a busy host it may also be that another
 * thread had the CPU meanwhile. So the first slow one only has the following ones watched: those that slept are what is meant. */
#define INLINE_SLOW_NS 2000000ull
#define INLINE_PAUSE_NS 500000000ull
#define INLINE_WATCH_NS 1000000000ull

static const uint8_t zeroes[ZEROES];

/* ---- opening ---- */

static int explain_open(const struct block_config *cfg, int err, struct nerr *e)
{
    switch (err) {
    case EACCES:
    case EPERM:
        return nerr_set(e, -err, "disk %s: no permission to %s it; check its mode and owner%s", cfg->path,
                        cfg->readonly ? "read" : "write", cfg->readonly ? "" : ", or add ro");
    case EROFS: return nerr_set(e, -err, "disk %s: it is on a read-only file system; add ro", cfg->path);
    case EBUSY:
        return nerr_set(e, -err, "disk %s: the device is in use on the host (mounted, or part of a volume); unmount it",
                        cfg->path);
    case ENOENT: return nerr_set(e, -err, "disk %s: no such file", cfg->path);
    default: return nerr_set(e, -err, "disk %s: cannot open it: %s", cfg->path, strerror(err));
    }
}

static int open_flags(const struct block_config *cfg, bool device)
{
    int flags = (cfg->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
    /* For block devices O_EXCL means: not while the host has it mounted. */
    return device && !cfg->readonly ? flags | O_EXCL : flags;
}

static int find_size(struct block *b, uint64_t *size, struct nerr *e)
{
    struct stat st;
    if (fstat(b->file.fd, &st)) return nerr_set(e, -errno, "disk %s: %s", b->path, strerror(errno));
    *size = (uint64_t)st.st_size;
    if (b->file.device && ioctl(b->file.fd, BLKGETSIZE64, size))
        return nerr_set(e, -errno, "disk %s: cannot find its size: %s", b->path, strerror(errno));
    if (*size == 0)
        return nerr_set(e, -EINVAL, "disk %s: it is empty; give it a size with 'truncate -s 10G %s'", b->path, b->path);
    if (*size % BLOCK_SECTOR)
        return nerr_set(
            e, -EINVAL,
            "disk %s: its size, %llu bytes, is not a multiple of %u; round it up with 'truncate -s %%%u %s'", b->path,
            (unsigned long long)*size, BLOCK_SECTOR, BLOCK_SECTOR, b->path);
    return 0;
}

/* Bytes that QEMU locks (its block/file-posix.c): 100 + n says "I have permission n", 200 + n "nobody else may have it". */
#define LOCK_READS 100
#define LOCK_WRITES 101
#define LOCK_RESIZES 103
#define LOCK_NO_WRITERS 201

static int set_lock(int fd, short type, off_t start, off_t len)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, F_OFD_SETLK, &l) ? -errno : 0;
}

static bool locked_by_other(int fd, off_t at)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

/* A writer locks the whole file. A reader locks what tells QEMU, and us, that there must be no writer, and lets other readers be: the
 * image may at the same time be the backing file of another machine's disk. */
static int try_lock(int fd, bool readonly)
{
    if (!readonly) return set_lock(fd, F_WRLCK, 0, 0);
    int r = set_lock(fd, F_RDLCK, LOCK_READS, 1);
    if (!r) r = set_lock(fd, F_RDLCK, LOCK_NO_WRITERS, 3);
    if (!r && (locked_by_other(fd, LOCK_WRITES) || locked_by_other(fd, LOCK_RESIZES))) r = -EAGAIN;
    return r;
}

/* Locks of the open file description: the kernel drops them with the last descriptor, whatever way the process ends. */
static int lock_file(struct block *b, bool readonly, struct nerr *e)
{
    int r = try_lock(b->file.fd, readonly);
    /* A process that was killed a moment ago: the kernel takes its io_uring down, and with that the file, a little later. */
    for (unsigned i = 0; (r == -EAGAIN || r == -EACCES) && i < BUSY_TRIES; i++) {
        nanosleep(&(struct timespec){.tv_nsec = BUSY_WAIT_NS}, NULL);
        r = try_lock(b->file.fd, readonly);
    }
    if (!r) return 0;
    if (r == -EAGAIN || r == -EACCES)
        return nerr_set(e, -EBUSY, "disk %s: it is in use by another virtual machine or program%s", b->path,
                        readonly ? " that writes to it; end that" : "; end that, or give both the disk with ro");
    nc_warn("disk %s: its file system has no locks (%s); see to it that nobody else uses it", b->path, strerror(-r));
    return 0;
}

/* O_DIRECT needs buffers at multiples of mem_align, and offsets at multiples of a sector: with larger sectors than the guest's we
 * leave it, since reading, changing and writing them back would race with the guest's other requests. */
static bool direct_possible(int fd, uint32_t *mem_align)
{
    *mem_align = BLOCK_SECTOR;
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && stx.stx_mask & STATX_DIOALIGN) {
        if (stx.stx_dio_mem_align > *mem_align) *mem_align = stx.stx_dio_mem_align;
        return stx.stx_dio_offset_align && stx.stx_dio_offset_align <= BLOCK_SECTOR;
    }
#endif
    /* An old kernel: see whether one sector can be read. */
    void *p = NULL;
    if (posix_memalign(&p, PAGE_SIZE, PAGE_SIZE)) return false;
    bool ok = pread(fd, p, BLOCK_SECTOR, 0) == BLOCK_SECTOR;
    free(p);
    return ok;
}

static void try_direct(struct block *b)
{
    int flags = fcntl(b->file.fd, F_GETFL);
    if (flags < 0 || fcntl(b->file.fd, F_SETFL, flags | O_DIRECT)) return; /* tmpfs, for one, has none */
    b->file.direct = direct_possible(b->file.fd, &b->file.mem_align);
    if (!b->file.direct) fcntl(b->file.fd, F_SETFL, flags);
}

static void fill_info(struct block *b, const struct block_config *cfg, uint64_t size)
{
    unsigned physical = 4096, reported = 0;
    if (b->file.device && ioctl(b->file.fd, BLKPBSZGET, &reported) == 0 && reported > physical) physical = reported;
    b->info = (struct block_info){.size = size,
                                  .logical_block = BLOCK_SECTOR,
                                  .physical_block = physical,
                                  .readonly = cfg->readonly,
                                  .can_discard = cfg->discard && !cfg->readonly,
                                  .can_write_zeroes = !cfg->readonly,
                                  .format = "raw"};
}

int block_file_open(struct block *b, const struct block_config *cfg, struct nerr *e)
{
    struct stat st;
    if (stat(cfg->path, &st)) return explain_open(cfg, errno, e);
    b->file.device = S_ISBLK(st.st_mode);
    if (!b->file.device && !S_ISREG(st.st_mode))
        return nerr_set(e, -EINVAL, "disk %s: it is neither a file nor a block device; give one of these", cfg->path);
    b->file.fd = open(cfg->path, open_flags(cfg, b->file.device));
    if (b->file.fd < 0) return explain_open(cfg, errno, e);
    uint64_t size = 0;
    int r = lock_file(b, cfg->readonly, e);
    if (!r) r = find_size(b, &size, e);
    if (r) {
        block_file_close(b);
        return r;
    }
    if (cfg->cache == BLOCK_CACHE_NONE) try_direct(b);
    fill_info(b, cfg, size);
    return 0;
}

void block_file_close(struct block *b)
{
    if (b->file.fd >= 0) close(b->file.fd);
    b->file.fd = -1;
}

int block_file_resize(struct block *b, uint64_t size, struct nerr *e)
{
    pthread_mutex_lock(&b->lock);
    uint64_t now = 0;
    int r = find_size(b, &now, e);
    if (r) {
        /* find_size said why */
    } else if (b->info.readonly) {
        r = nerr_set(e, -EROFS, "disk %s: it is read-only and keeps its size", b->path);
    } else if (size < b->info.size) {
        r = nerr_set(e, -EINVAL, "disk %s: shrinking from %llu to %llu bytes would cut data off; refused", b->path,
                     (unsigned long long)b->info.size, (unsigned long long)size);
    } else if (b->file.device && size > now) {
        r = nerr_set(e, -EINVAL, "disk %s: the device has %llu bytes; make it larger first", b->path,
                     (unsigned long long)now);
    } else if (!b->file.device && size > now && ftruncate(b->file.fd, (off_t)size)) {
        r = nerr_set(e, -errno, "disk %s: cannot grow it to %llu bytes: %s", b->path, (unsigned long long)size,
                     strerror(errno));
    }
    if (!r) __atomic_store_n(&b->info.size, size, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&b->lock);
    return r;
}

/* ---- iovecs ---- */

static bool aligned(const struct block_request *r, uint32_t align)
{
    for (unsigned i = 0; i < r->iovs; i++)
        if (((uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len) & (align - 1)) return false;
    return true;
}

void block_copy_iov(const struct block_request *r, uint64_t pos, uint8_t *flat, uint64_t len, bool to_flat)
{
    for (unsigned i = 0; i < r->iovs && len; i++) {
        uint64_t n = r->iov[i].iov_len;
        if (pos >= n) {
            pos -= n;
            continue;
        }
        uint8_t *p = (uint8_t *)r->iov[i].iov_base + pos;
        n = n - pos < len ? n - pos : len;
        if (to_flat)
            memcpy(flat, p, n);
        else
            memcpy(p, flat, n);
        flat += n;
        len -= n;
        pos = 0;
    }
}

/* The caller's iovec without its first `pos` bytes. */
static bool make_rest(struct block_request *r, struct block_private *p, struct block_step *s)
{
    unsigned i = 0;
    uint64_t skip = p->pos;
    while (i < r->iovs && skip >= r->iov[i].iov_len) skip -= r->iov[i++].iov_len;
    unsigned n = r->iovs - i;
    if (n > MAX_IOVS) n = MAX_IOVS;
    struct iovec *v = realloc(p->rest, (n ? n : 1) * sizeof(*v));
    if (!v) return false;
    p->rest = v;
    memcpy(v, r->iov + i, n * sizeof(*v));
    if (n) {
        v[0].iov_base = (uint8_t *)v[0].iov_base + skip;
        v[0].iov_len -= skip;
    }
    s->iov = v;
    s->iovs = n;
    return true;
}

/* ---- steps ---- */

static void fail(struct block_step *s, int error)
{
    s->kind = STEP_NOTHING;
    s->error = error;
}

bool block_stable_when_done(const struct block *b, const struct block_request *r)
{
    return b->cache == BLOCK_CACHE_WRITETHROUGH || (r->fua && b->cache != BLOCK_CACHE_UNSAFE);
}

/* Copies are needed where O_DIRECT cannot use the guest's buffer, and where what we have checked must be what is written. */
static bool needs_bounce(const struct block *b, const struct block_request *r)
{
    if (b->file.direct && !aligned(r, b->file.mem_align)) return true;
    return b->file.guessed && r->op == BLOCK_WRITE && r->offset == 0;
}

static bool bounce(struct block *b, struct block_request *r, struct block_step *s)
{
    struct block_private *p = block_private(r);
    uint64_t left = r->length - p->pos;
    uint32_t len = left < BLOCK_BOUNCE ? (uint32_t)left : BLOCK_BOUNCE;
    if (!p->bounce && posix_memalign(&p->bounce, PAGE_SIZE, len)) return false;
    p->bounce_len = len;
    if (r->op == BLOCK_WRITE) {
        block_copy_iov(r, p->pos, p->bounce, len, true);
        block_count_copy(b, len);
    }
    p->one = (struct iovec){.iov_base = p->bounce, .iov_len = len};
    s->iov = &p->one;
    s->iovs = 1;
    s->length = len;
    return true;
}

/* A guest that turns its raw disk into a qcow2 header naming a backing file must not be shown that file at the next start, when the
 * format is looked at again. */
static bool forbidden_head(struct block *b, struct block_request *r)
{
    struct block_private *p = block_private(r);
    if (!b->file.guessed || r->op != BLOCK_WRITE || r->offset != 0 || p->pos != 0) return false;
    const char *format = block_probe(p->bounce, p->bounce_len);
    if (strcmp(format, "raw") == 0) return false;
    if (!atomic_exchange(&b->file.told, true)) /* a guest must not fill the log */
        nc_warn("disk %s: the guest wrote what begins a %s image, which is refused; say format=raw to allow it",
                b->path, format);
    return true;
}

static void prepare_transfer(struct block *b, struct block_request *r, struct block_step *s)
{
    struct block_private *p = block_private(r);
    s->kind = r->op == BLOCK_READ ? STEP_READ : STEP_WRITE;
    if (r->op == BLOCK_WRITE && block_stable_when_done(b, r)) s->flags = RWF_DSYNC;
    s->offset = r->offset + p->pos;
    s->length = r->length - p->pos;
    if (p->bounce || needs_bounce(b, r)) {
        if (!bounce(b, r, s))
            fail(s, -ENOMEM);
        else if (forbidden_head(b, r))
            fail(s, -EPERM);
    } else if (!p->pos && r->iovs <= MAX_IOVS) {
        s->iov = r->iov;
        s->iovs = r->iovs;
    } else if (!make_rest(r, p, s)) {
        fail(s, -ENOMEM);
    }
}

/* Discards and zeroes write nothing themselves: what makes room is best, what the file system cannot do is written. */
static void prepare_range(struct block *b, struct block_request *r, struct block_step *s)
{
    bool unmap = b->discard && (r->op == BLOCK_DISCARD || r->may_unmap);
    s->offset = r->offset;
    s->length = r->length;
    if (r->op == BLOCK_DISCARD && (!b->discard || atomic_load(&b->file.no_punch))) {
        fail(s, 0); /* advice that cannot be followed */
    } else if (r->op == BLOCK_DISCARD && b->file.device) {
        s->kind = STEP_BLKDISCARD;
    } else if (unmap && !atomic_load(&b->file.no_punch)) {
        s->kind = STEP_FALLOCATE;
        s->flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    } else if (!atomic_load(&b->file.no_zero)) {
        s->kind = STEP_FALLOCATE;
        s->flags = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    } else {
        block_private(r)->stage = STAGE_ZERO_FILL;
    }
}

static void prepare_zero_fill(struct block_request *r, struct block_step *s)
{
    struct block_private *p = block_private(r);
    uint64_t left = r->length - p->pos;
    p->one = (struct iovec){.iov_base = (void *)zeroes, .iov_len = left < ZEROES ? left : ZEROES};
    *s = (struct block_step){
        .kind = STEP_WRITE, .offset = r->offset + p->pos, .length = p->one.iov_len, .iov = &p->one, .iovs = 1};
}

void block_step_prepare(struct block *b, struct block_request *r, struct block_step *s)
{
    struct block_private *p = block_private(r);
    *s = (struct block_step){.kind = STEP_NOTHING};
    if (p->stage == STAGE_MAIN) {
        switch (r->op) {
        case BLOCK_READ:
        case BLOCK_WRITE: prepare_transfer(b, r, s); break;
        case BLOCK_DISCARD:
        case BLOCK_WRITE_ZEROES: prepare_range(b, r, s); break;
        default:
            /* Writethrough has nothing left to flush, but what a guest asks for it gets. */
            if (b->cache != BLOCK_CACHE_UNSAFE && !b->info.readonly) s->kind = STEP_FSYNC;
            break;
        }
    }
    if (p->stage == STAGE_ZERO_FILL) prepare_zero_fill(r, s);
    if (p->stage == STAGE_FLUSH) s->kind = STEP_FSYNC;
    if (b->fault && s->kind != STEP_NOTHING) {
        int n = b->fault(b->fault_ctx, r, s);
        if (n < 0) fail(s, n);
        if (n > 0 && s->iovs && (size_t)n < s->iov[0].iov_len) {
            p->one = (struct iovec){.iov_base = s->iov[0].iov_base, .iov_len = (size_t)n};
            s->iov = &p->one;
            s->iovs = 1;
            s->length = (uint64_t)n;
        }
    }
}

static bool end(struct block_request *r, int result, int *status)
{
    struct block_private *p = block_private(r);
    free(p->bounce);
    free(p->rest);
    p->bounce = p->rest = NULL;
    *status = result;
    return true;
}

/* What changed without RWF_DSYNC is made stable by a flush behind it. */
static bool end_range(struct block *b, struct block_request *r, int *status)
{
    if (!block_stable_when_done(b, r)) return end(r, 0, status);
    block_private(r)->stage = STAGE_FLUSH;
    return false;
}

static bool advance_range(struct block *b, struct block_request *r, int64_t result, int *status)
{
    struct block_private *p = block_private(r);
    if (p->stage == STAGE_MAIN && result < 0) {
        /* Which of the two it was is told by the rule in prepare_range(): punch first, then zero. */
        if (result != -EOPNOTSUPP && result != -ENOTTY && result != -ENODEV && result != -EINVAL)
            return end(r, (int)result, status);
        bool punched = b->discard && (r->op == BLOCK_DISCARD || r->may_unmap) && !atomic_load(&b->file.no_punch);
        if (r->op == BLOCK_DISCARD && result == -EINVAL) return end(r, 0, status); /* the device's own granularity */
        if (punched)
            atomic_store(&b->file.no_punch, true);
        else
            atomic_store(&b->file.no_zero, true);
        return r->op == BLOCK_DISCARD ? end(r, 0, status) : false;
    }
    if (result < 0) return end(r, (int)result, status);
    if (p->stage == STAGE_ZERO_FILL) {
        p->pos += (uint64_t)result;
        if (result == 0) return end(r, -EIO, status);
        if (p->pos < r->length) return false;
    }
    return end_range(b, r, status);
}

static bool advance_transfer(struct block *b, struct block_request *r, int64_t result, int *status)
{
    struct block_private *p = block_private(r);
    if (result < 0) return end(r, (int)result, status);
    if (result == 0) return end(r, -EIO, status); /* the file was cut off behind our back */
    if (p->bounce) {
        if (r->op == BLOCK_READ) {
            block_copy_iov(r, p->pos, p->bounce, (uint64_t)result, false);
            block_count_copy(b, (uint64_t)result);
        }
        atomic_fetch_add_explicit(&b->bounced, (uint64_t)result, memory_order_relaxed);
    }
    p->pos += (uint64_t)result;
    return p->pos >= r->length ? end(r, 0, status) : false;
}

bool block_step_advance(struct block *b, struct block_request *r, int64_t result, int *status)
{
    struct block_private *p = block_private(r);
    /* A thread that ends cancels what it had asked for; a signal or a lack of memory for the moment is no error either. */
    bool again = result == -EINTR || result == -EAGAIN || result == -ECANCELED;
    if (again && p->retries++ < MAX_RETRIES) return false;
    if (p->stage == STAGE_FLUSH || r->op == BLOCK_FLUSH) return end(r, result < 0 ? (int)result : 0, status);
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) return advance_transfer(b, r, result, status);
    return advance_range(b, r, result, status);
}

int64_t block_step_run(struct block *b, const struct block_step *s)
{
    int fd = b->file.fd;
    int64_t n = 0;
    uint64_t range[2] = {s->offset, s->length};
    switch (s->kind) {
    case STEP_READ: n = preadv2(fd, s->iov, (int)s->iovs, (off_t)s->offset, s->flags); break;
    case STEP_WRITE: n = pwritev2(fd, s->iov, (int)s->iovs, (off_t)s->offset, s->flags); break;
    case STEP_FSYNC: n = fdatasync(fd); break;
    case STEP_FALLOCATE: n = fallocate(fd, s->flags, (off_t)s->offset, (off_t)s->length); break;
    case STEP_BLKDISCARD: n = ioctl(fd, BLKDISCARD, range); break;
    case STEP_NOTHING: return s->error;
    }
    return n < 0 ? -errno : n;
}

/* ---- on the caller's thread ---- */

/* How often the calling thread has slept in the kernel. */
static long thread_sleeps(void)
{
    struct rusage u;
    return getrusage(RUSAGE_THREAD, &u) ? 0 : u.ru_nvcsw;
}

static bool try_inline_write(struct block *b, const struct block_request *r)
{
    uint64_t start = clock_mono_ns();
    if (start < atomic_load_explicit(&b->file.slow_until, memory_order_relaxed)) return false;
    bool watched = start < atomic_load_explicit(&b->file.watch_until, memory_order_relaxed);
    long sleeps = watched ? thread_sleeps() : 0;
    ssize_t n = pwritev2(b->file.fd, r->iov, (int)r->iovs, (off_t)r->offset, 0);
    uint64_t now = clock_mono_ns();
    if (now - start > INLINE_SLOW_NS) {
        bool slept = watched && thread_sleeps() != sleeps;
        if (slept) atomic_store(&b->file.slow_until, now + INLINE_PAUSE_NS);
        atomic_store(&b->file.watch_until, now + INLINE_WATCH_NS);
    }
    return n == (ssize_t)r->length;
}

bool block_file_try_inline(struct block *b, struct block_request *r, int *status)
{
    if (r->op > BLOCK_WRITE || r->length > BLOCK_INLINE || r->iovs > MAX_IOVS || b->file.direct || b->fault)
        return false;
    if (r->op == BLOCK_READ) {
        ssize_t n = preadv2(b->file.fd, r->iov, (int)r->iovs, (off_t)r->offset, RWF_NOWAIT);
        *status = 0;
        return n == (ssize_t)r->length; /* anything else is asked again, and explained, the long way */
    }
    if (block_stable_when_done(b, r) || needs_bounce(b, r)) return false;
    *status = 0;
    return try_inline_write(b, r);
}
