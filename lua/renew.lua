--[[
renew.lua: the heartbeat of a worker. One call keeps all its leases, marks it
alive, and writes down the strictest policy of the live workers, for those who look
and for admission, if they differ. scripts.go puts policy.lua in front of it.

KEYS  1 fleetlimit:{<account>}:account
      2 fleetlimit:{<account>}:workers     zset, workers by the instant at which
                                           they count as dead
      3 fleetlimit:{<account>}:backoff
      4 fleetlimit:{<account>}:queue
      5 fleetlimit:{<account>}:timeline    list, how the account did lately, the
                                           oldest first: "<ms> <seq> <rejected>
                                           <foreign> <waiting> <paused>"
      6 fleetlimit:{<account>}:policies    hash, the different policies of the live
                                           workers; each with "<until ms> <ms>
                                           <worker>": until when it counts, for how
                                           long it does after a heartbeat, and who
                                           told it last
      7 fleetlimit:{<account>}:expected    zset, workers by when they are to be heard
                                           of at the latest
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
      1 workers alive, this one included; 0: nobody can tell
      2 the account's birth, or 0: another than the worker knows says that Redis has
        lost its memory, and with it the leases. Empty: nobody can tell
      3 different policies of the live workers
      4 the strictest of them, see policy.lua, as "<limit> <window ms> <jitter ms>
        <headroom> <burst>" and a line "<slots> <lease TTL ms> <endpoint>" for each
        endpoint of any of them
      5 number of keys that hold something of another type; then each. The leases of
        such an endpoint are not renewed, those of all others are
  then the leases that are lost: released, expired or unknown
--]]

local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local IDLE_TTL = 600000
local OVERDUE = 1.25 / 3 -- of the time for which a worker counts as alive, three heartbeats
local SAMPLE_EVERY, SAMPLES = 5000, 120 -- the timeline: ten minutes
local MOST_POLICIES = 50

local worker, alive = ARGV[1], tonumber(ARGV[2])
local endpoints = tonumber(ARGV[8])

local function number(s)
  local x = tonumber(s)
  if not x or x ~= x or x < 0 or x > 1e15 then return 0 end
  return x
end

local function ms(x) return string.format('%.3f', x) end

-- fits says whether a key holds what it should. The heartbeat does without one that does
-- not, and answers which it is.
local wrong, known = {}, {}
local function fits(key, kind)
  if known[key] == nil then
    local found = redis.call('TYPE', key).ok
    known[key] = found == kind or found == 'none'
    if not known[key] then wrong[#wrong + 1] = key end
  end
  return known[key]
end

-- keep_key lets a key live for ttl milliseconds at least.
local function keep_key(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, string.format('%.0f', ttl)) end
end

-- expect notes by when this worker is to be heard of. One that is expected and does not
-- live would be waited for for ever.
local expecting = fits(KEYS[7], 'zset')

local function expect_no_more(workers)
  if expecting then redis.call('ZREM', KEYS[7], unpack(workers)) end
end

local function expect()
  if not expecting then return end
  if alive > 0 then
    redis.call('ZADD', KEYS[7], ms(now + alive * OVERDUE), worker)
    keep_key(KEYS[7], alive + 1000)
  else
    redis.call('ZREM', KEYS[7], worker)
  end
  if redis.call('ZCARD', KEYS[7]) > redis.call('ZCARD', KEYS[2]) then redis.call('DEL', KEYS[7]) end
end

-- first_expected is the earliest of those instants; 0: nobody is expected.
local function first_expected()
  local first = expecting and redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES') or {}
  return first[2] and ms(tonumber(first[2])) or '0'
end

-- The dead are buried a hundred at a time, so that no heartbeat pays for a
-- thousand of them.
local function mark_alive()
  if alive > 0 then
    redis.call('ZADD', KEYS[2], ms(now + alive), worker)
    keep_key(KEYS[2], alive + 1000)
  else
    redis.call('ZREM', KEYS[2], worker)
    if fits(KEYS[1], 'hash') then
      redis.call('HDEL', KEYS[1], 'drain:' .. worker, 'drain_by:' .. worker, 'drain_reason:' .. worker)
    end
  end
  local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ms(now), 'LIMIT', 0, 100)
  if #dead > 0 then
    redis.call('ZREM', KEYS[2], unpack(dead))
    expect_no_more(dead)
  end
  expect()
  return redis.call('ZCOUNT', KEYS[2], '(' .. ms(now), '+inf')
end

-- Policies. A policy is one text, the first line of which are five numbers, and each
-- further line an endpoint. It counts until the last worker that has told it counts
-- as dead, or has left.

local function own_policy()
  local lines = {table.concat(ARGV, ' ', 3, 7)}
  for e = 1, endpoints do
    lines[e + 1] = ARGV[7 + 3 * e] .. ' ' .. ARGV[8 + 3 * e] .. ' ' .. ARGV[6 + 3 * e]
  end
  return table.concat(lines, '\n')
end

-- read_policy returns the policy of a text, or nil.
local function read_policy(text)
  local limit, window, jitter, headroom, burst, rest = string.match(text, '^(%S+) (%S+) (%S+) (%S+) ([^%s]+)(.*)$')
  local p = {
    limit = number(limit), window = number(window), jitter = number(jitter), headroom = number(headroom),
    burst = number(burst), names = {}, slots = {}, leases = {}, count = 1,
  }
  if not is_policy(p) then return nil end
  for slots, lease, name in string.gmatch(rest, '\n(%S+) (%S+) ([^\n]+)') do
    if not p.slots[name] and number(slots) >= 1 then
      p.names[#p.names + 1], p.slots[name], p.leases[name] = name, number(slots), number(lease)
    end
  end
  return p
end

local function write_policy(p)
  local lines = {string.format('%.10g %.3f %.3f %.10g %.0f', p.limit, p.window, p.jitter, p.headroom, p.burst)}
  for i, name in ipairs(p.names) do
    lines[i + 1] = string.format('%.0f %.3f %s', p.slots[name], p.leases[name], name)
  end
  return table.concat(lines, '\n')
end

local function strictest(p, q)
  local s = stricter(p, q)
  s.names, s.slots, s.leases = p.names, p.slots, p.leases
  for _, name in ipairs(q.names) do
    if not s.slots[name] then s.names[#s.names + 1] = name end
    s.slots[name] = math.min(s.slots[name] or math.huge, q.slots[name])
    s.leases[name] = math.max(s.leases[name] or 0, q.leases[name])
  end
  return s
end

-- told is how long a policy counts still, and for how long after each heartbeat.
local function told(value)
  local ends, length = string.match(value or '', '^(%S+) (%S+)')
  length = number(length)
  return math.min(number(ends) - now, length), length
end

-- tell_policy writes down that this worker has its policy. When it leaves, others who
-- have the same will say so in time: no worker is silent for more than two thirds of
-- the time for which it counts as alive.
local function tell_policy(text)
  local left, length = told(redis.call('HGET', KEYS[6], text))
  if left <= 0 then
    left, length = 0, 0
    if alive == 0 then return end
  end
  if alive > 0 then
    left, length = math.max(left, alive), math.max(length, alive)
  else
    left = math.min(left, length * 0.75)
  end
  redis.call('HSET', KEYS[6], text, ms(now + left) .. ' ' .. ms(length) .. ' ' .. worker)
  keep_key(KEYS[6], left + 1000)
end

-- live_policies returns the strictest policy of the live workers, and in it how many
-- different ones they have. p is this worker's, and own its text.
-- Where everybody has another, they become one: too strict for a while, not too loose.
local function live_policies(p, own)
  tell_policy(own)
  local n, longest = 1, alive
  local flat = redis.call('HGETALL', KEYS[6])
  for i = 1, #flat, 2 do
    local left = told(flat[i + 1])
    local q = left > 0 and read_policy(flat[i])
    if not q then
      redis.call('HDEL', KEYS[6], flat[i])
    elseif flat[i] ~= own then
      p = strictest(p, q)
      n, longest = n + 1, math.max(longest, left)
    end
  end
  if n > MOST_POLICIES then
    redis.call('DEL', KEYS[6])
    redis.call('HSET', KEYS[6], write_policy(p), ms(now + longest) .. ' ' .. ms(longest) .. ' *')
    keep_key(KEYS[6], longest + 1000)
  end
  p.count = n
  return p
end

-- publish_policy writes the strictest policy where admission, and readers, find it.
local function publish_policy(p)
  redis.call('HSET', KEYS[1], 'policies', p.count, 'limit', string.format('%.10g', p.limit), 'window_ms', ms(p.window),
    'jitter_ms', ms(p.jitter), 'headroom', string.format('%.10g', p.headroom), 'burst', string.format('%.0f', p.burst))
  for _, name in ipairs(p.names) do
    redis.call('HSET', KEYS[1], 'slots:' .. name, string.format('%.0f', p.slots[name]),
      'lease_ms:' .. name, string.format('%.0f', p.leases[name]))
  end
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(IDLE_TTL, 2 * (p.window + p.jitter))))
end

-- An expired lease is lost even if nobody has taken the slot yet: its holder
-- must not learn later than others that it may be taken.
local function renew(e, lease)
  local key, ttl = KEYS[6 + 2 * e], tonumber(ARGV[8 + 3 * e])
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

-- waiting counts the places of those who wait: all for a slot, and those in the queue
-- for budget that need no slot.
local function waiting()
  local n = 0
  for e = 1, endpoints do
    if fits(KEYS[7 + 2 * e], 'zset') then n = n + redis.call('ZCARD', KEYS[7 + 2 * e]) end
  end
  for _, place in ipairs(fits(KEYS[4], 'zset') and redis.call('ZRANGE', KEYS[4], 0, 999) or {}) do
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

local lost = {}
for i = 9 + 3 * endpoints, #ARGV - 1, 2 do
  local e, lease = tonumber(ARGV[i]), ARGV[i + 1]
  if fits(KEYS[6 + 2 * e], 'zset') and not renew(e, lease) then lost[#lost + 1] = lease end
end
local there, told = fits(KEYS[1], 'hash'), fits(KEYS[6], 'hash')
local workers = fits(KEYS[2], 'zset') and mark_alive() or 0
local own = own_policy()
local p = read_policy(own)
if told then
  if alive > 0 then p = live_policies(p, own) else tell_policy(own) end
end
local birth = ''
if there then
  birth = redis.call('HGET', KEYS[1], 'born_ms') or '0'
  if alive > 0 then
    publish_policy(p)
    if fits(KEYS[5], 'list') then sample() end
  end
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'workers', workers, 'overdue_ms', first_expected()) end
end
local reply = {tostring(workers), birth, tostring(p.count), write_policy(p), tostring(#wrong)}
for _, key in ipairs(wrong) do reply[#reply + 1] = key end
for _, lease in ipairs(lost) do reply[#reply + 1] = lease end
return reply
