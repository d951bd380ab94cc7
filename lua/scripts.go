// Package lua holds the scripts that make every decision about an account in one
// atomic step inside Redis. Each .lua file begins with its KEYS, ARGV and reply.
//
// The scripts use the Redis server's clock only, declare all their keys, and run
// on Redis 7 and later, on Valkey and on miniredis, also in a cluster.
package lua

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed policy.lua
	policy string
	//go:embed account.lua
	account string
	//go:embed admit.lua
	admit string
	//go:embed settle.lua
	settle string
	//go:embed exchange.lua
	exchange string
	//go:embed guard.lua
	guard string
	//go:embed renew.lua
	renew string
	//go:embed control.lua
	control string
	//go:embed inspect.lua
	inspect string
)

// The scripts.
var (
	Exchange = redis.NewScript(ExchangeSource())
	Renew    = redis.NewScript(policy + renew)
	Control  = redis.NewScript(policy + account + control)
	Inspect  = redis.NewScript(inspect)
)

// ExchangeSource is the text of the script Exchange, for those who call it with a command
// of their own.
func ExchangeSource() string {
	// Redis makes the functions of a script anew in each call. Those of an inner function
	// find what they use of account.lua among its upvalues; else Lua would search for each
	// of them among all that are open, which takes longer the more there are.
	return policy + account + "local function run()\n" + settle + admit + exchange + "end\n" + guard
}
