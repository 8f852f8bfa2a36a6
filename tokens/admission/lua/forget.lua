#!lua flags=allow-oom
-- forget: drop an order from the control hash once the database has it, unless a newer one took its place.
--
-- KEYS 1 the control hash. ARGV 1 the field, 2 the order (JSON) that the database has.
-- Reply 1 when dropped.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
