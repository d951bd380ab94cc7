--[[
inspect.lua: what is going on? Reads, changes nothing, and answers in JSON.

KEYS  any of the account's keys, in any order; each is described in its way
        fleetlimit:{<account>}:account            limits, use, foreign use
        fleetlimit:{<account>}:backoff[:<endpoint>]  the pause and its cause
        fleetlimit:{<account>}:slots:<endpoint>   who holds the slots
        fleetlimit:{<account>}:queue[:<endpoint>] who waits, in order
        fleetlimit:{<account>}:workers            who is alive
ARGV  1 how many leases, places or workers to list of each at most; default 100

From a shell, with jq to make it pretty:
  redis-cli --raw --eval lua/inspect.lua \
    'fleetlimit:{acme}:account' 'fleetlimit:{acme}:backoff' \
    'fleetlimit:{acme}:slots:POST /mave/chat' | jq

Reply: one JSON object, a member for each key that exists, under the part of its
name behind "}:". Durations are in milliseconds: held_ms, left_ms, waited_ms.
--]]

local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local most = tonumber(ARGV[1]) or 100

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

local function account(key)
  local h = fields(key)
  local limit, reported = number(h.limit), number(h.reported)
  local lower = limit
  if reported > 0 and (limit == 0 or reported < limit) then lower = reported end
  local window, jitter = number(h.window_ms), number(h.jitter_ms)
  local usable = math.max(1, math.floor(lower * number(h.headroom) + 1e-6))
  local own, foreign = number(h.own), number(h.foreign)
  -- What admission would evict first is not counted here either.
  local edge = now - window - jitter
  if number(h.open_last_ms) <= edge then
    own = 0
  elseif number(h.oldest_ms) <= edge then
    local ring = string.sub(key, 1, -8) .. 'window'
    for _, entry in ipairs(redis.call('LRANGE', ring, 0, -1)) do
      local last, count = string.match(entry, '^(%S+) (%S+)')
      if number(last) > edge then break end
      own = math.max(0, own - number(count))
    end
  end
  if now - number(h.foreign_ms) > window + jitter then foreign = 0 end
  local slots = {}
  for field, value in pairs(h) do
    local endpoint = string.match(field, '^slots:(.*)$')
    if endpoint then slots[endpoint] = number(value) end
  end
  return {
    policy_limit = limit, reported_limit = reported, limit = usable,
    window_ms = window, jitter_ms = jitter, headroom = number(h.headroom), burst = number(h.burst),
    used = own, foreign = foreign, room = math.max(0, usable - own - foreign),
    granted = number(h.seq), epoch = number(h.epoch), strikes = number(h.strikes),
    small_bursts = number(h.tight) == 1,
    pace_debt_ms = whole(math.max(0, number(h.tat_ms) - now)),
    slots = slots,
  }
end

local function backoff(key)
  local h = fields(key)
  return {
    left_ms = whole(math.max(0, math.min(number(h.until_ms) - now, number(h.length_ms)))),
    since_ms = whole(math.max(0, now - number(h.since_ms))),
    reason = h.reason or '', worker = h.worker or '',
    strikes = number(h.strikes), epoch = number(h.epoch),
  }
end

local function leases(key)
  local list = {}
  local flat = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.3f', now), '+inf',
    'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #flat, 2 do
    local worker, since = string.match(flat[i], '^(.*):([%d.]+):%d+$')
    list[#list + 1] = {
      lease = flat[i], worker = worker or flat[i],
      held_ms = whole(math.max(0, now - number(since))), left_ms = whole(number(flat[i + 1]) - now),
    }
  end
  return {in_use = redis.call('ZCOUNT', key, '(' .. string.format('%.3f', now), '+inf'), leases = #list > 0 and list or nil}
end

local function places(key)
  local list = {}
  local flat = redis.call('ZRANGE', key, 0, most - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local worker, endpoint = string.match(flat[i], '^(%S+) (.*)$')
    list[#list + 1] = {
      worker = worker or flat[i], endpoint = endpoint or '',
      waited_ms = whole(math.max(0, now - tonumber(flat[i + 1]))),
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

local describe = {account = account, backoff = backoff, slots = leases, queue = places, workers = workers}

local answer = {}
for _, key in ipairs(KEYS) do
  local what = string.match(key, '}:(.*)$') or key
  local kind = describe[string.match(what, '^[^:]*')]
  if kind and redis.call('EXISTS', key) == 1 then answer[what] = kind(key) end
end
return cjson.encode(answer)
