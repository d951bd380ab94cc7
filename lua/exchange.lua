--[[
exchange.lua: all that a worker and Redis have to tell each other, in one atomic
step: what became of permits, and wishes for new ones. scripts.go puts policy.lua,
account.lua, settle.lua and admit.lua in front of it.

KEYS  1 fleetlimit:{<account>}:account     hash, see account.lua
      2 fleetlimit:{<account>}:window      list, the ring of grants
      3 fleetlimit:{<account>}:backoff     hash, the account's pause
      4 fleetlimit:{<account>}:queue       zset, places waiting for budget
      5 fleetlimit:{<account>}:due         zset, when they were told to come
      6 fleetlimit:{<account>}:expected    zset, workers by when they are to be heard
                                           of at the latest
  then four for each endpoint that the operations name
        fleetlimit:{<account>}:backoff:<endpoint>
        fleetlimit:{<account>}:slots:<endpoint>   zset, leases by expiry
        fleetlimit:{<account>}:queue:<endpoint>   zset, places waiting for a slot
        fleetlimit:{<account>}:due:<endpoint>     zset
  then one for each job
        fleetlimit:{<account>}:job:<endpoint>:<job>   string, the job's lease

ARGV  1 worker
      2 limit  3 window ms  4 jitter ms  5 headroom  6 burst    (the policy; if those
        of the live workers differ, the strictest of each field counts)
      7 number of endpoints E; then for each its name, its slots and its lease TTL, ms
  then the operations, one after the other. <e> is the number of an endpoint,
  1..E, or 0 for requests that need budget alone; <key> is an index of KEYS.
      free    <e> <k>, then k × <lease> free the slots
      release <e> <lease> <linger ms>   free the slot, now or after a while, in which
                                        the lease is called "<lease>!"
      forget  <e> <number> <ms> <k>, then k × <lease>
                                        free the slots of this worker behind that
                                        number that are older than that time, but for
                                        those listed: the replies that granted them
                                        were lost
      return  <e> <lease> <number>      the request was never sent: slot and
                                        budget come back
      late    <number>                  the request left so late that it counts
                                        from now
      again                             a request was sent once more
      bind    <e> <lease> <key> <ttl>   the slot belongs to a job from now on
      seen    <e> <key> <ttl>           the job is alive
      done    <e> <key>                 the job has ended
      leave   <e>                       nobody here waits any more
      spent   <count> <age ms>          requests were sent while Redis was away
      granted <number> <count> <age ms> the same, of permits up to this number that
                                        were granted by an account that Redis has
                                        forgotten
      adopt   <e> <lease>               a slot was taken, or kept, meanwhile
      sharded                           the server is a cluster: wake-ups go by
                                        sharded pub/sub. It comes first
      knew    <birth>                   the account that this worker knew
      heard   <birth> <number>          this worker knows that account, and has heard
                                        that this permit was granted: if it was not,
                                        Redis has gone back to an older state, and all
                                        workers tell again what they sent
      resume  <outage ms>               Redis was away for this worker, which goes on
                                        alone until its next exchange: unless Redis
                                        was there for others, all workers now get
                                        the time to tell what they spent
      said    <e> <number> <admitted ms> <base> <epoch> <status> <limit>
              <remaining> <reset ms> <retry after ms> <random 0..1>
                                        what the API said; -1 where it did not.
                                        base: number of the last permit that had
                                        left the window at the admission
      admit   <e> <n> <head start ms> <since> <queue>
                                        n permits are wanted (at least 1). The
                                        head start in the queue is the priority's
                                        and may be negative; <since> is the instant
                                        from which the caller waits, as an earlier
                                        reply gave it, or 0; <queue> is 1 to take a
                                        place in the queue if not all is granted,
                                        else 0

Reply: array of strings
      1 leases released
      2 epoch
      3 how long the account is paused, ms
      4 how long of this because Redis was away, ms
      5 the account's birth
      6 own requests in the window
      7 what the fleet may spend in a window: the limit in force, less strangers
        and the reserve for them and for silent workers
      8 content of the pace bucket, permits
      9 workers alive
     10 strangers' requests in the window, as last seen
     11 instant of this exchange, ms
  then six for each admit
      1 permits granted, 0..n
      2 number of the last permit granted; the permits are consecutive, and their
        leases are "<worker>:<instant of this exchange>:<number>"
      3 own requests in the window, these included
      4 gate that kept back the rest: drain, backoff, away (a resumption: go on with
        your own share), pace, window, slots, turn; or ""
      5 how long to wait before asking again, ms
      6 instant from which the granted callers waited, ms
--]]

local admissions = {}
local nobody_waits_for_budget = false

while cursor <= #ARGV do
  local op = next_arg()
  if op == 'free' then
    free(next_number(), next_number())
  elseif op == 'admit' then
    local gate = admit(admissions, next_number(), next_number(), next_number(), next_number(), next_arg() == '1')
    if gate == '' or gate == 'slots' then nobody_waits_for_budget = true end
  elseif op == 'release' then
    release(next_number(), next_arg(), next_number())
  elseif op == 'forget' then
    forget(next_number(), next_number(), next_number(), next_number())
  elseif op == 'return' then
    local e, lease, seq = next_number(), next_arg(), next_number()
    if e > 0 and is_mine(lease) then free_lease(e, lease) end
    give_back(seq)
  elseif op == 'late' then
    count_from_now(next_number())
  elseif op == 'again' then
    count_again()
  elseif op == 'bind' then
    bind(next_number(), next_arg(), KEYS[next_number()], next_number())
  elseif op == 'seen' then
    seen(next_number(), KEYS[next_number()], next_number())
  elseif op == 'done' then
    done(next_number(), KEYS[next_number()])
  elseif op == 'leave' then
    leave(next_number())
  elseif op == 'spent' then
    spent(next_number(), next_number())
  elseif op == 'granted' then
    granted(next_number(), next_number(), next_number())
  elseif op == 'adopt' then
    adopt(next_number(), next_arg())
  elseif op == 'sharded' then
    sharded = true
  elseif op == 'knew' then
    if not check_memory(a, policy, KEYS, now, next_number(), worker) then calm = false end
  elseif op == 'heard' then
    if not go_on(a, policy, KEYS, now, next_number(), next_number(), worker) then calm = false end
  elseif op == 'resume' then
    resume(next_number())
  elseif op == 'said' then
    said(next_number(), next_number(), next_number(), next_number(), next_number(), next_number(),
      next_number(), next_number(), next_number(), next_number(), next_number())
  else
    return redis.error_reply('ERR fleetlimit: unknown operation ' .. tostring(op))
  end
end

for e = 1, endpoints do
  if freed[e] then wake_for_slots(e) end
end
local paused = paused_for(KEYS[3])
if not quiet and redis.call('EXISTS', KEYS[4]) == 1 then
  wake_head(a, policy, KEYS, now, paused)
elseif nobody_waits_for_budget then
  set_tight(a, policy, now, 0)
end
save_account(a, policy, KEYS)
return {
  int(released), int(a.epoch), ms(paused), calm and '0.000' or ms(resumption_left(KEYS[3], now)), int(a.born_ms), int(a.own),
  int(budget(a, policy, now)), ms(credit(a, policy, now)), int(a.workers), int(a.foreign),
  ms(now), unpack(admissions),
}
