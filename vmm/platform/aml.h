/* A small encoder of ACPI Machine Language (ACPI 6.4 chapter 20) into a fixed buffer. Private to vmm/platform. */
#ifndef NACELLE_VMM_PLATFORM_AML_H
#define NACELLE_VMM_PLATFORM_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes are appended while there is room; `overflow` says that some did not fit. */
struct aml {
    uint8_t *p;
    size_t len, room;
    bool overflow;
};

void aml_byte(struct aml *a, uint8_t v);
void aml_bytes(struct aml *a, const void *p, size_t n);
/* Four characters, as in "_SB_"; a leading '\\' makes it absolute. */
void aml_path(struct aml *a, const char *path);
void aml_integer(struct aml *a, uint64_t v);
void aml_string(struct aml *a, const char *s);
void aml_name(struct aml *a, const char *name);  /* Name(name, …): the object follows */
void aml_eisa_id(struct aml *a, const char *id); /* "PNP0501" */

/* Objects with a length: begin returns a mark for end. */
size_t aml_scope_begin(struct aml *a, const char *path);
size_t aml_device_begin(struct aml *a, const char *name);
size_t aml_package_begin(struct aml *a, uint8_t elements);
size_t aml_block_begin(struct aml *a, uint8_t opcode); /* an operator with a PkgLength: If, Else, Buffer */
size_t aml_method_begin(struct aml *a, const char *name, uint8_t args);
void aml_end(struct aml *a, size_t mark);

/* ResourceTemplate: begin, any number of descriptors, end. */
size_t aml_resources_begin(struct aml *a);
void aml_io(struct aml *a, uint16_t base, uint8_t len);
void aml_irq(struct aml *a, unsigned irq);
void aml_memory32(struct aml *a, uint32_t base, uint32_t len); /* fixed, read-write */
/* What a bridge passes on: [base, base + len) as an address space descriptor of 16, 32 or 64 bits. */
enum aml_space { AML_MEMORY, AML_IO, AML_BUS };
void aml_window(struct aml *a, enum aml_space space, unsigned bits, uint8_t specific, uint64_t base, uint64_t len);
void aml_resources_end(struct aml *a, size_t mark);

#endif
