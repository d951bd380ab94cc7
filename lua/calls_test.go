package lua

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// A limits is the policy as the scripts get it; times in milliseconds.
type limits struct {
	limit          int
	window, jitter float64
	headroom       float64
	burst          int
	endpoints      []endpoint
}

// An endpoint has slots.
type endpoint struct {
	name     string
	slots    int
	lease    float64 // TTL of a lease, ms
	jobLease float64 // TTL of a job's lease, ms
}

func (p limits) horizon() float64 { return p.window + p.jitter }
func (p limits) args() []any {
	return []any{p.limit, p.window, p.jitter, p.headroom, p.burst}
}

// An ask is the operation admit of exchange.lua. Endpoint -1 needs budget alone.
type ask struct {
	worker    string
	endpoint  int
	n         int
	headStart float64
	since     string
	queue     bool
	known     int64 // the account's birth
}

func (a ask) place(p limits) string {
	if a.endpoint < 0 {
		return a.worker + " *"
	}
	return a.worker + " " + p.endpoints[a.endpoint].name
}

// An admission is the answer to it.
type admission struct {
	granted int
	last    int64
	at      float64
	atText  string
	own     int
	epoch   int64
	gate    string
	wait    float64
	since   string
	budget  int
	credit  float64
	born    int64
	workers int
}

func (s *server) budgetKeys() []string {
	return []string{s.prefix + "account", s.prefix + "window", s.prefix + "backoff", s.prefix + "queue", s.prefix + "due", s.prefix + "expected"}
}

func (s *server) endpointKeys(name string) []string {
	return []string{s.prefix + "backoff:" + name, s.prefix + "slots:" + name, s.prefix + "queue:" + name, s.prefix + "due:" + name}
}

// ask is the operation admit.
func (a ask) args() []any {
	since, queue := a.since, 0
	if since == "" {
		since = "0"
	}
	if a.queue {
		queue = 1
	}
	var args []any
	if a.known != 0 {
		args = append(args, "knew", a.known)
	}
	return append(args, "admit", a.endpoint+1, a.n, a.headStart, since, queue)
}

func (s *server) admitCall(p limits, a ask) ([]string, []any) {
	return s.exchangeCall(p, a.worker, a.args())
}

func (s *server) admit(f fails, p limits, a ask) admission {
	f.Helper()
	keys, args := s.admitCall(p, a)
	v := s.run(f, s.exchangeScript, keys, args)
	if len(v) != exchanged+admitted {
		f.Fatalf("exchange.lua answered %q, want %d values", v, exchanged+admitted)
	}
	return parseAdmission(f, v, 0, a)
}

// How many values exchange.lua answers, and how many more for each admit.
const exchanged, admitted = 11, 6

// parseAdmission reads the answer to the i-th admit.
func parseAdmission(f fails, v []string, i int, a ask) admission {
	f.Helper()
	w := v[exchanged+i*admitted:]
	r := admission{
		granted: int(parse(f, w[0])), last: int64(parse(f, w[1])), at: parse(f, v[10]), atText: v[10],
		own: int(parse(f, w[2])), epoch: int64(parse(f, v[1])), gate: w[3], wait: parse(f, w[4]), since: w[5],
		budget: int(parse(f, v[6])), credit: parse(f, v[7]), born: int64(parse(f, v[4])), workers: int(parse(f, v[8])),
	}
	if r.granted < 0 || r.granted > a.n || (r.gate == "") != (r.granted == a.n) || r.wait < 0 || r.own < r.granted {
		f.Fatalf("exchange.lua answered %q to a wish for %d", v, a.n)
	}
	return r
}

func (a admission) lease(worker string, seq int64) string {
	return fmt.Sprintf("%s:%s:%d", worker, a.atText, seq)
}

// A settlement is the first part of the reply of exchange.lua.
type settlement struct {
	released int
	epoch    int64
	paused   float64
	away     float64 // of which because Redis was away
	born     int64
}

// jobs are the names of the jobs in tests; key 6+4*endpoints+1+i of exchange.lua is
// job i of the last endpoint.
var jobs = []string{"job-1", "job-2"}

func jobKey(p limits, job int) int { return 6 + 4*len(p.endpoints) + 1 + job }

func (s *server) exchangeCall(p limits, worker string, ops []any) ([]string, []any) {
	keys := s.budgetKeys()
	args := append([]any{worker}, p.args()...)
	args = append(args, len(p.endpoints))
	for _, e := range p.endpoints {
		keys = append(keys, s.endpointKeys(e.name)...)
		args = append(args, e.name, e.slots, e.lease)
	}
	for _, job := range jobs {
		if n := len(p.endpoints); n > 0 {
			keys = append(keys, s.prefix+"job:"+p.endpoints[n-1].name+":"+job)
		}
	}
	return keys, append(args, ops...)
}

func (s *server) settle(f fails, p limits, worker string, ops ...any) settlement {
	f.Helper()
	r, _ := s.exchange(f, p, worker, 0, ops)
	return r
}

// exchange runs operations of which so many are admits; parseAdmission reads the answers
// to those.
func (s *server) exchange(f fails, p limits, worker string, admits int, ops []any) (settlement, []string) {
	f.Helper()
	keys, args := s.exchangeCall(p, worker, ops)
	v := s.run(f, s.exchangeScript, keys, args)
	if len(v) != exchanged+admits*admitted {
		f.Fatalf("exchange.lua answered %q, want %d values", v, exchanged+admits*admitted)
	}
	return settlement{int(parse(f, v[0])), int64(parse(f, v[1])), parse(f, v[2]), parse(f, v[3]), int64(parse(f, v[4]))}, v
}

// A held is a lease and its endpoint, counted from 0.
type held struct {
	endpoint int
	lease    string
}

func (s *server) renewCall(p limits, worker string, alive float64, leases []held) ([]string, []any) {
	keys := []string{s.prefix + "account", s.prefix + "workers", s.prefix + "backoff", s.prefix + "queue", s.prefix + "timeline", s.prefix + "policies", s.prefix + "expected"}
	args := append([]any{worker, alive}, p.args()...)
	args = append(args, len(p.endpoints))
	for _, e := range p.endpoints {
		keys = append(keys, s.prefix+"slots:"+e.name, s.prefix+"queue:"+e.name)
		args = append(args, e.name, e.slots, e.lease)
	}
	for _, l := range leases {
		args = append(args, l.endpoint+1, l.lease)
	}
	return keys, args
}

// renew returns how many workers are alive, and the lost leases.
func (s *server) renew(f fails, p limits, worker string, alive float64, leases ...held) (int, []string) {
	f.Helper()
	keys, args := s.renewCall(p, worker, alive, leases)
	v := s.run(f, s.renewScript, keys, args)
	if len(v) < 5 || v[4] != "0" {
		f.Fatalf("renew.lua answered %q, want 5 values at least, and no key that holds something else", v)
	}
	return int(parse(f, v[0])), v[5:]
}

func (s *server) run(f fails, script *redis.Script, keys []string, args []any) []string {
	f.Helper()
	s.writeClock(f)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	rdb := s.rdb
	if s.confined != nil {
		rdb = s.confined(f, keys)
	}
	v, err := script.Run(ctx, rdb, keys, args...).StringSlice()
	if err != nil {
		f.Fatalf("script: %v\nKEYS %q\nARGV %v", err, keys, args)
	}
	return v
}

func parse(f fails, s string) float64 {
	f.Helper()
	x, err := strconv.ParseFloat(s, 64)
	if err != nil {
		f.Fatalf("%q is no number", s)
	}
	return x
}

func formatMS(x float64) string { return strconv.FormatFloat(x, 'f', 3, 64) }

// near says whether two instants or durations are the same but for rounding.
func near(a, b float64) bool { return math.Abs(a-b) < 0.005 }
