package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/lua"
)

// MaxHold is the longest pause, and the longest drain, that an operator can ask for.
const MaxHold = 24 * time.Hour

// Operator steers accounts by hand. What it does is atomic, is written down in
// Redis with its name, and holds at once for the whole fleet: every admission obeys
// it, and workers that sleep are woken where they must know. It is safe for
// concurrent use.
type Operator struct {
	*Inspector
	name string
}

// NewOperator returns an operator of that name: 1 to 200 printable characters. The
// client remains the caller's.
func NewOperator(rdb redis.UniversalClient, name string) (*Operator, error) {
	if err := checkText("operator", name); err != nil {
		return nil, err
	}
	return &Operator{NewInspector(rdb), name}, nil
}

// Steered is what an operation has done.
type Steered struct {
	Paused time.Duration // how long the account is still paused
	Asked  time.Duration // how long of this the API has asked for
	Cut    time.Duration // what was left of the pause or drain that the operation ended or replaced
	Made   time.Duration // the length of the pause or drain that it made
}

// Pause keeps the whole fleet of an account from new requests for d, at most
// MaxHold; calls that are under way go on. It ends by itself, replaces an earlier
// pause by an operator, and leaves a pause that the API asked for as it is.
func (o *Operator) Pause(ctx context.Context, account string, d time.Duration, reason string) (Steered, error) {
	if err := errors.Join(checkHold(d), checkText("reason", reason)); err != nil {
		return Steered{}, err
	}
	return o.steer(ctx, account, "pause", ms(d), reason)
}

// Resume ends an operator's pause; the fleet moves at once, at its pace. With all
// set it also ends what the API has asked for, of the account and of its endpoints:
// it may answer with another 429.
func (o *Operator) Resume(ctx context.Context, account string, all bool) (Steered, error) {
	if all {
		return o.steer(ctx, account, "resume", "1")
	}
	return o.steer(ctx, account, "resume", "0")
}

// Drain keeps one worker from new permits for d, at most MaxHold. What it holds
// stays until it is released. Callers in that worker go on waiting until the drain
// has ended; those whose deadlines pass before fail at once with a [*WaitError] of
// [GateDrain]. Polls of jobs are requests and wait as well. The drain is forgotten
// when the worker closes its coordinator, or when the account has been idle for ten
// minutes.
func (o *Operator) Drain(ctx context.Context, account, worker string, d time.Duration, reason string) (Steered, error) {
	if err := errors.Join(checkWorker(worker), checkHold(d), checkText("reason", reason)); err != nil {
		return Steered{}, err
	}
	return o.steer(ctx, account, "drain", worker, ms(d), reason)
}

// Undrain lets a worker have permits again; its callers ask at once.
func (o *Operator) Undrain(ctx context.Context, account, worker string) (Steered, error) {
	if err := checkWorker(worker); err != nil {
		return Steered{}, err
	}
	return o.steer(ctx, account, "undrain", worker)
}

// Reset deletes all that Redis holds of an account, in one atomic step, and returns
// how many keys that were. Live workers notice, take five seconds in which they tell
// again what they sent in the last window and which slots they hold, and go on. Keys
// that hold something of another type are deleted as well.
// Pauses, drains, jobs and the slots of dead workers are forgotten, and so is what
// the API has reported. It looks at all keys of the database to find the account's.
func (o *Operator) Reset(ctx context.Context, account string) (deleted int, err error) {
	k, err := keysOfAccount(account)
	if err != nil {
		return 0, err
	}
	var others []string
	seen := make(map[string]bool)
	err = scan(ctx, o.rdb, k.prefix+"*", func(key string) bool {
		if !seen[key] {
			seen[key] = true
			others = append(others, key)
		}
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("fleetlimit: listing the keys of account %s: %w", account, err)
	}
	reply, err := o.run(ctx, k, others, "reset")
	if err != nil {
		return 0, fmt.Errorf("fleetlimit: reset of account %s: %w", account, err)
	}
	deleted, err = strconv.Atoi(reply[2])
	return deleted, err
}

func (o *Operator) steer(ctx context.Context, account, operation string, args ...any) (Steered, error) {
	k, err := keysOfAccount(account)
	if err != nil {
		return Steered{}, err
	}
	reply, err := o.run(ctx, k, nil, operation, args...)
	if err != nil {
		return Steered{}, fmt.Errorf("fleetlimit: %s of account %s: %w", operation, account, err)
	}
	return Steered{millis(reply[0]), millis(reply[1]), millis(reply[2]), millis(reply[3])}, nil
}

// run is one call of control.lua.
func (o *Operator) run(ctx context.Context, k keys, others []string, operation string, args ...any) ([]string, error) {
	endpoints, err := endpointsIn(ctx, o.rdb, k)
	if bad := (*KeyError)(nil); err != nil && !(operation == "reset" && errors.As(err, &bad)) {
		return nil, err
	}
	names := k.budget()
	all := []any{o.name, len(endpoints)}
	for _, e := range endpoints {
		names = append(names, k.endpoint(e)...)
		all = append(all, e)
	}
	all = append(append(all, operation), args...)
	names = append(names, others...)
	reply, err := lua.Control.Run(ctx, o.rdb, names, all...).StringSlice()
	if err != nil {
		return nil, nameKey(ctx, o.rdb, anys(names), err)
	}
	if len(reply) != 4 {
		return nil, fmt.Errorf("control.lua answered %d values instead of 4", len(reply))
	}
	return reply, nil
}

func checkHold(d time.Duration) error {
	if d < time.Millisecond || d > MaxHold {
		return &ConfigError{"duration", d, fmt.Sprintf("must be between 1ms and %v", MaxHold)}
	}
	return nil
}

func checkWorker(name string) error {
	if !validName(name, "._-") {
		return &ConfigError{"worker", fmt.Sprintf("%q", clean(name)), "must be 1 to 128 letters, digits or any of ._-"}
	}
	return nil
}

// checkText says whether a text can be shown to everybody.
func checkText(field, s string) error {
	bad := s == "" || utf8.RuneCountInString(s) > 200 || !utf8.ValidString(s)
	for _, r := range s {
		bad = bad || !unicode.IsPrint(r)
	}
	if bad {
		return &ConfigError{field, fmt.Sprintf("%q", clean(s)), "must be 1 to 200 printable characters"}
	}
	return nil
}
