-- finish: end one call as exact, void or unresolved; move the counters and append the usage event in the same step.
--
-- KEYS 1 reservation, 2 deadlines, 3 usage stream, 4 the tenant's sequence, 5 meta.
-- ARGV 1 request id, 2 kind, 3 tenant id, 4 images, 5 tokens (what is charged; unresolved: ignored, the reservation's
--      own figures are held), 6 whether the request stays counted (1, 0), 7 result (JSON), 8 call (JSON, for when
--      there is no reservation), 9 answer to replay under the idempotency key or '', 10 only when the lease is over
--      (1, 0), 11 whether a person decided it (1, 0): a void that exact may still replace, 12 run id of the server that
--      the caller is connected to, or '' when it may be another by now: then the server is asked, which takes longer.
-- Reply {status, detail}: DONE (and the sequence number), REPEAT (already ended so; detail: the state), EARLY.
-- A repeat changes nothing. What ended as unresolved may still become exact or void, what a person then made void still
-- exact: counters move by the difference.

local kind = ARGV[2]
local images, tokens, keep = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local STATES = {exact = 'SETTLED', void = 'VOIDED', unresolved = 'EXPIRED'}
-- Unresolved calls are kept for 35 days, so that resolving one frees its quota until the last day of its month.
local DECIDABLE = 3024000
local TTL = {exact = 3600, void = 3600, unresolved = DECIDABLE}
local now = now_us()

local reservation = redis.call('HMGET', KEYS[1], 'state', 'images', 'tokens', 'lease_end', 'held', 'call', 'idempotency',
  'admitted', 'generation', 'decided')
local state, held, call = reservation[1], reservation[5], reservation[6]
local overruled = state == 'VOIDED' and reservation[10] and kind == 'exact'
local late = state == 'EXPIRED' and kind ~= 'unresolved' or overruled
local decided = ARGV[11] == '1' and kind == 'void'
if state and state ~= 'RESERVED' and not late then
  return {'REPEAT', state}
end
if state == 'RESERVED' and ARGV[10] == '1' and now < tonumber(reservation[4]) then
  return {'EARLY', reservation[4]}
end

local function settle_uses(uses, estimate)
  local charged = {keep, images, tokens}
  for _, key in ipairs(uses) do
    local figures = read_use(key)
    if figures then -- a counter whose period ended over a week ago is gone, and must not come back without its end
      for metric = 1, 3 do
        if late then
          figures[metric] = figures[metric] + charged[metric] - estimate[metric]
        else
          figures[metric] = figures[metric] + charged[metric]
          figures[metric + 3] = figures[metric + 3] - estimate[metric]
        end
      end
      redis.call('HSET', key, USED[1], figures[1], USED[2], figures[2], USED[3], figures[3],
        RESERVED[1], figures[4], RESERVED[2], figures[5], RESERVED[3], figures[6])
    end
  end
end

-- Give back what a rate was charged too much, less the time since then: so much may have run off already, and giving
-- it back a second time would let more than the burst pass. Delivered images and requests made stay counted.
local function refund_rates(rates, estimate)
  local charged = {keep, kind == 'void' and 0 or estimate[2], tokens}
  for _, rate in ipairs(rates) do
    local over = (estimate[rate[2]] - charged[rate[2]]) * rate[3]
    local back = over > 0 and math.max(0, over - (now - tonumber(reservation[8]))) or over
    if back ~= 0 then
      local tat = math.max(now, math.max(now, tonumber(redis.call('GET', rate[1]) or '0')) - back)
      redis.call('SET', rate[1], tat, 'PXAT', math.ceil(tat / 1000) + 1000)
    end
  end
end

-- Counters that were rebuilt since know nothing of this reservation: its event alone is what counts then.
local generation = redis.call('HGET', KEYS[5], 'generation')
local run_id = ARGV[12] ~= '' and ARGV[12] or string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local confirmed = generation and string.sub(generation, -#run_id - 1) == ':' .. run_id
local counted = generation and reservation[9]
  and string.match(generation, '^[^:]*') == string.match(reservation[9], '^[^:]*')

if held then -- the mark of a call that an emptied store had lost holds nothing
  local estimate = {1, tonumber(reservation[2]), tonumber(reservation[3])}
  local holds = cjson.decode(held)
  if kind == 'unresolved' then
    keep, images, tokens = estimate[1], estimate[2], estimate[3]
  end
  if counted then
    settle_uses(holds.use, estimate)
    if not overruled then -- what a rate got back has run off since
      refund_rates(holds.rates, estimate)
    end
  end
  for _, key in ipairs(holds.inflight) do
    redis.call('ZREM', key, ARGV[1])
  end
  redis.call('ZREM', KEYS[2], ARGV[1])
  local idempotency = reservation[7]
  if idempotency ~= '' and redis.call('HGET', idempotency, 'request_id') == ARGV[1] then
    if ARGV[9] == '' then
      redis.call('DEL', idempotency)
    else
      redis.call('HSET', idempotency, 'state', 'done', 'answer', ARGV[9])
    end
  end
end

if decided then -- from here on it stands in the counters as one request
  redis.call('HSET', KEYS[1], 'state', STATES[kind], 'images', '0', 'tokens', '0', 'decided', '1')
elseif state and kind ~= 'unresolved' then -- so that the hour it is remembered costs little memory
  redis.call('HSET', KEYS[1], 'state', STATES[kind], 'held', '', 'call', '')
else
  redis.call('HSET', KEYS[1], 'state', STATES[kind])
end
if not (decided and state == 'EXPIRED') then -- that one keeps its end, or each decision would fill the store anew
  redis.call('EXPIRE', KEYS[1], decided and DECIDABLE or TTL[kind])
end

-- A call that was neither admitted nor sent leaves no event, only its mark: an admission on its way finds it.
if not state and kind == 'void' and keep == 0 then
  return {'DONE', ''}
end
-- A server that the guardian hasn't vouched for since it was started may have been emptied or rolled back: it would give
-- numbers a second time, and by them pass for one that has lost nothing. So the event carries none.
local sequence = confirmed and redis.call('INCR', KEYS[4]) or ''
redis.call('XADD', KEYS[3], '*', 'request_id', ARGV[1], 'kind', kind, 'sequence', sequence,
  'generation', confirmed and generation or '', 'tenant', ARGV[3], 'call', call or ARGV[8], 'result', ARGV[7])
return {'DONE', sequence}
