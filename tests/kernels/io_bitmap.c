// Port I/O from user code: IOPL, the TSS's I/O permission bitmap, its limit; IN/OUT/INS/OUTS of all sizes; CLI/STI/POPF by IOPL.
#include "kernel.h"

CODE(in8, "in %dx, %al");
CODE(in16, "in %dx, %ax");
CODE(in32, "in %dx, %eax");
CODE(out8, "out %al, %dx");
CODE(out_imm, "out %al, $0x80");
CODE(rep_outs, "rep outsb");
CODE(rep_ins, "rep insb");
CODE_BITS(32, in8_32, "in %dx, %al");
CODE(do_cli, "cli");
CODE(do_popf, "push $0x3202; popf; pushf; pop %rax");

static struct ctx c;

static void user_io(u8 *code, u16 port, bool allowed)
{
    ctx_user(&c, code);
    c.gpr[RDX] = port;
    bool ok = allowed ? COMPLETES(&c) : FAULTS(&c, GP, 0);
    if (!ok) print("    port %x\n", port);
}

static void allow(u16 port, bool yes)
{
    u8 *b = &tss[0].io_bitmap[port / 8];
    *b = (u8)(yes ? *b & ~(1 << port % 8) : *b | 1 << port % 8);
}

static void bitmap(void)
{
    user_io(in8, 0x3fd, false);
    user_io(out_imm, 0, false);
    allow(0x80, true);
    user_io(out_imm, 0, true);
    user_io(out8, 0x81, false);
    /* Every byte of a wide access must be allowed, also over a byte of the bitmap. */
    allow(0x86, true), allow(0x87, true);
    user_io(in16, 0x86, true);
    user_io(in16, 0x87, false);
    user_io(in32, 0x86, false);
    allow(0x88, true), allow(0x89, true);
    user_io(in16, 0x87, true);
    user_io(in32, 0x86, true);
    user_io(in32, 0x87, false);
    allow(0xffff, true);
    user_io(in8, 0xffff, true);
    /* The byte after the last one checked must be inside the TSS limit; beyond it nothing is allowed. */
    tss[0].iomap = sizeof(struct tss) - 0x12;
    user_io(in8, 0x80, false);
    tss[0].iomap = 0xffff;
    user_io(in8, 0x80, false);
    tss[0].iomap = offsetof(struct tss, io_bitmap);
    /* From 32-bit user code the same bitmap counts. */
    ctx_user32(&c, in8_32, 3);
    c.gpr[RDX] = 0x81;
    FAULTS(&c, GP, 0);
    ctx_user32(&c, in8_32, 3);
    c.gpr[RDX] = 0x80;
    COMPLETES(&c);
}

static void strings(void)
{
    static char text[] = "........";
    ctx_user(&c, rep_outs);
    c.gpr[RDX] = 0x80, c.gpr[RSI] = (u64)user(text), c.gpr[RCX] = 8;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RCX], 0);
    CHECK_EQ(c.gpr[RSI], user(text) + 8);
    ctx_user(&c, rep_outs);
    c.gpr[RDX] = 0x81, c.gpr[RSI] = (u64)user(text), c.gpr[RCX] = 8;
    FAULTS(&c, GP, 0);
    /* INS into a page that ends: exact registers at the fault. */
    u8 *page = page_alloc();
    map_page(TEST_VA, (u64)page, PTE_W | PTE_U);
    *pte_of(TEST_VA + PAGE, 1) = 0;
    invlpg(TEST_VA + PAGE);
    ctx_user(&c, rep_ins);
    c.gpr[RDX] = 0x80, c.gpr[RDI] = TEST_VA + PAGE - 3, c.gpr[RCX] = 8;
    CHECK_EQ(ctx_run(&c), PF);
    CHECK_EQ(c.error, PF_W | PF_U);
    CHECK_EQ(c.gpr[RCX], 5);
    CHECK_EQ(c.gpr[RDI], TEST_VA + PAGE);
    CHECK_EQ(c.cr2, TEST_VA + PAGE);
    /* OUTS to the console works from the kernel, through any segment. */
    static const char hello[] = "written by REP OUTSB\n";
    ctx_kernel(&c, rep_outs);
    c.gpr[RDX] = 0x3f8, c.gpr[RSI] = (u64)hello, c.gpr[RCX] = sizeof hello - 1;
    COMPLETES(&c);
}

static void iopl(void)
{
    /* IOPL 3: everything goes, and so do CLI and STI. */
    ctx_user(&c, in8);
    c.gpr[RDX] = 0x3fd;
    c.rflags |= FL_IOPL;
    COMPLETES(&c);
    ctx_user(&c, do_cli);
    FAULTS(&c, GP, 0);
    ctx_user(&c, do_cli);
    c.rflags |= FL_IOPL;
    COMPLETES(&c);
    /* POPF at CPL 3 changes neither IOPL nor, with IOPL 0, IF; silently. */
    ctx_user(&c, do_popf);
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX] & (FL_IOPL | FL_IF), 0);
    ctx_user(&c, do_popf);
    c.rflags |= FL_IOPL;
    COMPLETES(&c);
    CHECK_EQ(c.gpr[RAX] & (FL_IOPL | FL_IF), FL_IOPL | FL_IF);
}

int main(void)
{
    pic_mask_all(); /* a firmware's timer would interrupt the user code, whose IF is set */
    bitmap();
    strings();
    iopl();
    return done();
}
