package coordinator

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
)

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
