package mockapi

import (
	"fmt"
	"slices"
	"time"
)

// FaultKind says what goes wrong.
type FaultKind string

// The kinds of faults.
const (
	// FaultError answers with Status and the documented error body. The
	// request has passed the limits and has taken budget.
	FaultError FaultKind = "error"
	// FaultHang keeps the request, its budget and its slot until the client
	// goes away or Duration has passed; after Duration it is served late.
	FaultHang FaultKind = "hang"
	// FaultCut drops the connection before the request is looked at: it takes
	// neither budget nor slot.
	FaultCut FaultKind = "cut"
	// FaultCutAfter processes the request (budget, latency, a job that then
	// runs) and drops the connection instead of answering; a streamed answer
	// breaks off half-way.
	FaultCutAfter FaultKind = "cut_after"
	// FaultSurprise429 rejects the request although there is room, with
	// RetryAfter, and so orders a pause. It takes neither budget nor slot.
	FaultSurprise429 FaultKind = "surprise_429"
)

// Fault is something that goes wrong on purpose.
type Fault struct {
	Kind FaultKind
	// Endpoint is the pattern of the endpoint that is hit. Default: every one.
	Endpoint string
	// Probability, in (0, 1], is the share of matching requests that are hit.
	// Default 1.
	Probability float64
	// Count is how many requests are hit in all. Default: one, or without end
	// if Probability is given.
	Count int

	// Status of a FaultError. Default 500.
	Status int
	// RetryAfter goes out in whole seconds, rounded up: optional with a
	// FaultError (503, say), default 1 s with a FaultSurprise429.
	RetryAfter time.Duration
	// Duration of a FaultHang. Default: until the client goes away.
	Duration time.Duration
	// Remaining is what a FaultSurprise429 claims in X-RateLimit-Remaining:
	// 0, the default, says that the budget is spent; -1 tells the truth.
	Remaining int
	// Hold makes a FaultSurprise429 reject, until its RetryAfter has passed,
	// all that the pause forbids, not only the requests that it hits.
	Hold bool
}

// Inject adds a fault. Faults are tried in the order in which they were
// injected; a request suffers at most one. Those that need an admitted request
// (FaultError, FaultHang, FaultCutAfter) pass over requests that the limits
// reject.
func (a *API) Inject(f Fault) error {
	f, err := f.withDefaults()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, f)
	return nil
}

// ClearFaults removes every injected fault. Pauses already ordered stay.
func (a *API) ClearFaults() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = nil
}

func (f Fault) withDefaults() (Fault, error) {
	switch f.Kind {
	case FaultError:
		setDefault(&f.Status, 500)
		if _, ok := errorBodies[f.Status]; !ok {
			return f, fmt.Errorf("mockapi: Fault.Status %d is not an error of this API", f.Status)
		}
	case FaultSurprise429:
		setDefault(&f.RetryAfter, time.Second)
	case FaultHang, FaultCut, FaultCutAfter:
	default:
		return f, fmt.Errorf("mockapi: Fault.Kind %q is unknown", f.Kind)
	}
	if f.Endpoint != "" {
		if _, ok := endpointOf(f.Endpoint); !ok {
			return f, fmt.Errorf("mockapi: Fault.Endpoint: no endpoint %q", f.Endpoint)
		}
	}
	if !isFraction(f.Probability) {
		return f, fmt.Errorf("mockapi: Fault.Probability %v is outside [0, 1]", f.Probability)
	}
	if f.Count < 0 || f.RetryAfter < 0 || f.Duration < 0 || f.Remaining < -1 {
		return f, fmt.Errorf("mockapi: Fault: Count %d, RetryAfter %v, Duration %v or Remaining %d is negative",
			f.Count, f.RetryAfter, f.Duration, f.Remaining)
	}
	if f.Probability == 0 {
		f.Probability = 1
		setDefault(&f.Count, 1)
	}
	return f, nil
}

// beforeAdmission tells the faults that strike ahead of the limits.
func (f *Fault) beforeAdmission() bool {
	return f.Kind == FaultCut || f.Kind == FaultSurprise429
}

// takeFault draws the fault that strikes a request now. own is what FaultFunc
// said, which goes first. a.mu is held.
func (a *API) takeFault(e endpoint, own *Fault, beforeAdmission bool) *Fault {
	if own != nil {
		if own.beforeAdmission() == beforeAdmission {
			return own
		}
		return nil
	}
	for i := range a.faults {
		f := &a.faults[i]
		if f.beforeAdmission() != beforeAdmission || f.Endpoint != "" && f.Endpoint != e.String() {
			continue
		}
		if f.Probability < 1 && a.rng.Float64() >= f.Probability {
			continue
		}
		hit := *f
		if f.Count > 0 {
			if f.Count--; f.Count == 0 {
				a.faults = slices.Delete(a.faults, i, i+1)
			}
		}
		return &hit
	}
	return nil
}
