package coordinator

import "time"

// Events are functions that a coordinator calls when something happens. Each may
// be nil, and costs nothing then. None is called with a lock held, so all of them
// may use the coordinator, except that Close must not be called and waited for.
//
// Granted, Refused, Reported and Exchanged are called at once by the goroutine that
// the event happens to, so possibly several times at once: they must return soon, and
// must not wait for a permit.
// All others are rare. They are called one after the other, in the order in which
// things happened, by a goroutine of their own; if they are slower than what they
// hear of, news beyond a thousand is dropped.
type Events struct {
	// Granted is called for every permit.
	Granted func(Grant)

	// Refused is called when a call of Acquire or TryAcquire ends without one.
	Refused func(Refusal)

	// Reported is called for what the API said about the budget in a response.
	Reported func(Report)

	// Exchanged is called after every round trip to Redis.
	Exchanged func(Exchange)

	// Paused is called when a pause begins, or becomes longer, as far as this
	// process hears of it: it does with its next exchange with Redis, at the latest
	// with its next heartbeat. Resumed is called in the same way when a pause has
	// ended, or was lifted.
	Paused  func(Pause)
	Resumed func(Resumption)

	// LeaseLost is called when a slot was lost before it was released.
	LeaseLost func(LostLease)

	// Degraded is called when Redis has ceased to answer, and Recovered when it
	// decides again.
	Degraded  func(Degradation)
	Recovered func(Recovery)

	// MemoryLost is called when Redis has forgotten the account, and is told again.
	MemoryLost func(MemoryLoss)

	// ForeignUse is called when the use of the key by strangers has changed.
	ForeignUse func(Foreign)

	// PoliciesDiffer is called when a heartbeat finds that live workers have different
	// policies, that they differ in another way than before, or that they agree again.
	PoliciesDiffer func(PolicyDifference)
}

// Grant is a permit that was granted.
type Grant struct {
	Account  string
	Endpoint string        // empty: budget alone
	Gate     Gate          // what it waited for last; empty: nothing
	Waited   time.Duration // between the call and the grant
	Alone    bool          // of this worker's own share, while Redis is away
}

// Refusal is a call that ended without a permit.
type Refusal struct {
	Account  string
	Endpoint string // as it was asked for, so it may be none of the policy's
	Gate     Gate   // what it waited for last, where that is known
	Waited   time.Duration
	Err      error // what the caller gets
}

// Report is what the API said in one response.
type Report struct {
	Account  string
	Endpoint string // empty: budget alone
	Feedback Feedback
}

// Exchange is one round trip to Redis.
type Exchange struct {
	Account string
	Wanted  int // permits asked for
	Granted int
	Told    int           // operations that Redis was told of, such as releases
	Took    time.Duration // from the call to the answer, or to giving up
	Err     error
}

// Pause is a time in which nobody sends. [Coordinator.State] tells its cause.
type Pause struct {
	Account  string
	Endpoint string        // empty: the whole account
	Left     time.Duration // as long as it lasts now
}

// Resumption is the end of a pause.
type Resumption struct {
	Account  string
	Endpoint string // empty: the whole account
}

// LostLease is a slot that was lost while it was held.
type LostLease struct {
	Account  string
	Endpoint string
	Lease    string
	Held     time.Duration
}

// Degradation is the beginning of a time without Redis.
type Degradation struct {
	Account   string
	Err       error    // why
	Behaviour WhenAway // what callers get meanwhile
	Workers   int      // alive when Redis was last heard; 0: it never was
}

// Recovery is its end.
type Recovery struct {
	Account string
	Away    time.Duration
	Spent   int // requests of this worker's own share meanwhile
}

// MemoryLoss is a Redis that has forgotten the account.
type MemoryLoss struct{ Account string }

// Foreign is what strangers spend.
type Foreign struct {
	Account  string
	Requests int // in the last window, as the API's headers tell; 0: none any more
}
