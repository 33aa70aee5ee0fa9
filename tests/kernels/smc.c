// Self-modifying code on one CPU: the new bytes run at once, whatever was patched and through whichever address.
#include "kernel.h"

static struct ctx c;

/* The immediate of a later instruction in the same block, of the very next one, and in a loop. */
CODE(same_block, "movl $2, smc_imm1 + 1(%rip)\n nop; nop\n smc_imm1: mov $1, %eax");
CODE(next_insn, "movl $2, smc_imm2 + 1(%rip)\n smc_imm2: mov $1, %eax");
CODE(next_byte, "movb $0x40, smc_op + 2(%rip)\n smc_op: sub $1, %eax"); /* 83 e8 01 -> 83 e8 40 */
CODE(loop, "xor %eax, %eax\n 1: smc_add: add $1, %eax\n incb smc_add + 2(%rip)\n dec %ecx\n jnz 1b");
CODE(backwards, "jmp 2f\n smc_back: mov $1, %eax\n jmp 3f\n 2: movl $7, smc_back + 1(%rip)\n jmp smc_back\n 3: nop");
CODE(by_rep, "lea smc_rep(%rip), %rdi; mov $0x90, %al; mov $2, %ecx; rep stosb\n smc_rep: ud2\n nop");
CODE(by_movs, "lea smc_movs(%rip), %rdi; movsw\n smc_movs: ud2\n nop");
CODE(by_push, "mov %rsp, %rdx; lea smc_push + 8(%rip), %rsp; push %rax; mov %rdx, %rsp\n smc_push: ud2; ud2; ud2; ud2");
CODE(by_sse, "movups %xmm0, smc_sse(%rip)\n smc_sse: ud2;ud2;ud2;ud2;ud2;ud2;ud2;ud2\n nop");
CODE(by_xchg, "xchg %ax, smc_xchg(%rip)\n smc_xchg: ud2");
CODE(by_cmpxchg, "cmpxchg %cx, smc_cx(%rip)\n smc_cx: ud2");
CODE(
    by_cmpxchg16,
    ".balign 16; lock cmpxchg16b smc_cx16(%rip)\n jmp smc_cx16\n .balign 16\n smc_cx16: ud2;ud2;ud2;ud2;ud2;ud2;ud2;ud2");

static void result(u8 *code, u64 want)
{
    ctx_kernel(&c, code);
    c.gpr[RCX] = 5;
    c.gpr[RAX] = 0x50;
    if (COMPLETES(&c)) CHECK_EQ(c.gpr[RAX], want);
}

/* Replaces the constant of a one-instruction function in its own page, many times, called in between. */
static void functions(void)
{
    u8 *f = pages_alloc(2, PAGE), *alias = (u8 *)TEST_VA;
    map_page(TEST_VA, (u64)f, PTE_W);
    map_page(TEST_VA + PAGE, (u64)f + PAGE, PTE_W);
    u32 (*call)(void) = (u32(*)(void))f, (*call_alias)(void) = (u32(*)(void))alias;
    memcpy(f, "\xb8\0\0\0\0\xc3", 6); /* mov $0, %eax; ret */
    for (u32 i = 0; i < 1000; i++) {
        *(volatile u32 *)(f + 1) = i; /* same mapping */
        CHECK_EQ(call(), i);
        *(volatile u32 *)(alias + 1) = ~i; /* through another virtual address */
        CHECK_EQ(call(), ~i);
        *(volatile u8 *)(f + 1) = 0x5a; /* one byte of it */
        CHECK_EQ(call_alias(), (~i & 0xffffff00) | 0x5a);
    }
    /* An instruction over the page boundary: patch either half. */
    u8 *g = f + PAGE - 3;
    memcpy(g, "\xb8\0\0\0\0\xc3", 6);
    call = (u32(*)(void))g;
    for (u32 i = 0; i < 100; i++) {
        *(volatile u8 *)(f + PAGE - 2) = (u8)i;
        CHECK_EQ(call() & 0xff, i);
        *(volatile u8 *)(alias + PAGE + 1) = (u8)(i + 1);
        CHECK_EQ(call() >> 24, i + 1);
    }
    /* The same virtual page, another physical one: only the mapping changes. */
    u8 *other = page_alloc();
    memcpy(other, "\xb8\x55\0\0\0\xc3", 6);
    memcpy(f, "\xb8\x44\0\0\0\xc3", 6);
    for (unsigned i = 0; i < 10; i++) {
        map_page(TEST_VA, (u64)f, PTE_W);
        CHECK_EQ(call_alias(), 0x44);
        map_page(TEST_VA, (u64)other, PTE_W);
        CHECK_EQ(call_alias(), 0x55);
    }
    /* Code and the data it writes share a page, as in old programs and JITs: counts must come out right. */
    memcpy(other, "\xff\x05\x0a\0\0\0\xff\xc9\x75\xf6\xc3",
           11); /* 1: incl 10(%rip) = page + 16; dec %ecx; jnz 1b; ret */
    u64 n = 10000;
    __asm__ volatile("call *%1" : "+c"(n) : "r"(other) : "memory", "cc");
    CHECK_EQ(*(u32 *)(other + 16), 10000);
}

static u8 *code_page, *next_code_page;

static void map_next(struct frame *f)
{
    (void)f;
    map_page(TEST_VA + PAGE, (u64)next_code_page, PTE_W);
}

/* Code whose next page was not there at first ends at the page's end; for operands in two pages there is a second translation of it, made later, which
 * goes on in the next page. What is written there ends the second one only. (A loop for ever, found by gcc after python.) */
static void second_translation(void)
{
    u8 *const start = (u8 *)(TEST_VA + PAGE - 7), *const data = (u8 *)TEST_VA + 16 * PAGE;
    code_page = page_alloc();
    next_code_page = page_alloc();
    map_page(TEST_VA, (u64)code_page, PTE_W);
    *pte_of(TEST_VA + PAGE, 1) = 0;
    invlpg(TEST_VA + PAGE);
    map_page((u64)data, (u64)page_alloc(), PTE_W);
    map_page((u64)data + PAGE, (u64)page_alloc(), PTE_W);
    *(u64 *)(data + 32) = 1;
    *(u64 *)(data + PAGE - 16) = 1000;
    *(u64 *)(data + PAGE + 16) = 2000;
    memcpy(code_page + PAGE - 7, "\x48\x8b\x06\x48\x8b\x56\x20", 7); /* mov (%rsi), %rax; mov 32(%rsi), %rdx */
    memcpy(next_code_page, "\x48\x01\xd0\x48\x83\xc0\x00\xc3", 8);   /* add %rdx, %rax; add $0, %rax; ret */
    on_vector(14, map_next);
    for (unsigned i = 0; i < 200; i++) {
        const u8 *operands = i ? data + PAGE - 16 : data;
        u64 sum;
        if (i % 50 == 49) *(volatile u8 *)(next_code_page + 6) = (u8)(i / 50 + 1);
        __asm__ volatile("call *%1" : "=a"(sum) : "r"(start), "S"(operands) : "rdx", "memory", "cc");
        CHECK_EQ(sum, (i ? 3000 : 1) + (i + 1) / 50);
    }
    on_vector(14, NULL);
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    for (unsigned i = 0; i < 3; i++) {
        result(same_block, 2);
        result(next_insn, 2);
        result(loop, i == 0 ? 1 + 2 + 3 + 4 + 5 : i == 1 ? 6 + 7 + 8 + 9 + 10 : 11 + 12 + 13 + 14 + 15);
        result(backwards, 7);
    }
    result(next_byte, 0x50 - 0x40);
    ctx_kernel(&c, by_rep);
    COMPLETES(&c);
    static u8 nops[16] = {0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
                          0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90};
    ctx_kernel(&c, by_movs);
    c.gpr[RSI] = (u64)nops;
    COMPLETES(&c);
    ctx_kernel(&c, by_push);
    c.gpr[RAX] = 0x9090909090909090ul;
    COMPLETES(&c);
    __asm__ volatile("movups %0, %%xmm0" ::"m"(nops));
    ctx_kernel(&c, by_sse);
    COMPLETES(&c);
    ctx_kernel(&c, by_xchg);
    c.gpr[RAX] = 0x9090;
    COMPLETES(&c);
    ctx_kernel(&c, by_cmpxchg);
    c.gpr[RAX] = 0x0b0f;
    c.gpr[RCX] = 0x9090;
    COMPLETES(&c);
    ctx_kernel(&c, by_cmpxchg16);
    c.gpr[RAX] = c.gpr[RDX] = 0x0b0f0b0f0b0f0b0ful;
    c.gpr[RBX] = c.gpr[RCX] = 0x9090909090909090ul;
    COMPLETES(&c);
    functions();
    second_translation();
    return done();
}
