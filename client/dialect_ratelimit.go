package client

import (
	"net/http"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// quota is one policy of the IETF draft, with -1 for what is not known.
type quota struct {
	limit     int           // q of RateLimit-Policy
	window    time.Duration // w
	remaining int           // r of RateLimit
	reset     time.Duration // t
}

var unknownQuota = quota{limit: -1, window: -1, remaining: -1, reset: -1}

func readRateLimit(h http.Header, date time.Time, window time.Duration) coordinator.Feedback {
	if quotas := readQuotas(h); len(quotas) > 0 {
		return chooseQuota(quotas, window)
	}
	f := coordinator.NoFeedback
	if dict, err := httpsfv.UnmarshalDictionary(h.Values("Ratelimit")); err == nil {
		f.Limit = positive(wholeNumber(member(dict, "limit")))
		f.Remaining = wholeNumber(member(dict, "remaining"))
		f.Reset = seconds(wholeNumber(member(dict, "reset")))
	}
	if f == coordinator.NoFeedback {
		f.Limit = parseLimit(h.Get("Ratelimit-Limit"))
		f.Remaining = parseCount(h.Get("Ratelimit-Remaining"))
		f.Reset = parseReset(h.Get("Ratelimit-Reset"), date)
	}
	return f
}

// readQuotas joins the two lists by the names of their policies:
//
//	RateLimit-Policy: "burst";q=100;w=60, "daily";q=1000;w=86400
//	RateLimit: "burst";r=30;t=12
func readQuotas(h http.Header) []quota {
	state, err := httpsfv.UnmarshalList(h.Values("Ratelimit"))
	if err != nil {
		state = nil
	}
	policy, err := httpsfv.UnmarshalList(h.Values("Ratelimit-Policy"))
	if err != nil {
		policy = nil
	}

	var names []string
	byName := map[string]quota{}
	ignored := map[string]bool{}
	for _, m := range policy {
		name, item, ok := namedItem(m)
		if !ok {
			continue
		}
		if unit, ok := item.Params.Get("qu"); ok && text(unit) != "requests" {
			ignored[name] = true
			continue
		}
		if _, seen := byName[name]; !seen {
			names = append(names, name)
		}
		q := unknownQuota
		q.limit = positive(wholeNumber(param(item, "q")))
		q.window = seconds(wholeNumber(param(item, "w")))
		byName[name] = q
	}
	for _, m := range state {
		name, item, ok := namedItem(m)
		if !ok || ignored[name] {
			continue
		}
		q, seen := byName[name]
		if !seen {
			q = unknownQuota
			names = append(names, name)
		}
		q.remaining = wholeNumber(param(item, "r"))
		q.reset = seconds(wholeNumber(param(item, "t")))
		byName[name] = q
	}

	var quotas []quota
	for _, name := range names {
		if q := byName[name]; q.limit >= 0 || q.remaining >= 0 || q.reset >= 0 {
			quotas = append(quotas, q)
		}
	}
	return quotas
}

// chooseQuota follows the rule in the comment of [RateLimit].
func chooseQuota(quotas []quota, window time.Duration) coordinator.Feedback {
	f := coordinator.NoFeedback
	least := 2.0
	var exhausted time.Duration = -1
	for _, q := range quotas {
		if window > 0 && q.window >= 0 && q.window != window {
			if q.remaining == 0 {
				exhausted = max(exhausted, q.reset)
			}
			continue
		}
		if left := q.left(); left < least {
			least = left
			f.Limit, f.Remaining, f.Reset = q.limit, q.remaining, q.reset
		}
	}
	if least > 1 {
		f.Reset = exhausted
	}
	return f
}

// left is the share of the quota that remains; 1 if that is not known.
func (q quota) left() float64 {
	switch {
	case q.remaining == 0:
		return 0
	case q.remaining > 0 && q.limit > 0:
		return min(float64(q.remaining)/float64(q.limit), 1)
	}
	return 1
}

// namedItem takes a policy's name as a string, as the draft has it, or as a
// token, as some send it.
func namedItem(m httpsfv.Member) (name string, item httpsfv.Item, ok bool) {
	item, ok = m.(httpsfv.Item)
	if !ok {
		return "", item, false
	}
	name = text(item.Value)
	return name, item, name != ""
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case httpsfv.Token:
		return string(v)
	}
	return ""
}

func param(item httpsfv.Item, name string) any {
	v, _ := item.Params.Get(name)
	return v
}

func member(dict *httpsfv.Dictionary, name string) any {
	m, _ := dict.Get(name)
	if item, ok := m.(httpsfv.Item); ok {
		return item.Value
	}
	return nil
}

func wholeNumber(v any) int {
	if n, ok := v.(int64); ok && n >= 0 && n <= maxCount {
		return int(n)
	}
	return -1
}

func positive(n int) int {
	if n > 0 {
		return n
	}
	return -1
}

// seconds does not clamp: a window of a week must stay what it is.
// ParseFeedback clamps the resets of all dialects.
func seconds(n int) time.Duration {
	if n < 0 {
		return -1
	}
	return time.Duration(n) * time.Second
}
