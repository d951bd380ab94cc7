package mockapi

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"
)

func (a *API) serveStats(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		writeControl(w, http.StatusMethodNotAllowed, fmt.Errorf("GET only"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, http.StatusOK, a.Stats())
}

// control is the body of POST /_control; every field is optional. They are
// applied in this order, up to the first that is wrong. Durations are in
// seconds.
type control struct {
	Tier          string            `json:"tier"`
	Limit         int               `json:"limit"`
	Spend         int               `json:"spend"`
	StopStrangers bool              `json:"stop_strangers"`
	Stranger      *controlStranger  `json:"stranger"`
	ClearFaults   bool              `json:"clear_faults"`
	Faults        []controlledFault `json:"faults"`
}

type controlStranger struct {
	Fraction     float64 `json:"fraction"`
	Burst        int     `json:"burst"`
	EverySeconds float64 `json:"every_seconds"`
}

type controlledFault struct {
	Kind              FaultKind `json:"kind"`
	Endpoint          string    `json:"endpoint"`
	Probability       float64   `json:"probability"`
	Count             int       `json:"count"`
	Status            int       `json:"status"`
	RetryAfterSeconds float64   `json:"retry_after_seconds"`
	DurationSeconds   float64   `json:"duration_seconds"`
	Remaining         int       `json:"remaining"`
	Hold              bool      `json:"hold"`
}

// serveControl changes the running API; it answers with the Stats.
func (a *API) serveControl(w http.ResponseWriter, r *http.Request) {
	if !isLocal(r.RemoteAddr) {
		writeControl(w, http.StatusForbidden, fmt.Errorf("loopback only"))
		return
	}
	if r.Method != http.MethodPost {
		writeControl(w, http.StatusMethodNotAllowed, fmt.Errorf("POST only"))
		return
	}
	var body control
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&body)
	if err == nil {
		err = a.apply(body)
	}
	if err != nil {
		writeControl(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, http.StatusOK, a.Stats())
}

func (a *API) apply(c control) error {
	if c.Tier != "" {
		if err := a.SetTier(c.Tier); err != nil {
			return err
		}
	}
	if c.Limit != 0 {
		if err := a.SetLimit(c.Limit); err != nil {
			return err
		}
	}
	a.Spend("", c.Spend)
	if c.StopStrangers {
		a.stopControlled()
	}
	if s := c.Stranger; s != nil {
		stop, err := a.StartStranger(Stranger{Fraction: s.Fraction, Burst: s.Burst, Every: seconds(s.EverySeconds)})
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.controlled = append(a.controlled, stop)
		a.mu.Unlock()
	}
	if c.ClearFaults {
		a.ClearFaults()
	}
	for _, f := range c.Faults {
		err := a.Inject(Fault{
			Kind: f.Kind, Endpoint: f.Endpoint, Probability: f.Probability, Count: f.Count,
			Status: f.Status, RetryAfter: seconds(f.RetryAfterSeconds),
			Duration: seconds(f.DurationSeconds), Remaining: f.Remaining, Hold: f.Hold,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// stopControlled ends the strangers that POST /_control has started.
func (a *API) stopControlled() {
	a.mu.Lock()
	stops := a.controlled
	a.controlled = nil
	a.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// isLocal tells whether a request came over loopback or in memory.
func isLocal(remote string) bool {
	if remote == (pipeAddr{}).String() {
		return true
	}
	host, _, err := net.SplitHostPort(remote)
	return err == nil && net.ParseIP(host).IsLoopback()
}

func writeControl(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, status, map[string]any{"error": map[string]any{"message": err.Error()}})
}
