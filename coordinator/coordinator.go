// Package coordinator lets many processes share the budget of one API key
// through Redis, as if they were one careful client.
//
// A [Coordinator] hands out permits. A [Permit] is the right to send one request
// now: it fits the rate limit in every window of the API, whoever else in the
// fleet is sending, and holds a slot where the endpoint allows only so many
// calls at once. Every decision is made by a script in Redis, with the clock of
// Redis; see the package lua and docs/design.md. Two thoughts carry it:
//
//   - pace by the generic cell rate algorithm (GCRA; ITU-T I.371, annex A), with
//     which a saturated fleet sends evenly;
//   - a count of what was granted in the last window, in small buckets, with
//     which no window of the API is exceeded, sliding or resetting.
//
// The package knows nothing of HTTP: it receives what the API said as [Feedback].
package coordinator

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options says which account a coordinator serves, and as whom. One of Account
// and APIKey must be set.
type Options struct {
	// Account names the account in Redis: 1 to 128 letters, digits or any of
	// "._-@". Default: AccountName(APIKey, Pepper).
	Account string

	// APIKey is the API's key. It is hashed at once and not kept.
	APIKey string

	// Pepper is a secret that keys the hash of APIKey. All workers of a fleet
	// need the same.
	Pepper []byte

	// Worker names this process, and must be unique in the fleet: 1 to 128
	// letters, digits or any of "._-". Default: host name, process id and a
	// random suffix.
	Worker string

	// RedisTimeout bounds one exchange with Redis, whatever the client's own
	// time-outs. It is also the longest that callers wait before it is clear that
	// Redis is away. Default: 2 s.
	RedisTimeout time.Duration

	// WhenAway says what callers get while Redis does not answer. Default: OwnShare.
	WhenAway WhenAway

	// Logger receives rare, structured messages, each at most once in ten seconds.
	// It is never called with a lock held. Default: [slog.Default].
	Logger *slog.Logger

	// Events are called when something happens. Default: none.
	Events Events
}

// Coordinator shares one account's budget with all other coordinators that use
// the same Redis and the same account name. It is safe for concurrent use. It
// runs a few goroutines until it is closed.
type Coordinator struct {
	rdb     redis.UniversalClient
	policy  Policy
	account string
	worker  string
	keys    keys
	log     *slog.Logger
	timeout time.Duration

	sharded bool // Redis is a cluster: wake-ups go by sharded pub/sub

	budgetKeys, callerArgs []any // the same in every call of exchange.lua

	whenAway WhenAway
	events   Events
	listener announcer

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	done sync.WaitGroup
	news chan struct{} // tells the dispatcher that mu's fields have changed

	served []*waiter // the dispatcher's own: who has got a permit and is to be woken

	mu       sync.Mutex
	lanes    map[string]*lane
	arrivals uint64
	outbox   []op
	spare    []op             // empty memory for the outbox
	held     map[*Permit]bool // those with a lease, which the heartbeat renews
	seen     seen
	epoch    int64 // how often the API had pushed back when Redis was last heard

	lastHeard int64 // number of the last permit that a reply told of, this worker's or not

	share    share
	reported int64     // the youngest epoch of which a success has been reported
	drained  time.Time // until then an operator wants this worker to be granted nothing
	away     error     // why Redis cannot be asked; nil: it can
	muted    bool      // Redis is back, and about to take over from the own share
	quiet    time.Time // after Redis has refused: when to tell it the rest
	enlisted bool      // counts as a worker
	expected time.Time // by then the others miss this worker if its heartbeats stop
	closed   bool
	met      chan struct{} // closed when the first exchange has ended, well or not
	meet     sync.Once
	gone     chan struct{} // closed when Close has ended
	flushed  chan struct{} // closed by the dispatcher when it has sent the last of the outbox
}

// New returns a coordinator for one account under the policy. It does not wait
// for Redis. The error is a [*ConfigError] that names the field and the value.
// The client remains the caller's: Close does not close it.
func New(rdb redis.UniversalClient, policy Policy, opts Options) (*Coordinator, error) {
	if rdb == nil {
		return nil, &ConfigError{"rdb", nil, "a Redis client is needed"}
	}
	if err := policy.Validate(); err != nil {
		return nil, err
	}
	account, err := accountOf(opts)
	if err != nil {
		return nil, err
	}
	worker, err := workerOf(opts)
	if err != nil {
		return nil, err
	}
	if opts.RedisTimeout < 0 {
		return nil, &ConfigError{"Options.RedisTimeout", opts.RedisTimeout, "must not be negative"}
	}
	if opts.WhenAway < OwnShare || opts.WhenAway > FailFast {
		return nil, &ConfigError{"Options.WhenAway", int(opts.WhenAway), "must be OwnShare, Wait or FailFast"}
	}
	if opts.RedisTimeout == 0 {
		opts.RedisTimeout = 2 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	c := &Coordinator{
		rdb:     rdb,
		policy:  policy.WithDefaults(),
		account: account,
		worker:  worker,
		keys:    keysOf(account),
		log:     calm(opts.Logger).With("account", account, "worker", worker),
		timeout: opts.RedisTimeout,

		whenAway: opts.WhenAway,
		events:   opts.Events,

		news:    make(chan struct{}, 1),
		lanes:   make(map[string]*lane),
		held:    make(map[*Permit]bool),
		met:     make(chan struct{}),
		gone:    make(chan struct{}),
		flushed: make(chan struct{}),
	}
	_, c.sharded = rdb.(*redis.ClusterClient)
	c.budgetKeys = anys(c.keys.budget())
	c.callerArgs = append([]any{worker}, c.policyArgs()...)
	c.share.policy = c.policy
	c.lanes[anyEndpoint] = &lane{name: anyEndpoint}
	for i, e := range c.policy.Endpoints {
		c.lanes[e.Pattern] = &lane{
			name: e.Pattern, number: i + 1, slots: e.Slots, cap: e.Slots,
			leaseTTL: c.policy.leaseTTL(e), jobTTL: e.JobTTL,
			keys: anys(c.keys.endpoint(e.Pattern)),
			args: []any{e.Pattern, e.Slots, ms(c.policy.leaseTTL(e))},
		}
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.done.Go(c.dispatch)
	return c, nil
}

// enlist makes this process a worker of the fleet, at its first request: who only
// looks, or reports on jobs, has no share. c.mu must be held.
func (c *Coordinator) enlist() {
	if !c.enlisted {
		c.enlisted = true
		c.done.Go(c.beat)
		c.done.Go(c.watchLeases)
		c.done.Go(c.listen)
	}
}

// Priority orders callers that wait: higher goes first. Between processes it is
// a head start of one minute for each step, so that no priority starves: a
// caller is overtaken only by those who came less than that after it.
type Priority int

// The priorities.
const (
	Batch       Priority = -1
	Normal      Priority = 0
	Interactive Priority = 1
)

// Request says what a permit is wanted for. The zero value is a request of
// normal priority that needs budget alone.
type Request struct {
	// Endpoint is the Pattern of one of the policy's endpoints, or empty.
	Endpoint string

	// Priority is clamped to the range from Batch to Interactive.
	Priority Priority

	// Retry is the permit of the failed attempt that this request repeats, if
	// any. The request then keeps its place among those who wait.
	Retry *Permit
}

// Acquire waits until a permit is granted. It returns early with
//   - a [*WaitError] when it is known that ctx's deadline will pass before;
//   - an error that wraps ctx's cause when ctx ends;
//   - [ErrUnknownEndpoint] or [ErrClosed];
//   - an error that wraps [ErrRedisAway] while Redis does not answer, if
//     Options.WhenAway is FailFast;
//   - the error of Redis when Redis refuses (a wrong password, say) rather than
//     being away.
//
// The caller must call [Permit.Release] or [Permit.Return], or another method
// that ends the permit.
func (c *Coordinator) Acquire(ctx context.Context, r Request) (*Permit, error) {
	asked := c.hookedTime()
	p, err := c.acquire(ctx, r)
	c.answered(r, p, err, asked)
	return p, err
}

func (c *Coordinator) acquire(ctx context.Context, r Request) (*Permit, error) {
	w, err := c.join(ctx, r)
	if err != nil {
		return nil, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		if c.abandon(w) {
			return nil, c.cancelled(ctx, w)
		}
		<-w.done
		if w.permit != nil {
			w.permit.Return()
			return nil, c.cancelled(ctx, w)
		}
	}
	return w.permit, w.err
}

func (c *Coordinator) cancelled(ctx context.Context, w *waiter) error {
	c.mu.Lock()
	gate, away := w.lane.gate, c.away
	c.mu.Unlock()
	err := context.Cause(ctx)
	if away != nil {
		return fmt.Errorf("fleetlimit: account %s waits while %w: %w: %w", c.account, ErrRedisAway, away, err)
	}
	return &gaveUp{fmt.Errorf("fleetlimit: account %s waits for a permit (gate %s): %w", c.account, gate, err), gate}
}

// TryAcquire asks Redis once and does not wait for capacity, nor for others who
// have waited longer: then it returns a [*WaitError] that says which gate said
// no, and how long to wait.
func (c *Coordinator) TryAcquire(ctx context.Context, r Request) (*Permit, error) {
	asked := c.hookedTime()
	p, err := c.tryAcquire(ctx, r)
	c.answered(r, p, err, asked)
	return p, err
}

func (c *Coordinator) tryAcquire(ctx context.Context, r Request) (*Permit, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l, err := c.laneOf(r)
	if err != nil {
		return nil, err
	}
	c.enlist()
	if c.away != nil {
		return c.tryAlone(l, time.Now())
	}
	asks := []ask{{
		lane: l, n: 1, priority: clampPriority(r.Priority), since: sinceOf(r), known: c.share.born, after: c.lastHeard,
	}}
	asked := time.Now()
	var answer answer
	c.unlocked(func() { answer, err = c.sendInTime(ctx, asks, nil) })
	if err != nil || answer.repeated {
		c.doubt(asks)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, fmt.Errorf("fleetlimit: asking Redis for a permit of account %s: %w", c.account, context.Cause(ctx))
	case c.closed:
		return nil, ErrClosed
	case refused(err):
		c.spoil(err)
		return nil, fmt.Errorf("fleetlimit: asking Redis for a permit of account %s: %w", c.account, err)
	default:
		c.lose(err)
		return c.tryAlone(l, time.Now())
	}
	reply := answer.replies[0]
	c.learn(reply.budget, asked)
	c.hearReply(reply)
	c.observe(asks, nil, answer)
	if c.share.dirty {
		c.signal() // Redis has lost its memory
	}
	if reply.granted == 0 && reply.gate == GateAway && c.whenAway == OwnShare && !c.closed {
		c.lose(errResumption)
		return c.tryAlone(l, time.Now())
	}
	if reply.granted == 0 {
		return nil, &WaitError{Account: c.account, Endpoint: r.Endpoint, Gate: reply.gate, Wait: reply.wait}
	}
	now := time.Now()
	p := c.newPermit(l, &reply, reply.last, asked, now)
	p.waited = now.Sub(asked)
	if c.closed {
		c.unlocked(func() { c.takeBack(p.opReturn()) })
		return nil, ErrClosed
	}
	c.count(p, reply.born)
	return p, nil
}

// unlocked does something without c.mu, which must be held before and is held again after
// it, also if a listener panics in it.
func (c *Coordinator) unlocked(f func()) {
	c.mu.Unlock()
	defer c.mu.Lock()
	f()
}

// JobSeen tells that a job was seen alive: the lease that was bound to it by
// [Permit.BindJob], in whichever process, lives on for the endpoint's JobTTL.
func (c *Coordinator) JobSeen(endpoint, job string) { c.aboutJob(opSeen, endpoint, job) }

// JobDone tells that a job has ended: its slot is free. Telling it twice, from
// any process, changes nothing.
func (c *Coordinator) JobDone(endpoint, job string) { c.aboutJob(opDone, endpoint, job) }

func (c *Coordinator) aboutJob(kind opKind, endpoint, job string) {
	l, ok := c.lanes[endpoint]
	if ok && l.slots > 0 && validJob(job) {
		c.post(op{kind: kind, lane: l, job: job})
	}
}

// Account is the account's name in Redis.
func (c *Coordinator) Account() string { return c.account }

// Worker is the name of this process in Redis.
func (c *Coordinator) Worker() string { return c.worker }

// Policy is the policy of this worker, with its defaults filled in. While others of the
// fleet have another, the strictest counts: see [PolicyDifference].
func (c *Coordinator) Policy() Policy { return c.policy }

// Close ends all waiting with [ErrClosed], gives all leases back (those of calls under
// way a second later, since the API takes a moment to notice that they were broken
// off; those of jobs not, nor of calls that may have started one: they go on) and leaves nothing running but, where Redis hangs, calls
// to it that end with the Redis client's own time-outs. The contexts of permits
// that are still held are cancelled. It returns the error of the last exchange
// with Redis; the leases then end by themselves. Closing twice changes nothing.
func (c *Coordinator) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.gone
		return nil
	}
	c.closed = true
	defer close(c.gone)
	for _, l := range c.lanes {
		l.fail(ErrClosed)
		c.leaveIfEmpty(l)
	}
	held := make([]*Permit, 0, len(c.held))
	for p := range c.held {
		held = append(held, p)
	}
	c.mu.Unlock()
	for _, p := range held {
		p.lose(ErrClosed)
		p.endAtClose()
	}
	c.signal()

	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	select {
	case <-c.flushed:
	case <-ctx.Done():
	}
	c.stop()
	c.done.Wait()
	defer c.listener.wait(ctx)
	if !c.enlisted {
		return nil
	}
	return c.sayGoodbye(ctx)
}
