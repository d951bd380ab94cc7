package coordinator

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A Diagnosis says why an account moves, or does not.
type Diagnosis struct {
	Account string
	Summary string        // one sentence
	Kinds   []Explanation // requests that need budget alone first, then each endpoint with slots
	Notes   []string      // what else an operator should know
}

// An Explanation says what keeps one kind of request from being admitted now.
type Explanation struct {
	Endpoint string        // empty: requests that need budget alone
	Waiting  int           // processes in the queue
	Gate     Gate          // the first gate that is shut; empty: all are open
	Reason   string        // the numbers of that gate
	Wait     time.Duration // until it opens, as far as is known
	Advice   string        // what an operator can do; empty: nothing
	Gates    []GateState   // all gates, in the order in which admission evaluates them
}

// A GateState is one gate of an account.
type GateState struct {
	Gate   Gate
	Open   bool
	Wait   time.Duration // until it opens, as far as is known
	Reason string        // the numbers, whether it is open or not
	Advice string        // what an operator can do; empty: nothing
}

// Explain names, for each kind of request, the gate that is shut, the numbers
// behind it, and how long it stays shut.
func (s *State) Explain() Diagnosis {
	d := Diagnosis{Account: s.Account, Notes: s.notes()}
	d.Kinds = append(d.Kinds, explain("", s.Queued, s.budgetGates()))
	for _, e := range s.Endpoints {
		d.Kinds = append(d.Kinds, explain(e.Pattern, e.Waiting, s.endpointGates(e)))
	}
	d.Summary = s.summary(d.Kinds)
	return d
}

func explain(endpoint string, waiting int, gates []GateState) Explanation {
	x := Explanation{Endpoint: endpoint, Waiting: waiting, Gates: gates}
	for _, name := range byWeight {
		for _, g := range gates {
			if g.Gate == name && !g.Open {
				x.Gate, x.Reason, x.Wait, x.Advice = g.Gate, g.Reason, g.Wait, g.Advice
				return x
			}
		}
	}
	return x
}

// byWeight is the order in which shut gates are named, as admit.lua names them: who
// waits for a slot is not kept by the pace.
var byWeight = []Gate{GateBackoff, GateSlots, GateWindow, GatePace, GateTurn}

func (s *State) summary(kinds []Explanation) string {
	waiting := s.waiting()
	all := kinds[0]
	switch {
	case all.Gate == GateBackoff:
		return fmt.Sprintf("Nothing moves: %s.", all.Reason)
	case s.Alive == 0:
		return "No worker is alive, so nobody asks for permits."
	case waiting == 0 && all.Gate == GateWindow:
		return fmt.Sprintf("Nobody waits. The window is full: %s.", all.Reason)
	case waiting == 0:
		return "Nobody waits, and there is room: a worker that sends nothing has nothing to send, or waits for something else."
	case all.Waiting > 0 && all.Gate == GateWindow:
		return fmt.Sprintf("%s for the window: %s.", workersWait(waiting), all.Reason)
	case all.Waiting > 0 && all.Gate == GatePace:
		return fmt.Sprintf("It moves, at the pace of the limit: %s. %s.", all.Reason, workersWait(waiting))
	}
	for _, x := range kinds[1:] {
		if x.Gate != "" && x.Gate != GateTurn && x.Waiting > 0 {
			return fmt.Sprintf("%s, for %s: %s.", workersWait(waiting), x.Endpoint, x.Reason)
		}
	}
	return workersWait(waiting) + ", and will be served within moments: the gates are open."
}

// waiting counts the workers that wait, as far as the lists go.
func (s *State) waiting() int {
	names := make(map[string]bool)
	for _, p := range s.Waiting {
		names[p.Worker] = true
	}
	for _, e := range s.Endpoints {
		for _, p := range e.Queue {
			names[p.Worker] = true
		}
	}
	return len(names)
}

func workersWait(n int) string {
	switch n {
	case 1:
		return "1 worker waits"
	case maxListed:
		return fmt.Sprintf("%d workers or more wait", n)
	}
	return fmt.Sprintf("%d workers wait", n)
}

// notes lists what does not stop the fleet, but explains it.
func (s *State) notes() (notes []string) {
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if differences := s.PolicyDifferences(); len(differences) > 0 {
		add("The workers have %d different policies, and the strictest counts for all: %s.", len(s.Policies), strings.Join(differences, "; "))
	}
	if s.Known && s.Reported > 0 && s.Reported < s.PolicyLimit {
		add("The API reports a limit of %d requests, less than the %d of the policy: the lower one holds.", s.Reported, s.PolicyLimit)
	}
	if s.Known && s.Reported > s.PolicyLimit {
		add("The API reports a limit of %d requests, the policy allows %d: the fleet leaves %d unused.", s.Reported, s.PolicyLimit, s.Reported-s.PolicyLimit)
	}
	if s.Strangers >= 0 && s.Strangers <= s.Window+s.Jitter {
		if s.Foreign > 0 {
			add("Somebody else uses this key: %d requests in the window, seen %s ago; %d more are kept free for them. Look for clients of the key outside the fleet.",
				s.Foreign, brief(s.Strangers), s.Reserve)
		} else {
			add("Somebody else seemed to use this key %s ago; %d requests are kept free in case they come back.", brief(s.Strangers), s.Reserve)
		}
	}
	if s.Rejected > 0 {
		add("The API has said 429 %s in this account's life, which ends with ten idle minutes.", times(s.Rejected))
	}
	for _, d := range s.Drained {
		add("Worker %s is drained by %s (%s) and gets no permits for %s more; fleetlimit drain --undo %s -a %s ends that.",
			d.Worker, orSomebody(d.By), d.Reason, brief(d.Left), d.Worker, s.Account)
	}
	return notes
}

func times(n int64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func orSomebody(s string) string {
	if s == "" {
		return "somebody"
	}
	return s
}

// budgetGates are the gates of requests that need budget alone.
func (s *State) budgetGates() []GateState {
	return []GateState{s.backoffGate(), s.paceGate(), s.windowGate(), s.turnGate()}
}

func (s *State) endpointGates(e EndpointState) []GateState {
	backoff := s.backoffGate()
	if backoff.Open && e.Backoff != nil {
		backoff = pausedByAPI(e.Backoff, "this endpoint")
	}
	return []GateState{backoff, s.paceGate(), s.windowGate(), slotsGate(e), turnGate(e.Waiting)}
}

func (s *State) backoffGate() GateState {
	h, b := s.Hold, s.Backoff
	if h != nil && (b == nil || h.Left >= b.Left) {
		return GateState{Gate: GateBackoff, Wait: h.Left,
			Reason: fmt.Sprintf("%s paused the account %s ago (%s), for %s more", orSomebody(h.By), brief(h.Since), h.Reason, brief(h.Left)),
			Advice: "fleetlimit resume -a " + s.Account + " ends the pause",
		}
	}
	if b != nil {
		return pausedByAPI(b, "the account")
	}
	return GateState{Gate: GateBackoff, Open: true, Reason: "no pause"}
}

func pausedByAPI(b *Backoff, what string) GateState {
	if b.Reason == ReasonAway {
		return GateState{Gate: GateBackoff, Wait: b.Left,
			Reason: fmt.Sprintf("Redis was away, and for %s more the workers tell what they spent meanwhile", brief(b.Left)),
			Advice: "wait: it ends by itself, and workers go on with their own shares",
		}
	}
	g := GateState{Gate: GateBackoff, Wait: b.Left,
		Reason: fmt.Sprintf("the API paused %s %s ago (%s, seen by %s, %s in a row), for %s more",
			what, brief(b.Since), b.Reason, orSomebody(b.Worker), times(int64(b.Strikes)), brief(b.Left)),
		Advice: "wait: it ends by itself",
	}
	if b.Strikes > 1 {
		g.Advice = "the API goes on refusing: look for other clients of the key, and at the limit that it reports"
	}
	return g
}

func (s *State) paceGate() GateState {
	if !s.Known {
		return GateState{Gate: GatePace, Open: true, Reason: "no worker has told its policy yet"}
	}
	p := s.Pace
	g := GateState{Gate: GatePace, Open: p.Credit >= 1-1e-6, Wait: p.Wait}
	g.Reason = fmt.Sprintf("one request every %s, and the bucket holds %.1f of %.0f", brief(p.Interval), math.Max(0, p.Credit), p.Size)
	if !g.Open {
		g.Reason += fmt.Sprintf(": the next in %s", brief(p.Wait))
		g.Advice = "nothing: this is the pace of the limit"
	}
	return g
}

func (s *State) windowGate() GateState {
	if !s.Known {
		return GateState{Gate: GateWindow, Open: true, Reason: "no worker has told its policy yet"}
	}
	g := GateState{Gate: GateWindow, Open: s.Remaining >= 1}
	g.Reason = fmt.Sprintf("of %d requests in %s the fleet has used %d", s.Limit, brief(s.Window), s.Used)
	if s.Foreign > 0 || s.Reserve > 0 {
		g.Reason += fmt.Sprintf(", strangers %d, and %d are kept free for them", s.Foreign, s.Reserve)
	}
	if g.Open {
		g.Reason += fmt.Sprintf(": room for %d", s.Remaining)
		return g
	}
	g.Wait = s.WindowWait
	g.Reason += fmt.Sprintf(": the next fits in %s", brief(s.WindowWait))
	switch {
	case s.Foreign*5 > s.Limit:
		g.Advice = "find who else uses the key: strangers take a large part of the limit"
	case s.Reported > 0 && s.Reported < s.PolicyLimit:
		g.Advice = "the API grants less than the policy says: check the tier of the key"
	default:
		g.Advice = "nothing: the whole limit is in use; a higher tier is the only way to send more"
	}
	return g
}

func slotsGate(e EndpointState) GateState {
	g := GateState{Gate: GateSlots, Open: e.InUse < e.Slots}
	g.Reason = fmt.Sprintf("%d of %d slots in use", e.InUse, e.Slots)
	if g.Open {
		return g
	}
	var longest Lease
	first := time.Duration(math.MaxInt64)
	for _, l := range e.Leases {
		if l.Held >= longest.Held {
			longest = l
		}
		first = min(first, l.Left)
	}
	if longest.Worker != "" {
		g.Reason += fmt.Sprintf(", the longest for %s by %s", brief(longest.Held), longest.Worker)
		// A lease that is renewed goes on; this is when a dead worker's would end.
		g.Advice = fmt.Sprintf("wait for a call to end; the slots of a dead worker come back by themselves, the first within %s", brief(first))
	}
	return g
}

func (s *State) turnGate() GateState { return turnGate(s.Queued) }

func turnGate(waiting int) GateState {
	g := GateState{Gate: GateTurn, Open: waiting == 0, Reason: "nobody waits"}
	if waiting > 0 {
		g.Reason = workersWait(waiting) + ", and who has waited longest goes first"
	}
	return g
}

// nameGates says of each place what it waits for.
func (s *State) nameGates() {
	budget := explain("", 0, s.budgetGates()[:3]).Gate
	inBudget := make(map[Place]bool)
	name := func(p *Place, first bool, gate Gate) {
		p.Gate = GateTurn
		if first && gate != "" || gate == GateBackoff {
			p.Gate = gate
		}
	}
	for i := range s.Waiting {
		p := &s.Waiting[i]
		name(p, i == 0, budget)
		inBudget[Place{Worker: p.Worker, Endpoint: p.Endpoint, Gate: p.Gate}] = true
	}
	for n := range s.Endpoints {
		e := &s.Endpoints[n]
		gate := explain("", 0, s.endpointGates(*e)[:4]).Gate
		for i := range e.Queue {
			p := &e.Queue[i]
			p.Gate = ""
			for _, g := range []Gate{GateTurn, GateBackoff, GatePace, GateWindow} {
				if inBudget[Place{Worker: p.Worker, Endpoint: p.Endpoint, Gate: g}] {
					p.Gate = g // it waits for budget
				}
			}
			switch {
			case p.Gate != "":
			case gate == GateBackoff:
				p.Gate = gate
			case e.InUse >= e.Slots:
				p.Gate = GateSlots
			default:
				p.Gate = GateTurn
			}
		}
	}
}

// brief writes a duration for people: 340ms, 2.3s, 1m30s, 2h5m0s.
func brief(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
