-- admit: decide one call. Everything is checked before the first write, and all limits are taken or none.
--
-- KEYS 1 meta, 2 token, 3 member, 4 tenant, 5 reservation, 6 deadlines, 7 usage stream, 8 idempotency, then the plan's.
-- ARGV 1 generation, 2 request id, 3 secret id, 4-6 ids of token, member, tenant, 7-9 their versions as the caller
--      read them, 10 images, 11 tokens (upper bound), 12 lease in microseconds, 13 idempotency fingerprint or '',
--      14 what the reservation holds (JSON), 15 the call (JSON, opaque here), 16 backlog limit, 17 the plan (limits.lua).
-- Reply {status, ...}: see tokens/admission/admission.py, which names every one.

local BEFORE = 8 -- keys before the plan's
local costs = {1, tonumber(ARGV[10]), tonumber(ARGV[11])}
local now = now_us()

local meta = redis.call('HMGET', KEYS[1], 'generation', 'counted_since', 'stopped')
if not meta[1] or not meta[2] then
  return {'NOT_READY', 'generation'}
end
if meta[1] ~= ARGV[1] then
  return {'GENERATION', meta[1]}
end
if meta[3] then
  return {'STOPPED'}
end

-- Who calls: the records decide, not what the caller remembers of them.
local token = redis.call('HMGET', KEYS[2], 'status', 'version', 'tenant', 'member', 'expires', 'secret:' .. ARGV[3])
local member = redis.call('HMGET', KEYS[3], 'status', 'version', 'tenant')
local tenant = redis.call('HMGET', KEYS[4], 'status', 'version')
if not (token[1] and member[1] and tenant[1]) then
  return {'NOT_READY', 'directory'}
end
if token[1] ~= 'active' or member[1] ~= 'active' or tenant[1] ~= 'active' then
  return {'INVALID'}
end
if token[2] ~= ARGV[7] or member[2] ~= ARGV[8] or tenant[2] ~= ARGV[9] then
  return {'STALE'}
end
local expires, accepted_until = tonumber(token[5]), tonumber(token[6] or '-1')
if token[3] ~= ARGV[6] or token[4] ~= ARGV[5] or member[3] ~= ARGV[6]
  or (expires > 0 and now >= expires * 1000000)
  or accepted_until < 0 or (accepted_until > 0 and now >= accepted_until * 1000000) then
  return {'INVALID'}
end

local remembers = ARGV[13] ~= ''
if remembers then
  local known = redis.call('HMGET', KEYS[8], 'fingerprint', 'request_id', 'state', 'answer')
  if known[1] then
    if known[1] ~= ARGV[13] then
      return {'MISMATCH'}
    end
    if known[3] == 'done' then
      return {'REPLAY', known[2], known[4]}
    end
    return {'IN_FLIGHT', known[2]}
  end
end
if redis.call('EXISTS', KEYS[5]) == 1 then
  return {'REPEATED'}
end

-- The periods are the caller's arithmetic and the store's clock.
local uses_count, starts, ends, limits = read_plan(ARGV[17], BEFORE)
local uses, fresh = {}, {}
for i = 1, uses_count do
  if now < starts[i] * 1000000 or (ends[i] > 0 and now >= ends[i] * 1000000) then
    return {'PERIOD'}
  end
  uses[i] = read_use(KEYS[BEFORE + IN_FLIGHT + i])
  if not uses[i] then
    if starts[i] < tonumber(meta[2]) then
      return {'NOT_READY', 'counters'}
    end
    uses[i] = {0, 0, 0, 0, 0, 0}
    fresh[i] = true
  end
end

local refused, wait, exceeded = 0, -1, 0
local standing = {}
for i, limit in ipairs(limits) do
  local cost = costs[limit.metric]
  local most = limit.kind == 'rate' and limit.tolerance / limit.unit or limit.amount
  local remaining, reset = left(limit, now, uses, ends)
  if cost > most then
    exceeded = exceeded > 0 and exceeded or i
  elseif cost > remaining then
    local free = reset
    if limit.kind == 'rate' then
      free = reset + cost * limit.unit - limit.tolerance
    end
    -- The limit that frees last is the one to name: waiting for any other would be refused again.
    if refused == 0 or free == -1 or (wait ~= -1 and free > wait) then
      refused, wait = i, free
    end
  end
  standing[i * 2 - 1] = math.max(remaining, 0)
  standing[i * 2] = reset
end
if exceeded > 0 then
  return {'EXCEEDS', exceeded, standing}
end
if refused > 0 then
  local limit = limits[refused]
  local held = limit.kind == 'quota' and uses[limit.use][limit.metric + 3] or 0
  return {'REFUSED', refused, wait, standing, tonumber(held)}
end
if redis.call('XLEN', KEYS[7]) >= tonumber(ARGV[16]) then
  return {'BACKLOG'}
end

-- Take all.
for i = 1, uses_count do
  local key, figures = KEYS[BEFORE + IN_FLIGHT + i], uses[i]
  redis.call('HSET', key, RESERVED[1], figures[4] + costs[1], RESERVED[2], figures[5] + costs[2],
    RESERVED[3], figures[6] + costs[3])
  if fresh[i] then
    redis.call('HSET', key, USED[1], 0, USED[2], 0, USED[3], 0)
    if ends[i] > 0 then
      redis.call('EXPIREAT', key, math.ceil(ends[i]) + 604800)
    end
  end
end
local lease_end = now + tonumber(ARGV[12])
for i = 1, IN_FLIGHT do
  redis.call('ZADD', KEYS[BEFORE + i], lease_end, ARGV[2])
end
for i, limit in ipairs(limits) do
  local cost = costs[limit.metric]
  if limit.kind == 'rate' then
    local tat = limit.arrival + cost * limit.unit
    redis.call('SET', limit.key, tat, 'PXAT', math.ceil(tat / 1000) + 1000)
    standing[i * 2 - 1] = math.floor((limit.tolerance - (tat - now)) / limit.unit)
    standing[i * 2] = tat - now
  else
    standing[i * 2 - 1] = standing[i * 2 - 1] - cost
  end
end
redis.call('HSET', KEYS[5], 'state', 'RESERVED', 'generation', ARGV[1], 'images', ARGV[10], 'tokens', ARGV[11],
  'admitted', now, 'lease_end', lease_end, 'held', ARGV[14], 'call', ARGV[15], 'idempotency', remembers and KEYS[8] or '')
redis.call('ZADD', KEYS[6], lease_end, ARGV[2])
if remembers then
  redis.call('HSET', KEYS[8], 'fingerprint', ARGV[13], 'request_id', ARGV[2], 'state', 'open')
  redis.call('EXPIRE', KEYS[8], 86400)
end
return {'ADMITTED', now, standing}
