# install, clean, help.

MAN := $(wildcard docs/man/*.1)

.PHONY: install clean distclean help
install: nacelle
	install -D -m 755 $(BUILD)/nacelle $(DESTDIR)$(PREFIX)/bin/nacelle
	$(if $(MAN),install -d $(DESTDIR)$(PREFIX)/share/man/man1)
	$(if $(MAN),install -m 644 $(MAN) $(DESTDIR)$(PREFIX)/share/man/man1)

# Keeps what was downloaded.
clean:
	rm -rf build-*/
	[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name guest -exec rm -rf {} +

distclean:
	rm -rf build build-*/

help:
	@echo 'make              build build/nacelle'
	@echo 'make demo         boot an unmodified Debian kernel to a shell (sets up what is missing)'
	@echo 'make test         every test but the long ones, about 20 minutes on two idle CPUs (sets up what is missing)'
	@echo 'make test-long    all of them'
	@echo 'make test-unit    only the unit tests; test-kernels, -guest, -diff, -fuzz, -tsan, -lab: those'
	@echo 'make bench        speed against QEMU and native, in one table'
	@echo 'make bench-limits limits of disks and network cards, what is set and what a guest gets'
	@echo 'make bench-io     disk and network speed of a full Debian against QEMU'
	@echo 'make bench-kvm    the KVM engine against QEMU with KVM, in the lab'
	@echo 'make fuzz         instructions against the host CPU, devices against hostile drivers, without end'
	@echo 'make lint         layout, static checks, dependency rules'
	@echo 'make format       lay the code out as lint wants it'
	@echo 'make control-docs docs/control.md and nacelle-ctl(1) anew from vmm/control/commands.json'
	@echo 'make install      to PREFIX ($(PREFIX)) below DESTDIR'
	@echo 'make setup        install the Debian packages that build and test need'
	@echo 'make clean        remove what was built; distclean: also what was downloaded'
	@echo
	@echo 'SAN=address,undefined or SAN=thread builds with sanitizers, in build-asan/ or build-tsan/.'
	@echo 'CC=clang builds with clang; V=1 shows the commands; DESTDIR, PREFIX, CFLAGS, LDFLAGS as usual.'
