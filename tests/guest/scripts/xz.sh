# xz, bzip2, gzip, zstd: compress and expand the same data, also with several threads.
# packages: xz-utils bzip2 gzip zstd
# memory: 768M
# limit: 240
cd /tmp || exit 1
# busybox's shell prefers its own applets to programs in PATH.
bin=/tmp/bin
mkdir $bin && ln -s /usr/bin/xz /bin/gzip /bin/bzip2 /usr/bin/zstd $bin/
ls -L $bin
seq 1 150000 >a
cat /bin/busybox >>a
for command in "xz -6" "xz -1 -T2" "xz -2 --format=lzma" "bzip2 -9" "gzip -9" "zstd -q -5" "zstd -q -3 -T2"; do
    tool=${command%% *}
    $bin/$command -c a >b && $bin/$tool -d -c <b | cmp - a && echo "$command: $(wc -c <b) bytes, restored"
done
$bin/xz -0 -c a | $bin/xz --test && $bin/xz -0 -c a >c.xz && $bin/xz --list --robot c.xz | sed -n 's/^totals\t\([^\t]*\)\t.*/\1 stream/p'
head -c 100000 c.xz >broken.xz
$bin/xz -t broken.xz 2>/dev/null || echo "a broken file is found"
