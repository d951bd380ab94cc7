--[[
guard.lua: runs the exchange, which the scripts before it have made a function, and
keeps the account whole if a key turns out in the middle to hold something of another
type. Redis takes nothing back of a script that fails. What it has counted until then
stays counted, in the ring and in the account alike: else a bucket that one of them
has lost would be subtracted twice, and a window would hold more than its limit.
scripts.go puts it behind exchange.lua; it is no script of its own.
--]]

local done, reply = pcall(run)
if done then return reply end
if loaded then pcall(save_account, loaded, read_policy(ARGV, 2), KEYS) end
if type(reply) == 'table' and reply.err then return reply end
return redis.error_reply(tostring(reply))
