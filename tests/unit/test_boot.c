/* Boot loaders, with hand-made images: what is placed where, and that no broken image gets through or does harm. */
#include <asm/bootparam.h>
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/boot/boot.h"

#define MIB (1ull << 20)
#define RAM (64 * MIB)

static struct guest_memory memory;
static struct boot_memory_map map;
static struct cpu_state cpu;
static struct nerr err;
static char kernel_path[64], initrd_path[64], other_path[64];

static void put_file(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
}

/* Opens and loads; 0 or the error. Every error must come with a one-line message. */
static int boot(const void *image, size_t len, const char *initrd, const char *append)
{
    struct boot_image *b;
    put_file(kernel_path, image, len);
    strcpy(err.text, "");
    int r = boot_open(kernel_path, initrd, append, &b, &err);
    if (!r) {
        r = boot_load(b, &memory, &map, GPA(0xe0010), &cpu, &err);
        boot_close(b);
    }
    if (r) {
        assert_true(r < 0);
        assert_true(err.text[0] != 0);
        assert_null(strchr(err.text, '\n'));
    }
    return r;
}

static const void *guest(uint64_t a, uint64_t len)
{
    const void *p = guest_memory_ptr(&memory, GPA(a), len, false);
    assert_non_null(p);
    return p;
}

static uint32_t guest32(uint64_t a)
{
    uint32_t v;
    memcpy(&v, guest(a, 4), 4);
    return v;
}

/* ---- images ---- */

#define BZ_SETUP 4
#define BZ_PAYLOAD 8192
#define BZ_SIZE ((BZ_SETUP + 1) * 512 + BZ_PAYLOAD)

static void make_bzimage(uint8_t *img)
{
    struct setup_header h = {
        .setup_sects = BZ_SETUP,
        .syssize = BZ_PAYLOAD / 16,
        .boot_flag = 0xaa55,
        .header = 0x53726448,
        .version = 0x020f,
        .loadflags = LOADED_HIGH,
        .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000,
        .relocatable_kernel = 1,
        .min_alignment = 21,
        .xloadflags = XLF_KERNEL_64,
        .cmdline_size = 2047,
        .pref_address = 0x1000000,
        .init_size = 0x400000,
    };
    memset(img, 0, BZ_SIZE);
    memcpy(img + 0x1f1, &h, sizeof(h));
    img[0x200] = 0xeb;
    img[0x201] = (uint8_t)(0x1f1 + sizeof(h) - 0x202);
    for (unsigned i = 0; i < BZ_PAYLOAD; i++) img[(BZ_SETUP + 1) * 512 + i] = (uint8_t)(i * 7 + 1);
}

static struct setup_header *bz_header(uint8_t *img)
{
    return (struct setup_header *)(img + 0x1f1);
}

/* ELF64 with one PT_LOAD of 0x1000 bytes (0x2000 in memory) and, with `note`, a PVH note. */
#define ELF_SIZE 0x3000
#define ELF_PH(img, i) ((Elf64_Phdr *)((img) + sizeof(Elf64_Ehdr)) + (i))
static void make_elf(uint8_t *img, bool note, uint64_t vbase)
{
    Elf64_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                    .e_type = ET_EXEC,
                    .e_machine = EM_X86_64,
                    .e_version = 1,
                    .e_entry = 0x1000040,
                    .e_phoff = sizeof(Elf64_Ehdr),
                    .e_ehsize = sizeof(Elf64_Ehdr),
                    .e_phentsize = sizeof(Elf64_Phdr),
                    .e_phnum = note ? 2 : 1};
    memset(img, 0, ELF_SIZE);
    memcpy(img, &h, sizeof(h));
    *ELF_PH(img, 0) = (Elf64_Phdr){.p_type = PT_LOAD,
                                   .p_offset = 0x2000,
                                   .p_vaddr = vbase + 0x1000000,
                                   .p_paddr = 0x1000000,
                                   .p_filesz = 0x1000,
                                   .p_memsz = 0x2000,
                                   .p_align = 0x1000};
    memset(img + 0x2000, 0x5a, 0x1000);
    if (!note) return;
    const uint32_t words[] = {4, 4, 18, 0x006e6558 /* "Xen" */, 0x1000080};
    const uint32_t other[] = {4, 2, 1, 0x00554e47 /* "GNU" */, 0x1234};
    *ELF_PH(img, 1) =
        (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = 0x1000, .p_filesz = sizeof(words) + sizeof(other), .p_align = 4};
    memcpy(img + 0x1000, other, sizeof(other));
    memcpy(img + 0x1000 + sizeof(other), words, sizeof(words));
}

#define MB_SIZE 0x1100
/* An image that names its own addresses; header at 0x40 of the file. */
static void make_multiboot(uint8_t *img, uint32_t flags)
{
    uint32_t h[8] = {0x1badb002, flags, 0u - 0x1badb002u - flags, 0x200040, 0x200000, 0x201000, 0x204000, 0x200100};
    memset(img, 0xee, MB_SIZE);
    memcpy(img + 0x40, h, sizeof(h));
}

/* ---- tests ---- */

static void test_bzimage(void **state)
{
    (void)state;
    static uint8_t img[BZ_SIZE];
    make_bzimage(img);
    put_file(initrd_path, "initrd contents", 15);
    assert_int_equal(boot(img, sizeof(img), initrd_path, "console=ttyS0"), 0);
    assert_int_equal(cpu.rip, 0x1000200);
    assert_memory_equal(guest(0x1000000, BZ_PAYLOAD), img + (BZ_SETUP + 1) * 512, BZ_PAYLOAD);
    struct boot_params bp;
    memcpy(&bp, guest(cpu.gpr[6], sizeof(bp)), sizeof(bp));
    assert_int_equal(bp.hdr.header, 0x53726448);
    assert_int_equal(bp.hdr.type_of_loader, 0xff);
    assert_int_equal(bp.sentinel, 0);
    assert_int_equal(bp.acpi_rsdp_addr, 0xe0010);
    assert_string_equal(guest(bp.hdr.cmd_line_ptr, 14), "console=ttyS0");
    assert_int_equal(bp.hdr.ramdisk_size, 15);
    assert_memory_equal(guest(bp.hdr.ramdisk_image, 15), "initrd contents", 15);
    assert_int_equal(bp.hdr.ramdisk_image % 4096, 0);
    assert_true(bp.hdr.ramdisk_image >= 0x1400000 && bp.hdr.ramdisk_image < RAM);
    /* Memory map: everything below the EBDA, the hole reserved, the rest. */
    assert_int_equal(bp.e820_entries, 3);
    assert_int_equal(bp.e820_table[0].size, 0x9fc00);
    assert_int_equal(bp.e820_table[1].type, BOOT_RESERVED);
    assert_int_equal(bp.e820_table[2].addr, MIB);
    assert_int_equal(bp.e820_table[2].size, RAM - MIB);
    /* Long mode with the first 4 GiB mapped one to one. */
    assert_int_equal(cpu.seg[SEG_CS].selector, 0x10);
    assert_int_equal(cpu.seg[SEG_DS].selector, 0x18);
    assert_true(cpu.seg[SEG_CS].attr & SEG_ATTR_L);
    assert_int_equal(cpu.efer & 0x500, 0x500);
    assert_int_equal(cpu.cr0 & 0x80000001, 0x80000001);
    assert_int_equal(cpu.rflags, 2);
    const uint64_t probe[] = {0, 0x1000200, 0xfee00000, 0xffffffff};
    for (unsigned i = 0; i < 4; i++) {
        uint64_t pml4, pdpt, pd;
        memcpy(&pml4, guest(cpu.cr3, 8), 8);
        memcpy(&pdpt, guest((pml4 & ~0xfffull) + (probe[i] >> 30) * 8, 8), 8);
        memcpy(&pd, guest((pdpt & ~0xfffull) + (probe[i] >> 21 & 511) * 8, 8), 8);
        assert_int_equal(pd & ~0x1fffffull, probe[i] & ~0x1fffffull);
        assert_int_equal(pd & 0x83, 0x83);
    }
    uint64_t gdt[4];
    assert_int_equal(cpu.gdt.limit, 31);
    memcpy(gdt, guest(cpu.gdt.base, 32), 32);
    assert_true(gdt[2] >> 53 & 1); /* L */
    assert_int_equal(gdt[2] >> 40 & 0xff, 0x9b);
    assert_int_equal(gdt[3] >> 40 & 0xff, 0x93);
}

static void test_bzimage_moves(void **state)
{
    (void)state;
    static uint8_t img[BZ_SIZE];
    make_bzimage(img);
    bz_header(img)->pref_address = RAM; /* no RAM there */
    assert_int_equal(boot(img, sizeof(img), NULL, NULL), 0);
    assert_int_equal(cpu.rip, 0x200200); /* the first 2 MiB boundary above 1 MiB */
    bz_header(img)->relocatable_kernel = 0;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    assert_non_null(strstr(err.text, "--memory"));
}

static void test_bzimage_bad(void **state)
{
    (void)state;
    static uint8_t img[BZ_SIZE];
    struct setup_header *h = bz_header(img);
    make_bzimage(img);
    h->version = 0x020b;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    assert_non_null(strstr(err.text, "2.12"));
    make_bzimage(img);
    h->xloadflags = 0;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_bzimage(img);
    h->loadflags = 0;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_bzimage(img);
    h->init_size = 0xffffffff;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_bzimage(img);
    h->pref_address = UINT64_MAX - 0x1000;
    assert_int_equal(boot(img, sizeof(img), NULL, NULL), 0); /* relocatable: goes elsewhere */
    h->kernel_alignment = 3;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    h->kernel_alignment = 0x80000000;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_bzimage(img);
    h->setup_sects = 255;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_bzimage(img);
    h->cmdline_size = 4;
    assert_true(boot(img, sizeof(img), NULL, "12345") < 0);
    assert_non_null(strstr(err.text, "--append"));
    assert_int_equal(boot(img, sizeof(img), NULL, "1234"), 0);
    make_bzimage(img);
    for (size_t n = 0; n < BZ_SIZE; n += n < 1024 ? 13 : 509) assert_true(boot(img, n, NULL, NULL) < 0);
}

static void test_initrd(void **state)
{
    (void)state;
    static uint8_t img[BZ_SIZE];
    struct boot_params bp;
    make_bzimage(img);
    bz_header(img)->initrd_addr_max = 0x1ffffff;
    put_file(initrd_path, "x", 1);
    assert_int_equal(boot(img, sizeof(img), initrd_path, NULL), 0);
    memcpy(&bp, guest(cpu.gpr[6], sizeof(bp)), sizeof(bp));
    assert_int_equal(bp.hdr.ramdisk_image, 0x1fff000);
    put_file(initrd_path, "", 0); /* empty: as if there were none */
    assert_int_equal(boot(img, sizeof(img), initrd_path, NULL), 0);
    memcpy(&bp, guest(cpu.gpr[6], sizeof(bp)), sizeof(bp));
    assert_int_equal(bp.hdr.ramdisk_image, 0);
    assert_int_equal(bp.hdr.ramdisk_size, 0);
    put_file(initrd_path, "x", 1);
    assert_int_equal(truncate(initrd_path, (off_t)RAM), 0);
    assert_true(boot(img, sizeof(img), initrd_path, NULL) < 0);
    assert_non_null(strstr(err.text, "no room"));
    assert_true(boot(img, sizeof(img), "/nonexistent/initrd", NULL) < 0);
    assert_non_null(strstr(err.text, "/nonexistent/initrd"));
    assert_true(boot(img, sizeof(img), "/tmp", NULL) < 0);
}

static void test_pvh(void **state)
{
    (void)state;
    static uint8_t img[ELF_SIZE];
    make_elf(img, true, 0xffffffff80000000);
    put_file(initrd_path, "module", 6);
    memset(memory.slot[0].host + 0x1001000, 0xcc, 0x1000);
    assert_int_equal(boot(img, sizeof(img), initrd_path, "hello"), 0);
    assert_int_equal(cpu.rip, 0x1000080);
    assert_int_equal(cpu.cr0 & 0x80000001, 1);
    assert_int_equal(cpu.cr4, 0);
    assert_int_equal(cpu.seg[SEG_CS].base, 0);
    assert_int_equal(cpu.seg[SEG_CS].limit, 0xffffffff);
    assert_true(cpu.seg[SEG_CS].attr & SEG_ATTR_DB);
    assert_int_equal(cpu.tr.limit, 0x67);
    assert_memory_equal(guest(0x1000000, 0x1000), img + 0x2000, 0x1000);
    for (unsigned i = 0; i < 0x1000; i += 4)
        assert_int_equal(guest32(0x1001000 + i), 0); /* the part that is not in the file */
    uint64_t info = cpu.gpr[3];
    assert_int_equal(guest32(info), 0x336ec578);
    assert_int_equal(guest32(info + 4), 1);
    assert_int_equal(guest32(info + 12), 1);
    uint32_t mods = guest32(info + 16), cmdline = guest32(info + 24), memmap = guest32(info + 40);
    assert_string_equal(guest(cmdline, 6), "hello");
    assert_int_equal(guest32(info + 32), 0xe0010);
    assert_int_equal(guest32(info + 48), 3);
    assert_int_equal(guest32(memmap + 24 + 16), BOOT_RESERVED);
    assert_memory_equal(guest(guest32(mods), 6), "module", 6);
    assert_int_equal(guest32(mods + 8), 6);
}

static void test_vmlinux(void **state)
{
    (void)state;
    static uint8_t img[ELF_SIZE];
    struct boot_params bp;
    make_elf(img, false, 0xffffffff80000000);
    assert_int_equal(boot(img, sizeof(img), NULL, "quiet"), 0);
    assert_int_equal(cpu.rip, 0x1000040);
    assert_true(cpu.seg[SEG_CS].attr & SEG_ATTR_L);
    memcpy(&bp, guest(cpu.gpr[6], sizeof(bp)), sizeof(bp));
    assert_string_equal(guest(bp.hdr.cmd_line_ptr, 6), "quiet");
    /* A virtual entry point is translated. */
    ((Elf64_Ehdr *)img)->e_entry = 0xffffffff81000044;
    assert_int_equal(boot(img, sizeof(img), NULL, NULL), 0);
    assert_int_equal(cpu.rip, 0x1000044);
    ((Elf64_Ehdr *)img)->e_entry = 0x900000;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    /* A user program is no kernel. */
    make_elf(img, false, 0);
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    assert_non_null(strstr(err.text, "no kernel"));
}

static void test_elf_bad(void **state)
{
    (void)state;
    static uint8_t img[ELF_SIZE];
    Elf64_Ehdr *h = (Elf64_Ehdr *)img;
    static const uint64_t addr[] = {0xa0000,    0x9f000,    0xfffff, RAM - 0x1000, RAM, UINT64_MAX - 0x1000,
                                    UINT64_MAX, 0x100000000};
    for (unsigned i = 0; i < sizeof(addr) / sizeof(addr[0]); i++) {
        make_elf(img, true, 0);
        ELF_PH(img, 0)->p_paddr = addr[i];
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    }
    static const uint64_t big[] = {RAM, UINT64_MAX, UINT64_MAX - 0x1000000, 1ull << 63};
    for (unsigned i = 0; i < sizeof(big) / sizeof(big[0]); i++) {
        make_elf(img, true, 0);
        ELF_PH(img, 0)->p_memsz = big[i];
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
        ELF_PH(img, 0)->p_filesz = big[i];
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
        make_elf(img, true, 0);
        ELF_PH(img, 0)->p_offset = big[i];
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
        make_elf(img, true, 0);
        h->e_phoff = big[i];
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    }
    make_elf(img, true, 0);
    ELF_PH(img, 0)->p_filesz = 0x2001; /* more than in memory */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    h->e_phnum = 0xffff;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    h->e_phentsize = 8;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    h->e_machine = EM_AARCH64;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    *(uint32_t *)(img + 0x1000) = 0xfffffff0; /* namesz of the first note */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    *(uint32_t *)(img + 0x1004) = 0xfffffffd; /* descsz */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_elf(img, true, 0);
    for (size_t n = 0; n < ELF_SIZE; n += n < 256 ? 3 : 401) assert_true(boot(img, n, NULL, NULL) < 0);
    /* Two segments in the same place. */
    make_elf(img, true, 0);
    *ELF_PH(img, 1) = *ELF_PH(img, 0);
    *ELF_PH(img, 2) = (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = 0x1000, .p_filesz = 40, .p_align = 4};
    h->e_phnum = 3;
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    assert_non_null(strstr(err.text, "overlap"));
}

static void test_multiboot(void **state)
{
    (void)state;
    static uint8_t img[MB_SIZE];
    char list[256];
    make_multiboot(img, 0x10003);
    put_file(initrd_path, "one", 3);
    put_file(other_path, "second", 6);
    snprintf(list, sizeof(list), "%s a=1 b,,c,%s", initrd_path, other_path);
    assert_int_equal(boot(img, sizeof(img), list, "arg1 arg2"), 0);
    assert_int_equal(cpu.rip, 0x200100);
    assert_int_equal(cpu.gpr[0], 0x2badb002);
    assert_int_equal(cpu.cr0 & 0x80000001, 1);
    assert_memory_equal(guest(0x200000, 0x1000), img, 0x1000);
    assert_int_equal(guest32(0x201000), 0);
    assert_int_equal(guest32(0x203ffc), 0);
    uint64_t info = cpu.gpr[3];
    assert_int_equal(guest32(info) & 0x24d, 0x24d);
    assert_int_equal(guest32(info + 4), 639);
    assert_int_equal(guest32(info + 8), RAM / 1024 - 1024);
    char cmdline[128];
    snprintf(cmdline, sizeof(cmdline), "%s arg1 arg2", kernel_path);
    assert_string_equal(guest(guest32(info + 16), strlen(cmdline) + 1), cmdline);
    assert_int_equal(guest32(info + 20), 2);
    uint32_t mods = guest32(info + 24);
    assert_true(guest32(mods) >= 0x204000);
    assert_int_equal(guest32(mods) % 4096, 0);
    assert_int_equal(guest32(mods + 4) - guest32(mods), 3);
    assert_memory_equal(guest(guest32(mods), 3), "one", 3);
    snprintf(cmdline, sizeof(cmdline), "%s a=1 b,c", initrd_path);
    assert_string_equal(guest(guest32(mods + 8), strlen(cmdline) + 1), cmdline);
    assert_memory_equal(guest(guest32(mods + 16), 6), "second", 6);
    assert_int_equal(guest32(info + 44), 3 * 24);
    assert_int_equal(guest32(guest32(info + 48)), 20);
    assert_string_equal(guest(guest32(info + 64), 8), "nacelle");
}

static void test_multiboot_elf(void **state)
{
    (void)state;
    static uint8_t img[ELF_SIZE];
    const uint32_t h[3] = {0x1badb002, 0, 0u - 0x1badb002u};
    make_elf(img, false, 0);
    memcpy(img + 0x1000, h, sizeof(h));
    assert_int_equal(boot(img, sizeof(img), NULL, NULL), 0);
    assert_int_equal(cpu.rip, 0x1000040);
    assert_int_equal(cpu.gpr[0], 0x2badb002);
    /* Where objcopy -O elf32-i386 puts conformance kernels: low memory works as well, and the boot data keeps out of it. */
    ELF_PH(img, 0)->p_paddr = ELF_PH(img, 0)->p_vaddr = 0x8000;
    ELF_PH(img, 0)->p_memsz = 0x90000;
    ((Elf64_Ehdr *)img)->e_entry = 0x8018;
    assert_int_equal(boot(img, sizeof(img), NULL, NULL), 0);
    assert_int_equal(cpu.rip, 0x8018);
    assert_true(cpu.gpr[3] < 0x8000 || cpu.gpr[3] >= 0x98000);
    memcpy(img + 0x1000, "\0\0\0\0", 4);
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
}

static void test_multiboot_bad(void **state)
{
    (void)state;
    static uint8_t img[MB_SIZE];
    static const struct {
        unsigned word;
        uint32_t value;
    } bad[] = {
        {3, 0x1fffff}, {3, 0x200041}, {3, 0xffffffff}, {4, 0},        {4, 0x200041}, {5, 0x1fffff}, {5, 0xffffffff},
        {5, 0x202000}, {6, 0x200fff}, {6, 0xffffffff}, {7, 0x1fffff}, {7, 0x204000}, {7, 0},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        make_multiboot(img, 0x10003);
        memcpy(img + 0x40 + bad[i].word * 4, &bad[i].value, 4);
        assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    }
    make_multiboot(img, 0x10008); /* a feature that nobody defined */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_multiboot(img, 0x3); /* no addresses, no ELF */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    make_multiboot(img, 0x10003);
    img[0x48]++; /* wrong checksum: no multiboot kernel */
    assert_true(boot(img, sizeof(img), NULL, NULL) < 0);
    assert_non_null(strstr(err.text, "not a kernel"));
    make_multiboot(img, 0x10003);
    put_file(initrd_path, "x", 1);
    char list[128];
    snprintf(list, sizeof(list), "%s,/nonexistent/module", initrd_path);
    assert_true(boot(img, sizeof(img), list, NULL) < 0);
    assert_non_null(strstr(err.text, "/nonexistent/module"));
    snprintf(list, sizeof(list), "%s,", initrd_path);
    assert_true(boot(img, sizeof(img), list, NULL) < 0);
}

static void test_no_kernel(void **state)
{
    (void)state;
    static const char text[] = "#!/bin/sh\nexit 0\n";
    struct boot_image *b;
    assert_true(boot("", 0, NULL, NULL) < 0);
    assert_true(boot(text, sizeof(text), NULL, NULL) < 0);
    assert_true(boot("\x1f\x8b\x08", 3, NULL, NULL) < 0);
    assert_true(boot_open("/nonexistent/kernel", NULL, NULL, &b, &err) < 0);
    assert_null(b);
    assert_true(boot_open("/", NULL, NULL, &b, &err) < 0);
    assert_true(boot_open("/dev/null", NULL, NULL, &b, &err) < 0);
    assert_true(boot_open("/proc/self/exe", NULL, NULL, &b, &err) < 0); /* this very program */
    assert_non_null(strstr(err.text, "no kernel"));
}

/* Bytes behind and before guest memory are watched by its guard pages and by the sanitizers; this feeds them. */
static void test_fuzz(void **state)
{
    (void)state;
    static uint8_t img[ELF_SIZE > BZ_SIZE ? ELF_SIZE : BZ_SIZE];
    static const uint64_t odd[] = {0,          1,          0x7f,       0xff, 0xffff,  0x7fffffff,
                                   0xffffffff, 0x80000000, UINT64_MAX, RAM,  RAM - 1, 0x100000000};
    uint32_t seed = 1;
    for (unsigned round = 0; round < 6000; round++) {
        size_t len, head;
        switch (round % 4) {
        case 0:
            make_bzimage(img);
            len = BZ_SIZE;
            head = 0x270;
            break;
        case 1:
            make_elf(img, true, 0);
            len = ELF_SIZE;
            head = 0x100;
            break;
        case 2:
            make_elf(img, false, 0xffffffff80000000);
            len = ELF_SIZE;
            head = 0x100;
            break;
        default:
            make_multiboot(img, 0x10003);
            len = MB_SIZE;
            head = 0x60;
            break;
        }
        unsigned edits = 1 + round % 3;
        while (edits--) {
            seed = seed * 1664525 + 1013904223;
            size_t at = (seed >> 8) % head, n = 1u << (seed >> 4 & 3);
            seed = seed * 1664525 + 1013904223;
            uint64_t v = seed & 0x100 ? odd[(seed >> 12) % (sizeof(odd) / sizeof(odd[0]))] : (uint64_t)seed * seed;
            memcpy(img + at, &v, n);
            if (round % 4 == 1 && seed & 0x200) /* the notes too */
                img[0x1000 + (seed >> 20) % 40] = (uint8_t)v;
        }
        if (round % 4 == 3) { /* keep the checksum right, or nothing behind it is ever looked at */
            uint32_t h[3];
            memcpy(h, img + 0x40, 12);
            h[0] = 0x1badb002;
            h[2] = 0u - h[0] - h[1];
            memcpy(img + 0x40, h, 12);
        }
        if (boot(img, len, NULL, "fuzz") == 0) assert_true(cpu.rip <= UINT32_MAX || round % 4 == 0);
    }
}

static void test_map(void **state)
{
    (void)state;
    struct boot_memory_map m;
    boot_memory_map_init(&m, &memory);
    assert_int_equal(boot_memory_map_set(&m, 0x200000, 0x1000, BOOT_ACPI, &err), 0);
    assert_int_equal(m.ranges, 5);
    assert_int_equal(m.range[2].size, MIB);
    assert_int_equal(m.range[3].type, BOOT_ACPI);
    assert_int_equal(m.range[4].addr, 0x201000);
    assert_int_equal(boot_memory_map_set(&m, 0, RAM, BOOT_RESERVED, &err), 0); /* swallows all */
    assert_int_equal(m.ranges, 1);
    assert_int_equal(boot_memory_map_set(&m, 0xfec00000, 0x1000, BOOT_RESERVED, &err), 0); /* where nothing was */
    assert_int_equal(m.ranges, 2);
    assert_true(boot_memory_map_set(&m, 1, UINT64_MAX, BOOT_RAM, &err) < 0);
    assert_true(boot_memory_map_set(&m, 1, 0, BOOT_RAM, &err) < 0);
    boot_memory_map_init(&m, &memory);
    int r = 0;
    for (unsigned i = 0; i < 100 && !r; i++)
        r = boot_memory_map_set(&m, 0x200000 + i * 0x2000, 0x1000, BOOT_ACPI, &err);
    assert_true(r < 0);
    assert_true(m.ranges <= BOOT_MAX_RANGES);
}

static int setup(void **state)
{
    (void)state;
    long id = (long)getpid();
    snprintf(kernel_path, sizeof(kernel_path), "/tmp/nacelle-kernel-%ld", id);
    snprintf(initrd_path, sizeof(initrd_path), "/tmp/nacelle-initrd-%ld", id);
    snprintf(other_path, sizeof(other_path), "/tmp/nacelle-other-%ld", id);
    int r = guest_memory_create(&memory, RAM, &err);
    boot_memory_map_init(&map, &memory);
    return r;
}

static int teardown(void **state)
{
    (void)state;
    guest_memory_destroy(&memory);
    unlink(kernel_path);
    unlink(initrd_path);
    unlink(other_path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bzimage),       cmocka_unit_test(test_bzimage_moves),
        cmocka_unit_test(test_bzimage_bad),   cmocka_unit_test(test_initrd),
        cmocka_unit_test(test_pvh),           cmocka_unit_test(test_vmlinux),
        cmocka_unit_test(test_elf_bad),       cmocka_unit_test(test_multiboot),
        cmocka_unit_test(test_multiboot_elf), cmocka_unit_test(test_multiboot_bad),
        cmocka_unit_test(test_no_kernel),     cmocka_unit_test(test_fuzz),
        cmocka_unit_test(test_map),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
