--[[
renew.lua: the heartbeat of a worker. One call keeps all its leases, marks it
alive and writes down its policy for those who look.

KEYS  1 fleetlimit:{<account>}:account
      2 fleetlimit:{<account>}:workers     zset, workers by the instant at which
                                           they count as dead
      3 fleetlimit:{<account>}:backoff
      4 fleetlimit:{<account>}:queue
      5 fleetlimit:{<account>}:timeline    list, how the account did lately, the
                                           oldest first: "<ms> <seq> <rejected>
                                           <foreign> <waiting> <paused>"
  then two for each endpoint of the policy
        fleetlimit:{<account>}:slots:<endpoint>
        fleetlimit:{<account>}:queue:<endpoint>

ARGV  1 worker
      2 time for which it counts as alive, ms; 0: it leaves
      3 limit  4 window ms  5 jitter ms  6 headroom  7 burst    (the policy)
      8 number of endpoints E; then for each its name, slots and lease TTL, ms
  then the leases to renew
      <e> <lease>                          <e> is the number of an endpoint, 1..E

Reply: array of strings
      1 workers alive, this one included
      2 the account's birth, or 0: another than the worker knows says that Redis has
        lost its memory, and with it the leases
      3.. the leases that are lost: released, expired or unknown
--]]

local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local IDLE_TTL = 600000
local SAMPLE_EVERY, SAMPLES = 5000, 120 -- the timeline: ten minutes

local worker, alive = ARGV[1], tonumber(ARGV[2])
local endpoints = tonumber(ARGV[8])

local function ms(x) return string.format('%.3f', x) end

-- keep_key lets a key live for ttl milliseconds at least.
local function keep_key(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, string.format('%.0f', ttl)) end
end

-- The dead are buried a hundred at a time, so that no heartbeat pays for a
-- thousand of them.
local function mark_alive()
  if alive > 0 then
    redis.call('ZADD', KEYS[2], ms(now + alive), worker)
    keep_key(KEYS[2], alive + 1000)
  else
    redis.call('ZREM', KEYS[2], worker)
    redis.call('HDEL', KEYS[1], 'drain:' .. worker, 'drain_by:' .. worker, 'drain_reason:' .. worker)
  end
  local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ms(now), 'LIMIT', 0, 100)
  if #dead > 0 then redis.call('ZREM', KEYS[2], unpack(dead)) end
  return redis.call('ZCOUNT', KEYS[2], '(' .. ms(now), '+inf')
end

local function write_policy()
  redis.call('HSET', KEYS[1], 'limit', ARGV[3], 'window_ms', ARGV[4], 'jitter_ms', ARGV[5],
    'headroom', ARGV[6], 'burst', ARGV[7])
  for e = 1, endpoints do
    redis.call('HSET', KEYS[1], 'slots:' .. ARGV[6 + 3 * e], ARGV[7 + 3 * e])
  end
  local horizon = tonumber(ARGV[4]) + tonumber(ARGV[5])
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(IDLE_TTL, 2 * horizon)))
end

-- An expired lease is lost even if nobody has taken the slot yet: its holder
-- must not learn later than others that it may be taken.
local function renew(e, lease)
  local key, ttl = KEYS[4 + 2 * e], tonumber(ARGV[8 + 3 * e])
  local expiry = redis.call('ZSCORE', key, lease)
  if not expiry then return false end
  if tonumber(expiry) <= now then
    redis.call('ZREM', key, lease)
    return false
  end
  redis.call('ZADD', key, ms(now + ttl), lease)
  keep_key(key, ttl + 1000)
  return true
end

local function number(s)
  local x = tonumber(s)
  if not x or x ~= x or x < 0 or x > 1e15 then return 0 end
  return x
end

-- waiting counts the places of those who wait: all for a slot, and those in the queue
-- for budget that need no slot.
local function waiting()
  local n = 0
  for e = 1, endpoints do n = n + redis.call('ZCARD', KEYS[5 + 2 * e]) end
  for _, place in ipairs(redis.call('ZRANGE', KEYS[4], 0, 999)) do
    if string.sub(place, -2) == ' *' then n = n + 1 end
  end
  return n
end

-- sample adds to the timeline, for those who look later. Whose heartbeat comes first
-- after an interval does it for all.
local function sample()
  local last = redis.call('LINDEX', KEYS[5], -1)
  local ago = last and now - number(string.match(last, '^%S+')) or SAMPLE_EVERY
  if ago >= 0 and ago < SAMPLE_EVERY then return end
  local h = redis.call('HMGET', KEYS[1], 'seq', 'rejected', 'foreign', 'foreign_ms')
  local foreign = number(h[3])
  if now - number(h[4]) > tonumber(ARGV[4]) + tonumber(ARGV[5]) then foreign = 0 end
  local length = redis.call('RPUSH', KEYS[5], string.format('%.0f %.0f %.0f %.0f %d %d',
    now, number(h[1]), number(h[2]), foreign, waiting(), redis.call('EXISTS', KEYS[3])))
  if length > SAMPLES then redis.call('LPOP', KEYS[5]) end
  redis.call('PEXPIRE', KEYS[5], IDLE_TTL)
end

local workers = mark_alive()
local reply = {tostring(workers), redis.call('HGET', KEYS[1], 'born_ms') or '0'}
if alive > 0 then
  write_policy()
  sample()
end
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'workers', workers) end
for i = 9 + 3 * endpoints, #ARGV - 1, 2 do
  if not renew(tonumber(ARGV[i]), ARGV[i + 1]) then reply[#reply + 1] = ARGV[i + 1] end
end
return reply
