// A triple fault shuts the machine down: exit status 4 under --no-reboot, with a register dump.
// STATUS: 4
// QEMU: status 0
// OUTPUT: going down
#include "kernel.h"

int main(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) none = {0, 0};
    print("going down\n");
    __asm__ volatile("lidt %0; int3" ::"m"(none));
    return 1;
}
