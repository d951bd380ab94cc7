// Package accountview is an account as JSON, for the live page and for
// "fleetlimit -o json". Durations are whole milliseconds and end in _ms; -1 stands
// for what is not known.
package accountview

import (
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Account is one account at one moment.
type Account struct {
	Account   string     `json:"account"`
	Known     bool       `json:"known"` // whether a worker has told its policy
	Window    Window     `json:"window"`
	Pace      Pace       `json:"pace"`
	Backoff   *Pause     `json:"backoff,omitempty"` // what the API asked for
	Hold      *Pause     `json:"hold,omitempty"`    // what an operator asked for
	Endpoints []Endpoint `json:"endpoints"`
	Waiting   []Place    `json:"waiting"` // for budget
	Queued    int        `json:"queued"`
	Workers   []Worker   `json:"workers"`
	Alive     int        `json:"alive"`
	Drained   []Drain    `json:"drained"`
	Jobs      []Job      `json:"jobs,omitempty"`
	Granted   int64      `json:"granted"`  // number of the last permit
	Rejected  int64      `json:"rejected"` // 429s
	Diagnosis Diagnosis  `json:"diagnosis"`

	Policies    int      `json:"policies"`                     // different ones of live workers
	Differences []string `json:"policy_differences,omitempty"` // in what they differ
}

// Window is the budget, in requests.
type Window struct {
	LengthMS    int64   `json:"length_ms"`
	Limit       int     `json:"limit"` // in force
	PolicyLimit int     `json:"policy_limit"`
	Reported    int     `json:"reported_limit"`
	Headroom    float64 `json:"headroom"`
	Used        int     `json:"used"`
	Foreign     int     `json:"foreign"`
	Reserve     int     `json:"reserve"`
	Room        int     `json:"room"`
	WaitMS      int64   `json:"wait_ms"`
	ObservedMS  int64   `json:"observed_ms"`
	StrangersMS int64   `json:"strangers_ms"`
}

// Pace is the GCRA bucket.
type Pace struct {
	Credit     float64 `json:"credit"`
	Size       float64 `json:"size"`
	IntervalMS float64 `json:"interval_ms"`
	WaitMS     int64   `json:"wait_ms"`
}

// Pause is a pause of an account or an endpoint.
type Pause struct {
	LeftMS  int64  `json:"left_ms"`
	SinceMS int64  `json:"since_ms"`
	Reason  string `json:"reason"`
	By      string `json:"by"` // the worker that saw it, or the operator
	Strikes int    `json:"strikes,omitempty"`
}

// Endpoint is a counting semaphore.
type Endpoint struct {
	Endpoint string  `json:"endpoint"`
	Slots    int     `json:"slots"`
	InUse    int     `json:"in_use"`
	Leases   []Lease `json:"leases"`
	Waiting  int     `json:"waiting"`
	Queue    []Place `json:"queue"`
	Backoff  *Pause  `json:"backoff,omitempty"`
}

// Lease is a slot that is held.
type Lease struct {
	Lease  string `json:"lease"`
	Worker string `json:"worker"`
	HeldMS int64  `json:"held_ms"`
	LeftMS int64  `json:"left_ms"`
	Job    string `json:"job,omitempty"`
}

// Place is a process that waits.
type Place struct {
	Worker   string `json:"worker"`
	Endpoint string `json:"endpoint"`
	WaitedMS int64  `json:"waited_ms"`
	DueMS    int64  `json:"due_ms"`
	Gate     string `json:"gate"`
}

// Worker is a live process.
type Worker struct {
	Worker string `json:"worker"`
	LeftMS int64  `json:"left_ms"`
}

// Drain keeps a worker from new permits.
type Drain struct {
	Worker string `json:"worker"`
	LeftMS int64  `json:"left_ms"`
	By     string `json:"by"`
	Reason string `json:"reason"`
}

// Job is a slot that outlives its call.
type Job struct {
	Job      string `json:"job"`
	Endpoint string `json:"endpoint"`
	Worker   string `json:"worker"`
	LeftMS   int64  `json:"left_ms"`
}

// Diagnosis says why the account moves, or does not.
type Diagnosis struct {
	Summary string        `json:"summary"`
	Kinds   []Explanation `json:"kinds"`
	Notes   []string      `json:"notes"`
}

// Explanation is the diagnosis for one kind of request.
type Explanation struct {
	Endpoint string `json:"endpoint"`
	Waiting  int    `json:"waiting"`
	Gate     string `json:"gate"` // empty: all are open
	Reason   string `json:"reason"`
	WaitMS   int64  `json:"wait_ms"`
	Advice   string `json:"advice"`
	Gates    []Gate `json:"gates"`
}

// Gate is one gate.
type Gate struct {
	Gate   string `json:"gate"`
	Open   bool   `json:"open"`
	WaitMS int64  `json:"wait_ms"`
	Reason string `json:"reason"`
}

// Of returns the view of a state. Jobs may be nil.
func Of(s *coordinator.State, jobs []coordinator.Job) Account {
	a := Account{
		Account: s.Account, Known: s.Known, Queued: s.Queued, Alive: s.Alive, Granted: s.Granted, Rejected: s.Rejected,
		Window: Window{
			LengthMS: ms(s.Window), Limit: s.Limit, PolicyLimit: s.PolicyLimit, Reported: s.Reported, Headroom: s.Headroom,
			Used: s.Used, Foreign: s.Foreign, Reserve: s.Reserve, Room: s.Remaining, WaitMS: ms(s.WindowWait),
			ObservedMS: ms(s.Observed), StrangersMS: ms(s.Strangers),
		},
		Pace:      Pace{s.Pace.Credit, s.Pace.Size, float64(s.Pace.Interval) / 1e6, ms(s.Pace.Wait)},
		Backoff:   pauseOf(s.Backoff),
		Waiting:   placesOf(s.Waiting),
		Endpoints: []Endpoint{}, Workers: []Worker{}, Drained: []Drain{},
		Policies: len(s.Policies), Differences: s.PolicyDifferences(),
	}
	if h := s.Hold; h != nil {
		a.Hold = &Pause{LeftMS: ms(h.Left), SinceMS: ms(h.Since), Reason: h.Reason, By: h.By}
	}
	jobOf := make(map[string]string, len(jobs))
	for _, j := range jobs {
		jobOf[j.Lease] = j.ID
		a.Jobs = append(a.Jobs, Job{j.ID, j.Endpoint, j.Worker, ms(j.Left)})
	}
	for _, e := range s.Endpoints {
		v := Endpoint{
			Endpoint: e.Pattern, Slots: e.Slots, InUse: e.InUse, Leases: []Lease{},
			Waiting: e.Waiting, Queue: placesOf(e.Queue), Backoff: pauseOf(e.Backoff),
		}
		for _, l := range e.Leases {
			v.Leases = append(v.Leases, Lease{l.ID, l.Worker, ms(l.Held), ms(l.Left), jobOf[l.ID]})
		}
		a.Endpoints = append(a.Endpoints, v)
	}
	for _, w := range s.Workers {
		a.Workers = append(a.Workers, Worker{w.Worker, ms(w.Left)})
	}
	for _, d := range s.Drained {
		a.Drained = append(a.Drained, Drain{d.Worker, ms(d.Left), d.By, d.Reason})
	}
	a.Diagnosis = diagnosisOf(s.Explain())
	return a
}

func diagnosisOf(d coordinator.Diagnosis) Diagnosis {
	v := Diagnosis{Summary: d.Summary, Kinds: []Explanation{}, Notes: append([]string{}, d.Notes...)}
	for _, x := range d.Kinds {
		k := Explanation{
			Endpoint: x.Endpoint, Waiting: x.Waiting, Gate: string(x.Gate), Reason: x.Reason,
			WaitMS: ms(x.Wait), Advice: x.Advice, Gates: []Gate{},
		}
		for _, g := range x.Gates {
			k.Gates = append(k.Gates, Gate{string(g.Gate), g.Open, ms(g.Wait), g.Reason})
		}
		v.Kinds = append(v.Kinds, k)
	}
	return v
}

func pauseOf(b *coordinator.Backoff) *Pause {
	if b == nil {
		return nil
	}
	return &Pause{ms(b.Left), ms(b.Since), b.Reason, b.Worker, b.Strikes}
}

func placesOf(places []coordinator.Place) []Place {
	list := []Place{}
	for _, p := range places {
		list = append(list, Place{p.Worker, p.Endpoint, ms(p.Waited), ms(p.Due), string(p.Gate)})
	}
	return list
}

func ms(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}
