// The shortest kernel: 64-bit mode, traps and the exit device work, so that the other kernels' results mean something.
#include "kernel.h"

CODE(add_two, "add $2, %rax");

int main(void)
{
    struct ctx c;
    print("hello from 64-bit mode, command line \"%s\"\n", command_line());
    ctx_kernel(&c, add_two);
    c.gpr[RAX] = 40;
    if (COMPLETES(&c)) CHECK_EQ(c.gpr[RAX], 42);
    ctx_user(&c, add_two);
    c.gpr[RAX] = 40;
    if (COMPLETES(&c)) CHECK_EQ(c.gpr[RAX], 42);
    CHECK_EQ(c.cs & 3, 3);
    return done();
}
