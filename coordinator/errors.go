package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors of the package. Test for them with [errors.Is].
var (
	// ErrClosed is returned by calls to a coordinator that has been closed.
	ErrClosed = errors.New("fleetlimit: coordinator is closed")

	// ErrLeaseLost is the cause with which a permit's context is cancelled when
	// its slot was lost before it was released: Redis forgot it, or the worker
	// could not renew it in time.
	ErrLeaseLost = errors.New("fleetlimit: the slot's lease was lost")

	// ErrStale is returned by Permit.Valid for a permit that was not used for so long
	// that the window does not count it any more.
	ErrStale = errors.New("fleetlimit: the permit is older than the window")

	// ErrRedisAway is wrapped by the errors of callers that fail, or whose contexts
	// end, while Redis does not answer.
	ErrRedisAway = errors.New("redis is away")

	// ErrUnknownEndpoint is returned for an endpoint that the policy does not list.
	ErrUnknownEndpoint = errors.New("fleetlimit: the policy has no such endpoint")
)

// Gate names what keeps a request from being admitted.
type Gate string

// The gates, in the order in which admission evaluates them.
const (
	GateBackoff Gate = "backoff" // the API pushed back: the fleet pauses
	GatePace    Gate = "pace"    // the rate would be too high just now
	GateWindow  Gate = "window"  // the window is full
	GateSlots   Gate = "slots"   // all slots of the endpoint are taken
	GateTurn    Gate = "turn"    // others have waited longer
	GateAway    Gate = "away"    // Redis is away, and this worker's own share is spent
	GateDrain   Gate = "drain"   // an operator keeps this worker from new permits
)

// WaitError says that a permit is not to be had now ([Coordinator.TryAcquire]),
// or not before the caller's deadline ([Coordinator.Acquire]; in that case
// errors.Is(err, context.DeadlineExceeded) is true as well).
type WaitError struct {
	Account  string
	Endpoint string        // empty for requests that need budget alone
	Gate     Gate          // what said no
	Wait     time.Duration // how long, as far as is known

	deadline bool
}

func (e *WaitError) Error() string {
	what := "a request"
	if e.Endpoint != "" {
		what = e.Endpoint
	}
	when := "now"
	if e.deadline {
		when = "before the deadline"
	}
	return fmt.Sprintf("fleetlimit: account %s cannot admit %s %s: gate %s, about %v to wait",
		e.Account, what, when, e.Gate, e.Wait.Round(time.Millisecond))
}

// Is reports whether the error counts as an exceeded deadline.
func (e *WaitError) Is(target error) bool {
	return e.deadline && target == context.DeadlineExceeded
}

// ReplyError says that Redis answered a script with something that makes no sense: it is
// no Redis, or something in between spoils what it says. It is a refusal: asking again
// will not help.
type ReplyError struct {
	Script string
	Reply  string // what made no sense, at most 256 characters of it
}

func (e *ReplyError) Error() string {
	return fmt.Sprintf("fleetlimit: the reply to %s makes no sense: %s", e.Script, e.Reply)
}

// nonsense describes a reply that makes no sense.
func nonsense(script, format string, args ...any) error {
	return &ReplyError{script, clean(fmt.Sprintf(format, args...))}
}

// legible turns what go-redis could not read into a ReplyError.
func legible(script string, err error) error {
	if err == nil || !strings.HasPrefix(err.Error(), "redis: can't parse") && !strings.HasPrefix(err.Error(), "redis: invalid") &&
		!strings.HasPrefix(err.Error(), "redis: unexpected type") {
		return err
	}
	return nonsense(script, "%s", err.Error())
}

// ConfigError is a field of a [Policy] or an [Options] that cannot be used.
type ConfigError struct {
	Field  string // as in "Policy.Endpoints[1].Slots"
	Value  any    // what was found there; never a secret
	Reason string // what would be right
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("fleetlimit: %s = %v: %s", e.Field, e.Value, e.Reason)
}
