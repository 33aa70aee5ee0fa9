/* control.c, protect.c, system.c, portio.c: control and debug registers, descriptor-table instructions, flags, ports. */
#include "tests/unit/soft_sys_rig.h"

#define RAX rig.cpu->gpr[R_RAX]
#define RBX rig.cpu->gpr[R_RBX]
#define RCX rig.cpu->gpr[R_RCX]
#define RDX rig.cpu->gpr[R_RDX]

#define MOV_CR0_RAX 0x0f, 0x22, 0xc0
#define MOV_CR3_RAX 0x0f, 0x22, 0xd8
#define MOV_CR4_RAX 0x0f, 0x22, 0xe0
#define MOV_DR7_RAX 0x0f, 0x23, 0xf8

static void cr0_fault(uint64_t v)
{
    uint64_t before = rig.cpu->cr0;
    RAX = v;
    EXEC_FAULT(EXC_GP, 0, MOV_CR0_RAX);
    assert_int_equal(rig.cpu->cr0, before);
}

static void cr0(void **state)
{
    (void)state;
    RAX = rig.cpu->cr0 | CR0_TS;
    EXEC_OK(MOV_CR0_RAX);
    assert_int_equal(rig.cpu->cr0, RAX | CR0_ET);
    EXEC_OK(0x0f, 0x20, 0xc3); /* mov rbx, cr0 */
    assert_int_equal(RBX, rig.cpu->cr0);
    EXEC_OK(0x0f, 0x06); /* clts */
    assert_int_equal(rig.cpu->cr0 & CR0_TS, 0);
    cr0_fault(CR0_PG);
    cr0_fault(CR0_PE | CR0_PG | CR0_NW);
    cr0_fault(CR0_PE | CR0_PG | 1ull << 32);
    cr0_fault(CR0_PE); /* no leaving of paging from 64-bit code */
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x20, 0xc3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x06);
}

/* The way every 64-bit kernel goes, with each step forgotten once. */
static void into_long_mode(void **state)
{
    (void)state;
    sys_protected32(0);
    RAX = CR0_PE | CR0_PG;
    rig.cpu->efer = EFER_LME;
    EXEC_FAULT(EXC_GP, 0, MOV_CR0_RAX); /* no PAE */
    RAX = CR4_PAE;
    EXEC_OK(MOV_CR4_RAX);
    RAX = CR0_PE | CR0_PG;
    rig.cpu->seg[SEG_CS].attr |= SEG_ATTR_L;
    EXEC_FAULT(EXC_GP, 0, MOV_CR0_RAX);
    rig.cpu->seg[SEG_CS].attr &= ~SEG_ATTR_L;
    EXEC_OK(MOV_CR0_RAX);
    assert_true(rig.cpu->efer & EFER_LMA);
    RAX = 0;
    EXEC_FAULT(EXC_GP, 0, MOV_CR4_RAX); /* PAE can't go */
    RAX = CR0_PE;
    EXEC_OK(MOV_CR0_RAX); /* from compatibility code paging can */
    assert_false(rig.cpu->efer & EFER_LMA);
}

static void pae_pdptes(void **state)
{
    (void)state;
    sys_protected32(0);
    rig.cpu->cr3 = SYS_DATA;
    rig.cpu->cr4 = CR4_PAE;
    put_ram(SYS_DATA + 8, 0x200000 | 1, 8);
    put_ram(SYS_DATA + 16, 0x3 | 1, 8); /* reserved bit 1 */
    RAX = CR0_PE | CR0_PG;
    EXEC_FAULT(EXC_GP, 0, MOV_CR0_RAX);
    put_ram(SYS_DATA + 16, 0x2, 8); /* not present: anything goes */
    EXEC_OK(MOV_CR0_RAX);
    assert_int_equal(rig.cpu->pdpte[1], 0x200001);
    put_ram(SYS_DATA + 24, 1ull << 60 | 1, 8);
    RAX = SYS_DATA;
    EXEC_FAULT(EXC_GP, 0, MOV_CR3_RAX);
}

static void cr3(void **state)
{
    (void)state;
    RAX = 0x5000;
    unsigned flushes = rig.translation_flushes;
    EXEC_OK(MOV_CR3_RAX);
    assert_int_equal(rig.cpu->cr3, 0x5000);
    assert_true(rig.translation_flushes > flushes);
    RAX = 1ull << 63;
    EXEC_FAULT(EXC_GP, 0, MOV_CR3_RAX);
    RAX = 1ull << SOFT_PHYS_BITS;
    EXEC_FAULT(EXC_GP, 0, MOV_CR3_RAX);
    rig.cpu->cr4 |= CR4_PCIDE;
    RAX = 1ull << 63 | 0x6001;
    EXEC_OK(MOV_CR3_RAX);
    assert_int_equal(rig.cpu->cr3, 0x6001);
    flushes = rig.translation_flushes;
    EXEC_OK(MOV_CR3_RAX); /* the same again, told not to flush */
    assert_int_equal(rig.translation_flushes, flushes);
}

static void cr4(void **state)
{
    (void)state;
    rig.cpu->cr3 = RIG_TABLES | 1;
    RAX = rig.cpu->cr4 | CR4_PCIDE;
    EXEC_FAULT(EXC_GP, 0, MOV_CR4_RAX); /* CR3[11:0] must be 0 */
    rig.cpu->cr3 = RIG_TABLES;
    EXEC_OK(MOV_CR4_RAX);
    RAX = rig.cpu->cr4 | 1u << 12; /* LA57 */
    EXEC_FAULT(EXC_GP, 0, MOV_CR4_RAX);
    RAX = rig.cpu->cr4 | CR4_VME;
    EXEC_FAULT(EXC_GP, 0, MOV_CR4_RAX);
    RAX = rig.cpu->cr4 | CR4_SMEP | CR4_SMAP | CR4_UMIP | CR4_FSGSBASE;
    EXEC_OK(MOV_CR4_RAX);
    assert_int_equal(rig.cpu->cr4, RAX);
}

static void cr8(void **state)
{
    (void)state;
    RAX = 5;
    EXEC_OK(0x44, 0x0f, 0x22, 0xc0);
    assert_int_equal(fake_apic.cr8, 5);
    assert_true(fake_apic.parks > 0); /* the guest's vector registers were put away first */
    EXEC_OK(0x44, 0x0f, 0x20, 0xc3);
    assert_int_equal(RBX, 5);
    RAX = 16;
    EXEC_FAULT(EXC_GP, 0, 0x44, 0x0f, 0x22, 0xc0);
}

static void lmsw_smsw(void **state)
{
    (void)state;
    uint64_t before = rig.cpu->cr0;
    RAX = 0;
    EXEC_OK(0x0f, 0x01, 0xf0); /* lmsw ax: PE can't be cleared */
    assert_int_equal(rig.cpu->cr0 & CR0_PE, CR0_PE);
    RAX = 0xfff8 | 8;
    EXEC_OK(0x0f, 0x01, 0xf0);
    assert_int_equal(rig.cpu->cr0, before | CR0_TS | CR0_ET);
    RBX = ~0ull;
    EXEC_OK(0x0f, 0x01, 0xe3); /* smsw ebx */
    assert_int_equal(RBX, rig.cpu->cr0);
}

static void umip(void **state)
{
    (void)state;
    RBX = SYS_DATA;
    sys_ring(3);
    EXEC_OK(0x0f, 0x01, 0x03); /* sgdt [rbx] */
    assert_int_equal(ram16(SYS_DATA), S_LIMIT);
    assert_int_equal(ram64(SYS_DATA + 2), SYS_GDT);
    EXEC_OK(0x0f, 0x00, 0xc8); /* str eax */
    assert_int_equal(RAX, S_TSS);
    rig.cpu->cr4 |= CR4_UMIP;
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0x03);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0x0b); /* sidt */
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x00, 0xc0); /* sldt */
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x00, 0xc8); /* str */
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0xe3); /* smsw */
    sys_ring(0);
    EXEC_OK(0x0f, 0x01, 0x03);
}

static void load_tables(void **state)
{
    (void)state;
    RBX = SYS_DATA;
    put_ram(SYS_DATA, 0x7f, 2);
    put_ram(SYS_DATA + 2, 0xffff800012345678, 8);
    EXEC_OK(0x0f, 0x01, 0x1b); /* lidt [rbx] */
    assert_int_equal(rig.cpu->idt.limit, 0x7f);
    assert_int_equal(rig.cpu->idt.base, 0xffff800012345678);
    put_ram(SYS_DATA + 2, 0x800000000000, 8);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0x13); /* lgdt: base not canonical */
    sys_protected32(0);
    put_ram(SYS_DATA + 2, 0x12345678, 4);
    EXEC_OK(0x66, 0x0f, 0x01, 0x1b); /* 16-bit operand size: 24 bits of base */
    assert_int_equal(rig.cpu->idt.base, 0x345678);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0x1b);
}

static void lldt_ltr(void **state)
{
    (void)state;
    RAX = S_LDT;
    EXEC_OK(0x0f, 0x00, 0xd0); /* lldt ax */
    assert_int_equal(rig.cpu->ldtr.base, SYS_LDT);
    RAX = S_TSS;
    EXEC_FAULT(EXC_GP, S_TSS, 0x0f, 0x00, 0xd0);
    RAX = 4;
    EXEC_FAULT(EXC_GP, 4, 0x0f, 0x00, 0xd0);
    RAX = 0;
    EXEC_OK(0x0f, 0x00, 0xd0);
    assert_true(rig.cpu->ldtr.attr & SEG_ATTR_NULL);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x00, 0xd8); /* ltr of null */
    RAX = S_TSS;
    *sys_gdt(S_TSS + 8) = 0xffff8000;
    EXEC_OK(0x0f, 0x00, 0xd8);
    assert_int_equal(rig.cpu->tr.base, 0xffff800000000000 | SYS_TSS);
    assert_int_equal(*sys_gdt(S_TSS) >> 40 & 15, 11);
    EXEC_FAULT(EXC_GP, S_TSS, 0x0f, 0x00, 0xd8); /* busy */
    *sys_gdt(S_TSS) = sys_desc(SYS_TSS, 0x67, 0x0009);
    EXEC_FAULT(EXC_NP, S_TSS, 0x0f, 0x00, 0xd8);
    *sys_gdt(S_TSS) = sys_desc(SYS_TSS, 0x67, 0x0089);
    *sys_gdt(S_TSS + 8) = 0x8000; /* not canonical */
    EXEC_FAULT(EXC_GP, S_TSS, 0x0f, 0x00, 0xd8);
    sys_real();
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x00, 0xd8);
}

static void lar_lsl(void **state)
{
    (void)state;
    RBX = S_DATA;
    EXEC_OK(0x0f, 0x02, 0xc3); /* lar eax, ebx */
    assert_true(rig.cpu->rflags & FL_ZF);
    assert_int_equal(RAX, 0xcf9300);
    EXEC_OK(0x0f, 0x03, 0xc3); /* lsl eax, ebx */
    assert_int_equal(RAX, 0xffffffff);
    RBX = 0xc0; /* beyond the table: no fault, ZF clear, destination untouched */
    RAX = 7;
    EXEC_OK(0x0f, 0x02, 0xc3);
    assert_false(rig.cpu->rflags & FL_ZF);
    assert_int_equal(RAX, 7);
    RBX = S_TSS;
    EXEC_OK(0x0f, 0x03, 0xc3);
    assert_int_equal(RAX, 0x167);
    sys_ring(3);
    RBX = S_DATA;
    EXEC_OK(0x0f, 0x02, 0xc3);
    assert_false(rig.cpu->rflags & FL_ZF);
    RBX = 0;
    EXEC_OK(0x0f, 0x03, 0xc3);
    assert_false(rig.cpu->rflags & FL_ZF);
}

static void verr_verw(void **state)
{
    (void)state;
    static const struct {
        uint16_t sel;
        bool r, w;
    } t[] = {{S_DATA, true, true},  {S_READONLY, true, false}, {S_CODE64, true, false},    {S_EXECONLY, false, false},
             {S_TSS, false, false}, {S_UDATA | 3, true, true}, {S_DATA | 3, false, false}, {0, false, false}};
    for (unsigned i = 0; i < sizeof t / sizeof t[0]; i++) {
        RAX = t[i].sel;
        EXEC_OK(0x0f, 0x00, 0xe0);
        assert_int_equal(!!(rig.cpu->rflags & FL_ZF), t[i].r);
        EXEC_OK(0x0f, 0x00, 0xe8);
        assert_int_equal(!!(rig.cpu->rflags & FL_ZF), t[i].w);
    }
}

static void arpl(void **state)
{
    (void)state;
    sys_protected32(0);
    RAX = 0x1230;
    RBX = 3;
    EXEC_OK(0x63, 0xd8); /* arpl ax, bx */
    assert_int_equal(RAX, 0x1233);
    assert_true(rig.cpu->rflags & FL_ZF);
    EXEC_OK(0x63, 0xd8);
    assert_false(rig.cpu->rflags & FL_ZF);
}

static void debug_registers(void **state)
{
    (void)state;
    RAX = 0x1234;
    EXEC_OK(0x0f, 0x23, 0xc0); /* mov dr0, rax */
    assert_int_equal(rig.cpu->dr[0], 0x1234);
    RAX = 0xffffdfff;
    EXEC_OK(MOV_DR7_RAX);
    assert_int_equal(rig.cpu->dr[7], 0xffff07ff);
    RAX = 0;
    EXEC_OK(0x0f, 0x23, 0xf0); /* dr6 */
    EXEC_OK(0x0f, 0x21, 0xf3);
    assert_int_equal(RBX, 0xffff0ff0);
    EXEC_OK(0x0f, 0x21, 0xe3); /* dr4 = dr6 while CR4.DE is clear */
    assert_int_equal(RBX, 0xffff0ff0);
    rig.cpu->cr4 |= CR4_DE;
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x21, 0xe3);
    RAX = 1ull << 32;
    EXEC_FAULT(EXC_GP, 0, MOV_DR7_RAX);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x23, 0xf0);
    RAX = 0x2000; /* general detect */
    EXEC_OK(MOV_DR7_RAX);
    assert_int_equal(EXEC(0x0f, 0x21, 0xc3), SOFT_FAULT);
    assert_int_equal(rig.cpu->exc.dr6, 1u << 13);
    assert_fault(EXC_DB, 0);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x21, 0xc3);
}

static void invpcid(void **state)
{
    (void)state;
#define INVPCID 0x66, 0x0f, 0x38, 0x82, 0x03 /* invpcid rax, [rbx] */
    RBX = SYS_DATA;
    put_ram(SYS_DATA, 0, 8);
    put_ram(SYS_DATA + 8, SYS_DATA, 8);
    for (RAX = 0; RAX < 4; RAX++) {
        unsigned flushes = rig.translation_flushes;
        EXEC_OK(INVPCID);
        assert_true(rig.translation_flushes > flushes);
    }
    EXEC_FAULT(EXC_GP, 0, INVPCID); /* type 4 */
    RAX = 0;
    put_ram(SYS_DATA, 1, 8); /* a PCID while CR4.PCIDE is clear */
    EXEC_FAULT(EXC_GP, 0, INVPCID);
    rig.cpu->cr4 |= CR4_PCIDE;
    EXEC_OK(INVPCID);
    put_ram(SYS_DATA, 0x1000, 8);
    EXEC_FAULT(EXC_GP, 0, INVPCID);
    put_ram(SYS_DATA, 1, 8);
    put_ram(SYS_DATA + 8, 0x800000000000, 8);
    EXEC_FAULT(EXC_GP, 0, INVPCID);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, INVPCID);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x01, 0x3b); /* invlpg [rbx] */
    sys_ring(0);
    EXEC_OK(0x0f, 0x01, 0x3b);
}

static void cli_sti(void **state)
{
    (void)state;
    EXEC_OK(0xfb);
    assert_int_equal(rig.cpu->if_flag, 1);
    assert_int_equal(rig.cpu->irq_shadow, SHADOW_STI);
    rig.cpu->irq_shadow = 0;
    EXEC_OK(0xfb); /* no shadow when IF was set already */
    assert_int_equal(rig.cpu->irq_shadow, 0);
    EXEC_OK(0xfa);
    assert_int_equal(rig.cpu->if_flag, 0);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0xfa);
    rig.cpu->rflags |= FL_IOPL;
    EXEC_OK(0xfb);
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x01, 0xcb); /* stac */
    sys_ring(0);
    EXEC_OK(0x0f, 0x01, 0xcb);
    assert_int_equal(rig.cpu->mmu_idx, MMU_KERNEL_AC);
    EXEC_OK(0x0f, 0x01, 0xca);
    assert_int_equal(rig.cpu->mmu_idx, MMU_KERNEL);
}

static void pushf_popf(void **state)
{
    (void)state;
    soft_set_rflags(rig.cpu, FL_1 | FL_RF | FL_IF | FL_ID | FL_CF);
    EXEC_OK(0x9c);
    assert_int_equal(ram64(SYS_STACK - 8), FL_1 | FL_IF | FL_ID | FL_CF);
    put_ram(SYS_STACK - 8, ~0ull, 8);
    EXEC_OK(0x9d);
    assert_int_equal(soft_get_rflags(rig.cpu),
                     FL_1 | FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_AC | FL_ID);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK);
    sys_ring(3);
    soft_set_rflags(rig.cpu, FL_1 | FL_IF);
    put_ram(SYS_STACK, FL_IOPL | FL_ZF, 8);
    EXEC_OK(0x9d); /* IOPL and IF are not for ring 3 */
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_IF | FL_ZF);
    rig.cpu->gpr[R_RSP] = SYS_STACK;
    put_ram(SYS_STACK, FL_CF, 8);
    soft_set_rflags(rig.cpu, FL_1 | FL_AC);
    EXEC_OK(0x66, 0x9d); /* 16 bits */
    assert_int_equal(soft_get_rflags(rig.cpu), FL_1 | FL_AC | FL_CF);
    assert_int_equal(rig.cpu->gpr[R_RSP], SYS_STACK + 2);
}

static void halt(void **state)
{
    (void)state;
    assert_int_equal(EXEC(0xf4), SOFT_EXIT);
    assert_int_equal(rig.exit.kind, VCPU_EXIT_HLT);
    assert_true(rig.cpu->halted);
    assert_int_equal(rig.cpu->rip, SYS_CODE + 1);
    sys_ring(3);
    EXEC_FAULT(EXC_GP, 0, 0xf4);
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0x09); /* wbinvd */
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x0b); /* ud2 */
    EXEC_OK(0x0f, 0x01, 0xe8);         /* serialize */
    sys_ring(0);
    EXEC_OK(0x0f, 0x09);
    EXEC_FAULT(EXC_UD, 0, 0x0f, 0x01, 0xc8); /* monitor */
}

static void port_read(void **state)
{
    (void)state;
    RAX = ~0ull;
    RDX = 0x3f8;
    assert_int_equal(EXEC(0xec), SOFT_EXIT); /* in al, dx */
    assert_int_equal(rig.cpu->rip, SYS_CODE);
    assert_int_equal(rig.exit.kind, VCPU_EXIT_IO);
    assert_int_equal(rig.exit.io.port, 0x3f8);
    assert_int_equal(rig.exit.io.size, 1);
    assert_int_equal(rig.exit.io.count, 1);
    assert_false(rig.exit.io.write);
    rig.exit.io.data[0] = 0x5a;
    soft_port_complete(rig.cpu, &rig.exit);
    EXEC_OK(0xec);
    assert_int_equal(RAX, 0xffffffffffffff5a);
    assert_int_equal(rig.cpu->rip, SYS_CODE + 1);
    assert_int_equal(EXEC(0xec), SOFT_EXIT); /* the answer counts once */
    soft_port_complete(rig.cpu, &rig.exit);
    assert_int_equal(EXEC(0xe5, 0x60), SOFT_EXIT); /* another port: not its answer */
    assert_int_equal(rig.exit.io.port, 0x60);
    assert_int_equal(rig.exit.io.size, 4);
}

static void port_write(void **state)
{
    (void)state;
    RAX = 0x11223344;
    assert_int_equal(EXEC(0x66, 0xe7, 0xf4), SOFT_EXIT); /* out 0xf4, ax */
    assert_int_equal(rig.cpu->rip, SYS_CODE + 3);
    assert_true(rig.exit.io.write);
    assert_int_equal(rig.exit.io.port, 0xf4);
    assert_int_equal(rig.exit.io.size, 2);
    assert_int_equal(rig.exit.io.data[0] | rig.exit.io.data[1] << 8, 0x3344);
    soft_port_complete(rig.cpu, &rig.exit);
    assert_false(rig.cpu->io.have);
}

static void port_breakpoints(void **state)
{
    (void)state;
    rig.cpu->dr[1] = 0x80;
    rig.cpu->dr[7] = 0x400 | 2u << 2 | 0x6u << 20; /* I/O, 2 bytes */
    assert_int_equal(EXEC(0xe6, 0x81), SOFT_EXIT);
    assert_int_equal(rig.cpu->pending_db, 0); /* CR4.DE is clear */
    rig.cpu->cr4 |= CR4_DE;
    assert_int_equal(EXEC(0xe6, 0x81), SOFT_EXIT);
    assert_int_equal(rig.cpu->pending_db, 2);
    assert_int_equal(EXEC(0xe6, 0x82), SOFT_EXIT);
    assert_int_equal(rig.cpu->pending_db, 0);
    assert_int_equal(EXEC(0xe4, 0x80), SOFT_EXIT); /* a read: when it is complete */
    assert_int_equal(rig.cpu->pending_db, 0);
    soft_port_complete(rig.cpu, &rig.exit);
    EXEC_OK(0xe4, 0x80);
    assert_int_equal(rig.cpu->pending_db, 2);
}

static void port_permission(void **state)
{
    (void)state;
    sys_ring(3);
    RDX = 0x3ff;
    put_ram(SYS_TSS + 102, 0x68, 2);
    rig.cpu->tr.limit = 0x68 + 0x80;
    EXEC(0xec);
    assert_int_equal(rig.exit.io.port, 0x3ff); /* allowed: the map is zero */
    rig.cpu->tr.limit = 0x68 + 0x7f; /* two bytes are read even for one bit: the second lies beyond the limit */
    EXEC_FAULT(EXC_GP, 0, 0xec);
    rig.cpu->tr.limit = 0x68 + 0x80;
    put_ram(SYS_TSS + 0x68 + 0x80, 4, 1); /* port 0x402 */
    EXEC_FAULT(EXC_GP, 0, 0xed);
    assert_int_equal(EXEC(0xec), SOFT_EXIT);
    put_ram(SYS_TSS + 0x68 + 0x7f, 0x80, 1);
    EXEC_FAULT(EXC_GP, 0, 0xec);
    rig.cpu->rflags |= FL_IOPL;
    assert_int_equal(EXEC(0xec), SOFT_EXIT);
    rig.cpu->rflags &= ~(uint64_t)FL_IOPL;
    rig.cpu->tr.limit = 0x67;
    RDX = 0;
    EXEC_FAULT(EXC_GP, 0, 0xee);
}

static void no_hypercalls(void **state)
{
    (void)state;
    RAX = 10;
    EXEC_OK(0x0f, 0x01, 0xd9); /* vmmcall */
    assert_int_equal(RAX, (uint64_t)-1000);
    sys_ring(3);
    EXEC_OK(0x0f, 0x01, 0xc1); /* vmcall */
    assert_int_equal(RAX, (uint64_t)-1);
}

static void cache_lines(void **state)
{
    (void)state;
    RBX = SYS_DATA;
    EXEC_OK(0x0f, 0xae, 0x3b); /* clflush [rbx] */
    EXEC_OK(0x66, 0x0f, 0xae, 0x3b);
    RBX = 0x600000;
    EXEC_FAULT(EXC_PF, 0, 0x0f, 0xae, 0x3b);
    RBX = 0x800000000000;
    EXEC_FAULT(EXC_GP, 0, 0x0f, 0xae, 0x3b);
}

static void not_ours(void **state)
{
    (void)state;
    assert_int_equal(EXEC(0x90), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0x48, 0x89, 0xd8), SOFT_NOT_MINE);
    assert_int_equal(EXEC(0x50), SOFT_NOT_MINE);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_setup, rig_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(cr0),
        T(into_long_mode),
        T(pae_pdptes),
        T(cr3),
        T(cr4),
        T(cr8),
        T(lmsw_smsw),
        T(umip),
        T(load_tables),
        T(lldt_ltr),
        T(lar_lsl),
        T(verr_verw),
        T(arpl),
        T(debug_registers),
        T(invpcid),
        T(cli_sti),
        T(pushf_popf),
        T(halt),
        T(port_read),
        T(port_write),
        T(port_permission),
        T(port_breakpoints),
        T(cache_lines),
        T(no_hypercalls),
        T(not_ours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
