package redistest

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// dumpAll answers what a server holds; loadAll has it hold that, as it is some
// milliseconds later, and nothing else.
var (
	dumpAll = redis.NewScript(`
		local all = {}
		for _, key in ipairs(redis.call('KEYS', '*')) do
			local kind, value = redis.call('TYPE', key).ok, nil
			if kind == 'hash' then
				value = redis.call('HGETALL', key)
			elseif kind == 'list' then
				value = redis.call('LRANGE', key, 0, -1)
			elseif kind == 'zset' then
				value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
				for i = 1, #value, 2 do value[i], value[i + 1] = value[i + 1], value[i] end
			else
				value = {redis.call('GET', key)}
			end
			all[#all + 1] = {key, kind, redis.call('PTTL', key), value}
		end
		return cjson.encode(all)`)
	loadAll = redis.NewScript(`
		for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('DEL', key) end
		local add = {hash = 'HSET', list = 'RPUSH', zset = 'ZADD', string = 'SET'}
		for _, entry in ipairs(cjson.decode(ARGV[1])) do
			local key, kind, ttl, value = unpack(entry)
			if ttl == -1 or ttl > tonumber(ARGV[2]) then
				redis.call(add[kind], key, unpack(value))
				if ttl ~= -1 then redis.call('PEXPIRE', key, string.format('%d', ttl - ARGV[2])) end
			end
		end
		return 1`)
)

// Dump keeps what a server holds now, and returns a function that makes it hold just that
// again, each in one step: as a server does that starts again with an old dump, or a replica
// that had not heard the rest.
func Dump(ctx context.Context, rdb redis.UniversalClient) (load func() error, err error) {
	all, err := dumpAll.Run(ctx, rdb, nil).Text()
	if err != nil {
		return nil, fmt.Errorf("dumping Redis: %w", err)
	}
	begun := time.Now()
	return func() error {
		if err := loadAll.Run(ctx, rdb, nil, all, time.Since(begun).Milliseconds()).Err(); err != nil {
			return fmt.Errorf("loading an old dump: %w", err)
		}
		return nil
	}, nil
}
