# Tests, the demo, benchmarks and fuzzing. demo, test and bench do their own set-up on a fresh machine.

SETUP := tools/setup.sh
# As many compilers as CPUs, unless the user said how many.
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
RUN_TESTS = BUILD=$(BUILD) NACELLE_BUILD=$(BUILD) tests/run.sh

# What tests build for themselves: programs, and guest kernels.
-include $(wildcard tests/*/*.mk)


.PHONY: setup programs demo test test-long test-unit test-guest test-kernels test-diff test-fuzz test-tsan test-lab bench bench-kvm bench-io bench-limits fuzz
programs: kernels

setup:
	$(Q)$(SETUP) build test fetch peer lab

demo:
	$(Q)$(SETUP) build fetch
	$(Q)$(MAKE) -s $(JOBS) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle tools/demo.sh

test:
	$(Q)$(SETUP) build test fetch peer lab
	$(Q)$(MAKE) -s $(JOBS) nacelle unit programs
	$(Q)NACELLE=$(BUILD)/nacelle $(RUN_TESTS) $(UNIT_BIN)

# Longer than a session at the desk: all of Debian's user land, bigger workloads, longer clocks.
test-long:
	$(Q)$(SETUP) build test fetch peer lab
	$(Q)$(MAKE) -s $(JOBS) nacelle unit programs
	$(Q)NACELLE=$(BUILD)/nacelle $(RUN_TESTS) --long $(UNIT_BIN)

# Single groups, for work on them: make test-guest, test-kernels, test-diff, test-fuzz, test-tsan, test-lab.
test-guest test-kernels test-diff test-fuzz test-tsan test-lab:
	$(Q)$(SETUP) build test fetch peer lab
	$(Q)$(MAKE) -s $(JOBS) nacelle programs
	$(Q)NACELLE=$(BUILD)/nacelle NACELLE_ONLY=$(@:test-%=%) $(RUN_TESTS)

# Only the unit tests: what a sanitizer build is for.
test-unit:
	$(Q)$(SETUP) build test
	$(Q)$(MAKE) -s $(JOBS) nacelle unit
	$(Q)NACELLE_ONLY=unit $(RUN_TESTS) $(UNIT_BIN)

bench:
	$(Q)$(SETUP) build fetch peer
	$(Q)$(MAKE) -s $(JOBS) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle bench/run.sh

# The KVM engine beside QEMU with KVM, in the lab.
bench-kvm:
	$(Q)$(SETUP) build fetch lab
	$(Q)$(MAKE) -s $(JOBS) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle bench/kvm.sh

# Disks, networks and boot to login of a full Debian against QEMU's TCG. BENCH=quick: one short repeat.
bench-io:
	$(Q)$(SETUP) build fetch image peer test
	$(Q)$(MAKE) -s $(JOBS) nacelle $(BUILD)/micro/block
	$(Q)NACELLE=$(BUILD)/nacelle BLOCK_BENCH=$(BUILD)/micro/block bench/io.sh

# Limits of disks and network cards against what fio and iperf3 get in a guest.
bench-limits:
	$(Q)$(SETUP) build fetch image test
	$(Q)$(MAKE) -s $(JOBS) nacelle
	$(Q)NACELLE=$(BUILD)/nacelle NACELLE_BUILD=$(BUILD) bench/io_limits.sh

$(BUILD)/micro/%: $(BUILD)/obj/bench/micro/%.o $(LIB)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(SAN_FLAGS) $(LDFLAGS) $^ -o $@.$$$$ $(LIBS) && mv $@.$$$$ $@

# Ends when something is found, or with Ctrl-C: instructions against the host CPU and devices against hostile drivers, side by side.
fuzz:
	$(Q)$(SETUP) build test
	$(Q)$(MAKE) -s $(JOBS) nacelle programs
	$(Q)export NACELLE=$(BUILD)/nacelle NACELLE_BUILD=$(BUILD); trap 'kill $$(jobs -p) 2>/dev/null' EXIT; \
	    tests/diff/run.sh --endless & tests/fuzz/run.sh --endless & wait -n
