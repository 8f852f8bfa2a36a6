-- Shared by admit and standing: how much of each limit is taken and what is left.
-- The plan is one argument, a flat MessagePack array, which costs a third of nested ones to read: the number of use
-- counters, start and end (epoch seconds; end 0: none) of each, then for each limit its kind (quota, rate, concurrent),
-- the number of its key, metric (1 requests, 2 images, 3 tokens), amount, and for rates the microseconds that one unit
-- costs and the tolerance (burst x unit). The plan's keys are numbered from 1: three in flight, use counters, rates.
-- All numbers are integers below 2^53. They go to the store as numbers, which it writes out in full and faster than
-- Lua can; never through '..' or tostring, which would round 1.8e15.

local USED = {'requests', 'images', 'tokens'}
local RESERVED = {'reserved_requests', 'reserved_images', 'reserved_tokens'}
local IN_FLIGHT = 3

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The six figures of a use counter as the store has them, decimal text that arithmetic takes for numbers; nil: none.
local function read_use(key)
  local figures = redis.call('HMGET', key, USED[1], USED[2], USED[3], RESERVED[1], RESERVED[2], RESERVED[3])
  return figures[1] and figures or nil
end

-- The number of use counters, their starts, their ends, and the limits; `before` keys stand before the plan's.
local function read_plan(packed, before)
  local plan = cmsgpack.unpack(packed)
  local uses_count, starts, ends, limits = plan[1], {}, {}, {}
  for i = 1, uses_count do
    starts[i], ends[i] = plan[i * 2], plan[i * 2 + 1]
  end
  for at = uses_count * 2 + 2, #plan, 6 do
    limits[#limits + 1] = {
      kind = plan[at], key = KEYS[before + plan[at + 1]], use = plan[at + 1] - IN_FLIGHT, metric = plan[at + 2],
      amount = plan[at + 3], unit = plan[at + 4], tolerance = plan[at + 5],
    }
  end
  return uses_count, starts, ends, limits
end

-- GCRA: the arrival time, never in the past; a value further ahead than any admitted burst is a clock that stepped.
local function arrival(limit, now)
  local tat = tonumber(redis.call('GET', limit.key) or '0')
  if tat < now then
    return now
  end
  if tat > now + limit.tolerance then
    return now + limit.tolerance
  end
  return tat
end

-- What is left of a limit, and microseconds until it is whole again (-1: never); a rate's arrival time is kept with it.
local function left(limit, now, uses, ends)
  if limit.kind == 'quota' then
    local figures = uses[limit.use] or {0, 0, 0, 0, 0, 0}
    local taken = figures[limit.metric] + figures[limit.metric + 3]
    local reset = ends[limit.use] > 0 and ends[limit.use] * 1000000 - now or -1
    return limit.amount - taken, reset
  end
  if limit.kind == 'rate' then
    limit.arrival = arrival(limit, now)
    local ahead = limit.arrival - now
    return math.floor((limit.tolerance - ahead) / limit.unit), ahead
  end
  return limit.amount - redis.call('ZCOUNT', limit.key, now + 1, '+inf'), 0
end
