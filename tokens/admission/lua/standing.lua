-- standing: what is left of each limit, changing nothing.
-- KEYS the use counters, then in flight and rate keys. ARGV 1 number of use counters, 2 number of limits,
-- then start and end of each use counter, then limits. Reply: remaining and microseconds to reset, for each limit.

local count = tonumber(ARGV[1])
local now, uses, ends = now_us(), {}, {}
for i = 1, count do
  uses[i] = read_use(KEYS[i])
  ends[i] = tonumber(ARGV[2 + i * 2])
end
local reply = {}
for _, limit in ipairs(read_limits(3 + count * 2, tonumber(ARGV[2]))) do
  local remaining, reset = left(limit, now, uses, ends, 0)
  reply[#reply + 1] = int(math.max(remaining, 0))
  reply[#reply + 1] = int(reset)
end
return reply
