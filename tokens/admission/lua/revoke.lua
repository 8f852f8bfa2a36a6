#!lua flags=allow-oom
-- revoke: end a token for good, or suspend a tenant, before the database knows.
--
-- KEYS 1 the record, 2 the shard's control hash.
-- ARGV 1 the new status (revoked or suspended), 2 the record's field in the control hash, 3 what the database must
--      learn (JSON), '' for nothing.
-- Reply 1; 0 when there is no such record, and then nothing is written.

local stored = redis.call('HMGET', KEYS[1], 'status', 'version')
if not stored[1] then
  return 0
end
if stored[1] ~= 'revoked' and stored[1] ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'status', ARGV[1], 'version', string.format('%.0f', tonumber(stored[2]) + 1))
end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
return 1
