# Objects, the library, the program, the unit test programs.

comma := ,
# One build directory per sanitizer choice, so that objects of two kinds never meet in one link.
ifeq ($(SAN),)
BUILD ?= build
else ifneq ($(findstring thread,$(SAN)),)
BUILD ?= build-tsan
else ifneq ($(findstring address,$(SAN)),)
BUILD ?= build-asan
else
BUILD ?= build-$(subst $(comma),-,$(SAN))
endif

# Under sanitizers gcc sees impossible paths and warns of them: there warnings are no errors.
WARN := -Wall -Wextra $(if $(SAN),-Wno-array-bounds -Wno-stringop-overflow -Wno-maybe-uninitialized,-Werror)
BASE_CFLAGS := -std=gnu17 -O2 -g $(WARN) -I.
LIBS := -lZydis -lZycore -lcjson -luring -lslirp -lm -lpthread
SAN_FLAGS :=
ifneq ($(SAN),)
SAN_FLAGS := -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

# Code of the soft engine that runs while the guest's vector registers are still in the host's: it must
# not touch them itself, nor call anything that may (see vmm/engine/soft/soft.h). The files below park the FPU state first or
# never run with a live one.
SOFT_DIR := vmm/engine/soft
SOFT_FPU_EXEMPT := decode*.c translate*.c reencode.c analyze.c stubs.c engine.c signals.c
SOFT_CFLAGS := -mgeneral-regs-only -fno-tree-loop-distribute-patterns -fno-builtin -O2 -fno-stack-protector
ifneq ($(filter clang%,$(notdir $(CC))),)
SOFT_CFLAGS := $(filter-out -fno-tree-loop-distribute-patterns,$(SOFT_CFLAGS))
endif

LIB_SRC := $(sort $(filter-out cli/main.c,$(shell find common vmm cli -name '*.c' -o -name '*.S' 2>/dev/null)))
MAIN_SRC := $(wildcard cli/main.c)
SOFT_EXEMPT_SRC := $(wildcard $(addprefix $(SOFT_DIR)/,$(SOFT_FPU_EXEMPT)))
SOFT_SRC := $(filter $(SOFT_DIR)/%.c,$(LIB_SRC))
SOFT_STRICT_SRC := $(filter-out $(SOFT_EXEMPT_SRC),$(SOFT_SRC))

obj = $(addprefix $(BUILD)/obj/,$(addsuffix .o,$(basename $(1))))
# The control socket's commands: one description, from which a small program makes tables, documentation and manual page.
GENCONTROL := $(BUILD)/tools/gencontrol
CONTROL_TABLES := $(BUILD)/gen/control_tables.c
GEN_SRC := $(CONTROL_TABLES)
LIB_OBJ := $(call obj,$(LIB_SRC) $(GEN_SRC))
MAIN_OBJ := $(call obj,$(MAIN_SRC))
SOFT_STRICT_OBJ := $(call obj,$(SOFT_STRICT_SRC))
LIB := $(BUILD)/libnacelle.a

UNIT_SRC := $(sort $(shell find tests/unit -name 'test_*.c' 2>/dev/null))
UNIT_AUX_SRC := $(sort $(shell find tests/unit -name '*.c' ! -name 'test_*.c' 2>/dev/null))
UNIT_BIN := $(addprefix $(BUILD)/,$(basename $(UNIT_SRC)))
UNIT_AUX_OBJ := $(call obj,$(UNIT_AUX_SRC))

# ThreadSanitizer calls its runtime at every access, and the runtime uses vector registers, which are the guest's in these files:
# they are built without it. What they hand from thread to thread it doesn't see; accesses of theirs are never reported.
# AddressSanitizer and UBSan check in line and call only to report, so they stay.
space := $(subst ,, )
SOFT_SAN := $(subst $(space),$(comma),$(filter-out thread,$(subst $(comma),$(space),$(SAN))))
$(SOFT_STRICT_OBJ): SAN_FLAGS := $(if $(SOFT_SAN),-fsanitize=$(SOFT_SAN) $(wordlist 2,9,$(SAN_FLAGS)))
$(SOFT_STRICT_OBJ): EXTRA := $(SOFT_CFLAGS)

# Results are written beside their place and moved there, so that two builds at once don't trip over half a file.
# Which compiler and flags made the objects: when that changes, so do they.
FLAGS_NOW := $(CC) $(shell $(CC) -dumpfullversion 2>/dev/null || $(CC) --version | head -1) $(BASE_CFLAGS) $(SAN_FLAGS) $(CFLAGS) soft: $(SOFT_CFLAGS) $(SOFT_SAN)
FLAGS_FILE := $(BUILD)/.flags
$(shell mkdir -p $(BUILD); echo '$(FLAGS_NOW)' | cmp -s - $(FLAGS_FILE) || echo '$(FLAGS_NOW)' > $(FLAGS_FILE))

# What is in the library: a source file that goes away takes its member along.
LIST_FILE := $(BUILD)/.members
$(shell echo '$(LIB_OBJ)' | cmp -s - $(LIST_FILE) || echo '$(LIB_OBJ)' > $(LIST_FILE))

.PHONY: nacelle lib unit
ifeq ($(MAIN_SRC),)
nacelle: $(LIB)
else
nacelle: $(BUILD)/nacelle
endif
lib: $(LIB)
unit: $(UNIT_BIN)

$(BUILD)/obj/%.o: %.c $(FLAGS_FILE)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BASE_CFLAGS) $(SAN_FLAGS) $(EXTRA) $(CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@.$$$$ && mv $@.$$$$ $@

$(GENCONTROL): tools/gencontrol.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -std=gnu17 -O1 $(WARN) $< -o $@.$$$$ -lcjson && mv $@.$$$$ $@

$(CONTROL_TABLES): vmm/control/commands.json $(GENCONTROL)
	$(call say,GEN,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(GENCONTROL) tables $< > $@.$$$$ && mv $@.$$$$ $@

# Committed, so that they can be read without a build; a test checks that they are what this makes.
.PHONY: control-docs
control-docs: $(GENCONTROL)
	$(Q)$(GENCONTROL) markdown vmm/control/commands.json > docs/control.md
	$(Q)$(GENCONTROL) man vmm/control/commands.json > docs/man/nacelle-ctl.1

$(BUILD)/obj/%.o: %.S $(FLAGS_FILE)
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BASE_CFLAGS) $(EXTRA) $(CFLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@.$$$$ && mv $@.$$$$ $@

$(LIB): $(LIB_OBJ) $(LIST_FILE)
	$(call say,AR,$@)
	$(Q)rm -f $@.$$$$ && $(AR) rcs $@.$$$$ $(LIB_OBJ) && mv $@.$$$$ $@

$(BUILD)/nacelle: $(MAIN_OBJ) $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@

$(BUILD)/tests/unit/%: $(BUILD)/obj/tests/unit/%.o $(UNIT_AUX_OBJ) $(LIB)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ -lcmocka $(LIBS) && mv $@.$$$$ $@

.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
