# Tests, the demo, benchmarks and fuzzing. demo, test and bench do their own set-up on a fresh machine.

SETUP := tools/setup.sh
RUN_TESTS = NACELLE_BUILD=$(BUILD) tests/run.sh

# Programs made of all the C files of one directory below tests/, with a main of their own.
PROGRAM_DIRS := $(patsubst %/main.c,%,$(wildcard tests/*/main.c bench/*/main.c bench/main.c))
define program
$(BUILD)/$(1)/$(notdir $(1)): $(call obj,$(wildcard $(1)/*.c)) $$(LIB)
	$$(call say,LD,$$@)
	$$(Q)mkdir -p $$(@D)
	$$(Q)$$(CC) $$(SAN_FLAGS) $$(LDFLAGS) $$^ -o $$@.$$$$$$$$ $$(LIBS) && mv $$@.$$$$$$$$ $$@
PROGRAMS += $(BUILD)/$(1)/$(notdir $(1))
endef
$(foreach d,$(PROGRAM_DIRS),$(eval $(call program,$(d))))

.PHONY: setup programs demo test test-long test-unit bench fuzz
programs: $(PROGRAMS)

setup:
	$(Q)$(SETUP) build test fetch peer

demo:
	$(Q)$(SETUP) build fetch
	$(Q)$(MAKE) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle tools/demo.sh

test:
	$(Q)$(SETUP) build test fetch peer
	$(Q)$(MAKE) nacelle unit programs
	$(Q)NACELLE=$(BUILD)/nacelle $(RUN_TESTS) $(UNIT_BIN)

# Longer than a session at the desk: all of Debian's user land, bigger workloads, longer clocks.
test-long:
	$(Q)$(SETUP) build test fetch peer
	$(Q)$(MAKE) nacelle unit programs
	$(Q)NACELLE=$(BUILD)/nacelle $(RUN_TESTS) --long $(UNIT_BIN)

# Only the unit tests: what a sanitizer build is for.
test-unit:
	$(Q)$(SETUP) build test
	$(Q)$(MAKE) nacelle unit
	$(Q)NACELLE_UNIT_ONLY=1 $(RUN_TESTS) $(UNIT_BIN)

bench:
	$(Q)$(SETUP) build fetch peer
	$(Q)$(MAKE) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle bench/run.sh

# Ends when something is found, or with Ctrl-C.
fuzz:
	$(Q)$(SETUP) build test
	$(Q)$(MAKE) nacelle programs
	$(Q)NACELLE=$(BUILD)/nacelle NACELLE_BUILD=$(BUILD) tests/diff/run.sh --endless
