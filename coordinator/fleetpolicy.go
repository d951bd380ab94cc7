package coordinator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PolicyDifference says that live workers of one fleet have different policies, as
// they do while the fleet is being rolled, and what counts meanwhile: the lowest limit
// (times headroom), burst and number of slots, the longest window and jitter. It counts
// for all until the last worker with the strict policy has gone: when it closes its
// coordinator a few heartbeats later, else when it counts as dead.
type PolicyDifference struct {
	Account  string
	Policies int      // different policies of live workers; 1: they agree again
	Own      Policy   // of this worker
	Counts   Policy   // what counts; of endpoints only Pattern and Slots
	Fields   []string // where the two differ, as in "limit 600, not 120"; empty: this worker's is the strictest
}

// A strictest is the policy that counts, as a heartbeat tells it.
type strictest struct {
	policy   Policy // of its endpoints only Pattern and Slots
	policies int
	text     string
}

// parsePolicy reads a policy as renew.lua writes it.
func parsePolicy(text string) (p Policy, err error) {
	first, rest, _ := strings.Cut(text, "\n")
	numbers := strings.Fields(first)
	bad := nonsense("renew.lua", "the policy is %q", clean(text))
	if len(numbers) != 5 {
		return p, bad
	}
	var n [5]float64
	for i, s := range numbers {
		if n[i], err = strconv.ParseFloat(s, 64); err != nil || !(n[i] >= 0 && n[i] <= maxLimit) {
			return p, bad
		}
	}
	p = Policy{
		Limit: int(n[0]), Window: time.Duration(n[1] * float64(time.Millisecond)),
		Jitter: time.Duration(n[2] * float64(time.Millisecond)), Headroom: n[3], Burst: int(n[4]),
	}
	if p.Limit < 1 || p.Window < minWindow || p.Window > maxWindow || p.Jitter > p.Window || p.Headroom <= 0 || p.Headroom > 1 {
		return p, bad
	}
	for line := range strings.SplitSeq(rest, "\n") {
		part := strings.SplitN(line, " ", 3)
		if len(part) < 3 || len(p.Endpoints) == maxEndpoints {
			continue
		}
		if slots, err := strconv.Atoi(part[0]); err == nil && slots >= 1 && slots <= maxSlots && validPattern(part[2]) {
			p.Endpoints = append(p.Endpoints, Endpoint{Pattern: part[2], Slots: slots})
		}
	}
	return p, nil
}

// obey takes over the strictest policy, as far as this worker's is not stricter, and
// announces a change. c.mu must be held.
func (c *Coordinator) obey(s strictest) {
	before := c.seen.strictest
	if s.policies == before.policies && s.text == before.text {
		return
	}
	c.seen.strictest = s
	own, p := c.policy, s.policy
	if usableLimit(own.Limit, own.Headroom) < usableLimit(p.Limit, p.Headroom) {
		p.Limit, p.Headroom = own.Limit, own.Headroom
	}
	p.Window, p.Jitter, p.LeaseTTL = max(p.Window, own.Window), max(p.Jitter, own.Jitter), own.LeaseTTL
	c.share.policy = p
	caps := make(map[string]int)
	for _, e := range p.Endpoints {
		caps[e.Pattern] = e.Slots
	}
	for _, l := range c.lanes {
		if l.cap = l.slots; caps[l.name] > 0 {
			l.cap = min(l.slots, caps[l.name])
		}
	}
	if s.policies > 1 || before.policies > 1 {
		c.announcePolicies(PolicyDifference{c.account, s.policies, own, p, own.unlike(p)})
	}
}

// unlike lists where a policy is not as strict as another, or has other endpoints.
func (p Policy) unlike(strict Policy) (fields []string) {
	add := func(name string, own, other any) {
		if own != other {
			fields = append(fields, fmt.Sprintf("%s %v, not %v", name, own, other))
		}
	}
	add("limit", p.Limit, strict.Limit)
	add("window", p.Window, strict.Window)
	add("jitter", p.Jitter, strict.Jitter)
	add("headroom", p.Headroom, strict.Headroom)
	add("burst", p.Burst, strict.Burst)
	slots := make(map[string]int)
	for _, e := range p.Endpoints {
		slots[e.Pattern] = e.Slots
	}
	for _, e := range strict.Endpoints {
		if slots[e.Pattern] == 0 {
			fields = append(fields, fmt.Sprintf("no slots of %s, not %d", e.Pattern, e.Slots))
			continue
		}
		add("slots of "+e.Pattern, slots[e.Pattern], e.Slots)
	}
	return fields
}

// PolicyDifferences lists in what the policies of live workers differ, with a worker
// that has each, as in "limit 120 (w3), 600 (w1)". Nil: they agree.
func (s *State) PolicyDifferences() (fields []string) {
	differ := func(name string, value func(Policy) any) {
		var texts []string
		seen := make(map[any]bool)
		for _, p := range s.Policies {
			if v := value(p.Policy); !seen[v] {
				seen[v] = true
				texts = append(texts, fmt.Sprintf("%v (%s)", v, orSomebody(p.Worker)))
			}
		}
		if len(texts) > 1 {
			fields = append(fields, name+" "+strings.Join(texts, ", "))
		}
	}
	differ("limit", func(p Policy) any { return p.Limit })
	differ("window", func(p Policy) any { return p.Window })
	differ("jitter", func(p Policy) any { return p.Jitter })
	differ("headroom", func(p Policy) any { return p.Headroom })
	differ("burst", func(p Policy) any { return p.Burst })
	var patterns []string
	for _, p := range s.Policies {
		for _, e := range p.Policy.Endpoints {
			if !slices.Contains(patterns, e.Pattern) {
				patterns = append(patterns, e.Pattern)
			}
		}
	}
	for _, pattern := range patterns {
		differ("slots of "+clean(pattern), func(p Policy) any {
			for _, e := range p.Endpoints {
				if e.Pattern == pattern {
					return e.Slots
				}
			}
			return "none"
		})
	}
	return fields
}
