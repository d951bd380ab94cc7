--[[
account.lua: what settle.lua and admit.lua share. scripts.go puts it in front of
them; it is no script of its own.

An account is one API key and the budget behind it. Its keys are
fleetlimit:{<account>}:<what>; docs/redis-keys.md lists them all. Instants are
milliseconds of the Redis server's clock with three decimals, durations are
milliseconds.

The hash fleetlimit:{<account>}:account holds, among what renew.lua writes:
  tat_ms        theoretical arrival time of the pace bucket (GCRA)
  seq           number of the last permit granted; starts at the clock, so that
                it grows even across a flush of Redis
  own           permits granted in the last window + jitter
  left_seq      number of the last permit that has left the window
  open_from_ms, open_last_ms, open_n, oldest_ms
                the bucket of grants that is being filled, and the last instant
                of the oldest closed one (0: there is none)
  reported      the limit that the API reported (0: none yet)
  foreign, foreign_ms, observed_seq
                what strangers spent on the key in the window, when that was
                observed, and the permit that observed it
  stranger, stranger_ms
                the most that they were seen to spend in a window lately, and when
                they were last seen
  doubtful      own permits of which that observation could not tell whether the
                API had counted them
  spent         what the API had counted by then in its window, the permits that
                it may have missed included
  reset_ms      until when nothing leaves the API's window, as it said; 0: unknown
  told_ms       when it said so first
  rolling_ms    when it was last seen to put that off (0: never): then it tells
                nothing
  probe_ms      after a 429: from when on one request may find out whether the
                strangers' use still stands (0: nothing to find out)
  tight         1 while the window gate has turned somebody away and the queue
                has not been empty since: bursts are kept small
  ticket_ms     the youngest place given out in a queue: a new one lies behind it,
                though the clock may not have moved in between
  epoch, strikes  how often the API pushed back; how often in a row
  born_ms       when the account was created; another value than a worker knows
                says that Redis has lost its memory since
  reborn_ms     when a worker said so: until all have had a heartbeat to tell which
                slots are taken, none is given
  kept          number of the last permit that was known when Redis was found to have
                gone back to an older state; 0: it has not
  workers       how many workers were alive at the last heartbeat of any
  overdue_ms    the earliest instant by which a worker should have been heard of,
                before now or still to come; 0: unknown
  silent        how many workers were overdue at the last exchange
  rejected      429s that the API has said since the account was created
  drain:<worker>  until when an operator keeps this worker from new permits
  policies      how many different policies the live workers have; above 1 the
                strictest counts, which the heartbeats write down
--]]

local MAX_PAUSE = 300000   -- longest shared pause: 5 minutes
local MAX_HOLD = 86400000  -- longest pause or drain by an operator: a day
local PROBE = 2000         -- time between requests that look whether strangers have gone
local GRACE = 1000         -- how late a place in a queue may be claimed
local LATE = 400           -- how much later than foreseen those come who are not the first in a queue
local RESUMPTION = 5000    -- after Redis was away: time for all workers to tell what they spent
local AWAY = 'Redis was away'
local LOOK = 'look' -- listen.go knows it
local LONGEST_BEAT = 60000 -- after which all who hold slots have told so, once Redis has forgotten it
local LOST = 10000         -- for how long a worker is silent that may be cut off for good
local IDLE_TTL = 600000    -- an idle account disappears after this time
local BUCKETS = 512        -- buckets per window of the ring of grants
local DOUBT = 2            -- standard deviations of strangers for which the reserve is enough
local LAST_DOUBT = 3       -- and for the last requests before a window resets
local MEMORY = 3           -- windows until strangers that are seen no more are forgotten
local CATCH_UP = 4         -- how much faster than a window room is used that strangers leave
local COARSE = 2500        -- how exact a reset in whole seconds is, at worst
local TIGHT_BURST = 0.02   -- burst while callers wait, as a share of the limit
local LIMIT_CEILING = 1e9

-- The first COUNTS of them are whole numbers, and written down without decimals.
local COUNTS = 17
local FIELDS = {
  'seq', 'own', 'left_seq', 'open_n', 'reported', 'foreign', 'observed_seq', 'spent',
  'tight', 'epoch', 'strikes', 'rejected', 'born_ms', 'workers', 'policies', 'silent', 'kept',
  'tat_ms', 'open_from_ms', 'open_last_ms', 'oldest_ms', 'foreign_ms', 'stranger', 'stranger_ms',
  'doubtful', 'ticket_ms', 'probe_ms', 'reset_ms', 'told_ms', 'rolling_ms', 'reborn_ms', 'overdue_ms',
  'drain:' .. ARGV[1],
}

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
end

-- ms and int write numbers. '%d' costs a third of what '%.3f' does.
local function ms(x)
  if x == 0 then return '0.000' end
  if x < 0 or x > 1e12 * 1000 then return string.format('%.3f', x) end
  local micros = math.floor(x * 1000 + 0.5)
  local whole = math.floor(micros / 1000)
  return string.format('%d.%03d', whole, micros - whole * 1000)
end
local function int(x) return string.format('%d', math.floor(x + 0.5)) end

-- number reads a stored value; whatever is not a sane number counts as 0.
local function number(s)
  local x = tonumber(s)
  if not x or x ~= x or x < 0 or x > 1e15 then return 0 end
  return x
end

local function read_policy(argv, i)
  return {
    limit = tonumber(argv[i]),
    window = tonumber(argv[i + 1]),
    jitter = tonumber(argv[i + 2]),
    headroom = tonumber(argv[i + 3]),
    burst = tonumber(argv[i + 4]),
    horizon = tonumber(argv[i + 1]) + tonumber(argv[i + 2]),
  }
end

-- obey makes a policy as strict as the strictest of the live workers.
local function obey(p, key)
  local h = redis.call('HMGET', key, 'limit', 'window_ms', 'jitter_ms', 'headroom', 'burst')
  local q = {
    limit = number(h[1]), window = number(h[2]), jitter = number(h[3]), headroom = number(h[4]), burst = number(h[5]),
  }
  if not is_policy(q) then return end
  for field, value in pairs(stricter(p, q)) do p[field] = value end
end

-- Whether messages go by sharded pub/sub, as in a cluster, where they then need not
-- reach all nodes; nil: both ways, for those who do not know how the workers listen.
local sharded = false

local function publish(channel, text)
  if not sharded then redis.call('PUBLISH', channel, text) end
  if sharded == nil then
    redis.pcall('SPUBLISH', channel, text) -- a server that lacks it is no cluster
  elseif sharded then
    redis.call('SPUBLISH', channel, text)
  end
end

-- wake tells a worker on its channel when to ask again.
local function wake(keys, worker, endpoint, wait)
  publish(string.sub(keys[1], 1, -8) .. 'wake:' .. worker, string.format('%.3f %s', wait, endpoint))
end

-- call_all calls all workers of the account.
local function call_all(keys, message)
  publish(string.sub(keys[1], 1, -8) .. 'wake', message)
end

-- The ring of grants: a list of closed buckets "<last_ms> <count> <seq>", oldest
-- first, and the open bucket in the account hash. A bucket leaves only when its
-- last grant lies outside the window + jitter, so the count is never too low.

local function parse_bucket(entry)
  local last, count, seq = string.match(entry, '^(%S+) (%S+) (%S+)$')
  return number(last), number(count), number(seq)
end

-- merge forgets when the requests in the window were granted, but not how many
-- they are: all count as granted with the youngest.
local function merge(a, key)
  redis.call('DEL', key)
  a.open_n, a.oldest_ms = a.own, 0
end

local function evict(a, p, key, now)
  local edge = now - p.horizon
  if a.open_last_ms <= edge then
    if a.oldest_ms > 0 then redis.call('DEL', key) end
    a.own, a.open_n, a.oldest_ms, a.left_seq = 0, 0, 0, a.seq
    return
  end
  while a.oldest_ms > 0 and a.oldest_ms <= edge do
    local last, count, seq = parse_bucket(redis.call('LPOP', key) or '')
    -- A ring that does not begin as the account says was deleted on its own.
    if last ~= a.oldest_ms then return merge(a, key) end
    a.own, a.left_seq = math.max(0, a.own - count), seq
    local head = redis.call('LINDEX', key, 0)
    if not head then return merge(a, key) end
    a.oldest_ms = parse_bucket(head)
  end
end

-- close_bucket closes the open bucket if an instant lies too far behind its begin.
local function close_bucket(a, p, key, at)
  if a.open_n == 0 or at - a.open_from_ms < p.window / BUCKETS then return end
  if a.oldest_ms == 0 then redis.call('DEL', key) end
  redis.call('RPUSH', key, ms(a.open_last_ms) .. ' ' .. int(a.open_n) .. ' ' .. int(a.seq))
  redis.call('PEXPIRE', key, int(p.horizon * 2))
  if a.oldest_ms == 0 then a.oldest_ms = a.open_last_ms end
  a.open_n = 0
end

-- count_in adds n (at least 1) requests to the ring at this instant.
local function count_in(a, p, key, now, n)
  close_bucket(a, p, key, now)
  if a.open_n == 0 then a.open_from_ms, a.begun = now, true end
  a.counted = true
  a.open_n, a.open_last_ms, a.own = a.open_n + n, now, a.own + n
end

-- count_out takes one request out of the bucket that holds permit seq; false: the
-- window holds it no more.
local function count_out(a, key, seq)
  if seq > a.seq or seq <= a.left_seq then return false end
  local closed = a.oldest_ms > 0 and redis.call('LRANGE', key, 0, -1) or {}
  for i = #closed, 1, -1 do
    local last, count, upto = parse_bucket(closed[i])
    if upto < seq then break end
    local before = a.left_seq
    if i > 1 then
      local _
      _, _, before = parse_bucket(closed[i - 1])
    end
    if before < seq then
      if count > 0 then
        redis.call('LSET', key, i - 1, ms(last) .. ' ' .. int(count - 1) .. ' ' .. int(upto))
        a.own = math.max(0, a.own - 1)
      end
      return true
    end
  end
  if a.open_n > 0 then
    a.open_n, a.own = a.open_n - 1, math.max(0, a.own - 1)
  end
  return true
end

-- count_past adds n requests that were sent at an earlier instant, unknown to Redis,
-- in their place in the ring. Their bucket holds no permit: it ends with the number
-- with which the one before it ends.
local function count_past(a, p, key, at, n)
  at = number(ms(at))
  local width = p.window / BUCKETS
  a.own = a.own + n
  close_bucket(a, p, key, at)
  if a.open_n > 0 and at >= a.open_from_ms then
    a.open_n, a.open_last_ms = a.open_n + n, math.max(a.open_last_ms, at)
    return
  end
  local closed = a.oldest_ms > 0 and redis.call('LRANGE', key, 0, -1) or {}
  local i = #closed
  while i > 0 and (parse_bucket(closed[i])) >= at do i = i - 1 end
  -- The first i buckets are older.
  if closed[i + 1] then
    local last, count, seq = parse_bucket(closed[i + 1])
    if last - at <= width then
      redis.call('LSET', key, i, ms(last) .. ' ' .. int(count + n) .. ' ' .. int(seq))
      return
    end
  end
  local before = a.left_seq
  if i > 0 then
    local _
    _, _, before = parse_bucket(closed[i])
  end
  local entry = ms(at) .. ' ' .. int(n) .. ' ' .. int(before)
  if #closed == 0 then
    redis.call('DEL', key)
    redis.call('RPUSH', key, entry)
  elseif i == 0 then
    redis.call('LPUSH', key, entry)
  else
    redis.call('LINSERT', key, 'AFTER', closed[i], entry)
  end
  redis.call('PEXPIRE', key, int(p.horizon * 2))
  if i == 0 then a.oldest_ms = at end
  a.open_last_ms = math.max(a.open_last_ms, at)
end

-- granted_by returns the number of the last permit that was granted by instant t
-- or in the same bucket.
local function granted_by(a, p, key, t)
  if a.open_n > 0 and a.open_from_ms <= t then return a.seq end
  local from = -8
  while a.oldest_ms > 0 do
    local closed = redis.call('LRANGE', key, from, from + 7)
    for i = #closed, 1, -1 do
      local last, _, seq = parse_bucket(closed[i])
      if last - p.window / BUCKETS <= t then return seq end
    end
    if #closed < 8 then break end
    from = from - 8
  end
  return a.left_seq
end

-- until_room returns how long it takes until `need` requests have left the window.
local function until_room(a, p, key, now, need)
  if a.oldest_ms == 0 then return a.open_last_ms + p.horizon - now end
  if need <= 1 then return a.oldest_ms + p.horizon - now end
  for _, entry in ipairs(redis.call('LRANGE', key, 0, -1)) do
    local last, count = parse_bucket(entry)
    need = need - count
    -- One that should have left is garbage, and tells nothing.
    if need <= 0 and last + p.horizon > now then return last + p.horizon - now end
  end
  return a.open_last_ms + p.horizon - now
end

-- Derived quantities of the budget.

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

local function set_credit(a, p, now, permits)
  a.tat_ms = now + (bucket_size(a, p) - permits) * emission_interval(a, p, now)
end

-- spend takes permits out of it.
local function spend(a, p, now, permits)
  a.tat_ms = math.max(now, a.tat_ms) + permits * emission_interval(a, p, now)
end

-- set_tight switches between the large and the small burst and keeps the credit,
-- as far as it fits: loosening gives nothing for free.
local function set_tight(a, p, now, tight)
  if a.tight == tight then return end
  local kept = credit(a, p, now)
  a.tight = tight
  set_credit(a, p, now, math.min(kept, bucket_size(a, p)))
end

-- Pauses: the hash fleetlimit:{<account>}:backoff, or backoff:<endpoint>. It holds
-- what the API asked for (until_ms, length_ms) and what an operator asked for
-- (hold_until_ms, hold_ms): neither cuts the other short. One that ends later than it
-- could (the clock was set back) is cut to its length.

-- pause_left returns how long the pause still lasts, and what of this the API and
-- the operator asked for.
local function pause_left(key, now)
  local b = redis.call('HMGET', key, 'until_ms', 'length_ms', 'hold_until_ms', 'hold_ms')
  if not b[1] and not b[3] then return 0, 0, 0 end
  local api, longest = number(b[1]) - now, math.min(number(b[2]), MAX_PAUSE)
  local hold, longest_hold = number(b[3]) - now, math.min(number(b[4]), MAX_HOLD)
  if api > longest + 1 or hold > longest_hold + 1 then
    api, hold = math.min(api, longest), math.min(hold, longest_hold)
    if b[1] then redis.call('HSET', key, 'until_ms', ms(now + api)) end
    if b[3] then redis.call('HSET', key, 'hold_until_ms', ms(now + hold)) end
    redis.call('PEXPIRE', key, int(math.ceil(math.max(1, api, hold))))
  end
  api, hold = math.max(0, math.min(api, longest)), math.max(0, math.min(hold, longest_hold))
  return math.max(api, hold), api, hold
end

-- set_pause writes down a pause that the API asked for. It expires by itself.
local function set_pause(key, now, length, reason, worker, strikes, epoch)
  local _, _, hold = pause_left(key, now)
  redis.call('HSET', key, 'since_ms', ms(now), 'until_ms', ms(now + length), 'length_ms', ms(length),
    'reason', reason, 'worker', worker, 'strikes', int(strikes), 'epoch', int(epoch))
  redis.call('PEXPIRE', key, int(math.ceil(math.max(length, hold))))
end

-- end_with_one_permit leaves the bucket with one permit and no burst at the end of
-- a pause, so that the fleet comes back at its pace and not as a herd.
local function end_with_one_permit(a, p, now, left)
  set_credit(a, p, now, math.min(credit(a, p, now), 1 - left / emission_interval(a, p, now)))
end

-- resumption pauses the account for a while in which all workers tell what they
-- spent while Redis was away, and go on with their own shares. If the API or an operator
-- has asked for a pause, nobody goes on in it: that pause lasts long enough to tell, and all
-- are called to look, once (tell_until_ms). All workers are told, also those who wait and
-- would not ask for long.
local function resumption(a, p, keys, now, length, worker)
  local key = keys[3]
  local left, api, hold = pause_left(key, now)
  local away = api > 0 and redis.call('HGET', key, 'reason') == AWAY
  if length <= 1 or away and length <= left + 1 then return end -- instants are not exact
  local message = AWAY
  if api > 0 and not away or length <= left + 1 then
    if number(redis.call('HGET', key, 'tell_until_ms')) > now then return end
    redis.call('HSET', key, 'tell_until_ms', ms(now + length))
    if length > left + 1 then
      redis.call('HSET', key, 'until_ms', ms(now + length), 'length_ms', ms(length))
      redis.call('PEXPIRE', key, int(math.ceil(math.max(length, hold))))
    end
    message = LOOK
  else
    set_pause(key, now, length, AWAY, worker, a.strikes, a.epoch)
  end
  end_with_one_permit(a, p, now, math.max(left, length))
  call_all(keys, message)
end

-- resumption_left tells such a pause from one that the API or an operator asked for,
-- in which nobody may go on.
local function resumption_left(key, now)
  local _, api, hold = pause_left(key, now)
  return hold == 0 and api > 0 and redis.call('HGET', key, 'reason') == AWAY and api or 0
end

-- bear_anew has an account be born anew that has gone back to an older state (an old dump,
-- a replica that lagged), so that all workers tell what they sent. What it knows stays
-- counted: all that it has granted, but for what it was still being told by then. What was
-- granted before can be given back no more, and says nothing of strangers: its numbers are
-- those of an account that is gone.
local function bear_anew(a, p, keys, now, born, heard)
  if a.reborn_ms == 0 or now - a.reborn_ms >= p.horizon then a.kept = a.seq end
  a.reborn_ms, a.born_ms = now, math.max(math.floor(now), born + 1)
  a.seq = math.max(a.seq, heard, math.floor(now))
  a.left_seq, a.observed_seq, a.reset_ms = a.seq, a.seq, 0
  local closed = a.oldest_ms > 0 and redis.call('LRANGE', keys[2], 0, -1) or {}
  for i = 1, #closed do
    local last, count = parse_bucket(closed[i])
    redis.call('LSET', keys[2], i - 1, ms(last) .. ' ' .. int(count) .. ' ' .. int(a.seq))
  end
end

-- check_memory compares the account's birth with the one that a worker knew. If they
-- differ, Redis has lost its memory, and what was sent is known to the workers alone:
-- they get a while to tell. (Heartbeats keep an account whose workers are idle.) If the
-- worker knew a younger one, this one has come back. It returns whether they agree.
local function check_memory(a, p, keys, now, known, worker)
  if known == 0 or known == a.born_ms then return true end
  if known > a.born_ms then bear_anew(a, p, keys, now, known, a.seq) end
  if a.reborn_ms == 0 then a.reborn_ms = now end
  local since = a.born_ms <= now and a.born_ms or a.reborn_ms
  resumption(a, p, keys, now, since + RESUMPTION - now, worker)
  return false
end

-- go_on finds out whether Redis has gone back to an older state of this account: a worker
-- has heard of a permit that is not granted yet, or knows a younger account. It returns
-- whether Redis has not.
local function go_on(a, p, keys, now, born, heard, worker)
  if born < a.born_ms or born == a.born_ms and heard <= a.seq then return true end
  bear_anew(a, p, keys, now, born, heard)
  return check_memory(a, p, keys, now, born, worker)
end

-- keep_key lets a key live for ttl milliseconds at least, and a fourth longer at
-- most, so that not every call has to prolong it.
local function keep_key(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, int(ttl * 1.25)) end
end

-- The account, from when it is loaded; for guard.lua.
local loaded

-- load_account reads the account, makes the policy as strict as the fleet's, and brings
-- the account to this instant: the clock never
-- runs backwards by a little, a large jump backwards is digested at once, and
-- what is older than the window leaves.
local function load_account(keys, p)
  local now = clock()
  local values = redis.call('HMGET', keys[1], unpack(FIELDS))
  local a = {stored = values}
  for i = 1, #FIELDS do
    local x = tonumber(values[i] or 0)
    if x and x >= 0 and x <= 1e15 then
      values[i] = x -- as it stands there: save_account need not write it again
    else
      x = 0
    end
    a[FIELDS[i]] = x
  end
  if a.policies > 1 then obey(p, keys[1]) end
  if a.seq == 0 then
    a.seq, a.left_seq, a.born_ms = math.floor(now), math.floor(now), math.floor(now)
  end
  if a.open_last_ms > now then
    if a.open_last_ms - now <= 1000 then
      now = a.open_last_ms
    else
      merge(a, keys[2])
      a.open_from_ms, a.open_last_ms = now, now
    end
  end
  if a.foreign_ms > now then a.foreign_ms = now end
  if a.stranger_ms > now then a.stranger_ms = now end
  if a.probe_ms > now + MAX_PAUSE then a.probe_ms = now + MAX_PAUSE end
  if a.reset_ms > now + p.window then a.reset_ms = now + p.window end
  if a.rolling_ms > now then a.rolling_ms = now end
  if a.reborn_ms > now then a.reborn_ms = now end
  if a.left_seq > a.seq then a.left_seq = a.seq end
  if a.observed_seq > a.seq then a.observed_seq = a.seq end
  if a.ticket_ms > now + 1000 then a.ticket_ms = 0 end
  loaded = a
  evict(a, p, keys[2], now)
  if now - a.foreign_ms >= p.horizon - 0.001 then a.foreign = 0 end
  return a, now
end

-- save_account writes down what has changed. The key's life is renewed when a bucket
-- of grants is begun, and whenever nothing is granted: every 512th of a window suffices.
local function save_account(a, p, keys)
  local changed = {}
  for i = 1, #FIELDS do
    local field = FIELDS[i]
    if a[field] ~= a.stored[i] then
      changed[#changed + 1] = field
      changed[#changed + 1] = i <= COUNTS and int(a[field]) or ms(a[field])
    end
  end
  if #changed > 0 then redis.call('HSET', keys[1], unpack(changed)) end
  if a.begun or not a.counted then redis.call('PEXPIRE', keys[1], int(math.max(IDLE_TTL, 2 * p.horizon))) end
end

-- budget_wait returns how long it takes until the next permit fits the budget.
local function budget_wait(a, p, key, now, paused)
  local pace = (1 - credit(a, p, now)) * emission_interval(a, p, now)
  local window, free = 0, (room(a, p, now))
  if free < 1 then
    window = math.huge
    if a.own > 0 then window = until_room(a, p, key, now, 1 - free) end
    local rate = strangers(a, p, now)
    if rate > 0 and until_reset(a, p, now, rate) < 1 then window = math.max(window, a.reset_ms - now) end
    if a.foreign > 0 then window = math.min(window, a.foreign_ms + p.horizon - now) end
    if a.probe_ms > 0 and usable(a, p) - a.own >= 1 then
      window = math.min(window, a.probe_ms - now)
    end
    if window == math.huge then window = p.horizon end
  end
  return math.max(paused, pace, window, 0), pace, window
end

-- Queues: a sorted set of places "<worker> <endpoint>" by the instant from which
-- they wait, and one of the same places by the instant at which their owner was
-- told to come. A place that is not claimed within GRACE of that lapses.

-- tell changes the instant at which the owner of a place shall come, and says so.
local function tell(keys, due_key, place, now, wait)
  redis.call('ZADD', due_key, ms(now + wait), place)
  keep_key(due_key, IDLE_TTL)
  local worker, endpoint = string.match(place, '^(%S+) (.*)$')
  if worker then wake(keys, worker, endpoint, wait) end
end

-- wake_head tells the first in the queue for budget when it can be served, if
-- that is earlier than it knows. So the head always knows, and capacity that
-- comes earlier than foreseen finds somebody.
local function wake_head(a, p, keys, now, paused)
  local head = redis.call('ZRANGE', keys[4], 0, 0)[1]
  if not head then return end
  local due = redis.call('ZSCORE', keys[5], head)
  local wait = budget_wait(a, p, keys[2], now, paused)
  if not due or number(due) - now > wait + math.max(2, emission_interval(a, p, now) / 10) then
    tell(keys, keys[5], head, now, wait)
  end
end
