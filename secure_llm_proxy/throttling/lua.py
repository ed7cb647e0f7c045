"""The scripts that run inside Redis, each one atomic step. They mirror `buckets`.

The clock is Redis' own (`TIME`), one for all hosts and workers, so that no worker's clock matters; a first argument
that isn't empty stands in for it. A step of that clock backwards refills nothing, one forwards refills what it skipped.
Numbers are written with %.0f: tostring() would round a time in microseconds.
"""

from __future__ import annotations

_NOW = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local function whole(number) return string.format('%.0f', number) end
local function debt_of(key, refill)
  local stored = redis.call('GET', key)
  if not stored then return 0 end
  local debt, at = string.match(stored, '^(%d+) (%d+)$')
  return math.max(0, tonumber(debt) - math.max(0, now - tonumber(at)) * refill)
end
local function owe(key, debt, refill)
  redis.call('SET', key, whole(debt) .. ' ' .. whole(now), 'PX', whole(math.ceil(debt / refill / 1000) + 1))
end
local function occupy(key, ttl, id)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  redis.call('ZADD', key, whole(now + ttl), id)
  redis.call('PEXPIRE', key, whole(math.ceil(ttl / 1000) + 1000))
end
"""

# KEYS: rate and in-flight key per bucket. ARGV: clock, exchange id, slot ttl in us; then per bucket refill, request,
# size, concurrent. Answer: granted, then per bucket debt and in flight before this request.
TAKE = (
    _NOW
    + """
local granted, answer = 1, {1}
for i = 1, #KEYS / 2 do
  local refill, request, size, concurrent =
    tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2]), tonumber(ARGV[4 * i + 3])
  local debt = debt_of(KEYS[2 * i - 1], refill)
  local in_flight = redis.call('ZCOUNT', KEYS[2 * i], '(' .. whole(now), '+inf')
  if debt + request > size or in_flight >= concurrent then granted = 0 end
  answer[2 * i], answer[2 * i + 1] = debt, in_flight
end
if granted == 1 then
  -- SET comes first: it is refused when memory is full, and only a script's first write is checked for that
  for i = 1, #KEYS / 2 do
    owe(KEYS[2 * i - 1], answer[2 * i] + tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i]))
  end
  for i = 1, #KEYS / 2 do
    occupy(KEYS[2 * i], tonumber(ARGV[3]), ARGV[2])
  end
end
answer[1] = granted
return answer
"""
)

# KEYS: in-flight keys. ARGV: exchange ids, which leave all of them.
RELEASE = """
for _, key in ipairs(KEYS) do redis.call('ZREM', key, unpack(ARGV)) end
return 1
"""

# KEYS: rate and in-flight key of one bucket. ARGV: clock, slot ttl in us, refill, size, drops to add, exchange ids.
SETTLE = (
    _NOW
    + """
local refill, size, more = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if more > 0 then
  local debt = debt_of(KEYS[1], refill)
  owe(KEYS[1], math.max(debt, math.min(size, debt + more)), refill)
end
for i = 6, #ARGV do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then occupy(KEYS[2], tonumber(ARGV[2]), ARGV[i]) end
end
return 1
"""
)

# KEYS: the set of hosts. ARGV: clock, host id, time to live in us. Answer: how many hosts are alive, this one included.
COUNT_HOSTS = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], whole(now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now - tonumber(ARGV[3])))
redis.call('PEXPIRE', KEYS[1], whole(math.ceil(tonumber(ARGV[3]) / 1000)))
return redis.call('ZCARD', KEYS[1])
"""
)
