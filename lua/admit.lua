--[[
admit.lua: may this worker send now? The operation admit of exchange.lua. A permit
takes all that it needs (pace, window, slot), or nothing. The gates stand below in
the order in which they are evaluated. scripts.go puts it behind settle.lua; it is
no script of its own.
--]]

-- Gate 1, backoff: how long are the account, and the endpoint, still paused?
local function backoff_gate(e)
  return (paused_for(KEYS[3])), e > 0 and paused_for(key_of(e, BACKOFF)) or 0
end

-- Gate 2, pace: how many permits does the GCRA bucket hold? Its theoretical
-- arrival time can lie no further ahead than a full bucket behind the pause.
local function pace_gate(paused)
  local ahead = bucket_size(a, policy) * emission_interval(a, policy, now)
  a.tat_ms = math.min(a.tat_ms, now + paused + ahead)
  return math.floor(credit(a, policy, now) + 1e-6)
end

-- Gate 3, window: how many more requests can no window of the API object to?
local function window_gate()
  return room(a, policy, now)
end

-- Gate 4, slots: how many slots are free, once expired leases are removed? No
-- lease can have longer to live than its TTL; one that seems to (the clock was
-- set back) is cut to it.
local function slots_gate(e)
  if e == 0 then return math.huge end
  local slots, cap, ttl = key_of(e, SLOTS), cap_of(e), longest_lease(e)
  redis.call('ZREMRANGEBYSCORE', slots, '-inf', ms(now))
  local free = cap - redis.call('ZCARD', slots)
  -- Who holds a slot and is otherwise idle tells it with its heartbeat; who watches
  -- a job, with its next poll.
  if a.reborn_ms > 0 and now < a.reborn_ms + math.min(ttl / 3, LONGEST_BEAT) + GRACE then return 0 end
  if free <= 0 then
    local beyond = redis.call('ZRANGEBYSCORE', slots, '(' .. ms(now + ttl), '+inf')
    for _, lease in ipairs(beyond) do
      redis.call('ZADD', slots, ms(now + ttl), lease)
    end
  end
  return free
end

-- call_head calls the first of a queue that was told no time to come, or none that
-- can be right (its entry was lost): it comes, or its place lapses.
local function call_head(queue, due)
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  local at = head and redis.call('ZSCORE', due, head)
  if head and (not at or number(at) > now + IDLE_TTL) then tell(KEYS, due, head, now, 0) end
end

-- lapse ends the places whose owners did not come when they were told to, and returns
-- how many are left. Those owners may be cut off, and go on alone.
local function lapse(queue, due, place)
  if quiet then return 0 end
  local length = redis.call('ZCARD', queue)
  if length == 0 then return 0 end
  local late = redis.call('ZRANGEBYSCORE', due, '-inf', ms(now - GRACE), 'WITHSCORES', 'LIMIT', 0, 100)
  local missed = {}
  for i = 1, #late, 2 do
    if late[i] ~= place then
      length = length - redis.call('ZREM', queue, late[i])
      redis.call('ZREM', due, late[i])
      local owner = string.match(late[i], '^%S+')
      if owner and owner ~= worker then
        missed[#missed + 1] = ms(number(late[i + 1]) + GRACE)
        missed[#missed + 1] = owner
      end
    end
  end
  overdue(missed)
  return length
end

-- Gate 5, turns: of a capacity, how much may this place take? One permit is owed
-- to each place ahead; one is mine; more only beyond one for everybody.
local function turn_gate(queue, due, length, place, score, wanted, capacity)
  if length == 0 then return math.min(wanted, capacity), 0, false end
  local mine = redis.call('ZSCORE', queue, place)
  local ahead
  if mine and tonumber(mine) <= score then
    ahead = redis.call('ZRANK', queue, place)
  else
    ahead = redis.call('ZCOUNT', queue, '-inf', '(' .. ms(score))
  end
  local others = length - (mine and 1 or 0)
  if capacity <= ahead then
    if capacity > 0 then call_head(queue, due) end
    return 0, ahead, mine
  end
  return math.min(wanted, 1 + math.max(0, capacity - 1 - others)), ahead, mine
end

local function unqueue(queue, due, place, mine)
  if not mine then return end
  redis.call('ZREM', queue, place)
  redis.call('ZREM', due, place)
end

local function enqueue(queue, due, place, score, wait)
  quiet = false
  redis.call('ZADD', queue, ms(score), place)
  redis.call('ZADD', due, ms(now + wait), place)
  redis.call('PEXPIRE', queue, int(IDLE_TTL))
  redis.call('PEXPIRE', due, int(IDLE_TTL))
end

-- take_slots leases a slot for each of the permits up to a.seq.
local function take_slots(e, granted)
  local leases, expiry = {}, ms(now + lease_ttl_of(e))
  local prefix, before, format = holder .. ms(now) .. ':', a.seq - granted, string.format
  for n = 1, granted do
    leases[2 * n - 1], leases[2 * n] = expiry, format('%s%d', prefix, before + n)
  end
  redis.call('ZADD', key_of(e, SLOTS), unpack(leases))
  keep_key(key_of(e, SLOTS), lease_ttl_of(e) + GRACE)
end

-- suspect: who is silent for long, while others are served, may live and be cut off for
-- long. Once it counts as dead it is a stranger, and the headers of a resetting window
-- show that towards its end.
local function suspect()
  if a.silent == 0 or now - a.overdue_ms <= LOST then return end
  local shares = a.silent * usable(a, policy) / a.workers
  a.stranger, a.stranger_ms = math.max(strangers(a, policy, now), shares), now
end

-- which_gate says which gate kept permits back.
local function which_gate(account_paused, paused, free, pace_wait, window_wait)
  if paused > 0 then
    return account_paused == paused and resumption_left(KEYS[3], now) > 0 and 'away' or 'backoff'
  end
  if free < 1 then return 'slots' end
  if window_wait > 0 and window_wait >= pace_wait then return 'window' end
  if pace_wait > 0 then return 'pace' end
  return 'turn'
end

-- window_turn is how long it takes at least until the window has room for a place that
-- has others ahead: the room that there is, and what leaves it, goes to them first.
local function window_turn(ahead, each)
  local beyond = ahead - math.max(0, (room(a, policy, now)))
  if beyond < 0 or a.own == 0 then return 0 end
  return until_room(a, policy, KEYS[2], now, 1) + beyond * each
end

-- answer appends the answer to one wish to the replies.
local function answer(replies, granted, gate, wait, since)
  local n = #replies
  replies[n + 1], replies[n + 2], replies[n + 3] = int(granted), int(a.seq), int(a.own)
  replies[n + 4], replies[n + 5], replies[n + 6] = gate, ms(wait), ms(since)
end

-- admit grants what it can of the wanted permits, answers, and returns the gate that
-- kept back the rest.
local function admit(replies, e, wanted, head_start, waits_since, may_queue)
  -- Gate 0, drain: a worker that an operator drains gets nothing, and takes no place
  -- that others would have to wait behind.
  local drained = math.min(a['drain:' .. worker] - now, MAX_HOLD)
  if drained > 0 then
    answer(replies, 0, 'drain', math.min(drained, IDLE_TTL / 2),
      waits_since > 0 and math.min(now, waits_since) or now)
    return 'drain'
  end

  local place = worker .. ' ' .. (e > 0 and name_of(e) or '*')
  local queue, due = e > 0 and key_of(e, QUEUE), e > 0 and key_of(e, DUE)

  -- The place in the queue: where it was, where an earlier attempt had it, or behind
  -- all others.
  local ticket = math.max(now, a.ticket_ms + 0.001)
  local since = ticket
  if waits_since > 0 then since = math.max(now - IDLE_TTL, math.min(now, waits_since)) end
  local score = since - head_start

  -- Who is silent is known before the window is looked at.
  local length = lapse(KEYS[4], KEYS[5], place)
  local slot_length = e > 0 and lapse(queue, due, place) or 0

  local account_paused, endpoint_paused = backoff_gate(e)
  local paused = math.max(account_paused, endpoint_paused)
  local paced = pace_gate(account_paused)
  local windowed, probing = window_gate()
  local free = slots_gate(e)

  local capacity = math.max(0, math.min(paced, windowed))
  if paused > 0 then capacity = 0 end
  local granted, budget_ahead, budget_mine = turn_gate(KEYS[4], KEYS[5], length, place, score, wanted, capacity)
  local slot_ahead, slot_mine = 0, false
  if e > 0 then
    local of_slots
    of_slots, slot_ahead, slot_mine = turn_gate(queue, due, slot_length, place, score, wanted, math.max(0, free))
    granted = math.min(granted, of_slots)
    free = math.min(free - slot_ahead, of_slots)
  end

  -- Where the place was first taken is where its turn counts from.
  local place_score = tonumber(budget_mine or slot_mine or score)
  if place_score > score then place_score = score end

  if granted > 0 then
    if probing then a.probe_ms = now + PROBE end
    spend(a, policy, now, granted)
    -- The open bucket is closed, if need be, under the old number.
    count_in(a, policy, KEYS[2], now, granted)
    a.seq = a.seq + granted
    if e > 0 then take_slots(e, granted) end
    suspect()
  end

  if windowed < wanted and may_queue then set_tight(a, policy, now, 1) end

  local gate, wait = '', 0
  if granted == wanted then
    unqueue(KEYS[4], KEYS[5], place, budget_mine)
    if e > 0 then unqueue(queue, due, place, slot_mine) end
  else
    -- Who has just been served goes to the back.
    local next_score = place_score
    if granted > 0 then
      next_score = ticket - head_start
      free = free - granted
    end
    local pace_wait, window_wait
    wait, pace_wait, window_wait = budget_wait(a, policy, KEYS[2], now, paused)
    gate = which_gate(account_paused, paused, free, pace_wait, window_wait)

    local ahead, each = budget_ahead, emission_interval(a, policy, now) * policy.horizon / policy.window
    if granted > 0 then ahead = redis.call('ZCARD', KEYS[4]) - (budget_mine and 1 or 0) end
    wait = math.max(wait + ahead * each, window_turn(ahead, each))
    -- The head is called when it can be served. The others would come in vain if they
    -- came a moment before they are the head.
    if ahead > 0 and may_queue then wait = wait + math.min(LATE, 3 * each) end
    if gate == 'slots' then
      -- A release wakes the head of the queue; this is for when the message is lost.
      wait = math.min(10000, 1000 + 1000 * slot_ahead)
    end
    wait = math.max(1, math.min(wait, IDLE_TTL / 2))

    if may_queue then
      a.ticket_ms = ticket
      -- Who waits for its endpoint keeps nobody from the budget.
      if gate == 'slots' or endpoint_paused > account_paused then
        unqueue(KEYS[4], KEYS[5], place, budget_mine)
      else
        enqueue(KEYS[4], KEYS[5], place, next_score, wait)
      end
      if e > 0 then enqueue(queue, due, place, next_score, wait) end
    end
  end

  answer(replies, granted, gate, wait, place_score + head_start)
  return gate
end
