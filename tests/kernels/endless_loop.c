// An endless loop with interrupts off, nothing to wait for: the runner ends it (Ctrl-A x), and the process is gone at once.
// KEYS: \001x
// STATUS: 0
// OUTPUT: looping
#include "kernel.h"

int main(void)
{
    print("looping\n");
    __asm__ volatile("cli; 1: jmp 1b");
    return 1;
}
