# What the lab's tests load: tests/lab/kvm_refuse.c -> $(BUILD)/tests/lab/kvm_refuse.so
.PHONY: lab-tests
lab-tests: $(BUILD)/tests/lab/kvm_refuse.so
programs: lab-tests

$(BUILD)/tests/lab/%.so: tests/lab/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -std=gnu17 -O2 -Wall -Wextra -Werror -shared -fPIC $< -o $@.$$$$ && mv $@.$$$$ $@
