package coordinator

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// send does everything in one call of one script.
func (c *Coordinator) send(ctx context.Context, x *call, asks []ask, ops []op) (a answer, err error) {
	x.write(c, asks, ops)
	values, err := c.process(ctx, x.command)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // Redis does not know it, or has forgotten it
		x.command[0], x.command[1] = "eval", exchangeSource
		values, err = c.process(ctx, x.command)
	}
	if err != nil {
		return answer{}, nameKey(ctx, c.rdb, x.keys, err)
	}
	return parseAnswer(values, asks)
}

// sendInTime is send within the time-out, whatever becomes of the connection.
// Permits that come later go back.
func (c *Coordinator) sendInTime(ctx context.Context, asks []ask, ops []op) (answer, error) {
	asked := time.Now()
	unheard := func(late answer) {
		c.mu.Lock()
		var ops []op
		for i, r := range late.replies {
			ops = append(ops, c.undo(asks[i], r, asked)...)
		}
		closed := c.closed
		if !closed {
			c.append(ops...)
		}
		c.mu.Unlock()
		if closed {
			c.takeBack(ops...)
		} else {
			c.signal()
		}
	}
	a, err := inTime(ctx, c.timeout, func(ctx context.Context) (answer, error) {
		return c.sendOnce(ctx, asks, ops)
	}, unheard)
	c.meet.Do(func() { close(c.met) })
	told := false
	defer func() {
		if !told {
			unheard(a) // the listener has panicked, so nobody gets what was granted
		}
	}()
	c.exchanged(asked, asks, len(ops), a, err)
	told = true
	return a, err
}

// takeBack gives back what was granted while the coordinator was closed: nobody sends the
// outbox any more. If it fails, the leases end by themselves.
func (c *Coordinator) takeBack(ops ...op) {
	if len(ops) > 0 {
		_, _ = c.sendInTime(context.Background(), nil, ops)
	}
}

// inTime makes a call that may hang and waits for it no longer than the time-out. If
// it succeeds after that, late gets its result.
func inTime[T any](ctx context.Context, timeout time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done, gone := make(chan result), make(chan struct{})
	go func() {
		value, err := call(ctx)
		select {
		case done <- result{value, err}:
		case <-gone:
			if err == nil && late != nil {
				late(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		close(gone)
		var none T
		return none, fmt.Errorf("no answer within %v: %w", timeout, context.Cause(ctx))
	}
}

// older is what is left of a duration; unknown ones are -1, and none becomes so.
func older(d, age time.Duration) time.Duration {
	if d <= 0 {
		return d
	}
	return max(d-age, time.Millisecond)
}

// ms writes a duration in the unit of the scripts. Unknown ones are -1.
func ms(d time.Duration) string {
	if d == -1 {
		return "-1"
	}
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 3, 64)
}

// millis reads a duration that a script answered, between 0 and a day.
func millis(s string) time.Duration {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0 {
		return 0
	}
	return time.Duration(min(f, 86400e3) * float64(time.Millisecond))
}
