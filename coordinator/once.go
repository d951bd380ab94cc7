package coordinator

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/lua"
)

var exchangeHash, exchangeSource = lua.Exchange.Hash(), lua.ExchangeSource()

// How often, and after how long, an exchange is sent again that cannot have been carried
// out: within a second at most, as go-redis would do with other commands.
const (
	maxResends  = 3
	firstResend = 10 * time.Millisecond
)

// once is a command that the client must not replay when its connection has broken: the
// server may have carried it out.
type once struct{ *redis.StringSliceCmd }

// NoRetry implements [redis.Cmder].
func (once) NoRetry() bool { return true }

func (c *Coordinator) process(ctx context.Context, command []any) ([]string, error) {
	cmd := once{redis.NewStringSliceCmd(ctx, command...)}
	err := c.rdb.Process(ctx, cmd)
	return cmd.Val(), legible("exchange.lua", err)
}

// sendOnce is send, repeated as long as nothing can have been carried out, and if a
// connection has broken, as those do that were closed while they were idle, of which there
// can be several: then without what must not be said twice, and for one permit of each
// lane, since nobody may get those that were granted before.
func (c *Coordinator) sendOnce(ctx context.Context, asks []ask, ops []op) (a answer, err error) {
	x, broken := new(call), false
	for resends := 0; ; resends++ {
		a, err = c.send(ctx, x, asks, ops)
		switch {
		case err == nil || resends == maxResends:
			a.repeated = broken
			return a, err
		case undone(err):
			if !sleepAbout(ctx, firstResend<<(2*resends)) {
				return a, err
			}
		case hasBroken(err):
			broken, ops, asks = true, sayable(ops), ofOne(asks)
		default:
			return a, err
		}
	}
}

// undone says whether a call that has failed cannot have been carried out.
func undone(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout) ||
		slices.ContainsFunc(turnedAway, func(prefix string) bool { return redis.HasErrorPrefix(err, prefix) })
}

// turnedAway lists the answers with which Redis turns a script away, and that may soon
// be others.
var turnedAway = []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "ERR max number of clients"}

// hasBroken says whether a connection has ended, so that nobody knows what the server did.
func hasBroken(err error) bool {
	return slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE,
	}, func(end error) bool { return errors.Is(err, end) })
}

// sayable returns operations in a form that does no harm if they are carried out twice.
func sayable(ops []op) []op {
	again := slices.Clone(ops)
	for i := range again {
		if again[i].kind == opReturn {
			again[i].kind = opRelease // the budget stays spent
		}
	}
	return slices.DeleteFunc(again, func(o op) bool { return o.kind == opRelease && o.permit.lease == "" })
}

// ofOne returns the same wishes for one permit each.
func ofOne(asks []ask) []ask {
	asks = slices.Clone(asks)
	for i := range asks {
		asks[i].n = 1
	}
	return asks
}

// sleepAbout sleeps for d give or take a half, so that workers do not try at one instant.
func sleepAbout(ctx context.Context, d time.Duration) bool {
	return sleepOr(ctx, d/2+rand.N(d))
}

func sleepOr(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
