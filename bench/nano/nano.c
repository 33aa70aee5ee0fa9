// Adams and Agesen's nanobenchmarks (ASPLOS 2006): what the single operations cost that a monitor has to step in for.
// Prints "NANO name cycles" lines; built with the test kernels' library, started as a multiboot kernel.
#include "kernel.h"

enum { TRIES = 5 };

/* Each piece of code does its operation 16 * RBX times, so that the loop itself costs next to nothing. */
#define REPEAT(head, operation, tail) head "\n1: .rept 16\n" operation "\n.endr\n" tail "\ndec %rbx\n jnz 1b"
CODE(do_syscall, REPEAT("", "syscall", ""));
CODE(do_in, REPEAT("", "in $0x21, %al", ""));
CODE(do_cr8, REPEAT("", "mov %rax, %cr8", ""));
CODE(do_call, REPEAT("jmp 1f\n .balign 16\n 3: ret\n .balign 16", "call 3b", ""));
CODE(do_fault, REPEAT("", "mov (%rdi), %eax", "")); /* 8b 07: two bytes, as handler_pf knows */
CODE(do_divide, REPEAT("", "div %ecx", ""));        /* f7 f1: two bytes, as handler_de knows */
/* Flips a bit that is free for software in one entry after the other of a live page table. */
CODE(do_pte, REPEAT("", "xorq $0x200, (%rdi,%rsi,8)\n inc %rsi", "and $511, %esi"));
/* The whole life of a change: entry written, translation dropped, page touched. */
CODE(do_remap, REPEAT("", "xorq $0x200, (%rdi)\n invlpg (%r8)\n mov (%r8), %eax", ""));
CODE(do_cr3, REPEAT("mov %cr3, %rax", "mov %rax, %cr3\n mov (%r8), %edx", ""));
CODE(do_cpuid, "mov %rbx, %rdi\n 1: .rept 16\n xor %eax, %eax\n cpuid\n .endr\n dec %rdi\n jnz 1b");
CODE(do_rdtsc, REPEAT("", "rdtsc", ""));
CODE(do_wrmsr, REPEAT("", "wrmsr", ""));
CODE(do_int, REPEAT("", "int $0x82", ""));

/* The shortest handlers there can be: they step over the instruction, or just return. */
__asm__(".pushsection .text, \"ax\"\n"
        ".balign 64\nhandler_syscall: sysretq\n"
        ".balign 64\nhandler_pf: addq $2, 8(%rsp)\n addq $8, %rsp\n iretq\n"
        ".balign 64\nhandler_de: addq $2, (%rsp)\n iretq\n"
        ".balign 64\nhandler_int: iretq\n"
        ".popsection\n");
extern u8 handler_syscall[], handler_pf[], handler_de[], handler_int[];

/* Runs code in a fresh context, 16 n times its operation; the quickest of some tries, in 1/100 cycles per operation. */
static u64 cost(const u8 *code, bool as_user, u64 n, u64 rdi, u64 r8)
{
    u64 best = ~0ul;

    for (int i = 0; i < TRIES; i++) {
        struct ctx c;
        u64 start;

        if (as_user) {
            ctx_user(&c, code);
        } else {
            ctx_kernel(&c, code);
        }
        c.gpr[RAX] = c.gpr[RDX] = c.gpr[RCX] = c.gpr[RSI] = 0;
        if (code == do_wrmsr) {
            c.gpr[RCX] = MSR_KERNEL_GS_BASE;
        }
        c.gpr[RBX] = n;
        c.gpr[RDI] = rdi;
        c.gpr[R8] = r8;
        start = rdtsc();
        ctx_run(&c);
        start = rdtsc() - start;
        if (c.vector != END) {
            panic("vector %lu, error %lx at %lx", c.vector, c.error, c.rip);
        }
        if (start < best) {
            best = start;
        }
    }
    return best * 100 / (16 * n);
}

static void report(const char *name, u64 hundredths)
{
    print("NANO %s %lu.%02lu\n", name, hundredths / 100, hundredths % 100);
}

int main(void)
{
    enum { N = 2000 };
    u64 page = (u64)page_alloc(), absent = TEST_VA + (64ul << 20);

    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    wrmsr(MSR_STAR, (u64)SEL_KCODE << 32 | (u64)SEL_UCODE32 << 48);
    wrmsr(MSR_LSTAR, (u64)handler_syscall);
    wrmsr(MSR_SFMASK, 0);
    for (u64 i = 0; i < 512; i++) {
        map_page(TEST_VA + i * PAGE, page, PTE_W | PTE_A | PTE_D);
    }
    map_page(absent, page, PTE_W); /* makes the tables above it */
    *pte_of(absent, 1) = 0;
    invlpg(absent);

    report("syscall", cost(do_syscall, true, N, 0, 0));
    report("in", cost(do_in, false, N, 0, 0));
    report("cr8wr", cost(do_cr8, false, N, 0, 0));
    report("call/ret", cost(do_call, false, 4 * N, 0, 0));
    idt_set(PF, handler_pf, 0, 0);
    report("pgfault", cost(do_fault, false, N, absent, 0));
    idt_set(PF, trap_stubs + 16 * PF, 0, 0);
    idt_set(DE, handler_de, 0, 0);
    report("divzero", cost(do_divide, false, N, 0, 0));
    idt_set(DE, trap_stubs, 0, 0);
    for (u64 i = 0; i < 512; i++) {
        (void)*(volatile u8 *)(TEST_VA + i * PAGE); /* the translations are in use */
    }
    report("ptemod", cost(do_pte, false, N, (u64)pte_of(TEST_VA, 1), 0));
    report("remap", cost(do_remap, false, N, (u64)pte_of(TEST_VA, 1), TEST_VA));
    report("cr3wr", cost(do_cr3, false, N, 0, TEST_VA));
    idt_set(0x82, handler_int, 0, 0);
    report("int/iret", cost(do_int, false, N, 0, 0));
    report("wrmsr", cost(do_wrmsr, false, N, 0, 0));
    report("cpuid", cost(do_cpuid, false, N, 0, 0));
    report("rdtsc", cost(do_rdtsc, false, N, 0, 0));
    return done();
}
