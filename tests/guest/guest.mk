# Programs that guests are tested with: tests/guest/NAME.c -> $(BUILD)/tests/guest/NAME
GUEST_TEST_BIN := $(BUILD)/tests/guest/plug

programs: $(GUEST_TEST_BIN)

$(GUEST_TEST_BIN): $(BUILD)/tests/guest/%: $(BUILD)/obj/tests/guest/%.o $(LIB)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@
