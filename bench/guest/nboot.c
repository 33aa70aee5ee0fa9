/* The init of the boot rows: says that it has been reached, then powers the machine off. With "bench.wait" on the
 * kernel command line it sleeps first, so that the host can look at the VMM's memory. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void)
{
    char line[4096] = {0};
    int fd;

    puts("\nINIT-REACHED");
    fflush(stdout);
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    fd = open("/proc/cmdline", O_RDONLY);
    if (fd >= 0 && read(fd, line, sizeof line - 1) > 0 && strstr(line, "bench.wait") != NULL) {
        sleep(3);
    }
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}
