/* In the guest: vsock echo PORT (serves one connection, gives back what comes, then the sum), vsock send PORT BYTES (connects to the host,
 * sends a pattern, expects it back). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define CHUNK 65536

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static unsigned char pattern(unsigned long i)
{
    return (unsigned char)(i * 7 + (i >> 8) + (i >> 16));
}

static int all(int fd, const unsigned char *p, size_t n)
{
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w <= 0) return -1;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

static int echo(int fd)
{
    static unsigned char buffer[CHUNK];
    unsigned long sum = 0, bytes = 0;
    ssize_t n;
    while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
        for (ssize_t i = 0; i < n; i++) sum += buffer[i];
        bytes += (unsigned long)n;
        if (all(fd, buffer, (size_t)n)) return fail("write");
    }
    if (n < 0) return fail("read");
    printf("echoed %lu bytes, sum %lu\n", bytes, sum);
    return 0;
}

/* A child writes while the parent reads: both directions are busy at once. */
static int send_all(int fd, unsigned long bytes)
{
    static unsigned char buffer[CHUNK];
    if (fork() == 0) {
        for (unsigned long at = 0; at < bytes;) {
            size_t n = bytes - at < CHUNK ? bytes - at : CHUNK;
            for (size_t i = 0; i < n; i++) buffer[i] = pattern(at + i);
            if (all(fd, buffer, n)) _exit(1);
            at += n;
        }
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    unsigned long at = 0;
    ssize_t n;
    while ((n = read(fd, buffer, sizeof(buffer))) > 0)
        for (ssize_t i = 0; i < n; i++, at++)
            if (buffer[i] != pattern(at)) {
                printf("byte %lu differs\n", at);
                return 1;
            }
    printf("got %lu bytes back\n", at);
    return at != bytes;
}

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_port = (unsigned)atoi(argv[2])};
    if (fd < 0) return fail("socket");
    if (strcmp(argv[1], "echo") == 0) {
        a.svm_cid = VMADDR_CID_ANY;
        if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 4)) return fail("listen");
        printf("listening\n");
        fflush(stdout);
        int c = accept(fd, NULL, NULL);
        return c < 0 ? fail("accept") : echo(c);
    }
    a.svm_cid = VMADDR_CID_HOST;
    if (connect(fd, (struct sockaddr *)&a, sizeof(a))) return fail("connect");
    return send_all(fd, argc > 3 ? strtoul(argv[3], NULL, 0) : 0);
}
