/* mkcpio [-x PATH]... OUT TREE...: writes an initramfs (cpio "newc", see the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)
 * of the merged trees, later ones winning, without what is below the PATHs. It exists because cpio(1) needs root for what an initramfs
 * wants: everything owned by root, and a /dev/console before anything is mounted. Names are sorted and
 * times are zero, so the same trees give the same file byte for byte. Hard links become separate files. */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEWC_MODE_CONSOLE (S_IFCHR | 0600)
#define CONSOLE_MAJOR 5
#define CONSOLE_MINOR 1
#define NAME_MAX_BYTES 4096
#define MAX_EXCLUDES 64

struct entry {
    char *name; /* relative to the root, no leading slash */
    char *path; /* on the host */
    struct stat st;
    size_t order; /* index of its tree: the highest of equal names wins */
};

static struct entry *entries;
static size_t entry_count, entry_room;
static uint32_t next_inode = 1;
static uint64_t written;
static const char *excludes[MAX_EXCLUDES];
static int exclude_count;

static int fail(const char *what)
{
    fprintf(stderr, "mkcpio: %s: %s\n", what, strerror(errno));
    return -1;
}

static int add_entry(const char *name, const char *path, const struct stat *st, size_t order)
{
    if (entry_count == entry_room) {
        size_t room = entry_room ? entry_room * 2 : 1024;
        struct entry *e = realloc(entries, room * sizeof(*e));
        if (!e) return fail("memory");
        entries = e;
        entry_room = room;
    }
    struct entry *e = &entries[entry_count];
    *e = (struct entry){.name = strdup(name), .path = strdup(path), .st = *st, .order = order};
    if (!e->name || !e->path) return fail("memory");
    entry_count++;
    return 0;
}

static bool excluded(const char *name)
{
    for (int i = 0; i < exclude_count; i++)
        if (!strcmp(name, excludes[i])) return true;
    return false;
}

static int scan(const char *dir, const char *prefix, size_t order)
{
    DIR *d = opendir(dir);
    if (!d) return fail(dir);
    int rc = 0;
    struct dirent *de;
    while (rc == 0 && (de = readdir(d))) {
        if (!strcmp(de->d_name, ".") || !strcmp(de->d_name, "..")) continue;
        char name[NAME_MAX_BYTES], path[NAME_MAX_BYTES];
        struct stat st;
        int n = snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "/" : "", de->d_name);
        int p = snprintf(path, sizeof(path), "%s/%s", dir, de->d_name);
        if (n >= (int)sizeof(name) || p >= (int)sizeof(path)) {
            errno = ENAMETOOLONG;
            rc = fail(dir);
        } else if (lstat(path, &st)) {
            rc = fail(path);
        } else {
            if (excluded(name)) continue;
            rc = add_entry(name, path, &st, order);
            if (rc == 0 && S_ISDIR(st.st_mode)) rc = scan(path, name, order);
        }
    }
    closedir(d);
    return rc;
}

static int compare(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : (x->order < y->order) - (x->order > y->order); /* the winner first */
}

static void put(FILE *f, const void *p, size_t n)
{
    fwrite(p, 1, n, f);
    written += n;
}

static void pad4(FILE *f)
{
    static const char zero[4];
    put(f, zero, (4 - written % 4) % 4);
}

static void put_header(FILE *f, const char *name, uint32_t mode, uint32_t size, unsigned major, unsigned minor)
{
    char h[111];
    size_t len = strlen(name) + 1;
    snprintf(h, sizeof(h), "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", next_inode++, mode, 0, 0,
             S_ISDIR(mode) ? 2 : 1, 0, size, 0, 0, major, minor, (unsigned)len, 0);
    put(f, h, 110);
    put(f, name, len);
    pad4(f);
}

static int put_file(FILE *f, const struct entry *e)
{
    if (e->st.st_size > UINT32_MAX) {
        errno = EFBIG;
        return fail(e->path);
    }
    FILE *in = fopen(e->path, "rb");
    if (!in) return fail(e->path);
    put_header(f, e->name, (uint32_t)e->st.st_mode, (uint32_t)e->st.st_size, 0, 0);
    static char buffer[1 << 16];
    uint64_t left = (uint64_t)e->st.st_size;
    while (left > 0) {
        size_t n = fread(buffer, 1, left < sizeof(buffer) ? left : sizeof(buffer), in);
        if (n == 0) break;
        put(f, buffer, n);
        left -= n;
    }
    fclose(in);
    if (left) {
        errno = EIO;
        return fail(e->path);
    }
    pad4(f);
    return 0;
}

static int put_entry(FILE *f, const struct entry *e)
{
    if (S_ISREG(e->st.st_mode)) return put_file(f, e);
    if (S_ISDIR(e->st.st_mode)) {
        put_header(f, e->name, (uint32_t)e->st.st_mode, 0, 0, 0);
    } else if (S_ISLNK(e->st.st_mode)) {
        char target[NAME_MAX_BYTES];
        ssize_t n = readlink(e->path, target, sizeof(target));
        if (n < 0) return fail(e->path);
        put_header(f, e->name, (uint32_t)e->st.st_mode, (uint32_t)n, 0, 0);
        put(f, target, (size_t)n);
        pad4(f);
    } /* sockets, FIFOs and nodes have no business in a package */
    return 0;
}

static int put_all(FILE *f)
{
    bool dev_seen = false;
    for (size_t i = 0; i < entry_count; i++) {
        if (i && !strcmp(entries[i].name, entries[i - 1].name)) continue;
        if (put_entry(f, &entries[i])) return -1;
        if (!strcmp(entries[i].name, "dev")) {
            dev_seen = true;
            put_header(f, "dev/console", NEWC_MODE_CONSOLE, 0, CONSOLE_MAJOR, CONSOLE_MINOR);
        }
    }
    if (!dev_seen) {
        put_header(f, "dev", S_IFDIR | 0755, 0, 0, 0);
        put_header(f, "dev/console", NEWC_MODE_CONSOLE, 0, CONSOLE_MAJOR, CONSOLE_MINOR);
    }
    put_header(f, "TRAILER!!!", 0, 0, 0, 0);
    return 0;
}

int main(int argc, char **argv)
{
    int opt;
    bool usage = false;
    while ((opt = getopt(argc, argv, "x:")) != -1) {
        if (opt == 'x' && exclude_count < MAX_EXCLUDES)
            excludes[exclude_count++] = optarg;
        else
            usage = true;
    }
    if (usage || argc - optind < 2) {
        fprintf(stderr, "usage: mkcpio [-x PATH]... OUT TREE...\n");
        return 2;
    }
    const char *out = argv[optind];
    for (int i = optind + 1; i < argc; i++)
        if (scan(argv[i], "", (size_t)i)) return 1;
    qsort(entries, entry_count, sizeof(*entries), compare);
    FILE *f = fopen(out, "wb");
    if (!f) {
        fail(out);
        return 1;
    }
    int rc = put_all(f);
    if (ferror(f) | fclose(f)) rc = fail(out);
    if (rc) remove(out);
    return rc ? 1 : 0;
}
