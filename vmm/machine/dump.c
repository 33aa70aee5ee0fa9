/* Register dump for people who look for the reason of a triple fault. */
#include <inttypes.h>

#include "vmm/machine/machine_internal.h"

static void dump_segment(FILE *out, const char *name, const struct cpu_segment *s)
{
    fprintf(out, "%-4s %04x base %016" PRIx64 " limit %08x attr %05x\n", name, s->selector, s->base, s->limit, s->attr);
}

void machine_dump(FILE *out, unsigned vcpu, const struct cpu_state *s)
{
    static const char *const gpr[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const unsigned char order[16] = {0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15};
    static const char *const seg[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};
    flockfile(out);
    fprintf(out, "vcpu %u: rip %016" PRIx64 " rflags %08" PRIx64 "%s\n", vcpu, s->rip, s->rflags,
            s->halted ? " halted" : "");
    for (unsigned i = 0; i < 16; i++)
        fprintf(out, "%-3s %016" PRIx64 "%s", gpr[order[i]], s->gpr[order[i]], i % 4 == 3 ? "\n" : "  ");
    for (unsigned i = 0; i < SEG_COUNT; i++) dump_segment(out, seg[i], &s->seg[i]);
    dump_segment(out, "tr", &s->tr);
    dump_segment(out, "ldtr", &s->ldtr);
    fprintf(out, "gdt  base %016" PRIx64 " limit %04x   idt base %016" PRIx64 " limit %04x\n", s->gdt.base,
            s->gdt.limit, s->idt.base, s->idt.limit);
    fprintf(out,
            "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  cr8 %" PRIx64
            "  efer %" PRIx64 "\n",
            s->cr0, s->cr2, s->cr3, s->cr4, s->cr8, s->efer);
    fprintf(out,
            "dr0 %016" PRIx64 "  dr1 %016" PRIx64 "  dr2 %016" PRIx64 "  dr3 %016" PRIx64 "  dr6 %08" PRIx64
            "  dr7 %08" PRIx64 "\n",
            s->dr[0], s->dr[1], s->dr[2], s->dr[3], s->dr[6], s->dr[7]);
    funlockfile(out);
}
