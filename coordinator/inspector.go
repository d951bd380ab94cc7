package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	_, endpoints, err := i.find(ctx, account)
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
	k, endpoints, err := i.find(ctx, account)
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
		return nil, fmt.Errorf("fleetlimit: reading the timeline of account %s: %w", account, nameKey(ctx, i.rdb, []any{k.timeline()}, err))
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

// find returns the keys of an account, and its endpoints with slots.
func (i *Inspector) find(ctx context.Context, account string) (k keys, endpoints []string, err error) {
	if k, err = keysOfAccount(account); err == nil {
		endpoints, err = endpointsIn(ctx, i.rdb, k)
	}
	return k, endpoints, err
}

// endpointsIn lists the endpoints with slots that the account's hash names.
func endpointsIn(ctx context.Context, rdb redis.UniversalClient, k keys) ([]string, error) {
	fields, err := rdb.HGetAll(ctx, k.account()).Result() // a worker's user may not HKEYS
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading %s: %w", k.account(), nameKey(ctx, rdb, []any{k.account()}, err))
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
		return nil, fmt.Errorf("fleetlimit: reading the state of account %s: %w", account, nameKey(ctx, rdb, anys(names), err))
	}
	s, err := parseState(account, endpoints, []byte(text))
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the state of account %s: %w", account, err)
	}
	return s, nil
}
