// The other way to a triple fault: no page of the stack is there, and #DF has no IST.
// STATUS: 4
// QEMU: status 0
// OUTPUT: going down
#include "kernel.h"

int main(void)
{
    idt_set(DF, trap_stubs + 16 * DF, 0, 0);
    print("going down\n");
    __asm__ volatile("mov %0, %%rsp; push %%rax" ::"r"(TEST_VA + 0x1000));
    return 1;
}
