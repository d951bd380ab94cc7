--[[
policy.lua: what counts when workers of one fleet have different policies, as they do
while the fleet is being rolled. scripts.go puts it in front of account.lua and of
renew.lua; it is no script of its own.

The strictest of each field counts, such that whoever keeps to the outcome keeps to
every one of the policies:
  limit × headroom   the lowest; and of what the API reports the lowest headroom
  window             the longest, with the lowest limit: so many requests in the longest
                     window are no more in any shorter one
  jitter             the longest
  burst, slots       the lowest
  lease TTL          the longest, where a lease seems to live for too long
--]]

local MAX_WINDOW = 86400000 -- a day, as in a Go policy

-- stricter returns the strictest of two policies.
local function stricter(p, q)
  local headroom = math.min(p.headroom, q.headroom)
  local window, jitter = math.max(p.window, q.window), math.max(p.jitter, q.jitter)
  return {
    limit = math.min(p.limit * (p.headroom / headroom), q.limit * (q.headroom / headroom)),
    window = window, jitter = jitter, horizon = window + jitter,
    headroom = headroom, burst = math.min(p.burst, q.burst),
  }
end

-- is_policy says whether numbers that were read from Redis can be a policy.
local function is_policy(p)
  return p.limit >= 1 and p.limit <= 1e9 and p.window > 0 and p.window <= MAX_WINDOW
    and p.jitter <= p.window and p.headroom > 0 and p.headroom <= 1 and p.burst >= 1
end
