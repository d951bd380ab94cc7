package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/lua"
)

// A scriptAccount calls exchange.lua as the coordinator does, without one: the cost
// of the script alone, with a state that would take long to reach otherwise.
type scriptAccount struct {
	keys  []string
	slots string // the one of keys that holds the leases
	head  []any  // worker, policy and endpoint
}

const scriptWorker = "bench"

func newScriptAccount(name string, limit, slots int) scriptAccount {
	prefix := "fleetlimit:{" + name + "}:"
	a := scriptAccount{
		slots: prefix + "slots:" + endpoint,
		head: []any{
			scriptWorker, limit, minute, 250, 1, limit,
			1, endpoint, slots, 10 * minute,
		},
	}
	for _, what := range []string{"account", "window", "backoff", "queue", "due", "expected"} {
		a.keys = append(a.keys, prefix+what)
	}
	for _, what := range []string{"backoff:", "slots:", "queue:", "due:"} {
		a.keys = append(a.keys, prefix+what+endpoint)
	}
	return a
}

const minute = int(time.Minute / time.Millisecond)

type scriptCall struct {
	keys []string
	args []any
}

// call gives leases back and asks for n permits with slots.
func (a scriptAccount) call(leases []string, n int) scriptCall {
	args := append([]any(nil), a.head...)
	if len(leases) > 0 {
		args = append(args, "free", 1, len(leases))
		for _, lease := range leases {
			args = append(args, lease)
		}
	}
	if n > 0 {
		args = append(args, "admit", 1, n, 0, 0, 0)
	}
	return scriptCall{a.keys, args}
}

// tell is a call with one operation.
func (a scriptAccount) tell(op ...any) scriptCall {
	return scriptCall{a.keys, append(append([]any(nil), a.head...), op...)}
}

func (c scriptCall) run(ctx context.Context, rdb *redis.Client) ([]string, error) {
	return lua.Exchange.Run(ctx, rdb, c.keys, c.args...).StringSlice()
}

// leases reads the names of the leases from the answer to a call.
func (a scriptAccount) leases(v []string) []string {
	const at, granted, last = 10, 11, 12
	var n, number int64
	fmt.Sscan(v[granted], &n)
	fmt.Sscan(v[last], &number)
	var leases []string
	for i := range n {
		leases = append(leases, fmt.Sprintf("%s:%s:%d", scriptWorker, v[at], number-i))
	}
	return leases
}
