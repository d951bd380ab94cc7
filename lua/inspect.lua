--[[
inspect.lua: what is going on? Reads, changes nothing, and answers in JSON.

KEYS  any of the account's keys, in any order; each is described in its way
        fleetlimit:{<account>}:account            limits, use, pace, strangers, drains
        fleetlimit:{<account>}:window             makes the account's use exact
        fleetlimit:{<account>}:backoff[:<endpoint>]  the pause and its cause
        fleetlimit:{<account>}:slots:<endpoint>   who holds the slots
        fleetlimit:{<account>}:queue[:<endpoint>] who waits, in order
        fleetlimit:{<account>}:due[:<endpoint>]   tells when they were told to come
        fleetlimit:{<account>}:workers            who is alive
        fleetlimit:{<account>}:timeline           how it did in the last ten minutes
        fleetlimit:{<account>}:policies           the different policies of live workers
ARGV  1 how many leases, places or workers to list of each at most; default 100

From a shell, with jq to make it pretty:
  redis-cli --raw --eval lua/inspect.lua \
    'fleetlimit:{acme}:account' 'fleetlimit:{acme}:backoff' \
    'fleetlimit:{acme}:slots:POST /mave/chat' | jq

Reply: one JSON object, a member for each key that exists, under the part of its
name behind "}:". Durations are in milliseconds: held_ms, left_ms, waited_ms.
docs/redis-keys.md explains the members.
--]]

local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local most = math.max(0, math.min(tonumber(ARGV[1]) or 100, 10000))

local DOUBT = 2            -- standard deviations of strangers for which the reserve is enough
local LAST_DOUBT = 3       -- and for the last requests before a window resets
local MEMORY = 3           -- windows until strangers that are seen no more are forgotten
local CATCH_UP = 4         -- how much faster than a window room is used that strangers leave
local COARSE = 2500        -- how exact a reset in whole seconds is, at worst
local TIGHT_BURST = 0.02   -- burst while callers wait, as a share of the limit

local declared = {}
for _, key in ipairs(KEYS) do declared[key] = true end

local function number(s)
  local x = tonumber(s)
  if not x or x ~= x or x < 0 or x > 1e15 then return 0 end
  return x
end

local function whole(x) return math.floor(x + 0.5) end

local function fields(key)
  local flat, h = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
  return h
end

-- What follows is account.lua's arithmetic, word for word (a test compares them), so
-- that this file stands alone.

-- usable is the limit in force: the lower of policy and report, times headroom.
local function usable(a, p)
  local limit = p.limit
  if a.reported > 0 and a.reported < limit then limit = a.reported end
  return math.max(1, math.floor(limit * p.headroom + 1e-6))
end

-- strangers is how much others spend in a window, as far as is known: the most that
-- was seen lately. A resetting window shows them only towards its end, so what was
-- seen is remembered, and fades.
local function strangers(a, p, now)
  if a.stranger_ms == 0 then return 0 end
  return a.stranger * math.max(0, 1 - (now - a.stranger_ms) / (MEMORY * p.horizon))
end

-- unseen is what strangers are expected to have spent since they were last observed.
local function unseen(a, p, now, rate)
  return rate * math.min(1, (now - a.foreign_ms) / p.window)
end

-- reserve is kept free while strangers use the key: for what the observation could
-- not tell apart from our own requests, and for how far their use of the window may
-- have risen since. It rises by what they send and falls by what leaves, both
-- Poisson processes of the same rate.
local function reserve(a, p, now)
  local rate = strangers(a, p, now)
  if rate == 0 then return 0 end
  local r = a.doubtful + DOUBT * math.sqrt(2 * unseen(a, p, now, rate))
  return math.min(r, usable(a, p) / 10)
end

-- silence is kept free for workers that should have been heard of and were not: they
-- may live, cut off from Redis, and spend their own shares, which the headers show late.
-- For each it is a request, and what its part of the budget has come to since.
local function silence(a, p, now)
  if a.silent == 0 then return 0 end
  local fair = usable(a, p) / math.max(1, a.workers)
  return a.silent * math.min(fair, 1 + fair * (now - a.overdue_ms) / p.horizon)
end

-- others is what is left to others: to strangers, and to silent workers, whose use the
-- headers show as strangers'.
local function others(a, p, now)
  if a.stranger_ms == 0 and a.silent == 0 then return a.foreign end
  return math.max(a.foreign + reserve(a, p, now), silence(a, p, now))
end

-- until_reset is what the API's window still has room for until the instant at which
-- it said that something leaves it, if strangers use the key: a resetting window frees
-- nothing before, whatever has become older than its length. In a busy sliding window
-- that instant is never far, and the headers tell it in whole seconds: then it is of
-- no use, unless it was told long before.
local function until_reset(a, p, now, rate)
  if now >= a.reset_ms or a.reset_ms - a.told_ms <= COARSE then return math.huge end
  if a.rolling_ms > 0 and now - a.rolling_ms <= 2 * p.window then return math.huge end
  local since = math.max(0, a.seq - a.observed_seq)
  local coming = unseen(a, p, now, rate)
  return usable(a, p) - a.spent - since - coming - LAST_DOUBT * math.sqrt(coming)
end

-- budget is what the fleet may spend in a window.
local function budget(a, p, now)
  return math.max(0, math.floor(usable(a, p) - others(a, p, now)))
end

-- room is how many more requests no window of the API can object to. Once a pause
-- is over, what strangers had spent when it began is old news: one request may go
-- and bring fresh news, and if it brings none, another after PROBE.
local function room(a, p, now)
  local left = usable(a, p) - a.own
  local free = left - others(a, p, now)
  local rate = strangers(a, p, now)
  if rate > 0 then free = math.min(free, until_reset(a, p, now, rate)) end
  free = math.floor(free)
  if free < 1 and left >= 1 and a.probe_ms > 0 and a.probe_ms <= now then return 1, true end
  return free, false
end

-- emission_interval is T of GCRA: the time that one permit takes at full pace. The
-- room that strangers leave when they spend less than before is used within a quarter
-- of a window: at the mean pace it would take a whole one, in which they are back.
local function emission_interval(a, p, now)
  local per_window = math.max(1, budget(a, p, now))
  local rate = strangers(a, p, now)
  if rate > 0 then
    local swing = math.min(room(a, p, now), 3 * math.sqrt(rate))
    per_window = per_window + CATCH_UP * math.max(0, swing)
  end
  return p.window / per_window
end

-- bucket_size is the burst of GCRA, in permits.
local function bucket_size(a, p)
  local limit = usable(a, p)
  local burst = p.burst
  if a.reported > 0 and a.reported < p.limit then burst = burst * a.reported / p.limit end
  if a.tight == 1 then burst = math.min(burst, limit * TIGHT_BURST) end
  return math.max(1, math.min(limit, math.floor(burst + 0.5)))
end

-- credit is the content of the pace bucket in permits, at most its size.
local function credit(a, p, now)
  local size = bucket_size(a, p)
  return math.min(size, size - (a.tat_ms - now) / emission_interval(a, p, now))
end

-- The account as admission would load it, except that nothing is written.

local NUMBERS = {
  'tat_ms', 'seq', 'own', 'open_last_ms', 'oldest_ms', 'reported', 'foreign', 'foreign_ms',
  'stranger', 'stranger_ms', 'observed_seq', 'tight', 'epoch', 'strikes', 'probe_ms', 'born_ms',
  'workers', 'rejected', 'doubtful', 'spent', 'reset_ms', 'told_ms', 'rolling_ms', 'silent', 'overdue_ms',
}

-- ring is the closed buckets of grants as {last_ms, count}, where they may be read.
local function ring(h, key)
  local name = string.sub(key, 1, -8) .. 'window'
  local buckets = {}
  if number(h.oldest_ms) == 0 or not declared[name] then return buckets end
  for _, entry in ipairs(redis.call('LRANGE', name, 0, -1)) do
    local last, count = string.match(entry, '^(%S+) (%S+)')
    buckets[#buckets + 1] = {number(last), number(count)}
  end
  return buckets
end

local function load(h, p, buckets)
  local a = {}
  for _, field in ipairs(NUMBERS) do a[field] = number(h[field]) end
  a.foreign_ms, a.stranger_ms = math.min(a.foreign_ms, now), math.min(a.stranger_ms, now)
  local edge = now - p.horizon
  if a.open_last_ms <= edge then a.own = 0 end
  for _, bucket in ipairs(buckets) do
    if bucket[1] > edge then break end
    a.own = math.max(0, a.own - bucket[2])
  end
  if now - a.foreign_ms >= p.horizon - 0.001 then a.foreign = 0 end
  a.reset_ms, a.rolling_ms = math.min(a.reset_ms, now + p.window), math.min(a.rolling_ms, now)
  if a.overdue_ms > now then a.silent = 0 end
  return a
end

-- window_wait is how long it takes until one more request fits the window.
local function window_wait(a, p, buckets)
  local need = 1 - room(a, p, now)
  if need <= 0 then return 0 end
  local edge, wait = now - p.horizon, p.horizon
  if a.own > 0 then wait = a.open_last_ms + p.horizon - now end
  for _, bucket in ipairs(buckets) do
    if bucket[1] > edge then
      need = need - bucket[2]
      if need <= 0 then
        wait = bucket[1] + p.horizon - now
        break
      end
    end
  end
  local rate = strangers(a, p, now)
  if rate > 0 and until_reset(a, p, now, rate) < 1 then wait = math.max(wait, a.reset_ms - now) end
  if a.foreign > 0 then wait = math.min(wait, a.foreign_ms + p.horizon - now) end
  if a.probe_ms > 0 and usable(a, p) - a.own >= 1 then wait = math.min(wait, a.probe_ms - now) end
  return math.max(0, math.min(wait, p.horizon))
end

-- by_suffix collects the fields "<prefix><suffix>" of a hash, at most `most`.
local function by_suffix(h, prefix, describe)
  local found, n = {}, 0
  for field, value in pairs(h) do
    if string.sub(field, 1, #prefix) == prefix and n < most then
      local suffix = string.sub(field, #prefix + 1)
      found[suffix], n = describe(value, suffix), n + 1
    end
  end
  return n > 0 and found or nil
end

local function account(key)
  local h = fields(key)
  local p = {
    limit = number(h.limit), window = number(h.window_ms), jitter = number(h.jitter_ms),
    headroom = number(h.headroom), burst = number(h.burst),
  }
  p.horizon = p.window + p.jitter
  local answer = {
    policy_limit = p.limit, window_ms = p.window, jitter_ms = p.jitter, headroom = p.headroom, burst = p.burst,
    reported_limit = number(h.reported), granted = number(h.seq), rejected = number(h.rejected),
    epoch = number(h.epoch), strikes = number(h.strikes), born_ms = number(h.born_ms),
    slots = by_suffix(h, 'slots:', number),
    drained = by_suffix(h, 'drain:', function(until_ms, worker)
      return {
        left_ms = whole(math.max(0, math.min(number(until_ms) - now, 86400000))),
        by = h['drain_by:' .. worker] or '', reason = h['drain_reason:' .. worker] or '',
      }
    end),
  }
  if p.limit < 1 or p.window <= 0 or p.headroom <= 0 then return answer end -- no heartbeat has told yet
  local buckets = ring(h, key)
  local a = load(h, p, buckets)
  local free, probing = room(a, p, now)
  answer.limit, answer.used, answer.foreign = usable(a, p), a.own, a.foreign
  answer.reserve, answer.budget = math.ceil(others(a, p, now) - a.foreign), budget(a, p, now)
  answer.room, answer.probing = math.max(0, free), probing
  answer.window_wait_ms = whole(window_wait(a, p, buckets))
  answer.interval_ms = emission_interval(a, p, now)
  answer.credit, answer.bucket = credit(a, p, now), bucket_size(a, p)
  answer.pace_wait_ms = whole(math.max(0, (1 - answer.credit) * answer.interval_ms))
  answer.small_bursts = a.tight == 1
  if a.observed_seq > 0 and a.foreign_ms > 0 then answer.observed_ms = whole(now - a.foreign_ms) end
  if a.stranger_ms > 0 then answer.stranger_ms = whole(now - a.stranger_ms) end
  return answer
end

local function backoff(key)
  local h = fields(key)
  local answer = {
    left_ms = whole(math.max(0, math.min(number(h.until_ms) - now, number(h.length_ms)))),
    since_ms = whole(math.max(0, now - number(h.since_ms))),
    reason = h.reason or '', worker = h.worker or '',
    strikes = number(h.strikes), epoch = number(h.epoch),
  }
  if h.hold_until_ms then
    answer.hold = {
      left_ms = whole(math.max(0, math.min(number(h.hold_until_ms) - now, number(h.hold_ms)))),
      since_ms = whole(math.max(0, now - number(h.hold_since_ms))),
      reason = h.hold_reason or '', by = h.hold_by or '',
    }
  end
  return answer
end

local function leases(key)
  local list = {}
  local flat = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.3f', now), '+inf',
    'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #flat, 2 do
    local worker, since = string.match(flat[i], '^(.*):([%d.]+):%d+!?$')
    list[#list + 1] = {
      lease = flat[i], worker = worker or flat[i],
      held_ms = whole(math.max(0, now - number(since))), left_ms = whole(math.max(0, number(flat[i + 1]) - now)),
    }
  end
  return {in_use = redis.call('ZCOUNT', key, '(' .. string.format('%.3f', now), '+inf'), leases = #list > 0 and list or nil}
end

local function places(key)
  local list = {}
  local due_key = string.gsub(key, '}:queue', '}:due', 1)
  local flat = redis.call('ZRANGE', key, 0, most - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local worker, endpoint = string.match(flat[i], '^(%S+) (.*)$')
    local due = declared[due_key] and redis.call('ZSCORE', due_key, flat[i])
    list[#list + 1] = {
      worker = worker or flat[i], endpoint = endpoint or '',
      waited_ms = whole(math.max(0, now - number(flat[i + 1]))),
      due_ms = due and whole(math.max(0, number(due) - now)) or nil,
    }
  end
  return {waiting = redis.call('ZCARD', key), places = #list > 0 and list or nil}
end

local function workers(key)
  local list = {}
  local flat = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.3f', now), '+inf',
    'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #flat, 2 do
    list[#list + 1] = {worker = flat[i], left_ms = whole(number(flat[i + 1]) - now)}
  end
  return {alive = redis.call('ZCOUNT', key, '(' .. string.format('%.3f', now), '+inf'), workers = #list > 0 and list or nil}
end

-- timeline is what the heartbeats wrote down, the oldest first.
local function timeline(key)
  local list = {}
  for _, entry in ipairs(redis.call('LRANGE', key, -most, -1)) do
    local at, seq, rejected, foreign, waiting, paused = string.match(entry, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    list[#list + 1] = {
      ago_ms = whole(math.max(0, now - number(at))), granted = number(seq), rejected = number(rejected),
      foreign = number(foreign), waiting = number(waiting), paused = number(paused) > 0,
    }
  end
  return {samples = #list > 0 and list or nil}
end

-- policies lists the different policies of the live workers; the strictest counts.
local function policies(key)
  local list = {}
  for text, told in pairs(fields(key)) do
    local ends, length, worker = string.match(told, '^(%S+) (%S+) (%S+)$')
    local limit, window, jitter, headroom, burst, rest = string.match(text, '^(%S+) (%S+) (%S+) (%S+) ([^%s]+)(.*)$')
    local left = math.min(number(ends) - now, number(length))
    if limit and left > 0 and #list < most then
      local slots
      for n, name in string.gmatch(rest, '\n(%S+) %S+ ([^\n]+)') do
        slots = slots or {}
        slots[name] = number(n)
      end
      list[#list + 1] = {
        limit = number(limit), window_ms = number(window), jitter_ms = number(jitter), headroom = number(headroom),
        burst = number(burst), slots = slots, worker = worker, left_ms = whole(left),
      }
    end
  end
  return {policies = #list > 0 and list or nil}
end

local describe = {
  policies = policies, timeline = timeline, account = account, backoff = backoff, slots = leases, queue = places, workers = workers,
}

local answer = {}
for _, key in ipairs(KEYS) do
  local what = string.match(key, '}:(.*)$') or key
  local kind = describe[string.match(what, '^[^:]*')]
  if kind and redis.call('EXISTS', key) == 1 then answer[what] = kind(key) end
end
return next(answer) and cjson.encode(answer) or '{}' -- not every cjson makes an object of nothing
