/* The host's system calls, in one table. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/engine/kvm/kvm.h"

static int host_open(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int host_ioctl(int fd, unsigned long request, uintptr_t arg)
{
    int r = ioctl(fd, request, arg);
    return r < 0 ? -errno : r;
}

static void *host_mmap(int fd, size_t len, off_t offset)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    return p == MAP_FAILED ? NULL : p;
}

static void host_munmap(void *p, size_t len)
{
    munmap(p, len);
}

static void host_close(int fd)
{
    close(fd);
}

const struct kvm_sys kvm_sys_host = {
    .open = host_open,
    .ioctl = host_ioctl,
    .mmap = host_mmap,
    .munmap = host_munmap,
    .close = host_close,
};
const struct kvm_sys *kvm_sys = &kvm_sys_host;
