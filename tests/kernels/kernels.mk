# Guest kernels of our own: tests/kernels/NAME.c with lib/ -> $(BUILD)/kernels/NAME.elf
KERNEL_NAMES := $(sort $(patsubst tests/kernels/%.c,%,$(wildcard tests/kernels/*.c)))
KERNEL_LIB := $(patsubst tests/kernels/lib/%,$(BUILD)/kernels/lib/%.o,$(wildcard tests/kernels/lib/*.c tests/kernels/lib/*.S))
KERNEL_ELFS := $(KERNEL_NAMES:%=$(BUILD)/kernels/%.elf)
# General registers only: the compiler must not touch the vector state that tests are about. PIE, so that the same code
# runs at its user-accessible alias.
KERNEL_CFLAGS := -std=gnu17 -O2 -g -m64 -ffreestanding -nostdlib -fpie -fvisibility=hidden -mno-red-zone -fno-strict-aliasing -mgeneral-regs-only \
    -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -Wall -Wextra -Werror -Itests/kernels/lib

.PHONY: kernels
kernels: $(KERNEL_ELFS)

$(BUILD)/kernels/lib/%.o: tests/kernels/lib/% $(wildcard tests/kernels/lib/*.h)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(KERNEL_CFLAGS) -c $< -o $@

$(BUILD)/kernels/%.o: tests/kernels/%.c $(wildcard tests/kernels/lib/*.h)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(KERNEL_CFLAGS) -c $< -o $@

# Multiboot 1 loads 32-bit ELF files.
$(BUILD)/kernels/%.elf: $(BUILD)/kernels/%.o $(KERNEL_LIB) tests/kernels/lib/kernel.ld
	$(call say,LD,$@)
	$(Q)$(CC) -nostdlib -static -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments \
	    -Wl,-T,tests/kernels/lib/kernel.ld $< $(KERNEL_LIB) -o $@.64
	$(Q)objcopy -O elf32-i386 $@.64 $@
