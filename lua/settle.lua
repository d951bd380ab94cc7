--[[
settle.lua: what became of permits. The operations of exchange.lua that give leases
back and record what the API said. scripts.go puts it behind account.lua; it is no
script of its own.
--]]

local worker = ARGV[1]
local policy = read_policy(ARGV, 2)
local a, now = load_account(KEYS, policy)
local endpoints = tonumber(ARGV[7])
local cursor = 8 + 3 * endpoints
local released = 0
local freed = {}

local function next_arg()
  cursor = cursor + 1
  return ARGV[cursor - 1]
end

local function next_number()
  return tonumber(next_arg())
end

local function key_of(e, what)
  return KEYS[6 + 4 * (e - 1) + what]
end
local BACKOFF, SLOTS, QUEUE, DUE = 1, 2, 3, 4

-- calm is true while no pause is written down, of the account or of an endpoint here;
-- quiet, while nobody waits in a queue either. One command says both of most exchanges.
local calm, quiet
do
  local pauses, all = {KEYS[3]}, {KEYS[3], KEYS[4]}
  for e = 1, endpoints do
    pauses[e + 1] = key_of(e, BACKOFF)
    all[2 * e + 1], all[2 * e + 2] = key_of(e, BACKOFF), key_of(e, QUEUE)
  end
  quiet = redis.call('EXISTS', unpack(all)) == 0
  calm = quiet or redis.call('EXISTS', unpack(pauses)) == 0
end

-- paused_for is pause_left where there may be a pause.
local function paused_for(key)
  if calm then return 0, 0, 0 end
  return pause_left(key, now)
end

local function name_of(e) return ARGV[5 + 3 * e] end
local function lease_ttl_of(e) return tonumber(ARGV[7 + 3 * e]) end

-- cap_of is how many slots an endpoint has, and longest_lease how long any worker's
-- lease may live.
local caps, longest = {}, {}
for e = 1, endpoints do
  caps[e], longest[e] = tonumber(ARGV[6 + 3 * e]), lease_ttl_of(e)
  if a.policies > 1 then
    local told = redis.call('HMGET', KEYS[1], 'slots:' .. name_of(e), 'lease_ms:' .. name_of(e))
    local cap, ttl = number(told[1]), number(told[2])
    if cap >= 1 then caps[e] = math.min(caps[e], cap) end
    if ttl <= MAX_WINDOW then longest[e] = math.max(longest[e], ttl) end
  end
end
local function cap_of(e) return caps[e] end
local function longest_lease(e) return longest[e] end

-- Silence: the sorted set of the workers by the instant by which they are to be heard
-- of at the latest, as their heartbeats say. Who lets its turn go by is overdue earlier.

local function count_silent()
  local first = redis.call('ZRANGE', KEYS[6], 0, 0, 'WITHSCORES')
  a.overdue_ms, a.silent = number(first[2] or 0), 0
  if a.overdue_ms == 0 or a.overdue_ms > now then return end
  a.silent = math.min(redis.call('ZCOUNT', KEYS[6], '-inf', ms(now)), math.max(0, a.workers - 1))
end

-- overdue notes by when workers should have been heard of, as instant, name, and so on;
-- of those that count as alive.
local function overdue(missed)
  if #missed == 0 then return end
  redis.call('ZADD', KEYS[6], 'XX', 'LT', unpack(missed))
  count_silent()
end

-- muster counts the silent. Who asks is none of them; when it is expected again, its
-- next heartbeat says. After a window the headers have shown what there is to be seen.
local function muster()
  if a.overdue_ms == 0 or a.overdue_ms > now then
    a.silent = 0
    return
  end
  local mine = redis.call('ZSCORE', KEYS[6], worker)
  if mine and number(mine) <= now then redis.call('ZADD', KEYS[6], ms(now + IDLE_TTL), worker) end
  if now - a.overdue_ms > policy.horizon then
    local lost = redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', ms(now - policy.horizon), 'LIMIT', 0, 100)
    if #lost > 0 then redis.call('ZREM', KEYS[6], unpack(lost)) end
  end
  count_silent()
end
muster()

-- Leases

local function free_lease(e, lease)
  if redis.call('ZREM', key_of(e, SLOTS), lease) == 1 then
    released = released + 1
    freed[e] = true
  end
end

local function extend_lease(e, lease, ttl)
  if redis.call('ZSCORE', key_of(e, SLOTS), lease) then
    redis.call('ZADD', key_of(e, SLOTS), ms(now + ttl), lease)
    keep_key(key_of(e, SLOTS), ttl + GRACE)
    return true
  end
  return false
end

-- Only the holder may give a lease back: its name is the lease's first part.
local holder = worker .. ':'
local function is_mine(lease)
  return string.sub(lease, 1, #holder) == holder
end

-- free gives the next `count` leases of the arguments back.
local function free(e, count)
  local mine = {}
  for i = cursor, cursor + count - 1 do
    if is_mine(ARGV[i]) then mine[#mine + 1] = ARGV[i] end
  end
  cursor = cursor + count
  if #mine == 0 then return end
  local gone = redis.call('ZREM', key_of(e, SLOTS), unpack(mine))
  if gone > 0 then
    released = released + gone
    freed[e] = true
  end
end

-- A slot that is given back in a while changes its name, so that no heartbeat that is
-- under way renews it.
local function release(e, lease, linger)
  if not is_mine(lease) then return end
  if linger <= 0 then
    free_lease(e, lease)
  elseif redis.call('ZSCORE', key_of(e, SLOTS), lease) then
    -- In this order the key, and with it its time to live, stays.
    redis.call('ZADD', key_of(e, SLOTS), ms(now + linger), lease .. '!')
    redis.call('ZREM', key_of(e, SLOTS), lease)
    keep_key(key_of(e, SLOTS), linger + GRACE)
  end
end

-- forget frees the leases of this worker that it has never heard of, since the replies
-- that granted them were lost: those with higher numbers than it knew, that are older than
-- any reply under way, and that it does not list.
local function forget(e, after, age, count)
  local heard = {}
  for i = cursor, cursor + count - 1 do heard[ARGV[i]] = true end
  cursor = cursor + count
  for _, lease in ipairs(redis.call('ZRANGE', key_of(e, SLOTS), 0, -1)) do
    local since, seq = string.match(lease, ':([%d.]+):(%d+)$')
    if seq and is_mine(lease) and number(seq) > after and number(since) <= now - age and not heard[lease] then
      free_lease(e, lease)
    end
  end
end

local function bind(e, lease, key, ttl)
  if is_mine(lease) and extend_lease(e, lease, ttl) then
    redis.call('SET', key, lease, 'PX', int(ttl))
  end
end

-- lease_of is the lease of a job; of one whose key holds something else nothing is known.
local function lease_of(key)
  local lease = redis.pcall('GET', key)
  return type(lease) == 'string' and lease
end

-- A job that is seen alive takes a slot. If Redis has forgotten which, as it can
-- have in an account that is younger than the job may be, it gets one anew.
local function seen(e, key, ttl)
  local lease = lease_of(key)
  if lease and extend_lease(e, lease, ttl) then
    redis.call('PEXPIRE', key, int(ttl))
  elseif a.reborn_ms > 0 and now - a.reborn_ms < ttl
      and redis.call('ZCOUNT', key_of(e, SLOTS), '(' .. ms(now), '+inf') < cap_of(e) then
    lease = worker .. ':' .. ms(now) .. ':' .. int(cursor)
    redis.call('ZADD', key_of(e, SLOTS), ms(now + ttl), lease)
    keep_key(key_of(e, SLOTS), ttl + GRACE)
    redis.call('SET', key, lease, 'PX', int(ttl))
  end
end

-- adopt writes down a lease that the worker took from its own share.
local function adopt(e, lease)
  if not is_mine(lease) then return end
  local ttl = lease_ttl_of(e)
  redis.call('ZADD', key_of(e, SLOTS), ms(now + ttl), lease)
  keep_key(key_of(e, SLOTS), ttl + GRACE)
end

local function done(e, key)
  local lease = lease_of(key)
  if lease then free_lease(e, lease) end
  redis.call('DEL', key)
end

-- Budget

-- give_back undoes a grant, if the window still holds it.
local function give_back(seq)
  if not count_out(a, KEYS[2], seq) then return end
  set_credit(a, policy, now, math.min(bucket_size(a, policy), credit(a, policy, now) + 1))
end

local function count_from_now(seq)
  count_out(a, KEYS[2], seq)
  count_in(a, policy, KEYS[2], now, 1)
end

-- before_counting fails where the end of exchange.lua would, if a key of the budget holds
-- something of another type: what has been counted by then would be told again.
local minded = false
local function before_counting()
  if minded then return end
  redis.call('ZCARD', KEYS[4])
  redis.call('ZCARD', KEYS[5])
  paused_for(KEYS[3])
  minded = true
end

-- count_again counts a request that was sent once more.
local function count_again()
  before_counting()
  count_in(a, policy, KEYS[2], now, 1)
end

-- spent counts what was sent while Redis was away. What the headers have shown of it
-- was taken to be strangers'.
local function spent(count, age)
  count, age = math.min(number(count), LIMIT_CEILING), math.max(0, age)
  if count < 1 or age >= policy.horizon then return end
  local at = now - age
  before_counting()
  count_past(a, policy, KEYS[2], at, count)
  if at <= a.foreign_ms - policy.jitter and at >= a.foreign_ms - policy.window + policy.jitter then
    a.foreign, a.stranger = math.max(0, a.foreign - count), math.max(0, a.stranger - count)
  end
end

-- granted counts what was granted by an account that Redis has forgotten, with numbers up
-- to this one; what Redis knew when it had gone back in time is counted.
local function granted(seq, count, age)
  if seq > a.kept then spent(count, age) end
end

-- resume: this worker spends alone until it is heard of without this.
local function resume(outage)
  overdue({ms(now), worker})
  if resumption_left(KEYS[3], now) > 0 or a.open_last_ms > now - outage + 1000 then return end
  calm = false
  resumption(a, policy, KEYS, now, RESUMPTION, worker)
end

-- Feedback

-- observe_strangers learns what strangers have spent: the API counts more than we
-- can have sent. What we can have sent is all that was granted from one jitter
-- before the window to one jitter after the admission. Those at its two edges may
-- have been counted or not.
local function observe_strangers(seq, used, admitted, base)
  local reach, bucket = policy.jitter, policy.window / BUCKETS
  local latest = granted_by(a, policy, KEYS[2], admitted + reach)
  local arrived = math.min(seq, granted_by(a, policy, KEYS[2], admitted - reach - bucket))
  local rate = strangers(a, policy, now)
  a.foreign = math.max(0, used - math.max(0, latest - base))
  a.foreign_ms = math.min(now, admitted)
  a.probe_ms = 0
  a.doubtful = math.max(0, latest - arrived - 1) + a.own * reach / policy.horizon
  a.spent = used + math.max(0, seq - 1 - arrived)
  if a.foreign > 0 then a.stranger, a.stranger_ms = math.max(a.foreign, rate), now end
end

-- observe_reset learns until when nothing leaves the API's window. What was said first
-- stands; an API that keeps putting it off before it has come tells something else.
local function observe_reset(reset)
  if reset < 0 then
    a.reset_ms = 0
    return
  end
  local at = now + math.min(reset, policy.window)
  if at > a.reset_ms + COARSE and now + COARSE < a.reset_ms then a.rolling_ms = now end
  if at > a.reset_ms + COARSE or now >= a.reset_ms or at < a.reset_ms - COARSE then a.told_ms = now end
  if at < a.reset_ms or at > a.reset_ms + COARSE or now >= a.reset_ms then a.reset_ms = at end
end

-- observe learns the limit and the use. Only the youngest permit's observation counts;
-- but a call can end long after a younger one, and be the first to show a lower limit.
local function observe(seq, admitted, base, limit, remaining, reset)
  if limit < 1 or seq > a.seq then return end
  limit = math.min(limit, LIMIT_CEILING)
  local youngest = seq > a.observed_seq
  if not youngest and (a.reported > 0 and limit >= a.reported or limit >= policy.limit) then return end
  -- The bucket keeps its content, as of the end of a pause.
  local from = now + paused_for(KEYS[3])
  local kept = credit(a, policy, from)
  a.reported = limit
  if youngest then a.observed_seq = seq end
  if youngest and remaining >= 0 then
    observe_strangers(seq, limit - math.min(remaining, limit), admitted, base)
    observe_reset(reset)
  end
  set_credit(a, policy, from, math.min(kept, bucket_size(a, policy)))
end

-- pause makes the account or one endpoint wait. A permit that was granted under
-- an older epoch was already in flight when the pause began: it can prolong the
-- pause, but it is no new strike.
local function pause(key, strikes_field, epoch, asked, reason, random)
  local _, left = pause_left(key, now)
  local strikes = number(redis.call('HGET', KEYS[1], strikes_field))
  if strikes_field == 'strikes' then strikes = a.strikes end
  local fresh = epoch >= a.epoch or left == 0
  if fresh then strikes = strikes + 1 end
  local length = asked
  if length <= 0 then length = 1000 * 2 ^ math.min(16, math.max(0, strikes - 1)) end
  length = math.min(MAX_PAUSE, length + random * math.min(1000, length / 10))
  if not fresh and length <= left then return end

  if fresh then
    a.epoch = a.epoch + 1
    if strikes_field == 'strikes' then
      a.strikes = strikes
    else
      redis.call('HSET', KEYS[1], strikes_field, int(strikes))
    end
  end
  calm = false
  set_pause(key, now, length, reason, worker, strikes, a.epoch)
end

local function pause_account(epoch, asked, reason, random)
  pause(KEYS[3], 'strikes', epoch, asked, reason, random)
  local left = pause_left(KEYS[3], now)
  a.probe_ms = now + left
  end_with_one_permit(a, policy, now, left)
end

local function said(e, seq, admitted, base, epoch, status, limit, remaining, reset, retry_after, random)
  observe(seq, admitted, base, limit, remaining, reset)
  if status == 429 then a.rejected = a.rejected + 1 end
  local endpoint_strikes = e > 0 and 'strikes:' .. name_of(e)
  if status == 429 and endpoint_strikes and remaining > 0 then
    -- Budget is left, so it is the endpoint's cap that was hit.
    pause(key_of(e, BACKOFF), endpoint_strikes, epoch, retry_after, 'status 429, cap', random)
  elseif status == 429 then
    pause_account(epoch, retry_after >= 0 and retry_after or reset, 'status 429', random)
  elseif status == 503 and retry_after >= 0 then
    pause_account(epoch, retry_after, 'status 503', random)
  elseif status >= 200 and status < 400 and epoch >= a.epoch then
    a.strikes = 0
    if endpoint_strikes then redis.call('HDEL', KEYS[1], endpoint_strikes) end
  end
end

-- Waiting

local function leave(e)
  local place = worker .. ' ' .. (e > 0 and name_of(e) or '*')
  redis.call('ZREM', KEYS[4], place)
  redis.call('ZREM', KEYS[5], place)
  if e > 0 then
    redis.call('ZREM', key_of(e, QUEUE), place)
    redis.call('ZREM', key_of(e, DUE), place)
    freed[e] = true
  end
end

-- wake_for_slots calls as many of those who wait for a slot as there are slots.
local function wake_for_slots(e)
  if quiet then return end
  local waiting = redis.call('ZCARD', key_of(e, QUEUE))
  if waiting == 0 then return end
  local free = cap_of(e) - redis.call('ZCOUNT', key_of(e, SLOTS), '(' .. ms(now), '+inf')
  if free < 1 then return end
  for _, place in ipairs(redis.call('ZRANGE', key_of(e, QUEUE), 0, math.min(free, waiting) - 1)) do
    local due = redis.call('ZSCORE', key_of(e, DUE), place)
    if not due or number(due) > now + 2 then
      tell(KEYS, key_of(e, DUE), place, now, 0)
    end
  end
end
