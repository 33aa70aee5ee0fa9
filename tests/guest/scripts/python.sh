# CPython: arithmetic, text, containers, native modules, threads, processes, signals.
# packages: python3
# memory: 768M
# limit: 240
cat >/tmp/t.py <<'END'
import ctypes, decimal, fractions, hashlib, json, math, mmap, multiprocessing, os, random, re, signal
import sqlite3, struct, subprocess, sys, threading, time, zlib, bz2, lzma, array, itertools, collections

sys.set_int_max_str_digits(0)

def digest(s):
    return hashlib.sha256(str(s).encode()).hexdigest()[:16]

def sieve(n):
    s = bytearray([1]) * (n + 1)
    s[0:2] = b"\0\0"
    for i in range(2, int(n ** .5) + 1):
        if s[i]:
            s[i * i::i] = bytes(len(s[i * i::i]))
    return sum(s)

print("primes", sieve(300000))
print("fib", digest(math.factorial(2000)), 3 ** 500 % 1000000007, pow(7, 10 ** 18, 998244353))
random.seed(42)
data = [random.random() for _ in range(20000)]
print("floats", digest([x.hex() for x in data]), math.fsum(data).hex())
print("math", ["%.13g" % getattr(math, f)(0.7) for f in
      ("sin cos tan asin acos atan sinh cosh tanh exp expm1 log log1p log2 log10 sqrt gamma lgamma erf erfc cbrt").split()])
print("sorted", digest(sorted(data)), digest(sorted(map(str, data), reverse=True)))
decimal.getcontext().prec = 60
print("decimal", decimal.Decimal(2).sqrt(), decimal.Decimal(1).exp())
print("fraction", sum(fractions.Fraction(1, k) for k in range(1, 60)))
text = ("the quick brown fox jumps over the lazy dog " * 2000)
print("regex", len(re.findall(r"\b(\w)\w*\1\b|q\w+k", text)), re.sub(r"(o)(\w)", r"\2\1", text[:44]))
print("json", digest(json.dumps(json.loads(json.dumps({"a": data[:200], "b": [None, True, "\u00e9\u20ac"]})))))
print("counter", collections.Counter(text).most_common(3))
for module in (zlib, bz2, lzma):
    packed = module.compress(text.encode() + struct.pack("<1000d", *data[:1000]))
    print(module.__name__, digest(module.decompress(packed)))
print("crc", zlib.crc32(text.encode()), zlib.adler32(text.encode()))
for h in sorted(hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}):
    print(h, hashlib.new(h, text.encode()).hexdigest()[:24])
db = sqlite3.connect(":memory:")
db.execute("create table t(a integer primary key, b text, c real)")
db.executemany("insert into t values(?,?,?)", [(i, str(i * 7919 % 1000), data[i]) for i in range(5000)])
print("sqlite", db.execute("select b, count(*), max(c) from t group by b order by 2 desc, 1 limit 3").fetchall())
total, lock = 0, threading.Lock()
def work():
    global total
    for _ in range(2000):
        with lock:
            total += 1
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print("threads", total)
with multiprocessing.get_context("fork").Pool(4) as pool:
    print("processes", sum(pool.map(sieve, range(1000, 1100))))
print("subprocess", subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True).stdout.strip())
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
signal.setitimer(signal.ITIMER_REAL, .01, .01)
end = time.monotonic() + 1
while time.monotonic() < end and len(hits) < 5: pass
signal.setitimer(signal.ITIMER_REAL, 0)
print("signals", len(hits) >= 5)
m = mmap.mmap(-1, 1 << 20)
m[4090:4102] = b"across pages"
print("mmap", m[4090:4102])
libc = ctypes.CDLL(None)
print("ctypes", libc.strlen(b"twelve chars"), ctypes.c_double.from_buffer(array.array("d", [1.5])).value)
r, w = os.pipe()
if os.fork() == 0:
    os.write(w, b"from the child")
    os._exit(7)
print("fork", os.wait()[1] >> 8, os.read(r, 99))
try:
    (lambda f: f(f))(lambda f: f(f))
except RecursionError:
    print("recursion caught")
child = subprocess.run([sys.executable, "-c", "import ctypes; ctypes.string_at(0)"])
print("segmentation fault", -child.returncode == signal.SIGSEGV)
print("permutations", digest(list(itertools.islice(itertools.permutations(range(8)), 5000))))
END
dmesg -c >/dev/null
python3 /tmp/t.py
status=$?
dmesg -c >/dev/null # the segmentation fault above is meant
exit $status
