/* ELF kernels (System V ABI, "Object Files"): 32- and 64-bit little-endian images, loaded at their physical addresses. */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "vmm/boot/boot_internal.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define MAX_NOTE_SEGMENT (64u << 10) /* Linux has some hundred bytes of notes */
#define MAX_PHDRS 128

static int broken(const struct boot_file *f, struct nerr *e, const char *why)
{
    return nerr_set(e, -EINVAL, "kernel %s: broken ELF file: %s; get a whole copy", f->path, why);
}

bool boot_elf_is(const uint8_t *head)
{
    return memcmp(head, ELFMAG, SELFMAG) == 0;
}

static int parse_header(const struct boot_file *f, struct boot_elf *elf, struct nerr *e)
{
    union {
        unsigned char ident[EI_NIDENT];
        Elf32_Ehdr h32;
        Elf64_Ehdr h64;
    } u;
    memset(&u, 0, sizeof(u));
    int r = boot_file_read(f, 0, &u, sizeof(u.h32), e);
    if (r) return r;
    if (u.ident[EI_DATA] != ELFDATA2LSB || (u.ident[EI_CLASS] != ELFCLASS32 && u.ident[EI_CLASS] != ELFCLASS64))
        return nerr_set(e, -EINVAL, "kernel %s: ELF file for another machine; give an x86 kernel", f->path);
    elf->is64 = u.ident[EI_CLASS] == ELFCLASS64;
    if (elf->is64 && (r = boot_file_read(f, 0, &u, sizeof(u.h64), e))) return r;
    elf->type = elf->is64 ? u.h64.e_type : u.h32.e_type;
    elf->machine = elf->is64 ? u.h64.e_machine : u.h32.e_machine;
    elf->entry = elf->is64 ? u.h64.e_entry : u.h32.e_entry;
    elf->phoff = elf->is64 ? u.h64.e_phoff : u.h32.e_phoff;
    elf->phnum = elf->is64 ? u.h64.e_phnum : u.h32.e_phnum;
    elf->phentsize = elf->is64 ? u.h64.e_phentsize : u.h32.e_phentsize;
    if (elf->machine != EM_386 && elf->machine != EM_X86_64)
        return nerr_set(e, -EINVAL, "kernel %s: ELF file for another machine (type %u); give an x86 kernel", f->path,
                        elf->machine);
    if (elf->phnum == 0 || elf->phentsize < (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return broken(f, e, "no usable program headers");
    if (elf->phnum > MAX_PHDRS)
        return nerr_set(e, -EINVAL, "kernel %s: %u program headers, more than %d; no kernel has so many", f->path,
                        elf->phnum, MAX_PHDRS);
    return 0;
}

static int read_phdr(const struct boot_file *f, const struct boot_elf *elf, unsigned i, Elf64_Phdr *ph, struct nerr *e)
{
    /* phoff is the file's word: the sum may wrap. i * phentsize cannot (both are 16 bits). */
    uint64_t off = elf->phoff + (uint64_t)i * elf->phentsize;
    if (off < elf->phoff) return broken(f, e, "program headers beyond its end");
    if (elf->is64) return boot_file_read(f, off, ph, sizeof(*ph), e);
    Elf32_Phdr p;
    int r = boot_file_read(f, off, &p, sizeof(p), e);
    if (!r)
        *ph = (Elf64_Phdr){.p_type = p.p_type,
                           .p_flags = p.p_flags,
                           .p_offset = p.p_offset,
                           .p_vaddr = p.p_vaddr,
                           .p_paddr = p.p_paddr,
                           .p_filesz = p.p_filesz,
                           .p_memsz = p.p_memsz,
                           .p_align = p.p_align};
    return r;
}

/* Looks for the PVH entry among the notes of one segment. Description and next note start at multiples of 4 bytes, or of 8 in
 * segments so aligned, counted from the note's start. */
static int find_pvh(const struct boot_file *f, const Elf64_Phdr *ph, struct boot_elf *elf, struct nerr *e)
{
    uint64_t off = 0, align = ph->p_align == 8 ? 8 : 4;
    if (ph->p_filesz > MAX_NOTE_SEGMENT) return 0; /* no kernel's notes; not needed either */
    while (off < ph->p_filesz && ph->p_filesz - off >= sizeof(Elf64_Nhdr)) {
        uint8_t note[32]; /* a PVH note: header, "Xen", 4 or 8 bytes */
        Elf64_Nhdr n;
        int r = boot_file_read(f, ph->p_offset + off, &n, sizeof(n), e);
        if (r) return r;
        uint64_t desc = (sizeof(n) + n.n_namesz + align - 1) & ~(align - 1), end = desc + n.n_descsz;
        if (end > ph->p_filesz - off) return broken(f, e, "a note is longer than its segment");
        if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == 4 && (n.n_descsz == 4 || n.n_descsz == 8)) {
            r = boot_file_read(f, ph->p_offset + off, note, end, e);
            if (r) return r;
            if (memcmp(note + sizeof(n), "Xen", 4) == 0) {
                elf->has_pvh = true;
                memcpy(&elf->pvh_entry, note + desc, n.n_descsz);
                return 0;
            }
        }
        off += (end + align - 1) & ~(align - 1);
    }
    return 0;
}

int boot_elf_parse(const struct boot_file *f, struct boot_elf *elf, struct nerr *e)
{
    memset(elf, 0, sizeof(*elf));
    int r = parse_header(f, elf, e);
    for (unsigned i = 0; !r && i < elf->phnum; i++) {
        Elf64_Phdr ph;
        r = read_phdr(f, elf, i, &ph, e);
        if (r) break;
        if (ph.p_offset + ph.p_filesz < ph.p_offset) return broken(f, e, "a segment's file range wraps around");
        if (ph.p_type == PT_LOAD && elf->is64 && ph.p_vaddr >> 63) elf->high_half = true;
        if (ph.p_type == PT_INTERP) elf->has_interp = true;
        if (ph.p_type == PT_NOTE && !elf->has_pvh) r = find_pvh(f, &ph, elf, e);
    }
    return r;
}

static int load_segment(const struct boot_file *f, const Elf64_Phdr *ph, struct boot_place *p, struct nerr *e)
{
    if (ph->p_filesz > ph->p_memsz) return broken(f, e, "a segment is larger in the file than in memory");
    int r = boot_place_at(p, ph->p_paddr, ph->p_memsz, f->path, e);
    if (r) return r;
    uint8_t *dst = boot_place_ptr(p, ph->p_paddr, ph->p_memsz);
    if (!dst) return nerr_set(e, -EINVAL, "kernel %s: a segment leaves guest RAM", f->path);
    r = boot_file_read(f, ph->p_offset, dst, ph->p_filesz, e);
    if (!r) memset(dst + ph->p_filesz, 0, ph->p_memsz - ph->p_filesz);
    return r;
}

int boot_elf_load(const struct boot_file *f, const struct boot_elf *elf, struct boot_place *p, uint64_t *entry,
                  struct nerr *e)
{
    bool loaded = false, physical = false, virtual = false;
    uint64_t translated = 0;
    for (unsigned i = 0; i < elf->phnum; i++) {
        Elf64_Phdr ph;
        int r = read_phdr(f, elf, i, &ph, e);
        if (r) return r;
        if (ph.p_type != PT_LOAD || ph.p_memsz == 0) continue;
        r = load_segment(f, &ph, p, e);
        if (r) return r;
        loaded = true;
        /* Linkers write a virtual or a physical entry point, after the kernel's own taste. */
        if (elf->entry >= ph.p_paddr && elf->entry - ph.p_paddr < ph.p_memsz) physical = true;
        if (elf->entry >= ph.p_vaddr && elf->entry - ph.p_vaddr < ph.p_memsz) {
            virtual = true;
            translated = elf->entry - ph.p_vaddr + ph.p_paddr;
        }
    }
    if (!loaded) return broken(f, e, "nothing to load");
    *entry = physical ? elf->entry : translated;
    if (!physical && !virtual) *entry = UINT64_MAX; /* PVH kernels may have none; the others check */
    return 0;
}
