-- tally: add up what a web process has counted. Nothing is decided or invoiced by it.
--
-- KEYS the hashes and sorted sets, all of one slot.
-- ARGV 1, MessagePack: for each key {seconds that it is kept, members that it keeps, name, count, name, count, ...}.
--      Members 0: a hash, which keeps all. Otherwise a sorted set, which keeps so many of the greatest.

for i, work in ipairs(cmsgpack.unpack(ARGV[1])) do
  local key, most = KEYS[i], work[2]
  for at = 3, #work, 2 do
    if most == 0 then
      redis.call('HINCRBY', key, work[at], work[at + 1])
    else
      redis.call('ZINCRBY', key, work[at + 1], work[at])
    end
  end
  if most > 0 then
    redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
  end
  redis.call('EXPIRE', key, work[1], 'NX')
end
return 1
