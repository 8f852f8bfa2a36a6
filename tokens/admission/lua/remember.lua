-- remember: keep decisions for people who ask why a call was refused; the oldest make room for new ones.
--
-- KEYS 1 the stream. ARGV 1 entries that it keeps (about), 2 seconds that it is kept after the last one, then decisions.

for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'decision', ARGV[i])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
