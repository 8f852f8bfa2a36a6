-- standing: what is left of each limit, changing nothing.
-- KEYS those of the plan. ARGV 1 the plan (limits.lua). Reply: remaining and microseconds to reset, for each limit.

local uses_count, _, ends, limits = read_plan(ARGV[1], 0)
local now, uses = now_us(), {}
for i = 1, uses_count do
  uses[i] = read_use(KEYS[IN_FLIGHT + i])
end
local reply = {}
for _, limit in ipairs(limits) do
  local remaining, reset = left(limit, now, uses, ends)
  reply[#reply + 1] = math.max(remaining, 0)
  reply[#reply + 1] = reset
end
return reply
