// Endless in other ways: a fault whose handler returns to the same instruction, an unending REP, code that keeps changing itself,
// each on a CPU of its own. Ctrl-A x must end it.
// RUN: -c 4
// KEYS: \001x
// STATUS: 0
// OUTPUT: looping
#include "kernel.h"

static void again(struct frame *f)
{
    (void)f;
}

static void fault(void *arg)
{
    (void)arg;
    for (;;) *(volatile u8 *)TEST_VA = 1;
}

static void rep(void *arg)
{
    (void)arg;
    for (;;) __asm__ volatile("rep lodsb" ::"S"(0x100000), "c"(1ul << 24) : "rax");
}

static void modify(void *arg)
{
    (void)arg;
    __asm__ volatile("1: incb 2f + 1(%rip)\n 2: mov $0, %al\n jmp 1b");
}

int main(void)
{
    on_vector(PF, again);
    smp_start();
    smp_run(1, fault, NULL);
    smp_run(2, rep, NULL);
    smp_run(3, modify, NULL);
    print("looping\n");
    __asm__ volatile("cli; 1: jmp 1b");
    return 1;
}
