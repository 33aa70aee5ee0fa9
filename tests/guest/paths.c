/* The guest's part of bench/io_paths.sh: 4 KiB requests, one kind at a time, so that the VMM's counters say what one costs.
 *
 *   paths disk DEVICE COUNT DEPTH    direct reads at random places, DEPTH of them given to the kernel with one system call
 *   paths net HOST PORT COUNT        4 KiB sent by TCP, one byte comes back, again and again */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE 4096
#define MAX_DEPTH 64

static int failed(const char *what)
{
    perror(what);
    return 1;
}

static int disk(const char *path, unsigned count, unsigned depth)
{
    static struct iocb request[MAX_DEPTH], *list[MAX_DEPTH];
    static struct io_event event[MAX_DEPTH];
    aio_context_t context = 0;
    char *buffer = aligned_alloc(SIZE, MAX_DEPTH * SIZE);
    int fd = open(path, O_RDONLY | O_DIRECT);
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (!buffer || size < SIZE || depth > MAX_DEPTH) return failed(path);
    if (syscall(SYS_io_setup, depth, &context)) return failed("io_setup");
    for (unsigned done = 0; done < count; done += depth) {
        for (unsigned i = 0; i < depth; i++) {
            request[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD,
                                       .aio_fildes = (unsigned)fd,
                                       .aio_buf = (unsigned long)(buffer + i * SIZE),
                                       .aio_nbytes = SIZE,
                                       .aio_offset = random() % (size / SIZE) * SIZE};
            list[i] = &request[i];
        }
        if (syscall(SYS_io_submit, context, (long)depth, list) != (long)depth) return failed("io_submit");
        if (syscall(SYS_io_getevents, context, (long)depth, (long)depth, event, NULL) != (long)depth)
            return failed("io_getevents");
        for (unsigned i = 0; i < depth; i++)
            if (event[i].res != SIZE) return failed("a read");
    }
    return 0;
}

static int net(const char *host, unsigned port, unsigned count)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    char data[SIZE] = {0};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, host, &to.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) return failed("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (unsigned i = 0; i < count; i++)
        if (write(fd, data, SIZE) != SIZE || read(fd, data, 1) != 1) return failed("a request");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "disk") == 0)
        return disk(argv[2], (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
    if (argc == 5 && strcmp(argv[1], "net") == 0) return net(argv[2], (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
    fprintf(stderr, "usage: paths disk DEVICE COUNT DEPTH | paths net HOST PORT COUNT\n");
    return 2;
}
