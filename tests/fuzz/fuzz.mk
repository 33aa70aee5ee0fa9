# Device fuzzers: one program per tests/fuzz/fuzz_*.c, always with sanitizers, linked with the parts of the VMM that devices need. A program
# brings its own back end: what it defines itself is not taken from the archive.

FUZZ_DIR := $(BUILD)/fuzz
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZ_CFLAGS := -std=gnu17 -O1 -g -Wall -Wextra -I. -Itests/fuzz $(FUZZ_SAN)
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_LIB_SRC := $(sort $(wildcard common/*.c vmm/bus/*.c vmm/memory/*.c vmm/emulated/*.c vmm/virtio/*.c vmm/backend/limiter.c vmm/backend/offload.c))
FUZZ_OBJ := $(addprefix $(FUZZ_DIR)/obj/,$(addsuffix .o,$(basename $(FUZZ_LIB_SRC) $(FUZZ_SRC))))
FUZZ_BIN := $(addprefix $(FUZZ_DIR)/,$(notdir $(basename $(FUZZ_SRC))))

$(FUZZ_DIR)/obj/%.o: %.c $(FLAGS_FILE)
	$(call say,FUZZ,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(FUZZ_CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@.$$$$ && mv $@.$$$$ $@

$(FUZZ_DIR)/libfuzz.a: $(addprefix $(FUZZ_DIR)/obj/,$(addsuffix .o,$(basename $(FUZZ_LIB_SRC))))
	$(Q)rm -f $@.$$$$ && $(AR) rcs $@.$$$$ $^ && mv $@.$$$$ $@

$(FUZZ_DIR)/fuzz_%: $(FUZZ_DIR)/obj/tests/fuzz/fuzz_%.o $(FUZZ_DIR)/obj/tests/fuzz/fuzz.o $(FUZZ_DIR)/libfuzz.a
	$(call say,LD,$@)
	$(Q)$(CC) $(FUZZ_SAN) $^ -o $@.$$$$ -lpthread && mv $@.$$$$ $@

.PHONY: fuzzers
fuzzers: $(FUZZ_BIN)
programs: fuzzers
-include $(FUZZ_OBJ:.o=.d)
