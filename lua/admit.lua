--[[
admit.lua: may this worker send now?

One atomic step: a permit takes all that it needs (pace, window, slot), or
nothing. The gates stand below in the order in which they are evaluated.

KEYS  1 fleetlimit:{<account>}:account     hash, see account.lua
      2 fleetlimit:{<account>}:window      list, the ring of grants
      3 fleetlimit:{<account>}:backoff     hash, the account's pause
      4 fleetlimit:{<account>}:queue       zset, places waiting for budget
      5 fleetlimit:{<account>}:due         zset, when they were told to come
  and for an endpoint with slots
      6 fleetlimit:{<account>}:backoff:<endpoint>
      7 fleetlimit:{<account>}:slots:<endpoint>   zset, leases by expiry
      8 fleetlimit:{<account>}:queue:<endpoint>   zset, places waiting for a slot
      9 fleetlimit:{<account>}:due:<endpoint>     zset

ARGV  1 worker
      2 endpoint, or "*" for requests that need budget alone
      3 n, permits wanted (at least 1)
      4 limit  5 window ms  6 jitter ms  7 headroom  8 burst    (the policy)
      9 slots of the endpoint (0: none)  10 lease TTL ms
     11 head start in the queue, ms (priority; may be negative)
     12 instant from which the caller waits, as an earlier reply gave it, or 0
     13 1 to take a place in the queue if not all is granted, else 0
     14 the account's birth as this worker knows it, if it has sent anything in
        the last window, else 0

Reply: array of strings
      1 permits granted, 0..n
      2 number of the last permit granted; the permits are consecutive
      3 instant of the admission, ms; the leases are "<worker>:<this>:<number>"
      4 own requests in the window, these included
      5 epoch
      6 gate that kept back the rest: drain, backoff, pace, window, slots, turn; or ""
      7 how long to wait before asking again, ms
      8 instant from which the granted callers waited, ms
      9 what the fleet may spend in a window: the limit in force, less strangers
        and the reserve for them
     10 content of the pace bucket, permits
     11 the account's birth
     12 workers alive
     13 strangers' requests in the window, as last seen
     14 how long the account, not the endpoint alone, is paused, ms
--]]

local worker, endpoint, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3])
local policy = read_policy(ARGV, 4)
local cap, lease_ttl = tonumber(ARGV[9]), tonumber(ARGV[10])
local head_start, waits_since = tonumber(ARGV[11]), tonumber(ARGV[12])
local may_queue, known_birth = ARGV[13] == '1', number(ARGV[14])
local place = worker .. ' ' .. endpoint

-- Gate 1, backoff: how long are the account, and the endpoint, still paused?
local function backoff_gate(now)
  return pause_left(KEYS[3], now), cap > 0 and pause_left(KEYS[6], now) or 0
end

-- Gate 2, pace: how many permits does the GCRA bucket hold? Its theoretical
-- arrival time can lie no further ahead than a full bucket behind the pause.
local function pace_gate(a, now, paused)
  local ahead = bucket_size(a, policy) * emission_interval(a, policy, now)
  a.tat_ms = math.min(a.tat_ms, now + paused + ahead)
  return math.floor(credit(a, policy, now) + 1e-6)
end

-- Gate 3, window: how many more requests can no window of the API object to?
local function window_gate(a, now)
  return room(a, policy, now)
end

-- Gate 4, slots: how many slots are free, once expired leases are removed? No
-- lease can have longer to live than its TTL; one that seems to (the clock was
-- set back) is cut to it.
local function slots_gate(now)
  if cap == 0 then return math.huge end
  redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', ms(now))
  local free = cap - redis.call('ZCARD', KEYS[7])
  if free <= 0 then
    local beyond = redis.call('ZRANGEBYSCORE', KEYS[7], '(' .. ms(now + lease_ttl), '+inf')
    for _, lease in ipairs(beyond) do
      redis.call('ZADD', KEYS[7], ms(now + lease_ttl), lease)
    end
  end
  return free
end

-- call_head calls the first of a queue that was told no time to come, or none that
-- can be right (its entry was lost): it comes, or its place lapses.
local function call_head(queue, due, now)
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  local at = head and redis.call('ZSCORE', due, head)
  if head and (not at or number(at) > now + IDLE_TTL) then tell(KEYS, due, head, now, 0) end
end

-- Gate 5, turns: of a capacity, how much may this place take? One permit is owed
-- to each place ahead; one is mine; more only beyond one for everybody.
local function turn_gate(queue, due, score, now, capacity)
  local length = redis.call('ZCARD', queue)
  if length == 0 then return math.min(wanted, capacity), 0, false end
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', ms(now - GRACE), 'LIMIT', 0, 100)) do
    if late ~= place then
      length = length - redis.call('ZREM', queue, late)
      redis.call('ZREM', due, late)
    end
  end
  local mine = redis.call('ZSCORE', queue, place)
  local ahead
  if mine and tonumber(mine) <= score then
    ahead = redis.call('ZRANK', queue, place)
  else
    ahead = redis.call('ZCOUNT', queue, '-inf', '(' .. ms(score))
  end
  local others = length - (mine and 1 or 0)
  if capacity <= ahead then
    if capacity > 0 then call_head(queue, due, now) end
    return 0, ahead, mine
  end
  return math.min(wanted, 1 + math.max(0, capacity - 1 - others)), ahead, mine
end

local function leave(queue, due, mine)
  if not mine then return end
  redis.call('ZREM', queue, place)
  redis.call('ZREM', due, place)
end

local function enqueue(queue, due, score, now, wait)
  redis.call('ZADD', queue, ms(score), place)
  redis.call('ZADD', due, ms(now + wait), place)
  redis.call('PEXPIRE', queue, int(IDLE_TTL))
  redis.call('PEXPIRE', due, int(IDLE_TTL))
end

local a, now = load_account(KEYS, policy)

check_memory(a, policy, KEYS[3], now, known_birth, worker)

-- Gate 0, drain: a worker that an operator drains gets nothing, and takes no place
-- that others would have to wait behind.
local drained = math.min(a['drain:' .. worker] - now, MAX_HOLD)
if drained > 0 then
  save_account(a, policy, KEYS)
  return {
    '0', int(a.seq), ms(now), int(a.own), int(a.epoch), 'drain', ms(math.min(drained, IDLE_TTL / 2)),
    ms(waits_since > 0 and math.min(now, waits_since) or now), int(budget(a, policy, now)),
    ms(credit(a, policy, now)), int(a.born_ms), int(a.workers),
  }
end

-- The place in the queue: where it was, where an earlier attempt had it, or behind
-- all others.
local ticket = math.max(now, a.ticket_ms + 0.001)
local since = ticket
if waits_since > 0 then since = math.max(now - IDLE_TTL, math.min(now, waits_since)) end
local score = since - head_start

local account_paused, endpoint_paused = backoff_gate(now)
local paused = math.max(account_paused, endpoint_paused)
local paced = pace_gate(a, now, account_paused)
local windowed, probing = window_gate(a, now)
local free = slots_gate(now)

local capacity = math.max(0, math.min(paced, windowed))
if paused > 0 then capacity = 0 end
local granted, budget_ahead, budget_mine = turn_gate(KEYS[4], KEYS[5], score, now, capacity)
local slot_ahead, slot_mine = 0, false
if cap > 0 then
  local of_slots
  of_slots, slot_ahead, slot_mine = turn_gate(KEYS[8], KEYS[9], score, now, math.max(0, free))
  granted = math.min(granted, of_slots)
  free = math.min(free - slot_ahead, of_slots)
end

-- Where the place was first taken is where its turn counts from.
local place_score = tonumber(budget_mine or slot_mine or score)
if place_score > score then place_score = score end

if granted > 0 then
  if probing then a.probe_ms = now + PROBE end
  set_credit(a, policy, now, credit(a, policy, now) - granted)
  -- The open bucket is closed, if need be, under the old number.
  count_in(a, policy, KEYS[2], now, granted)
  a.seq = a.seq + granted
  if cap > 0 then
    local leases, expiry = {}, ms(now + lease_ttl)
    for seq = a.seq - granted + 1, a.seq do
      leases[#leases + 1] = expiry
      leases[#leases + 1] = worker .. ':' .. ms(now) .. ':' .. int(seq)
    end
    redis.call('ZADD', KEYS[7], unpack(leases))
    keep_key(KEYS[7], lease_ttl + GRACE)
  end
end

if windowed < wanted and may_queue then set_tight(a, policy, now, 1) end

local gate, wait = '', 0
if granted == wanted then
  leave(KEYS[4], KEYS[5], budget_mine)
  if cap > 0 then leave(KEYS[8], KEYS[9], slot_mine) end
else
  -- Who has just been served goes to the back.
  local next_score = place_score
  if granted > 0 then
    next_score = ticket - head_start
    free = free - granted
  end
  local pace_wait, window_wait
  wait, pace_wait, window_wait = budget_wait(a, policy, KEYS[2], now, paused)
  if paused > 0 then
    gate = 'backoff'
  elseif free < 1 then
    gate = 'slots'
  elseif window_wait > 0 and window_wait >= pace_wait then
    gate = 'window'
  elseif pace_wait > 0 then
    gate = 'pace'
  else
    gate = 'turn'
  end

  local ahead = budget_ahead
  if granted > 0 then ahead = redis.call('ZCARD', KEYS[4]) - (budget_mine and 1 or 0) end
  wait = wait + ahead * (emission_interval(a, policy, now) * policy.horizon / policy.window)
  if gate == 'slots' then
    -- A release wakes the head of the queue; this is for when the message is lost.
    wait = math.min(10000, 1000 + 1000 * slot_ahead)
  end
  wait = math.max(1, math.min(wait, IDLE_TTL / 2))

  if may_queue then
    a.ticket_ms = ticket
    -- Who waits for its endpoint keeps nobody from the budget.
    if gate == 'slots' or endpoint_paused > account_paused then
      leave(KEYS[4], KEYS[5], budget_mine)
    else
      enqueue(KEYS[4], KEYS[5], next_score, now, wait)
    end
    if cap > 0 then enqueue(KEYS[8], KEYS[9], next_score, now, wait) end
  end
end

if redis.call('EXISTS', KEYS[4]) == 1 then
  wake_head(a, policy, KEYS, now, account_paused)
elseif gate == '' or gate == 'slots' then
  set_tight(a, policy, now, 0)
end
save_account(a, policy, KEYS)
return {
  int(granted), int(a.seq), ms(now), int(a.own), int(a.epoch), gate, ms(wait), ms(place_score + head_start),
  int(budget(a, policy, now)),
  ms(credit(a, policy, now)), int(a.born_ms), int(a.workers), int(a.foreign), ms(account_paused),
}
