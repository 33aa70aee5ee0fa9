# A far return between 32-bit and 64-bit user code. (QEMU 7.2's emulation gets this one wrong.)
# build: tests/guest/build32.sh
# files: build/guest/farreturn32:farreturn32
# compare: no
exec /farreturn32
