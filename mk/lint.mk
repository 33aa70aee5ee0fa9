# Layout, static checks, and the project's own rules.

LINT_C := $(sort $(shell find common vmm cli tests tools bench lab fuzz -name '*.[ch]' 2>/dev/null))
LINT_SH := $(sort $(shell find tools tests bench lab .ci -name '*.sh' 2>/dev/null) .ci/run lab/init lab/session)
TIDY_SRC := $(filter %.c,$(LIB_SRC)) $(MAIN_SRC)
# One stamp per file, so that only what changed is checked again; an hour's work the first time would be no use.
TIDY_STAMPS := $(addprefix $(BUILD)/tidy/,$(addsuffix .ok,$(TIDY_SRC)))

.PHONY: lint lint-setup lint-rules lint-format lint-tidy lint-shell format
lint: lint-setup
	$(Q)$(MAKE) lint-rules lint-format lint-shell lint-tidy
	@echo "lint: clean"

lint-setup:
	$(Q)$(SETUP) build lint

lint-rules: $(SOFT_STRICT_OBJ)
	$(Q)NM=$(NM) tools/lint-rules.sh $(SOFT_STRICT_OBJ)

lint-format:
	$(call say,FORMAT,$(words $(LINT_C)) files)
	$(Q)clang-format --dry-run --Werror $(LINT_C)

lint-shell:
	$(call say,SHELL,$(words $(LINT_SH)) files)
	$(Q)shellcheck --severity=warning --exclude=SC2046,SC2148,SC2164,SC2217 $(LINT_SH)

lint-tidy: $(TIDY_STAMPS)

$(BUILD)/tidy/%.c.ok: %.c .clang-tidy $(FLAGS_FILE)
	$(call say,TIDY,$<)
	$(Q)mkdir -p $(@D)
	$(Q)timeout 300 clang-tidy --quiet $< -- -std=gnu17 -I. $(if $(filter $<,$(SOFT_STRICT_SRC)),-mgeneral-regs-only) 2>&1 | \
	    { grep -v 'warnings\? generated\|^Suppressed\|^Use -header-filter' || true; }; exit $${PIPESTATUS[0]}
	$(Q)touch $@

format:
	$(Q)$(SETUP) lint
	$(Q)clang-format -i $(LINT_C)
