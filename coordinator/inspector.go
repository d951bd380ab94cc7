package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/lua"
)

// Bounds of what an inspection reads.
const (
	maxListed    = 200    // leases, places, workers, drains of each at most
	maxAccounts  = 10_000 // accounts of one Redis
	maxJobs      = 10_000 // jobs of one account
	maxEndpoints = 1000   // endpoints of one account
	scanCount    = 1000
	longestText  = 256
)

// Inspector reads what the accounts in a Redis do. It changes nothing, belongs to
// no fleet, and needs no policy: it finds what there is. It is safe for concurrent
// use.
type Inspector struct{ rdb redis.UniversalClient }

// NewInspector returns an inspector of a Redis. The client remains the caller's.
func NewInspector(rdb redis.UniversalClient) *Inspector { return &Inspector{rdb} }

// ErrNoAccount says that Redis knows nothing of an account: nobody has used it in
// the last ten minutes. Test for it with [errors.Is].
var ErrNoAccount = errors.New("fleetlimit: no such account in this Redis")

// Accounts lists the names of the accounts in Redis, in order; at most 10,000. It
// looks at all keys of the database (SCAN), in a cluster at those of all masters.
func (i *Inspector) Accounts(ctx context.Context) ([]string, error) {
	names := make(map[string]bool)
	err := scan(ctx, i.rdb, "fleetlimit:{*}:*", func(key string) bool {
		name, what, ok := splitKey(key)
		// A pause can outlive the account.
		if ok && (what == "account" || what == "backoff") {
			names[name] = true
		}
		return len(names) < maxAccounts
	})
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: listing the accounts: %w", err)
	}
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	slices.Sort(list)
	return list, nil
}

// Account reads a snapshot of an account. An account of which there is nothing in
// Redis is [ErrNoAccount].
func (i *Inspector) Account(ctx context.Context, account string) (*State, error) {
	k, err := keysOfAccount(account)
	if err != nil {
		return nil, err
	}
	endpoints, err := endpointsIn(ctx, i.rdb, k)
	if err != nil {
		return nil, err
	}
	s, err := inspect(ctx, i.rdb, account, endpoints)
	if err != nil {
		return nil, err
	}
	if !s.Known && s.Granted == 0 && s.Backoff == nil && s.Hold == nil && s.Alive == 0 && len(s.Drained) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoAccount, account)
	}
	return s, nil
}

// Job is a lease that outlives the call that took it.
type Job struct {
	ID       string
	Endpoint string
	Lease    string
	Worker   string        // who started it
	Left     time.Duration // until its slot ends, if nobody sees the job alive
}

// Jobs lists the jobs of an account that hold slots, by endpoint and name; at most
// 10,000. Like Accounts it looks at all keys of the database.
func (i *Inspector) Jobs(ctx context.Context, account string) ([]Job, error) {
	k, err := keysOfAccount(account)
	if err != nil {
		return nil, err
	}
	endpoints, err := endpointsIn(ctx, i.rdb, k)
	if err != nil {
		return nil, err
	}
	var names []string
	err = scan(ctx, i.rdb, k.prefix+"job:*", func(key string) bool {
		names = append(names, key)
		return len(names) < maxJobs
	})
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: listing the jobs of account %s: %w", account, err)
	}
	pipe := i.rdb.Pipeline()
	leases, lefts := make([]*redis.StringCmd, len(names)), make([]*redis.DurationCmd, len(names))
	for n, key := range names {
		leases[n], lefts[n] = pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	}
	if len(names) > 0 {
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("fleetlimit: reading the jobs of account %s: %w", account, err)
		}
	}
	jobs := make([]Job, 0, len(names))
	for n, key := range names {
		lease, err := leases[n].Result()
		if err != nil {
			continue // it has ended meanwhile
		}
		rest := strings.TrimPrefix(key, k.prefix+"job:")
		for _, e := range endpoints {
			if id, ok := strings.CutPrefix(rest, e+":"); ok {
				jobs = append(jobs, Job{
					ID: clean(id), Endpoint: clean(e), Lease: clean(lease),
					Worker: clean(holderOf(lease)), Left: max(0, lefts[n].Val()),
				})
				break
			}
		}
	}
	slices.SortFunc(jobs, func(a, b Job) int {
		return strings.Compare(a.Endpoint+"\x00"+a.ID, b.Endpoint+"\x00"+b.ID)
	})
	return jobs, nil
}

// A Sample is how an account stood at one moment of the last ten minutes. Granted and
// Rejected only grow, unless Redis has lost its memory: the difference between two
// samples is what happened in between.
type Sample struct {
	Ago      time.Duration
	Granted  int64 // number of the last permit
	Rejected int64 // 429s
	Foreign  int   // requests of strangers in the window
	Waiting  int   // places in the queues: a process that waits at two endpoints has two
	Paused   bool
}

// Timeline lists how an account did in the last ten minutes, the oldest first: the
// workers' heartbeats take a sample every five seconds or, if none beats that often,
// at every beat.
func (i *Inspector) Timeline(ctx context.Context, account string) ([]Sample, error) {
	k, err := keysOfAccount(account)
	if err != nil {
		return nil, err
	}
	text, err := lua.Inspect.Run(ctx, i.rdb, []string{k.timeline()}, maxListed).Text()
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the timeline of account %s: %w", account, err)
	}
	var read struct {
		Timeline struct {
			Samples []struct {
				AgoMS    float64 `json:"ago_ms"`
				Granted  float64 `json:"granted"`
				Rejected float64 `json:"rejected"`
				Foreign  float64 `json:"foreign"`
				Waiting  float64 `json:"waiting"`
				Paused   bool    `json:"paused"`
			} `json:"samples"`
		} `json:"timeline"`
	}
	if err := json.Unmarshal([]byte(text), &read); err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the timeline of account %s: %w", account, err)
	}
	var samples []Sample
	for _, x := range read.Timeline.Samples {
		samples = append(samples, Sample{
			span(x.AgoMS), int64(whole(x.Granted)), int64(whole(x.Rejected)), count(x.Foreign), count(x.Waiting), x.Paused,
		})
	}
	return samples, nil
}

// holderOf is the worker in the name of a lease, "<worker>:<since>:<number>".
func holderOf(lease string) string {
	parts := strings.Split(lease, ":")
	if len(parts) < 3 {
		return lease
	}
	return strings.Join(parts[:len(parts)-2], ":")
}

func keysOfAccount(account string) (keys, error) {
	if !validName(account, "._-@") {
		return keys{}, &ConfigError{"account", fmt.Sprintf("%q", clean(account)), "must be 1 to 128 letters, digits or any of ._-@"}
	}
	return keysOf(account), nil
}

// splitKey takes a key "fleetlimit:{<account>}:<what>" apart.
func splitKey(key string) (account, what string, ok bool) {
	rest, ok := strings.CutPrefix(key, "fleetlimit:{")
	if !ok {
		return "", "", false
	}
	account, what, ok = strings.Cut(rest, "}:")
	return account, what, ok && validName(account, "._-@")
}

// scan calls found for every key that matches, until it returns false. A key may
// come twice.
func scan(ctx context.Context, rdb redis.UniversalClient, match string, found func(string) bool) error {
	walk := func(ctx context.Context, node redis.Cmdable) (more bool, err error) {
		var cursor uint64
		for {
			names, next, err := node.Scan(ctx, cursor, match, scanCount).Result()
			if err != nil {
				return false, err
			}
			for _, name := range names {
				if !found(name) {
					return false, nil
				}
			}
			if cursor = next; cursor == 0 {
				return true, nil
			}
		}
	}
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		_, err := walk(ctx, rdb)
		return err
	}
	// One master after the other: found is not safe for concurrent use.
	var masters []*redis.Client
	lock := make(chan struct{}, 1)
	err := cluster.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
		lock <- struct{}{}
		masters = append(masters, node)
		<-lock
		return nil
	})
	for _, node := range masters {
		if err != nil {
			break
		}
		var more bool
		if more, err = walk(ctx, node); !more {
			break
		}
	}
	return err
}

// endpointsIn lists the endpoints with slots that the account's hash names.
func endpointsIn(ctx context.Context, rdb redis.UniversalClient, k keys) ([]string, error) {
	fields, err := rdb.HGetAll(ctx, k.account()).Result() // a worker's user may not HKEYS
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading %s: %w", k.account(), err)
	}
	var endpoints []string
	for field := range fields {
		if e, ok := strings.CutPrefix(field, "slots:"); ok && validPattern(e) && len(endpoints) < maxEndpoints {
			endpoints = append(endpoints, e)
		}
	}
	slices.Sort(endpoints)
	return endpoints, nil
}

// inspect reads an account and these of its endpoints, in one call of inspect.lua.
func inspect(ctx context.Context, rdb redis.UniversalClient, account string, endpoints []string) (*State, error) {
	k := keysOf(account)
	names := append(k.budget(), k.workers(), k.policies())
	for _, e := range endpoints {
		names = append(names, k.endpoint(e)...)
	}
	text, err := lua.Inspect.Run(ctx, rdb, names, maxListed).Text()
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the state of account %s: %w", account, err)
	}
	s, err := parseState(account, endpoints, []byte(text))
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the state of account %s: %w", account, err)
	}
	return s, nil
}

// What inspect.lua tells. Redis is not trusted: every value passes one of the
// functions below.
type (
	inspectedAccount struct {
		PolicyLimit float64  `json:"policy_limit"`
		Reported    float64  `json:"reported_limit"`
		Limit       float64  `json:"limit"`
		WindowMS    float64  `json:"window_ms"`
		JitterMS    float64  `json:"jitter_ms"`
		Headroom    float64  `json:"headroom"`
		Used        float64  `json:"used"`
		Foreign     float64  `json:"foreign"`
		Reserve     float64  `json:"reserve"`
		Budget      float64  `json:"budget"`
		Room        float64  `json:"room"`
		WindowWait  float64  `json:"window_wait_ms"`
		Credit      float64  `json:"credit"`
		Bucket      float64  `json:"bucket"`
		Interval    float64  `json:"interval_ms"`
		PaceWait    float64  `json:"pace_wait_ms"`
		Small       bool     `json:"small_bursts"`
		ObservedMS  *float64 `json:"observed_ms"`
		StrangerMS  *float64 `json:"stranger_ms"`
		Granted     float64  `json:"granted"`
		Rejected    float64  `json:"rejected"`
		Born        float64  `json:"born_ms"`
		Epoch       float64  `json:"epoch"`

		Slots   map[string]float64 `json:"slots"`
		Drained map[string]struct {
			LeftMS float64 `json:"left_ms"`
			By     string  `json:"by"`
			Reason string  `json:"reason"`
		} `json:"drained"`
	}
	inspectedBackoff struct {
		LeftMS  float64 `json:"left_ms"`
		SinceMS float64 `json:"since_ms"`
		Reason  string  `json:"reason"`
		Worker  string  `json:"worker"`
		Strikes float64 `json:"strikes"`
		Epoch   float64 `json:"epoch"`
		Hold    *struct {
			LeftMS  float64 `json:"left_ms"`
			SinceMS float64 `json:"since_ms"`
			Reason  string  `json:"reason"`
			By      string  `json:"by"`
		} `json:"hold"`
	}
	inspectedSlots struct {
		InUse  float64 `json:"in_use"`
		Leases []struct {
			Lease  string  `json:"lease"`
			Worker string  `json:"worker"`
			HeldMS float64 `json:"held_ms"`
			LeftMS float64 `json:"left_ms"`
		} `json:"leases"`
	}
	inspectedQueue struct {
		Waiting float64 `json:"waiting"`
		Places  []struct {
			Worker   string   `json:"worker"`
			Endpoint string   `json:"endpoint"`
			WaitedMS float64  `json:"waited_ms"`
			DueMS    *float64 `json:"due_ms"`
		} `json:"places"`
	}
	inspectedWorkers struct {
		Alive   float64 `json:"alive"`
		Workers []struct {
			Worker string  `json:"worker"`
			LeftMS float64 `json:"left_ms"`
		} `json:"workers"`
	}
	inspectedPolicies struct {
		Policies []struct {
			Limit    float64            `json:"limit"`
			WindowMS float64            `json:"window_ms"`
			JitterMS float64            `json:"jitter_ms"`
			Headroom float64            `json:"headroom"`
			Burst    float64            `json:"burst"`
			Slots    map[string]float64 `json:"slots"`
			Worker   string             `json:"worker"`
			LeftMS   float64            `json:"left_ms"`
		} `json:"policies"`
	}
)

// parseState reads the reply of inspect.lua.
func parseState(account string, endpoints []string, text []byte) (*State, error) {
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(text, &parts); err != nil {
		return nil, fmt.Errorf("inspect.lua answered no JSON object: %w", err)
	}
	var failed error
	read := func(name string, to any) bool {
		raw, ok := parts[name]
		if !ok {
			return false
		}
		if err := json.Unmarshal(raw, to); err != nil {
			failed = errors.Join(failed, fmt.Errorf("inspect.lua described %q in an unknown way: %w", clean(name), err))
			return false
		}
		return true
	}
	backoff := func(name string) (*Backoff, *Hold) {
		var b inspectedBackoff
		read(name, &b)
		var api *Backoff
		if b.LeftMS > 0 {
			api = &Backoff{span(b.LeftMS), span(b.SinceMS), clean(b.Reason), clean(b.Worker), count(b.Strikes), int64(whole(b.Epoch))}
		}
		if h := b.Hold; h != nil && h.LeftMS > 0 {
			return api, &Hold{span(h.LeftMS), span(h.SinceMS), clean(h.Reason), clean(h.By)}
		}
		return api, nil
	}
	places := func(name string) (list []Place, waiting int) {
		var q inspectedQueue
		read(name, &q)
		for _, p := range q.Places {
			list = append(list, Place{
				Worker: clean(p.Worker), Endpoint: clean(strings.TrimPrefix(p.Endpoint, anyEndpoint)),
				Waited: span(p.WaitedMS), Due: spanOr(p.DueMS, -1),
			})
		}
		return list, count(q.Waiting)
	}

	s := &State{Account: account, Observed: -1, Strangers: -1}
	var a inspectedAccount
	if read("account", &a) {
		s.Granted, s.Rejected = int64(whole(a.Granted)), int64(whole(a.Rejected))
		s.Born, s.Epoch, s.Reported = int64(whole(a.Born)), int64(whole(a.Epoch)), count(a.Reported)
		if s.Known = a.Limit >= 1 && a.WindowMS > 0; s.Known {
			s.PolicyLimit, s.Limit, s.Headroom = count(a.PolicyLimit), count(a.Limit), min(max(a.Headroom, 0), 1)
			s.Window, s.Jitter, s.Used, s.Foreign = span(a.WindowMS), span(a.JitterMS), count(a.Used), count(a.Foreign)
			s.Reserve, s.Budget, s.Remaining = count(a.Reserve), count(a.Budget), count(a.Room)
			s.WindowWait = span(a.WindowWait)
			s.Pace = Pace{min(max(a.Credit, -maxLimit), maxLimit), min(whole(a.Bucket), maxLimit), span(a.Interval), span(a.PaceWait), a.Small}
			s.Observed, s.Strangers = spanOr(a.ObservedMS, -1), spanOr(a.StrangerMS, -1)
		}
		for worker, d := range a.Drained {
			if d.LeftMS > 0 {
				s.Drained = append(s.Drained, Drain{clean(worker), span(d.LeftMS), clean(d.By), clean(d.Reason)})
			}
		}
		slices.SortFunc(s.Drained, func(a, b Drain) int { return strings.Compare(a.Worker, b.Worker) })
	}
	s.Backoff, s.Hold = backoff("backoff")
	s.Waiting, s.Queued = places("queue")
	var w inspectedWorkers
	read("workers", &w)
	s.Alive = count(w.Alive)
	for _, x := range w.Workers {
		s.Workers = append(s.Workers, WorkerState{clean(x.Worker), span(x.LeftMS)})
	}
	slices.SortFunc(s.Workers, func(a, b WorkerState) int { return strings.Compare(a.Worker, b.Worker) })
	var told inspectedPolicies
	read("policies", &told)
	for _, x := range told.Policies {
		p := PolicyState{Worker: clean(x.Worker), Left: span(x.LeftMS), Policy: Policy{
			Limit: count(x.Limit), Window: span(x.WindowMS), Jitter: span(x.JitterMS),
			Headroom: min(max(x.Headroom, 0), 1), Burst: count(x.Burst),
		}}
		for pattern, slots := range x.Slots {
			if validPattern(pattern) && len(p.Policy.Endpoints) < maxEndpoints {
				p.Policy.Endpoints = append(p.Policy.Endpoints, Endpoint{Pattern: pattern, Slots: count(slots)})
			}
		}
		slices.SortFunc(p.Policy.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.Pattern, b.Pattern) })
		s.Policies = append(s.Policies, p)
	}
	slices.SortFunc(s.Policies, func(a, b PolicyState) int {
		return cmp.Or(cmp.Compare(a.Policy.Limit, b.Policy.Limit), strings.Compare(a.Worker, b.Worker))
	})
	for _, e := range endpoints {
		es := EndpointState{Pattern: e, Slots: count(a.Slots[e])}
		es.Backoff, _ = backoff("backoff:" + e)
		var slots inspectedSlots
		read("slots:"+e, &slots)
		es.InUse = count(slots.InUse)
		for _, l := range slots.Leases {
			es.Leases = append(es.Leases, Lease{clean(l.Lease), clean(l.Worker), span(l.HeldMS), span(l.LeftMS)})
		}
		es.Queue, es.Waiting = places("queue:" + e)
		s.Endpoints = append(s.Endpoints, es)
	}
	if failed != nil {
		return nil, failed
	}
	s.nameGates()
	return s, nil
}

// whole makes a number from Redis a whole one between 0 and 1e15.
func whole(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return math.Floor(min(max(x, 0), 1e15))
}

func count(x float64) int { return int(min(whole(x), maxLimit)) }

// span is a duration in milliseconds, between 0 and a year.
func span(ms float64) time.Duration {
	if math.IsNaN(ms) {
		return 0
	}
	return time.Duration(min(max(ms, 0), 366*86400e3) * float64(time.Millisecond))
}

func spanOr(ms *float64, none time.Duration) time.Duration {
	if ms == nil {
		return none
	}
	return span(*ms)
}

// clean makes a text from Redis fit to be shown: valid, printable, on one line, and
// not too long.
func clean(s string) string {
	if len(s) > longestText {
		s = strings.ToValidUTF8(s[:longestText], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
