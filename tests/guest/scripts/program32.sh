# A static 32-bit program (i386 glibc) under the 64-bit kernel, through int 0x80 and the vDSO.
# build: tests/guest/build32.sh
# files: build/guest/program32:program32 build/guest/tiny32:tiny32
/tiny32
/program32
status=$?
dmesg -c >/dev/null # the faults are meant
exit $status
