// Code that runs where no code is: jumps to a hole, to the LAPIC, over the end of RAM, over the canonical hole, at the
// top of the address space. Each may end in an exception or not; the machine must live on.
// QEMU: skip stops itself with an assertion
#include "kernel.h"

CODE(jump, "jmp *%rbx");
CODE(call, "call *%rbx");

static struct ctx c;

/* Whatever happens, it must happen to the guest. A hole reads as ones (0xff..: #UD) or zeros (add %al, (%rax)). */
static void go(u64 va)
{
    for (unsigned i = 0; i < 2; i++) {
        ctx_kernel(&c, i ? call : jump);
        c.gpr[RBX] = va;
        c.gpr[RAX] = 1ul << 62; /* non-canonical: "add %al, (%rax)" is #GP */
        u64 v = ctx_run(&c);
        CHECK(v == UD || v == GP || v == PF);
    }
}

static void holes(u8 *page)
{
    static const u64 frames[] = {0xd0000000, 0xfee00000, 0xfec00000, 0xfed00000, 0xffff0000,
                                 0x80000000, 64ul << 20, 1ul << 32,  1ul << 38,  (1ul << 39) - PAGE};
    for (unsigned i = 0; i < sizeof frames / sizeof *frames; i++) {
        map_page(TEST_VA, frames[i], PTE_W);
        go(TEST_VA);
        go(TEST_VA + 0x321);
        if (frames[i] == 0xffff0000) continue;
        go(TEST_VA + 0xfff); /* an instruction may cross from MMIO into a missing page */
    }
    /* From RAM into a hole: the instruction's first bytes are RAM's. */
    map_page(TEST_VA, (u64)page, PTE_W);
    map_page(TEST_VA + PAGE, 0xd0000000, PTE_W);
    page[PAGE - 1] = 0x0f;
    ctx_kernel(&c, jump);
    c.gpr[RBX] = TEST_VA + PAGE - 1;
    u64 v = ctx_run(&c);
    CHECK(v == UD || v == END || v == GP || v == PF);
    page[PAGE - 2] = 0x90, page[PAGE - 1] = 0x90;
    ctx_kernel(&c, jump);
    c.gpr[RBX] = TEST_VA + PAGE - 2;
    c.gpr[RAX] = 1ul << 62;
    v = ctx_run(&c);
    CHECK(v == UD || v == GP);
    CHECK_EQ(c.rip, TEST_VA + PAGE);
}

int main(void)
{
    u8 *page = page_alloc();
    page[PAGE - 2] = 0x90, page[PAGE - 1] = 0x90;
    exceptions_on_ist(true);
    if (!left_out(ONKVM, "code on MMIO")) holes(page);
    /* The end of the lower half: the next instruction would be at a non-canonical address. */
    map_page(0x7ffffffff000ul, (u64)page, PTE_W);
    ctx_kernel(&c, jump);
    c.gpr[RBX] = 0x7ffffffffffeul;
    CHECK_EQ(ctx_run(&c), GP);
    CHECK_EQ(c.rip, 0x800000000000ul);
    /* The top of the address space: execution goes on at 0, where the boot map has RAM. */
    u8 *zero = phys(0);
    __asm__ volatile("" : "+r"(zero));
    zero[0] = 0xcd, zero[1] = 0x81;
    map_page(-PAGE, (u64)page, PTE_W);
    ctx_kernel(&c, jump);
    c.gpr[RBX] = -2ul;
    u64 v = ctx_run(&c);
    CHECK(v == END || v == GP); /* the manual leaves it open */
    return done();
}
