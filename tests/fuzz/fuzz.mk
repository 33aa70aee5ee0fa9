# Device fuzzers: one program per tests/fuzz/fuzz_*.c, always with sanitizers, linked with the parts of the VMM that devices need. A program
# brings its own back end: what it defines itself is not taken from the archive.

FUZZ_DIR := $(BUILD)/fuzz
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZ_CFLAGS := -std=gnu17 -O1 -g -Wall -Wextra -I. -Itests/fuzz $(FUZZ_SAN)
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_LIB_SRC := $(sort $(wildcard common/*.c vmm/bus/*.c vmm/memory/*.c vmm/platform/slots.c vmm/emulated/*.c vmm/virtio/*.c vmm/backend/limiter.c vmm/backend/offload.c \
    vmm/control/request.c vmm/control/schema.c vmm/control/server.c)) $(CONTROL_TABLES)
FUZZ_OBJ := $(addprefix $(FUZZ_DIR)/obj/,$(addsuffix .o,$(basename $(FUZZ_LIB_SRC) $(FUZZ_SRC))))
FUZZ_BIN := $(addprefix $(FUZZ_DIR)/,$(notdir $(basename $(FUZZ_SRC))))

$(FUZZ_DIR)/obj/%.o: %.c $(FLAGS_FILE)
	$(call say,FUZZ,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(FUZZ_CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@.$$$$ && mv $@.$$$$ $@

# Seeds are part of the programs.
$(filter $(FUZZ_DIR)/obj/tests/fuzz/fuzz_%,$(FUZZ_OBJ)): $(wildcard tests/fuzz/seeds/*.seed)

$(FUZZ_DIR)/libfuzz.a: $(addprefix $(FUZZ_DIR)/obj/,$(addsuffix .o,$(basename $(FUZZ_LIB_SRC))))
	$(Q)rm -f $@.$$$$ && $(AR) rcs $@.$$$$ $^ && mv $@.$$$$ $@

$(FUZZ_DIR)/fuzz_%: $(FUZZ_DIR)/obj/tests/fuzz/fuzz_%.o $(FUZZ_DIR)/obj/tests/fuzz/fuzz.o $(FUZZ_DIR)/obj/tests/fuzz/seed.o $(FUZZ_DIR)/libfuzz.a
	$(call say,LD,$@)
	$(Q)$(CC) $(FUZZ_SAN) $^ -o $@.$$$$ -lcjson -lm -lpthread && mv $@.$$$$ $@

.PHONY: fuzzers
fuzzers: $(FUZZ_BIN)
programs: fuzzers $(FUZZ_DIR)/record
-include $(FUZZ_OBJ:.o=.d)

# A nacelle that writes down what a guest does to a device; tests/fuzz/record.sh makes seeds with it.
RECORD_WRAP := bus_read bus_write guest_memory_ptr guest_memory_read pci_bus_create
$(FUZZ_DIR)/record: $(MAIN_OBJ) $(call obj,tests/fuzz/record/record.c) $(LIB)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $(addprefix -Wl$(comma)--wrap=,$(RECORD_WRAP)) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@
