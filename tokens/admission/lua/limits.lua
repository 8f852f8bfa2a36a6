-- Shared by admit and standing: how much of each limit is taken and what is left.
-- A limit is six arguments: kind (quota, rate, concurrent), index into KEYS, metric (1 requests, 2 images, 3 tokens),
-- amount, and for rates the microseconds that one unit costs and the tolerance (burst x unit).
-- All numbers are integers below 2^53; they are written with '%.0f', never with '..', which would round 1.8e15.

local USED = {'requests', 'images', 'tokens'}
local RESERVED = {'reserved_requests', 'reserved_images', 'reserved_tokens'}

local function int(value)
  return string.format('%.0f', value)
end

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The six figures of a use counter, or nil when there is none.
local function read_use(key)
  local raw = redis.call('HMGET', key, USED[1], USED[2], USED[3], RESERVED[1], RESERVED[2], RESERVED[3])
  if not raw[1] then
    return nil
  end
  local figures = {}
  for i = 1, 6 do
    figures[i] = tonumber(raw[i])
  end
  return figures
end

local function read_limits(first, count)
  local limits = {}
  for i = 1, count do
    local at = first + (i - 1) * 6
    limits[i] = {
      kind = ARGV[at], key = tonumber(ARGV[at + 1]), metric = tonumber(ARGV[at + 2]),
      amount = tonumber(ARGV[at + 3]), unit = tonumber(ARGV[at + 4]), tolerance = tonumber(ARGV[at + 5]),
    }
  end
  return limits
end

-- GCRA: the arrival time, never in the past; a value further ahead than any admitted burst is a clock that stepped.
local function arrival(key, limit, now)
  local tat = tonumber(redis.call('GET', key) or '0')
  if tat < now then
    return now
  end
  if tat > now + limit.tolerance then
    return now + limit.tolerance
  end
  return tat
end

-- What is left of a limit, and microseconds until it is whole again (-1: never), when `cost` more is taken.
local function left(limit, now, uses, ends, cost)
  if limit.kind == 'quota' then
    local figures = uses[limit.key] or {0, 0, 0, 0, 0, 0}
    local taken = figures[limit.metric] + figures[limit.metric + 3] + cost
    local reset = ends[limit.key] > 0 and ends[limit.key] * 1000000 - now or -1
    return limit.amount - taken, reset
  end
  if limit.kind == 'rate' then
    local tat = arrival(KEYS[limit.key], limit, now) + cost * limit.unit
    return math.floor((limit.tolerance - (tat - now)) / limit.unit), tat - now
  end
  return limit.amount - redis.call('ZCOUNT', KEYS[limit.key], '(' .. int(now), '+inf') - cost, 0
end
