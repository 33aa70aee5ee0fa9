// Far calls, jumps and returns, call gates with a change of privilege, conforming code, IRET in its sizes.
#include "kernel.h"

#define T(n) (SEL_TEST + 8 * (n))
#define GATE T(0) /* 16 bytes: call gate to kernel code */
#define CONFORMING T(2)
#define BAD_GATE T(4)

static struct ctx c;
static struct {
    u64 offset;
    u16 selector;
} __attribute__((packed)) far64;
static struct {
    u32 offset;
    u16 selector;
} __attribute__((packed)) far32;

CODE(call_far64, ".byte 0x48; lcall *(%rbx)\n far_back: int $0x82");
CODE(call_far32, "lcall *(%rbx)\n far_back32: int $0x82");
CODE(jump_far64, ".byte 0x48; ljmp *(%rbx)");
CODE(landing, "int $0x81");
CODE(lret_landing, "lretq");
CODE(lret_imm, "lretq $16");
CODE(lret32, "lretl");
CODE(gate_body, "mov %cs, %eax; lretq");
CODE(iret32, "iretl");
CODE(mov_cs, "mov %cs, %eax; int $0x81");
CODE(call_direct_bad, ".byte 0x9a, 0, 0, 0, 0, 0x10, 0"); /* not in 64-bit mode */
LABEL(far_back);
LABEL(far_back32);

static void call_gate(u16 at, u64 target, u16 selector, unsigned type)
{
    gdt[at / 8] = (target & 0xffff) | (u64)selector << 16 | (u64)type << 40 | (target >> 16 & 0xffff) << 48;
    gdt[at / 8 + 1] = target >> 32;
}

static void same_privilege(void)
{
    far64.offset = (u64)lret_landing, far64.selector = SEL_KCODE;
    ctx_kernel(&c, call_far64);
    c.gpr[RBX] = (u64)&far64;
    u64 rsp = c.gpr[RSP];
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.gpr[RSP], rsp);
    far64.offset = (u64)landing;
    ctx_kernel(&c, call_far64);
    c.gpr[RBX] = (u64)&far64;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RSP], rsp - 16);
    CHECK_EQ(((u64 *)c.gpr[RSP])[0], far_back);
    CHECK_EQ(((u64 *)c.gpr[RSP])[1] & 0xffff, SEL_KCODE);
    ctx_kernel(&c, jump_far64);
    c.gpr[RBX] = (u64)&far64;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RSP], rsp);
    /* 32-bit operand size: 4-byte slots. */
    far32.offset = (u32)(u64)landing, far32.selector = SEL_KCODE;
    ctx_kernel(&c, call_far32);
    c.gpr[RBX] = (u64)&far32;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RSP], rsp - 8);
    CHECK_EQ(((u32 *)c.gpr[RSP])[0], (u32)(u64)far_back32);
    CHECK_EQ(((u32 *)c.gpr[RSP])[1] & 0xffff, SEL_KCODE);
    /* Far return within CPL 0, 32-bit. */
    ctx_kernel(&c, lret32);
    c.gpr[RSP] -= 8;
    ((u32 *)c.gpr[RSP])[0] = (u32)(u64)landing, ((u32 *)c.gpr[RSP])[1] = SEL_KCODE;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RSP], rsp);
}

static void outward(void)
{
    /* LRET to user code, with 16 bytes of parameters released on both stacks. */
    ctx_kernel(&c, lret_imm);
    u64 *f = (u64 *)(c.gpr[RSP] - 48);
    f[0] = (u64)user(landing), f[1] = SEL_UCODE | 3;
    f[2] = f[3] = 0x5555;
    f[4] = (u64)user(ctx_stack) + 4096, f[5] = SEL_UDATA | 3;
    c.gpr[RSP] = (u64)f;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.cs, SEL_UCODE | 3);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
    CHECK_EQ(c.gpr[RSP], (u64)user(ctx_stack) + 4096 + 16);
    /* IRET with 32-bit operand size to 32-bit user code. */
    ctx_user32(&c, landing, 2);
    ctx_kernel(&c, iret32);
    u32 *g = (u32 *)(c.gpr[RSP] - 64);
    g[0] = USER32_CODE, g[1] = SEL_UCODE32 | 3, g[2] = 2 | FL_CF, g[3] = USER32_STACK, g[4] = SEL_UDATA | 3;
    c.gpr[RSP] = (u64)g;
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.cs, SEL_UCODE32 | 3);
    CHECK_EQ(c.gpr[RSP], USER32_STACK);
    CHECK_EQ(c.rflags & FL_ARITH, FL_CF);
}

static void gates(void)
{
    /* Inward through a gate: RSP from the TSS, the caller's SS:RSP and CS:RIP on the new stack. */
    call_gate(GATE, (u64)landing, SEL_KCODE, 0xec);
    far64.offset = 0xdeadbeef, far64.selector = GATE | 3; /* the offset is ignored */
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    u64 rsp = c.gpr[RSP], top = tss[0].rsp[0];
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.cs, SEL_KCODE);
    CHECK_EQ(c.ss, 0); /* a null selector with RPL = the new CPL */
    CHECK_EQ(c.gpr[RSP], top - 32);
    u64 *f = (u64 *)c.gpr[RSP];
    CHECK_EQ(f[0], user(far_back));
    CHECK_EQ(f[1] & 0xffff, SEL_UCODE | 3);
    CHECK_EQ(f[2], rsp);
    CHECK_EQ(f[3] & 0xffff, SEL_UDATA | 3);
    /* There and back. */
    call_gate(GATE, (u64)gate_body, SEL_KCODE, 0xec);
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    CHECK_EQ(ctx_run(&c), 0x82);
    CHECK_EQ(c.gpr[RAX], SEL_KCODE);
    CHECK_EQ(c.cs, SEL_UCODE | 3);
    CHECK_EQ(c.gpr[RSP], rsp);
    /* Refused: gate DPL, gate not present, upper type bits, a JMP inward. */
    call_gate(GATE, (u64)landing, SEL_KCODE, 0x8c);
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    FAULTS(&c, GP, GATE);
    call_gate(GATE, (u64)landing, SEL_KCODE, 0x6c);
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    FAULTS(&c, NP, GATE);
    call_gate(GATE, (u64)landing, SEL_KCODE, 0xec);
    ctx_user(&c, jump_far64);
    c.gpr[RBX] = (u64)user(&far64);
    FAULTS(&c, GP, SEL_KCODE);
    call_gate(GATE, (u64)landing, SEL_KCODE32, 0xec); /* 64-bit gates lead to 64-bit code */
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    FAULTS(&c, GP, SEL_KCODE32);
}

static void conforming(void)
{
    gdt[CONFORMING / 8] = 0x00af9f000000fffful; /* DPL 0, conforming, 64-bit */
    /* User code calls it and stays at CPL 3. */
    far64.offset = (u64)user(mov_cs), far64.selector = CONFORMING;
    ctx_user(&c, call_far64);
    c.gpr[RBX] = (u64)user(&far64);
    CHECK_EQ(ctx_run(&c), END);
    CHECK_EQ(c.gpr[RAX], CONFORMING | 3);
    CHECK_EQ(c.cs, CONFORMING | 3);
    CHECK_EQ(c.ss, SEL_UDATA | 3);
    /* A handler in conforming code: an interrupt gate with it keeps CPL 3 and the stack. Not used by kernels; the other way,
     * a far call to code with a numerically higher DPL, is refused. */
    far64.offset = (u64)user(landing), far64.selector = SEL_UCODE | 3;
    ctx_kernel(&c, call_far64);
    c.gpr[RBX] = (u64)&far64;
    FAULTS(&c, GP, SEL_UCODE);
    far64.selector = 0;
    ctx_kernel(&c, call_far64);
    c.gpr[RBX] = (u64)&far64;
    FAULTS(&c, GP, 0);
    far64.selector = SEL_KDATA;
    ctx_kernel(&c, call_far64);
    c.gpr[RBX] = (u64)&far64;
    FAULTS(&c, GP, SEL_KDATA);
    gdt[BAD_GATE / 8] = 0x00af1b000000fffful; /* code, not present */
    far64.selector = BAD_GATE;
    ctx_kernel(&c, jump_far64);
    c.gpr[RBX] = (u64)&far64;
    FAULTS(&c, NP, BAD_GATE);
    ctx_kernel(&c, call_direct_bad);
    FAULTS(&c, UD, 0);
    /* Far return inward is never possible. */
    ctx_user(&c, lret_landing);
    c.gpr[RSP] -= 16;
    ((u64 *)c.gpr[RSP])[0] = (u64)landing, ((u64 *)c.gpr[RSP])[1] = SEL_KCODE;
    FAULTS(&c, GP, SEL_KCODE);
}

int main(void)
{
    same_privilege();
    outward();
    gates();
    conforming();
    return done();
}
