-- Loops that a tracing JIT turns into machine code, and tables, strings and calls that it does not wholly.
local bit = require("bit")
local function sieve(n)
  local flags, count = {}, 0
  for i = 2, n do flags[i] = true end
  for i = 2, n do
    if flags[i] then
      count = count + 1
      for k = i * 2, n, i do flags[k] = false end
    end
  end
  return count
end
local function mix(n)
  local x = 1
  for i = 1, n do x = bit.bxor(bit.rol(x, 7) + i, bit.rshift(x, 3)) end
  return x
end
local function fannkuch(n)
  local p, q, s, sign, flips, sum = {}, {}, {}, 1, 0, 0
  for i = 1, n do p[i], q[i], s[i] = i, i, i end
  repeat
    local first = p[1]
    if first ~= 1 then
      for i = 2, n do q[i] = p[i] end
      local count = 1
      while true do
        local other = q[first]
        if other == 1 then
          sum = sum + sign * count
          if count > flips then flips = count end
          break
        end
        q[first] = first
        if first >= 4 then
          local i, j = 2, first - 1
          repeat q[i], q[j] = q[j], q[i]; i = i + 1; j = j - 1 until i >= j
        end
        first = other
        count = count + 1
      end
    end
    if sign == 1 then
      p[2], p[1] = p[1], p[2]
      sign = -1
    else
      p[2], p[3] = p[3], p[2]
      sign = 1
      for i = 3, n do
        local sx = s[i]
        if sx ~= 1 then s[i] = sx - 1; break end
        if i == n then return sum, flips end
        s[i] = i
        local t = p[1]
        for j = 1, i do p[j] = p[j + 1] end
        p[i + 1] = t
      end
    end
  until false
end
local function strings(n)
  local t = {}
  for i = 1, n do t[#t + 1] = ("%d:%x"):format(i, i * 17) end
  local s, total = table.concat(t, ","), 0
  for a, b in s:gmatch("(%d+):(%x+)") do total = total + #a * tonumber(b, 16) end
  return total
end
print(sieve(2000000), mix(30000000), strings(40000))
print(fannkuch(9))
