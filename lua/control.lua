--[[
control.lua: what an operator wants. One atomic step; the fleet obeys at once: every
admission reads what this writes, and who sleeps is woken if there is a reason.

KEYS  1 fleetlimit:{<account>}:account
      2 fleetlimit:{<account>}:window
      3 fleetlimit:{<account>}:backoff
      4 fleetlimit:{<account>}:queue
      5 fleetlimit:{<account>}:due
      6 fleetlimit:{<account>}:expected
  then four for each endpoint of the account
        fleetlimit:{<account>}:backoff:<endpoint>
        fleetlimit:{<account>}:slots:<endpoint>
        fleetlimit:{<account>}:queue:<endpoint>
        fleetlimit:{<account>}:due:<endpoint>
  then, for reset alone, any other keys of the account

ARGV  1 operator: who wants it
      2 number of endpoints E; then the name of each
  then the operation
      pause   <length ms> <reason>   nobody is admitted for so long, at most a day.
                                     It ends by itself, and replaces an earlier pause
                                     by an operator; what the API asked for stays
      resume  <all>                  ends the operator's pause; with 1 also what the
                                     API asked for, of the account and of endpoints
      drain   <worker> <length ms> <reason>
                                     this worker gets no new permits for so long, at
                                     most a day, and loses its places in the queues;
                                     what it holds stays
      undrain <worker>               ends that
      reset                          deletes all KEYS. Whoever waits is woken, and
                                     the workers tell again what they sent in the
                                     last window and what they hold

Reply: array of strings
      1 how long the account is still paused, ms
      2 what of this the API asked for, ms
      3 how much the operation has cut off: of a pause or a drain, ms; of reset, keys
      4 how long it made the pause or the drain, ms
--]]

local operator, endpoints = ARGV[1], tonumber(ARGV[2])
local operation = ARGV[3 + endpoints]
local function arg(i) return ARGV[3 + endpoints + i] end

sharded = nil
local BACKOFF, SLOTS, QUEUE, DUE = 1, 2, 3, 4
local function key_of(e, what) return KEYS[6 + 4 * (e - 1) + what] end

-- A key may hold something of another type, which nothing below could read. Redis takes
-- nothing back of a script that fails: so one that would meet it fails here, with nothing
-- done. A reset is the way out.
local BUDGET = {'hash', 'list', 'hash', 'zset', 'zset', 'zset'}
local of_endpoints = operation == 'reset' or operation == 'drain' or operation == 'resume' and arg(1) == '1'
local garbage = 0
for i = 1, #BUDGET + (of_endpoints and 4 * endpoints or 0) do
  local found, kind = redis.call('TYPE', KEYS[i]).ok, BUDGET[i] or i % 4 == 3 and 'hash' or 'zset'
  if found ~= kind and found ~= 'none' then
    if operation ~= 'reset' then return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' holds a ' .. found) end
    garbage = garbage + redis.call('DEL', KEYS[i])
  end
end

-- The policy is what the last heartbeat wrote down; without one nobody waits.
local written = redis.call('HMGET', KEYS[1], 'limit', 'window_ms', 'jitter_ms', 'headroom', 'burst')
local policy
if number(written[1]) >= 1 and number(written[2]) > 0 and number(written[4]) > 0 then
  for i = 1, 5 do written[i] = number(written[i]) end
  policy = read_policy(written, 1)
end
local a, now
if policy then a, now = load_account(KEYS, policy) else now = clock() end

local function length_of(text) return math.min(number(text), MAX_HOLD) end

-- wake_places tells the first n places of a queue to come at once.
local function wake_places(queue, due, n)
  for _, place in ipairs(redis.call('ZRANGE', queue, 0, n - 1)) do
    tell(KEYS, due, place, now, 0)
  end
end

local function pause(length, reason)
  local _, api, hold = pause_left(KEYS[3], now)
  redis.call('HSET', KEYS[3], 'hold_since_ms', ms(now), 'hold_until_ms', ms(now + length),
    'hold_ms', ms(length), 'hold_by', operator, 'hold_reason', reason)
  redis.call('PEXPIRE', KEYS[3], int(math.ceil(math.max(api, length))))
  if a then end_with_one_permit(a, policy, now, math.max(api, length)) end
  return hold, length
end

-- resume wakes the head of the queue for budget (each one that is admitted wakes the
-- next), and as many of those who wait for an endpoint as it has slots.
local function resume(all)
  local left, api, hold = pause_left(KEYS[3], now)
  if all or api == 0 then
    redis.call('DEL', KEYS[3])
  elseif hold > 0 then
    redis.call('HDEL', KEYS[3], 'hold_since_ms', 'hold_until_ms', 'hold_ms', 'hold_by', 'hold_reason')
    redis.call('PEXPIRE', KEYS[3], int(math.ceil(api)))
  end
  for e = 1, all and endpoints or 0 do
    left = math.max(left, (pause_left(key_of(e, BACKOFF), now)))
    redis.call('DEL', key_of(e, BACKOFF))
    local slots = number(redis.call('HGET', KEYS[1], 'slots:' .. ARGV[2 + e]))
    if slots > 0 then wake_places(key_of(e, QUEUE), key_of(e, DUE), slots) end
  end
  local still = pause_left(KEYS[3], now)
  if a then
    -- The bucket was kept empty until the end of the pause: that is now.
    set_credit(a, policy, now, math.max(credit(a, policy, now), 1 - still / emission_interval(a, policy, now)))
    wake_head(a, policy, KEYS, now, still)
  else
    wake_places(KEYS[4], KEYS[5], 1)
  end
  -- Who does not wait knows of the pause as well, and would obey it if Redis went away.
  call_all(KEYS, LOOK)
  return (all and left or hold), 0
end

-- call wakes a worker, whatever its callers wait for.
local function call(worker)
  wake(KEYS, worker, '*', 0)
  for e = 1, endpoints do wake(KEYS, worker, ARGV[2 + e], 0) end
end

-- forget_drains removes those that have ended, so that the hash does not grow.
local function forget_drains(also)
  local ended = 0
  local flat = redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do
    local worker = string.match(flat[i], '^drain:(.*)$')
    local left = worker and number(flat[i + 1]) - now or 0
    if worker and (left <= 0 or worker == also) then
      if worker == also then ended = math.max(0, left) end
      redis.call('HDEL', KEYS[1], flat[i], 'drain_by:' .. worker, 'drain_reason:' .. worker)
    end
  end
  return ended
end

local function drain(worker, length, reason)
  local before = forget_drains(worker)
  redis.call('HSET', KEYS[1], 'drain:' .. worker, ms(now + length),
    'drain_by:' .. worker, operator, 'drain_reason:' .. worker, reason)
  keep_key(KEYS[1], IDLE_TTL) -- the worker's heartbeat keeps it further
  redis.call('ZREM', KEYS[4], worker .. ' *')
  redis.call('ZREM', KEYS[5], worker .. ' *')
  for e = 1, endpoints do
    local place = worker .. ' ' .. ARGV[2 + e]
    redis.call('ZREM', KEYS[4], place)
    redis.call('ZREM', KEYS[5], place)
    redis.call('ZREM', key_of(e, QUEUE), place)
    redis.call('ZREM', key_of(e, DUE), place)
    wake_places(key_of(e, QUEUE), key_of(e, DUE), 1)
  end
  if a then wake_head(a, policy, KEYS, now, (pause_left(KEYS[3], now))) end
  call(worker) -- so that its callers learn of it
  return before, length
end

local function undrain(worker)
  local ended = forget_drains(worker)
  call(worker)
  return ended, 0
end

local function reset()
  wake_places(KEYS[4], KEYS[5], 1000)
  for e = 1, endpoints do wake_places(key_of(e, QUEUE), key_of(e, DUE), 1000) end
  local deleted = garbage
  for i = 1, #KEYS do deleted = deleted + redis.call('DEL', KEYS[i]) end
  a = nil
  return deleted, 0
end

local cut, made
if operation == 'pause' then
  cut, made = pause(length_of(arg(1)), arg(2))
elseif operation == 'resume' then
  cut, made = resume(arg(1) == '1')
elseif operation == 'drain' then
  cut, made = drain(arg(1), length_of(arg(2)), arg(3))
elseif operation == 'undrain' then
  cut, made = undrain(arg(1))
elseif operation == 'reset' then
  cut, made = reset()
else
  return redis.error_reply('ERR fleetlimit: unknown operation ' .. tostring(operation))
end
if a then save_account(a, policy, KEYS) end
local left, api = pause_left(KEYS[3], now)
return {ms(left), ms(api), operation == 'reset' and int(cut) or ms(cut), ms(made)}
