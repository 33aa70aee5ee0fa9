# Programs that test engines against each other: tests/engine/NAME.c -> $(BUILD)/tests/engine/NAME
ENGINE_TEST_BIN := $(patsubst tests/engine/%.c,$(BUILD)/tests/engine/%,$(wildcard tests/engine/*.c))

.PHONY: engine-tests
engine-tests: $(ENGINE_TEST_BIN)
programs: engine-tests

$(BUILD)/tests/engine/%: $(BUILD)/obj/tests/engine/%.o $(LIB)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@
