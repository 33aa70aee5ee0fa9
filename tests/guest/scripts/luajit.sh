# luajit: traces compiled at run time, FFI, with and without the compiler.
# packages: luajit
cat >/tmp/t.lua <<'END'
local bit, ffi = require "bit", require "ffi"
local x = 1
local function rnd() x = bit.bxor(x, bit.lshift(x, 13)); x = bit.bxor(x, bit.rshift(x, 17)); x = bit.bxor(x, bit.lshift(x, 5)); return x end
local t = {}
for i = 1, 100000 do t[i] = rnd() end
table.sort(t)
local h = 0
for i = 1, #t do h = bit.tobit(h * 31 + t[i]) end
print("sort", h)
local s = 0
for i = 1, 2000000 do s = s + math.sin(i) * (i % 3) end
print("float", string.format("%.6f", s))
local function mandel(w)
  local n = 0
  for y = 0, w - 1 do for xx = 0, w - 1 do
    local cr, ci, zr, zi, i = 2 * xx / w - 1.5, 2 * y / w - 1, 0, 0, 0
    while i < 50 and zr * zr + zi * zi < 4 do zr, zi, i = zr * zr - zi * zi + cr, 2 * zr * zi + ci, i + 1 end
    n = n + i
  end end
  return n
end
print("mandelbrot", mandel(120))
ffi.cdef[[ typedef struct { double x, y; int n; } point; size_t strlen(const char *); int abs(int); ]]
local p = ffi.new("point[1000]")
for k = 1, 200 do for i = 0, 999 do p[i].x = p[i].x + i * 0.5; p[i].n = p[i].n + ffi.C.abs(-i) end end
print("ffi", p[999].x, p[999].n, tonumber(ffi.C.strlen("twelve chars")))
local u = ffi.new("uint64_t", 1)
for i = 1, 100000 do u = u * 6364136223846793005ULL + 1442695040888963407ULL end
print("u64", u)
local words = {}
for w in (("the quick brown fox "):rep(5000)):gmatch("%a+") do words[w] = (words[w] or 0) + 1 end
print("strings", words.the, words.fox, ("abc"):rep(3):gsub("b", "%0%0"))
local co = coroutine.wrap(function() for i = 1, 50000 do coroutine.yield(i) end return -1 end)
local c = 0
for i = 1, 50000 do c = c + co() end
print("coroutine", c)
print("pcall", pcall(error, "raised"))
local q = {} for i = 1, 200 do q[i] = loadstring("local v = ... return v * " .. i)(i) end
print("load", q[200])
END
luajit /tmp/t.lua >/tmp/on && cat /tmp/on
luajit -joff /tmp/t.lua | cmp - /tmp/on && echo "the same without the compiler"
luajit -O3 -Ohotloop=2 /tmp/t.lua | cmp - /tmp/on && echo "the same with eager traces"
