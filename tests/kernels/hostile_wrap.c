// Addresses that wrap: at 4 GiB in 32-bit code and with 32-bit addresses, at 2^64, at the ends of the canonical halves.
#include "kernel.h"

CODE_BITS(32, load32, "mov 0x10(%ebx, %ecx, 4), %eax");
CODE_BITS(32, store32, "mov %eax, (%ebx)");
CODE_BITS(32, jump32, "jmp *%ebx");
CODE_BITS(32, push32, "push %eax");
CODE_BITS(32, movs32, "rep movsb");
CODE(a32, "addr32 mov 0x10(%ebx, %ecx, 4), %eax");
CODE(load, "mov (%rbx), %rax");
CODE(disp, "mov 0x10(%rbx), %rax");
CODE(store, "mov %rax, (%rbx)");
CODE(fx, "fxsave (%rbx)");
CODE(movs, "rep movsb");
CODE(rip_rel, "mov 0x7fffffff(%rip), %rax");
CODE(bts_far, "bts %rax, (%rbx)");
CODE(bt_far, "bt %rax, (%rbx)");

static struct ctx c;

static void at_4_gib(u32 *page)
{
    map_page(USER32_CODE + 0x10000, (u64)page, PTE_W | PTE_U);

    ctx_user32(&c, load32, 6); /* base + index * 4 + disp over 4 GiB */
    c.gpr[RBX] = 0xfffffff0, c.gpr[RCX] = (USER32_CODE + 0x10000) / 4;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 0xabcd1234);
    ctx_user(&c, a32);
    c.gpr[RBX] = 0xabcdfffffff0ul, c.gpr[RCX] = (USER32_CODE + 0x10000) / 4 | 0x1234500000000ul;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX], 0xabcd1234);
    /* An access over 4 GiB itself: its bytes 0.. are at linear 0, or a fault by the segment limit; never anything else. */
    ctx_user32(&c, store32, 2);
    c.gpr[RBX] = 0xfffffffe;
    u64 v = ctx_run(&c);
    CHECK(v == PF || v == GP);
    if (v == PF) CHECK(c.cr2 == 0xfffffffe || c.cr2 == 0xfffff000 || c.cr2 == 0);
    ctx_user32(&c, jump32, 2);
    c.gpr[RBX] = 0xffffffff;
    v = ctx_run(&c);
    CHECK(v == PF || v == GP);
    ctx_user32(&c, push32, 1);
    c.gpr[RSP] = 2;
    v = ctx_run(&c);
    CHECK(v == PF || v == SS);
    CHECK_EQ(c.gpr[RSP], 2);
    ctx_user32(&c, push32, 1);
    c.gpr[RSP] = 0; /* wraps to the top: supervisor pages there */
    v = ctx_run(&c);
    CHECK(v == PF || v == SS);
    CHECK_EQ(c.gpr[RSP], 0);
    ctx_user32(&c, movs32, 2);
    c.gpr[RSI] = USER32_CODE, c.gpr[RDI] = 0xfffffff0, c.gpr[RCX] = 64;
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.gpr[RCX], 64);
}

static void canonical_ends(u32 *page)
{
    map_page(0x7ffffffff000ul, (u64)page, PTE_W);
    map_page(0xffff800000000000ul, (u64)page, PTE_W);
    map_page(-PAGE, (u64)page, PTE_W);
    static const struct {
        u64 va;
        u64 vector;
    } cases[] = {
        {0x7ffffffffff8ul, END},     {0x7ffffffffff9ul, GP},     {0x7ffffffffffful, GP},     {0x800000000000ul, GP},
        {0xffff800000000000ul, END}, {0xffff7ffffffffff9ul, GP}, {0xffff7ffffffffffful, GP}, {-8ul, END}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (unsigned w = 0; w < 2; w++) {
            ctx_kernel(&c, w ? store : load);
            c.gpr[RBX] = cases[i].va;
            if (!CHECK_EQ(ctx_run(&c), cases[i].vector)) print("    address %lx, write %u\n", cases[i].va, w);
        }
    }
    ctx_kernel(&c, load); /* over 2^64: the manual leaves open whether it wraps */
    c.gpr[RBX] = -3ul;
    u64 v = ctx_run(&c);
    CHECK(v == END || v == GP || v == PF);
    ctx_kernel(&c, disp);
    c.gpr[RBX] = -0x10ul + TEST_VA - TEST_VA; /* wraps to 0 */
    COMPLETES(&c);
    ctx_kernel(&c, fx); /* long operand over the canonical end */
    c.gpr[RBX] = 0x7fffffffff00ul;
    v = ctx_run(&c);
    CHECK(v == GP || v == PF);
    ctx_kernel(&c, movs);
    c.gpr[RSI] = (u64)page, c.gpr[RDI] = 0x7ffffffffff0ul, c.gpr[RCX] = 64;
    CHECK_EQ(ctx_run(&c), GP);
    CHECK_EQ(c.gpr[RCX], 48); /* what fitted was done */
}

static void bit_offsets(const u32 *page)
{
    ctx_kernel(&c, bt_far); /* the bit offset moves the address: 2^62 bits below */
    c.gpr[RBX] = 0, c.gpr[RAX] = 1ul << 62;
    CHECK_EQ(ctx_run(&c), GP);
    ctx_kernel(&c, bt_far);
    c.gpr[RBX] = (u64)page + 4096, c.gpr[RAX] = -4096ul * 8;
    COMPLETES(&c);
    CHECK_EQ(c.rflags & FL_CF, *page & 1);
    /* A bit offset that leads from far away into MMIO, and over a page boundary: in the guest, and nowhere else. */
    u64 *two = pages_alloc(2, PAGE);
    map_page(TEST_VA, 0xd0000000, PTE_W);
    map_page(TEST_VA + PAGE, (u64)two, PTE_W);
    map_page(TEST_VA + 2 * PAGE, (u64)two + PAGE, PTE_W);
    for (unsigned shift = 8; shift < 46; shift++)
        for (int back = 0; back < 2; back++) {
            u64 bytes = 1ul << shift, distance = back ? -bytes : bytes; /* from the base to the operand */
            ctx_kernel(&c, bts_far);
            c.gpr[RBX] = TEST_VA + 0x40 - distance, c.gpr[RAX] = distance * 8 + 5;
            COMPLETES(&c);
            ctx_kernel(&c, bts_far);
            c.gpr[RBX] = TEST_VA + 2 * PAGE - 3 - distance, c.gpr[RAX] = distance * 8 + 5;
            two[511] = 0;
            COMPLETES(&c);
            CHECK_EQ(two[511], 0x20ul << 40);
        }
}

int main(void)
{
    set_cr4(cr4() | CR4_OSFXSR);
    u32 *page = page_alloc();
    *page = 0xabcd1234;
    at_4_gib(page);
    canonical_ends(page);
    bit_offsets(page);
    return done();
}
