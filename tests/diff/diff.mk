# The differential fuzzer: $(BUILD)/difffuzz. Included by the top Makefile, after mk/build.mk.

DIFF_OBJ := $(call obj,$(sort $(wildcard tests/diff/*.c)))

$(BUILD)/difffuzz: $(DIFF_OBJ) $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@

.PHONY: programs
programs: $(BUILD)/difffuzz
