#include "vmm/platform/aml.h"

#include <string.h>

enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_METHOD = 0x14,
    OP_EXT = 0x5b,
    OP_EXT_DEVICE = 0x82,
};

void aml_byte(struct aml *a, uint8_t v)
{
    if (a->len == a->room) {
        a->overflow = true;
        return;
    }
    a->p[a->len++] = v;
}

void aml_bytes(struct aml *a, const void *p, size_t n)
{
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++) aml_byte(a, b[i]);
}

static void little_endian(struct aml *a, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) aml_byte(a, (uint8_t)(v >> (8 * i)));
}

void aml_path(struct aml *a, const char *path)
{
    aml_bytes(a, path, strlen(path));
}

void aml_integer(struct aml *a, uint64_t v)
{
    if (v <= 1) {
        aml_byte(a, v ? OP_ONE : OP_ZERO);
    } else if (v <= 0xff) {
        aml_byte(a, OP_BYTE);
        little_endian(a, v, 1);
    } else if (v <= 0xffff) {
        aml_byte(a, OP_WORD);
        little_endian(a, v, 2);
    } else if (v <= 0xffffffff) {
        aml_byte(a, OP_DWORD);
        little_endian(a, v, 4);
    } else {
        aml_byte(a, OP_QWORD);
        little_endian(a, v, 8);
    }
}

void aml_string(struct aml *a, const char *s)
{
    aml_byte(a, OP_STRING);
    aml_bytes(a, s, strlen(s) + 1);
}

void aml_name(struct aml *a, const char *name)
{
    aml_byte(a, OP_NAME);
    aml_path(a, name);
}

static unsigned hex(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of five bits and four hex digits, big-endian (ACPI 19.6.37). */
void aml_eisa_id(struct aml *a, const char *id)
{
    uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 | (uint32_t)(id[2] - 0x40) << 16 |
                 hex(id[3]) << 12 | hex(id[4]) << 8 | hex(id[5]) << 4 | hex(id[6]);
    aml_byte(a, OP_DWORD);
    little_endian(a, __builtin_bswap32(v), 4);
}

/* PkgLength counts itself and comes first, so its room (always the four-byte form, which is legal for any length) is kept and filled
 * in at the end. */
static size_t length_begin(struct aml *a)
{
    size_t mark = a->len;
    little_endian(a, 0, 4);
    return mark;
}

void aml_end(struct aml *a, size_t mark)
{
    if (a->overflow) return;
    size_t n = a->len - mark;
    a->p[mark] = (uint8_t)(0xc0 | (n & 0xf));
    for (unsigned i = 0; i < 3; i++) a->p[mark + 1 + i] = (uint8_t)(n >> (4 + 8 * i));
}

size_t aml_scope_begin(struct aml *a, const char *path)
{
    aml_byte(a, OP_SCOPE);
    size_t mark = length_begin(a);
    aml_path(a, path);
    return mark;
}

size_t aml_device_begin(struct aml *a, const char *name)
{
    aml_byte(a, OP_EXT);
    aml_byte(a, OP_EXT_DEVICE);
    size_t mark = length_begin(a);
    aml_path(a, name);
    return mark;
}

size_t aml_block_begin(struct aml *a, uint8_t opcode)
{
    aml_byte(a, opcode);
    return length_begin(a);
}

size_t aml_method_begin(struct aml *a, const char *name, uint8_t args)
{
    aml_byte(a, OP_METHOD);
    size_t mark = length_begin(a);
    aml_path(a, name);
    aml_byte(a, args); /* not serialized */
    return mark;
}

size_t aml_package_begin(struct aml *a, uint8_t elements)
{
    aml_byte(a, OP_PACKAGE);
    size_t mark = length_begin(a);
    aml_byte(a, elements);
    return mark;
}

/* A buffer's size is an integer object between its PkgLength and its bytes: the word form, filled in at the end. */
size_t aml_resources_begin(struct aml *a)
{
    aml_byte(a, OP_BUFFER);
    size_t mark = length_begin(a);
    aml_byte(a, OP_WORD);
    little_endian(a, 0, 2);
    return mark;
}

/* ACPI 6.4.2.5: 16-bit decode, fixed base. */
void aml_io(struct aml *a, uint16_t base, uint8_t len)
{
    aml_byte(a, 0x47);
    aml_byte(a, 0x01);
    little_endian(a, base, 2);
    little_endian(a, base, 2);
    aml_byte(a, 0x01);
    aml_byte(a, len);
}

/* ACPI 6.4.2.1: two-byte form, edge-triggered, active high, not shared. */
void aml_irq(struct aml *a, unsigned irq)
{
    aml_byte(a, 0x22);
    little_endian(a, 1u << irq, 2);
}

/* ACPI 6.4.3.4 */
void aml_memory32(struct aml *a, uint32_t base, uint32_t len)
{
    aml_byte(a, 0x86);
    little_endian(a, 9, 2);
    aml_byte(a, 0x01);
    little_endian(a, base, 4);
    little_endian(a, len, 4);
}

/* ACPI 6.4.3.5.1 to 6.4.3.5.3: producer, positive decode, both ends fixed. */
void aml_window(struct aml *a, enum aml_space space, unsigned bits, uint8_t specific, uint64_t base, uint64_t len)
{
    unsigned width = bits / 8;
    aml_byte(a, bits == 16 ? 0x88 : bits == 32 ? 0x87 : 0x8a);
    little_endian(a, 3 + 5 * width, 2);
    aml_byte(a, (uint8_t)space);
    aml_byte(a, 0x0c);
    aml_byte(a, specific);
    little_endian(a, 0, width); /* granularity */
    little_endian(a, base, width);
    little_endian(a, base + len - 1, width);
    little_endian(a, 0, width); /* translation */
    little_endian(a, len, width);
}

void aml_resources_end(struct aml *a, size_t mark)
{
    aml_byte(a, 0x79); /* end tag; a zero checksum counts as correct */
    aml_byte(a, 0x00);
    if (a->overflow) return;
    size_t n = a->len - mark - 4 - 3;
    a->p[mark + 5] = (uint8_t)n;
    a->p[mark + 6] = (uint8_t)(n >> 8);
    aml_end(a, mark);
}
