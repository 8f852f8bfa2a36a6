#!lua flags=allow-oom
-- put: replace a record by a newer one. Allowed when memory is full: it may be what ends a secret.
--
-- KEYS 1 the record, 2 the shard's control hash.
-- ARGV 1 status, 2 version, 3 the record's field in the control hash, then the hash's fields and values.
-- Reply 1 when written; 0 when the store has this version or a newer one, or a tombstone.

local stored = redis.call('HMGET', KEYS[1], 'status', 'version')
if stored[1] == 'revoked' then
  return 0
end
local version = tonumber(ARGV[2])
local known = tonumber(stored[2] or '0')
if ARGV[1] == 'revoked' then
  -- A revocation always lands, and processes that know the record must see another version.
  version = math.max(version, known + 1)
elseif known >= version then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', version))
-- A stop that the database has yet to learn of outranks what the database says.
if ARGV[1] == 'active' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[1], 'status', 'suspended')
end
return 1
