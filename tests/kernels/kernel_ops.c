// Privileged and odd instructions in the middle of straight code, again and again so that they run translated: CLI, STI, PUSHF, POPF, SWAPGS, STAC,
// CLAC, RDTSC, SYSCALL, SYSRET, PUSH m, BT m, division by zero, short strings. Flags and state must be exact at each, refusals too.
#include "kernel.h"

#define ROUNDS 40
CODE(flags_image, "pushf; pop %rax; lahf; seto %cl; pushf; pop %rdx");
CODE(flags_df, "std; pushf; pop %rax; cld; pushf; pop %rdx");
CODE(if_image, "cli; pushf; pop %rax; sti; nop; pushf; pop %rdx; cli; pushf; pop %rbx");
CODE(popf_all, "push %rax; popf; pushf; pop %rdx");
CODE(popf_trap, "push %rax; popf; nop; nop");
CODE(window, "sti; nop; window_end: cli; nop");
CODE(window_ret, "call 1f\n window_ret_end: cli; jmp 2f\n 1: sti; ret\n 2: nop");
CODE(window_jmp, "sti; jmp 1f\n nop\n 1: window_jmp_end: cli");
CODE(window_load, "sti; mov (%rbx), %rax; window_load_end: mov 8(%rbx), %rdx; cli; mov 16(%rbx), %rsi");
CODE(no_window, "sti; cli; nop; nop; nop; sti; cli");
CODE(swap, "swapgs; mov %gs:8, %rax; swapgs; mov %gs:8, %rdx");
CODE(tsc_user, "rdtsc");
CODE(tsc_flags, "stc; rdtsc; setc %bl; cmp %rax, %rax; rdtscp; setz %bh");
CODE(access,
     "stac; pushf; pop %rdx; mov (%rbx), %rax; movb $7, 9(%rbx); clac; pushf; pop %rsi; access_bad: mov (%rbx), %rcx");
CODE(clac_twice, "clac; clac; stac; stac; mov (%rbx), %rax; clac");
CODE(push_mem, "push (%rbx); push 8(%rbx,%rsi,8); push %gs:8; push 8(%rsp); pop %rax; pop %rcx; pop %rdx; pop %r8");
CODE(push_rsp, "push (%rsp); pop %rax; push -8(%rsp)");
CODE(push_bad, "push %rax; push_bad_at: push (%rbx)");
CODE(user_cli, "cli");
CODE(user_sti, "sti");
CODE(user_swapgs, "swapgs");
CODE(user_clac, "clac");
CODE(user_sysret, "sysretq");

static struct ctx c;
static u64 seed = 12345;

static void *two_pages; /* at TEST_VA */

static void images(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        u64 f = (random64(&seed) & (FL_ARITH | FL_IOPL | FL_ID | FL_NT)) | 2;
        ctx_kernel(&c, flags_image);
        c.rflags = f;
        c.gpr[RCX] = 0;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RDX], f);
        CHECK_EQ(c.gpr[RAX] >> 8 & 0xff, (f & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) | 2);
        CHECK_EQ(c.gpr[RCX] & 0xff, (f & FL_OF) != 0);
        ctx_user(&c, flags_image);
        c.gpr[RSP] = (u64)user(ctx_stack) + 4096;
        f = (f & (FL_ARITH | FL_ID)) | 2 | (i & 1 ? FL_AC : 0);
        c.rflags = f;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RDX], f);

        ctx_kernel(&c, flags_df);
        c.rflags = f & ~FL_AC;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RAX], (f & ~FL_AC) | FL_DF);
        CHECK_EQ(c.gpr[RDX], f & ~FL_AC);
        CHECK(!(c.rflags & FL_DF));

        ctx_kernel(&c, if_image);
        c.rflags = f & ~FL_AC;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RAX], f & ~FL_AC);
        CHECK_EQ(c.gpr[RDX], (f & ~FL_AC) | FL_IF);
        CHECK_EQ(c.gpr[RBX], f & ~FL_AC);

        f = (random64(&seed) & (FL_ARITH | FL_IOPL | FL_ID | FL_NT | FL_DF | FL_IF | FL_AC)) | 2;
        ctx_kernel(&c, popf_all);
        c.gpr[RAX] = f | FL_RF; /* RF reads as 0 */
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RDX], f);
        ctx_user(&c, popf_all);
        c.gpr[RSP] = (u64)user(ctx_stack) + 4096;
        c.gpr[RAX] = f;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RDX], f & ~(FL_IOPL | FL_IF)); /* not a program's */
        ctx_kernel(&c, popf_trap);
        c.gpr[RAX] = FL_TF | 2;
        CHECK_EQ(ctx_run(&c), DB); /* after the instruction that follows POPF */
        CHECK_EQ(c.rip, popf_trap + 3);
    }
}

LABEL(window_end);
LABEL(window_ret_end);
LABEL(window_jmp_end);
LABEL(window_load_end);

static void pend(u8 *code)
{
    ctx_kernel(&c, code);
    c.gpr[RBX] = TEST_VA + PAGE - 16; /* its last access is in the next page */
    apic_ipi(0, 0x44000 | 0x48);
    for (unsigned i = 0; i < 100; i++) pause();
}

static void windows(void)
{
    static const struct {
        u8 *code, *end;
    } one[] = {{window, window_end},
               {window_ret, window_ret_end},
               {window_jmp, window_jmp_end},
               {window_load, window_load_end}};

    for (unsigned i = 0; i < ROUNDS; i++) {
        for (unsigned k = 0; k < 4; k++) {
            ctx_kernel(&c, one[k].code);
            c.gpr[RBX] = TEST_VA + PAGE - 16;
            CHECK_EQ(ctx_run(&c), END);
            pend(one[k].code);
            CHECK_EQ(ctx_run(&c), 0x48);
            CHECK_EQ(c.rip, one[k].end);
            apic_eoi();
        }
        pend(no_window);
        CHECK_EQ(ctx_run(&c), END);
        ctx_kernel(&c, window);
        CHECK_EQ(ctx_run(&c), 0x48);
        apic_eoi();
    }
}

/* The task priority: raised, it holds an interrupt back that is sent before or after; lowered, it lets it through at once. */
CODE(priority, "mov %rax, %cr8; sti; nop; nop; mov %cr8, %rdx; mov %rbx, %cr8; priority_end: nop; cli");
CODE(
    priority_send,
    "mov %rax, %cr8; sti; movl $0x44048, (%rdi); mov %r8, %cr8; mov %cr8, %rdx; mov %rbx, %cr8; priority_send_end: nop; cli");
LABEL(priority_end);
LABEL(priority_send_end);

static void priorities(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        pend(priority);
        c.gpr[RAX] = 4, c.gpr[RBX] = i % 4;
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, priority_end);
        CHECK_EQ(c.gpr[RDX], 4);
        apic_eoi();
        CHECK_EQ(apic_read(0x80), (i % 4) << 4);
        ctx_kernel(&c, priority_send);
        c.gpr[RDI] = LAPIC + 0x300;
        c.gpr[RAX] = 5, c.gpr[R8] = 4 + i % 12, c.gpr[RBX] = 3;
        CHECK_EQ(ctx_run(&c), 0x48);
        CHECK_EQ(c.rip, priority_send_end);
        CHECK_EQ(c.gpr[RDX], 4 + i % 12);
        apic_eoi();
        set_cr8(9);
        CHECK_EQ(apic_read(0x80), 0x90);
        apic_write(0x80, 0x25);
        CHECK_EQ(cr8(), 2);
        set_cr8(2);
        CHECK_EQ(apic_read(0x80) >> 4, 2);
        set_cr8(0);
    }
}

static void gs_bases(void)
{
    u64 *a = page_alloc(), *b = page_alloc();
    a[1] = 0x1111, b[1] = 0x2222;
    for (unsigned i = 0; i < ROUNDS; i++) {
        wrmsr(MSR_GS_BASE, (u64)a);
        wrmsr(MSR_KERNEL_GS_BASE, (u64)b);
        ctx_kernel(&c, swap);
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RAX], 0x2222);
        CHECK_EQ(c.gpr[RDX], 0x1111);
        CHECK_EQ(rdmsr(MSR_GS_BASE), a);

        u64 *p = (u64 *)TEST_VA;
        p[0] = 10, p[1] = 11, p[6] = 16;
        ctx_kernel(&c, push_mem);
        c.gpr[RBX] = TEST_VA;
        c.gpr[RSI] = 5;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RAX], 16); /* the address is formed before RSP moves */
        CHECK_EQ(c.gpr[RCX], 0x1111);
        CHECK_EQ(c.gpr[RDX], 16);
        CHECK_EQ(c.gpr[R8], 10);
        ctx_kernel(&c, push_bad);
        c.gpr[RBX] = TEST_VA + 64 * PAGE;
        u64 rsp = c.gpr[RSP];
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.rip, push_bad + 1);
        CHECK_EQ(c.gpr[RSP], rsp - 8);
        CHECK_EQ(c.error, 0);
        ctx_kernel(&c, push_bad);
        c.gpr[RBX] = 0x4000000000000001ul; /* not canonical, and what an empty slot of a cache might look like */
        CHECK_EQ(ctx_run(&c), GP);
        CHECK_EQ(c.gpr[RSP], rsp - 8);
    }
}

static void time(void)
{
    u64 last = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        ctx_user(&c, tsc_flags);
        c.gpr[RBX] = 0;
        wrmsr(MSR_TSC_AUX, 0x55);
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RBX], 0x101);
        CHECK_EQ(c.gpr[RCX], 0x55);
        u64 now = c.gpr[RDX] << 32 | c.gpr[RAX];
        CHECK(c.gpr[RAX] >> 32 == 0 && now > last && now < rdtsc());
        last = now;
        ctx_user(&c, tsc_user);
        CHECK_EQ(ctx_run(&c), END);
        set_cr4(cr4() | CR4_TSD);
        ctx_user(&c, tsc_user);
        FAULTS(&c, GP, 0);
        ctx_kernel(&c, tsc_user); /* CPL 0 may */
        CHECK_EQ(ctx_run(&c), END);
        set_cr4(cr4() & ~CR4_TSD);
    }
    if (left_out(TCG, "the TSC as an MSR")) return;
    wrmsr(MSR_TSC, 1ul << 40); /* by an offset: both halves must follow */
    ctx_user(&c, tsc_user);
    CHECK_EQ(ctx_run(&c), END);
    CHECK(c.gpr[RDX] == 256 && c.gpr[RAX] < 1ul << 32);
}

LABEL(access_bad);
LABEL(push_bad_at);

static void smap(void)
{
    if (!(cpuid(7, 0).b & 1u << 20)) {
        skip("no SMAP");
        return;
    }
    u64 page = (u64)page_alloc(), va = TEST_VA + 8 * PAGE;
    map_page(va, page, PTE_W | PTE_U);
    for (unsigned i = 0; i < ROUNDS; i++) {
        set_cr4(cr4() | CR4_SMAP);
        ctx_kernel(&c, access);
        c.gpr[RBX] = va;
        c.rflags = 2 | FL_CF | FL_OF;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.rip, access_bad);
        CHECK_EQ(c.error, PF_P);
        CHECK_EQ(c.gpr[RDX], 2 | FL_CF | FL_OF | FL_AC);
        CHECK_EQ(c.gpr[RSI], 2 | FL_CF | FL_OF);
        ctx_kernel(&c, clac_twice);
        c.gpr[RBX] = va;
        COMPLETES(&c);
        CHECK(!(c.rflags & FL_AC));
        ctx_user(&c, user_clac);
        FAULTS(&c, UD, 0);
        set_cr4(cr4() & ~CR4_SMAP);
        ctx_kernel(&c, access); /* AC means nothing then, but is kept */
        c.gpr[RBX] = va;
        COMPLETES(&c);
        CHECK_EQ(c.gpr[RDX] & FL_AC, FL_AC);
        CHECK_EQ(c.gpr[RSI] & FL_AC, 0);
    }
}

static void refusals(void)
{
    u8 *code[] = {user_cli, user_sti, user_swapgs, user_sysret};
    for (unsigned i = 0; i < ROUNDS; i++)
        for (unsigned k = 0; k < 4; k++) {
            ctx_user(&c, code[k]);
            FAULTS(&c, GP, 0);
        }
    ctx_user(&c, user_cli); /* with IOPL 3 a program may */
    c.rflags |= FL_IOPL | FL_IF;
    CHECK_EQ(ctx_run(&c), END);
    CHECK(!(c.rflags & FL_IF));
}

/* ---- SYSCALL, SYSRET ---- */

CODE(calls, "mov $50, %ebx\n 1: stc; syscall\n calls_back: adc $0, %rdi\n dec %ebx\n jnz 1b");
CODE(entry_keep, "inc %rax; sysretq");
CODE(entry_flags, "pushf; pop %rdx; mov %r11, %r12; orq $0x8d5, %r11; sysretq");
CODE(entry_trap, "orq $0x100, %r11; sysretq");
CODE(entry_far, "mov %r9, %rcx; sysretq");
CODE(call_once, "syscall\n call_once_back: pushf; pop %rsi; nop");
LABEL(calls_back);
LABEL(call_once_back);

static void calls_and_returns(void)
{
    wrmsr(MSR_STAR, (u64)SEL_UCODE32 << 48 | (u64)SEL_KCODE << 32);
    for (unsigned i = 0; i < ROUNDS; i++) {
        u64 mask = i & 1 ? 0x3f7fd5 : random64(&seed) & (FL_ARITH | FL_IF | FL_ID), f;
        wrmsr(MSR_SFMASK, mask);
        wrmsr(MSR_LSTAR, (u64)entry_keep);
        ctx_user(&c, calls);
        c.gpr[RAX] = c.gpr[RDI] = 0;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RAX], 50);
        CHECK_EQ(c.gpr[RDI], 50); /* CF came back from R11 */
        CHECK_EQ(c.gpr[RCX], user(calls_back));
        CHECK_EQ(c.cs, SEL_UCODE | 3);
        CHECK_EQ(c.ss, SEL_UDATA | 3);

        f = (random64(&seed) & (FL_ARITH | FL_ID)) | 2;
        wrmsr(MSR_LSTAR, (u64)entry_flags);
        ctx_user(&c, call_once);
        c.rflags = f;
        c.gpr[RSP] = (u64)ctx_stack + 4096; /* used by the entry, */
        CHECK_EQ(ctx_run(&c), PF);          /* and no program's */
        CHECK_EQ(c.rip, user(call_once_back));
        CHECK_EQ(c.gpr[R12], f);
        CHECK_EQ(c.gpr[RDX], (f & ~mask) | 2);
        CHECK_EQ(c.rflags & ~FL_RF, f | 0x8d7);

        wrmsr(MSR_LSTAR, (u64)entry_trap);
        ctx_user(&c, call_once);
        CHECK_EQ(ctx_run(&c), DB); /* TF is there at the end of SYSRET: at once */
        CHECK_EQ(c.rip, user(call_once_back));

        wrmsr(MSR_LSTAR, (u64)entry_far);
        ctx_user(&c, call_once);
        c.gpr[R9] = 0x800000000000ul; /* Intel: #GP in ring 0; AMD: in ring 3 */
        c.rflags = f;
        CHECK_EQ(ctx_run(&c), GP);
        CHECK_EQ(c.error, 0);
    }
}

/* ---- division ---- */

CODE(div_loop, "1: mov %rsi, %rdx; mov %rdi, %rax; stc; div_at: div %r8\n dec %rcx\n jnz 1b");
CODE(div_b, "div_b_at: div %bl");
CODE(div_h, "div_h_at: idiv %bh");
CODE(div_w, "div_w_at: div %bx");
CODE(div_m, "div_m_at: divl 4(%rbx,%rsi,4)");
CODE(div_sil, "div_sil_at: div %sil");
CODE(div_c, "div_c_at: idiv %ecx");
CODE(div_mc, "div_mc_at: divq (%rcx)");

static void divide(u8 *code, u64 rbx, u64 rcx, u64 rsi, bool zero)
{
    ctx_kernel(&c, code);
    c.gpr[RAX] = 100, c.gpr[RDX] = 0, c.gpr[RBX] = rbx, c.gpr[RCX] = rcx, c.gpr[RSI] = rsi;
    c.rflags = 2 | FL_CF | FL_ZF | FL_OF;
    if (zero)
        FAULTS(&c, DE, 0);
    else
        CHECK_EQ(ctx_run(&c), END);
}

static void division(void)
{
    u32 *p = (u32 *)TEST_VA;
    p[0] = p[1] = p[2] = p[3] = 0, p[8] = 7, p[9] = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        divide(div_b, 0xff00, 0, 0, true);
        divide(div_b, 7, 0, 0, false);
        CHECK_EQ(c.gpr[RAX], 0x20e);
        divide(div_h, 0xff, 0, 0, true);
        divide(div_h, 0x700, 0, 0, false);
        CHECK_EQ(c.gpr[RAX], 0x20e);
        divide(div_w, 0xff0000, 0, 0, true);
        divide(div_w, 7, 0, 0, false);
        CHECK_EQ(c.gpr[RAX], 14);
        divide(div_m, TEST_VA, 0, 2, true);
        divide(div_m, TEST_VA, 0, 7, false);
        CHECK_EQ(c.gpr[RDX], 2);
        divide(div_sil, 0, 0, 0xff00, true);
        divide(div_sil, 0, 0, 7, false);
        divide(div_c, 0, 0xff00000000, 0, true);
        divide(div_c, 0, -7ul, 0, false);
        CHECK_EQ(c.gpr[RAX], (u32)-14);
        CHECK_EQ(c.gpr[RCX], -7ul);
        divide(div_mc, 0, TEST_VA, 0, true);
        divide(div_mc, 0, TEST_VA + 32, 0, false);
        CHECK_EQ(c.gpr[RCX], TEST_VA + 32);
        ctx_kernel(&c, div_m);
        c.gpr[RBX] = TEST_VA + 64 * PAGE, c.gpr[RSI] = 0; /* the page fault comes first */
        CHECK_EQ(ctx_run(&c), PF);

        ctx_kernel(&c, div_loop); /* zero in the middle of a loop, and overflow at a place known for zeros */
        c.gpr[RSI] = 0, c.gpr[RDI] = 21, c.gpr[R8] = i & 1 ? 3 : 0, c.gpr[RCX] = 5;
        CHECK_EQ(ctx_run(&c), i & 1 ? END : DE);
        CHECK_EQ(c.gpr[RAX], i & 1 ? 7 : 21);
        if (!(i & 1)) CHECK(c.rflags & FL_CF);
        ctx_kernel(&c, div_loop);
        c.gpr[RSI] = 3, c.gpr[RDI] = 21, c.gpr[R8] = 3, c.gpr[RCX] = 5;
        CHECK_EQ(ctx_run(&c), DE);
        CHECK_EQ(c.gpr[RCX], 5);
    }
}

/* ---- strings that fit a page, and bits ---- */

CODE(fill, "cmp %rdx, %rdx; stc; rep stosb; setc %dl; setz %dh; mov %r8, %rcx; rep stosq; mov %r9, %rcx; rep movsw");
CODE(
    bits,
    "bt %rax, bits_here(%rip); setc %cl; bts %rax, (%rbx); setc %ch; btr %rsi, (%rdi,%rax); setc %dl; btc %rax, %gs:8; setc %dh\n"
    "jmp 1f\n .balign 8\n bits_here: .quad 0x5555555555555555, 0x3333333333333333\n 1:");

static void strings(void)
{
    u8 *p = (u8 *)TEST_VA;
    for (unsigned i = 0; i < ROUNDS; i++) {
        u64 n = random64(&seed) % 40, q = random64(&seed) % 5, w = random64(&seed) % 20, off = PAGE - n - 8 * q - w % 3;
        memset(p, 0xee, 2 * PAGE);
        ctx_kernel(&c, fill);
        c.gpr[RAX] = 0x0102030405060708;
        c.gpr[RDI] = TEST_VA + off;
        c.gpr[RSI] = TEST_VA + off - 1;
        c.gpr[RCX] = n, c.gpr[R8] = q, c.gpr[R9] = w, c.gpr[RDX] = 0;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RCX], 0);
        CHECK_EQ(c.gpr[RDX], 0x101);
        CHECK_EQ(c.gpr[RDI], TEST_VA + off + n + 8 * q + 2 * w);
        CHECK_EQ(c.gpr[RSI], TEST_VA + off - 1 + 2 * w);
        for (u64 k = 0; k < n; k++) CHECK_EQ(p[off + k], 8);
        for (u64 k = 0; k < q; k++) CHECK_EQ(*(u64 *)(p + off + n + 8 * k), 0x0102030405060708);
        if (w) CHECK_EQ(p[off + n + 8 * q], 0xee);
        CHECK_EQ(p[off + n + 8 * q + 2 * w], 0xee);

        ctx_kernel(&c, fill); /* more than there is: up to the missing page */
        c.gpr[RDI] = TEST_VA + 2 * PAGE - 24;
        c.gpr[RCX] = i & 1 ? 1ul << 61 : 25;
        c.gpr[RAX] = 0;
        CHECK_EQ(ctx_run(&c), PF);
        CHECK_EQ(c.gpr[RDI], TEST_VA + 2 * PAGE);
        CHECK_EQ(c.gpr[RCX], (i & 1 ? 1ul << 61 : 25) - 24);

        u64 bit = random64(&seed) % 120, *g = page_alloc();
        g[1] = g[2] = 0xaaaaaaaaaaaaaaaa;
        wrmsr(MSR_GS_BASE, (u64)g);
        memset(p, 0xff, 64);
        ((u64 *)p)[4] = 0;
        ctx_kernel(&c, bits);
        c.gpr[RAX] = bit, c.gpr[RBX] = TEST_VA + 32, c.gpr[RSI] = ~bit, c.gpr[RDI] = TEST_VA + 64 - bit;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RCX] & 0xff, bit < 64 ? !(bit & 1) : !(bit & 2));
        CHECK_EQ(c.gpr[RCX] >> 8 & 0xff, bit < 64 ? 0 : 1);
        CHECK(((u64 *)p)[4 + bit / 64] >> (bit & 63) & 1);
        CHECK_EQ(c.gpr[RDX] & 0xffff, 1 | (bit & 1) << 8);
        CHECK_EQ(g[1 + bit / 64] >> (bit & 63) & 1, !(bit & 1));
    }
}

/* ---- the levels between kernel and programs: supervisor pages, but no privileged instruction ---- */

CODE(ring_works, "pushf; pop %rdi; mov (%rbx), %rax; push (%rbx); pop %rsi; rdtsc; mov %cs, %ecx");

static void ring(u8 *code, unsigned cpl)
{
    ctx_kernel(&c, code);
    c.cs = SEL_TEST | cpl, c.ss = (SEL_TEST + 8) | cpl;
    c.gpr[RBX] = TEST_VA;
}

static void rings(void)
{
    u8 *refused[] = {user_cli, user_sti, user_swapgs, user_sysret};
    *(u64 *)TEST_VA = 0x1234567;
    for (unsigned i = 0; i < ROUNDS; i++)
        for (unsigned cpl = 1; cpl < 3; cpl++) {
            gdt[SEL_TEST / 8] = 0x00af9b000000fffful | (u64)cpl << 45;
            gdt[SEL_TEST / 8 + 1] = 0x00cf93000000fffful | (u64)cpl << 45;
            ring(ring_works, cpl);
            c.rflags = 2 | FL_CF;
            idt[END].attr |= 0x60; /* INT from there */
            CHECK_EQ(ctx_run(&c), END);
            CHECK_EQ(c.gpr[RDI], 2 | FL_CF);
            CHECK_EQ(c.gpr[RSI], 0x1234567);
            CHECK_EQ(c.gpr[RCX], SEL_TEST | cpl);
            for (unsigned k = 0; k < 4; k++) {
                ring(refused[k], cpl);
                FAULTS(&c, GP, 0);
            }
            ctx_kernel(&c, user_swapgs); /* and the same code at CPL 0 right after */
            CHECK_EQ(ctx_run(&c), END);
            ctx_kernel(&c, user_swapgs);
            CHECK_EQ(ctx_run(&c), END);
        }
}

/* ---- stack pointers that are no addresses, and what an empty slot of a cache might look like ---- */

CODE(bad_pop, "mov %rcx, %rsp; bad_pop_at: pop %rax");
CODE(bad_push, "mov %rcx, %rsp; bad_push_at: push %rax");
CODE(bad_call, "mov %rcx, %rsp; bad_call_at: call 1f\n 1: nop");
CODE(bad_ret, "mov %rcx, %rsp; bad_ret_at: ret");
CODE(bad_leave, "mov %rcx, %rbp; bad_leave_at: leave");
CODE(bad_pushf, "mov %rcx, %rsp; bad_pushf_at: pushf");
CODE(bad_jump, "mov %rcx, %rdx; bad_jump_at: jmp *(%rdx)");
LABEL(bad_pop_at);

static void bad_stacks(void)
{
    u8 *code[] = {bad_pop, bad_push, bad_call, bad_ret, bad_leave, bad_pushf, bad_jump};
    for (unsigned i = 0; i < 2 * ROUNDS; i++)
        for (unsigned k = 0; k < 7; k++) {
            u64 below = k == 1 || k == 2 || k == 5 ? 8 : 0;
            ctx_user(&c, code[k]);
            c.gpr[RCX] = (i & 1 ? 0x4000000000000001ul + i : 0x800000000000ul) + below;
            CHECK_EQ(ctx_run(&c), k == 6 ? GP : SS);
            CHECK_EQ(c.rip, user(code[k] + (bad_pop_at - bad_pop)));
            CHECK_EQ(c.error, 0);
        }
}

/* Two checks in one instruction, on pages that change all the time: nothing may be lost between them. */
CODE(push_hot, "1: mov %r8, %rsp; push (%rbx); push 8(%rbx,%rsi); pop %rdx; pop %rdi; add %rdx, %rax; add %rdi, %rax\n"
               "xchg %r8, %r9; xchg %rbx, %r10; lea -1(%rcx), %rcx; test %rcx, %rcx; jnz 1b");

static void hot_pushes(void)
{
    u64 frame = (u64)pages_alloc(4, PAGE);
    for (unsigned i = 0; i < 4; i++) map_page(TEST_VA + (16 + i) * PAGE, frame + i * PAGE, PTE_W | PTE_U);
    for (unsigned i = 0; i < 2; i++)
        *(u64 *)(frame + (2 + i) * PAGE) = 1 + i, *(u64 *)(frame + (2 + i) * PAGE + 16) = 10 + i;
    for (unsigned k = 0; k < 2; k++) {
        if (k)
            ctx_user(&c, push_hot);
        else
            ctx_kernel(&c, push_hot);
        c.gpr[RAX] = 0, c.gpr[RSI] = 8, c.gpr[RCX] = 5000;
        c.gpr[R8] = TEST_VA + 16 * PAGE + 64, c.gpr[R9] = TEST_VA + 18 * PAGE - 64;
        c.gpr[RBX] = TEST_VA + 18 * PAGE, c.gpr[R10] = TEST_VA + 19 * PAGE;
        CHECK_EQ(ctx_run(&c), END);
        CHECK_EQ(c.gpr[RAX], 2500 * (1 + 10 + 2 + 11));
    }
}

int main(void)
{
    if (!left_out(TCG | LAB, "#SS of non-canonical addresses")) bad_stacks();
    hot_pushes();
    two_pages = pages_alloc(2, PAGE);
    map_page(TEST_VA, (u64)two_pages, PTE_W);
    map_page(TEST_VA + PAGE, (u64)two_pages + PAGE, PTE_W);
    apic_enable();
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    images();
    windows();
    if (!left_out(LAB, "CR8 written while an interrupt waits")) priorities(); /* ends QEMU by an assertion */
    gs_bases();
    smap();
    refusals();
    rings();
    if (!left_out(TCG | LAB, "arithmetic flags after SYSCALL")) calls_and_returns();
    division();
    strings();
    time();
    return done();
}
