// NX, WP, SMEP, SMAP and reserved bits: what each permits and forbids, at every level.
#include "kernel.h"

CODE(load, "mov (%rbx), %rax");
CODE(store, "mov %rax, 0x100(%rbx)");
CODE(jump, "jmp *%rbx");
CODE(stac_store, "stac; mov %rax, 0x100(%rbx); clac");
CODE(load_gdt, "mov %ebx, %ds"); /* an implicit supervisor access from user code */

static struct ctx c;
static u8 *page;

static u64 go(u8 *code, bool from_user)
{
    from_user ? ctx_user(&c, code) : ctx_kernel(&c, code);
    c.gpr[RBX] = TEST_VA;
    return ctx_run(&c);
}

static void expect_pf(u8 *code, bool from_user, u64 error)
{
    if (!CHECK_EQ(go(code, from_user), PF) || !CHECK_EQ(c.error, error) || !CHECK_EQ(c.cr2 & ~0xffful, TEST_VA))
        print("    code %p user %u\n", (void *)code, from_user);
}

static void expect_ok(u8 *code, bool from_user)
{
    if (!CHECK_EQ(go(code, from_user), END)) print("    error %lx code %p user %u\n", c.error, (void *)code, from_user);
}

/* The error code of a reserved bit; QEMU's CPU leaves P out. */
static u64 reserved = PF_P | PF_RSVD;

static void set_bits(unsigned level, u64 set, u64 clear)
{
    u64 *e = pte_of(TEST_VA, level);
    *e = (*e | set) & ~clear;
    invlpg(TEST_VA);
}

static void no_execute(void)
{
    for (unsigned level = 1; level <= 4; level++) {
        if (level == 4) continue; /* would take the kernel's own code away */
        set_bits(level, PTE_NX, 0);
        expect_pf(jump, false, PF_P | PF_I);
        expect_pf(jump, true, PF_P | PF_I | PF_U);
        expect_ok(load, true);
        set_bits(level, 0, PTE_NX);
        expect_ok(jump, true);
    }
    /* Without EFER.NXE the bit is reserved. */
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~0x800ul);
    set_bits(1, PTE_NX, 0);
    expect_pf(load, false, reserved);
    expect_pf(jump, true, reserved | PF_U); /* and fetches are not told apart (SMEP is off) */
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 0x800ul);
    expect_pf(jump, true, PF_P | PF_I | PF_U);
    set_bits(1, 0, PTE_NX);
}

static void write_protect(void)
{
    set_bits(1, 0, PTE_W);
    expect_pf(store, false, PF_P | PF_W);
    set_cr0(cr0() & ~CR0_WP);
    expect_ok(store, false);
    expect_pf(store, true, PF_P | PF_W | PF_U);
    set_cr0(cr0() | CR0_WP);
    expect_pf(store, false, PF_P | PF_W); /* what WP=0 allowed must not be remembered */
    set_bits(1, PTE_W, 0);
}

static void smep(void)
{
    if (!HAS_SMEP) {
        skip("SMEP");
        return;
    }
    expect_ok(jump, false);
    set_cr4(cr4() | CR4_SMEP);
    expect_pf(jump, false, PF_P | PF_I);
    expect_ok(jump, true);
    for (unsigned level = 1; level <= 3; level++) { /* one U=0 makes it a supervisor page */
        set_bits(level, 0, PTE_U);
        expect_ok(jump, false);
        expect_pf(jump, true, PF_P | PF_I | PF_U);
        set_bits(level, PTE_U, 0);
        expect_pf(jump, false, PF_P | PF_I);
    }
    set_cr4(cr4() & ~CR4_SMEP);
    expect_ok(jump, false);
}

static void smap(void)
{
    if (!HAS_SMAP) {
        skip("SMAP");
        return;
    }
    expect_ok(store, false);
    set_cr4(cr4() | CR4_SMAP);
    expect_pf(load, false, PF_P);
    expect_pf(store, false, PF_P | PF_W);
    expect_ok(load, true);
    expect_ok(jump, false); /* fetches are SMEP's business */
    expect_ok(stac_store, false);
    ctx_kernel(&c, store); /* RFLAGS.AC opens it, however it came to be set */
    c.gpr[RBX] = TEST_VA;
    c.rflags |= FL_AC;
    CHECK_EQ(ctx_run(&c), END);
    expect_pf(store, false, PF_P | PF_W);
    set_bits(1, 0, PTE_U);
    expect_ok(store, false);
    set_bits(1, PTE_U, 0);
    /* The GDT lies in a supervisor page: loading a segment from user code is a supervisor access and goes well. */
    ctx_user(&c, load_gdt);
    c.gpr[RBX] = SEL_UDATA | 3;
    CHECK_EQ(ctx_run(&c), END);
    set_cr4(cr4() & ~CR4_SMAP);
    expect_ok(store, false);
}

static void reserved_bits(void)
{
    u64 too_high = 1ul << 51;
    if ((cpuid(0x80000008, 0).a & 0xff) > 51) too_high = 0;
    for (unsigned level = 1; level <= 3 && too_high; level++) {
        set_bits(level, too_high, 0);
        expect_pf(load, false, reserved);
        expect_pf(store, true, reserved | PF_W | PF_U);
        expect_pf(jump, true, reserved | PF_U | PF_I);
        set_bits(level, 0, too_high);
        expect_ok(store, true);
    }
    /* PS is reserved in the PML4, and bits 13..20 of a 2 MiB entry are. */
    u64 *pde = pte_of(TEST_VA, 2), old = *pde;
    *pde = 0x400000 | PTE_PS | PTE_U | PTE_W | PTE_P | 1ul << 13;
    invlpg(TEST_VA);
    expect_pf(load, false, reserved);
    *pde = old;
    invlpg(TEST_VA);
    /* An entry that is not present has no reserved bits. */
    set_bits(1, too_high, PTE_P);
    expect_pf(load, false, 0);
    set_bits(1, PTE_P, too_high);
}

int main(void)
{
    if (left_out(TCG | LAB, "P in the error code of a reserved bit")) reserved = PF_RSVD;
    page = page_alloc();
    memcpy(page, "\xcd\x81", 2); /* int $END */
    map_page(TEST_VA, (u64)page, PTE_W | PTE_U);
    no_execute();
    write_protect();
    smep();
    smap();
    reserved_bits();
    return done();
}
