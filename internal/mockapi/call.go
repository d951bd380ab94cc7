package mockapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// call is one request on its way through the API.
type call struct {
	api      *API
	w        http.ResponseWriter
	r        *http.Request
	endpoint endpoint
	jobID    string // of GET /video-analyses/{id}

	key     keyHash
	verdict verdict
	body    requestBody
}

// requestBody holds what the API reads of a request.
type requestBody struct {
	Model     string          `json:"model"`
	PersonaID string          `json:"persona_id"`
	Input     json.RawMessage `json:"input"`
	Stream    bool            `json:"stream"`
}

// maxBody is the most bytes of a request body that are read.
const maxBody = 1 << 20

func (c *call) serve() {
	a := c.api
	key, ok := bearer(c.r)
	switch {
	case a.closed():
		c.fail(503, "")
		return
	case !ok:
		a.mu.Lock()
		a.arrived(c.endpoint, a.Since())
		a.count.unauthorized++
		a.mu.Unlock()
		c.fail(401, "")
		return
	}
	c.key = key
	c.verdict = a.admit(key, c.endpoint, c.ownFault())
	defer c.release()

	v := &c.verdict
	switch {
	case c.faulty(FaultCut):
		panic(http.ErrAbortHandler)
	case v.status != 0:
		c.fail(v.status, v.message)
		return
	case !c.readBody():
		return
	case c.faulty(FaultHang):
		c.hang()
	}
	handlers[c.endpoint](c)
}

// handlers serve admitted requests.
var handlers = [endpoints]func(*call){
	responses:     (*call).serveResponses,
	personas:      (*call).servePersonas,
	generations:   (*call).serveGenerations,
	maveChat:      (*call).serveChat,
	focusGroups:   (*call).serveFocusGroups,
	videoAnalyses: (*call).startJob,
	videoAnalysis: (*call).pollJob,
	other:         func(c *call) { c.fail(404, "") },
}

func (c *call) ownFault() *Fault {
	if c.api.cfg.FaultFunc == nil {
		return nil
	}
	f, ok := c.api.cfg.FaultFunc(c.endpoint.String(), c.api.asked.Add(1))
	if !ok {
		return nil
	}
	f.Count, f.Probability, f.Endpoint = 0, 0, ""
	f, err := f.withDefaults()
	if err != nil {
		panic(err) // a fault of the test itself
	}
	return &f
}

func (c *call) faulty(kind FaultKind) bool {
	return c.verdict.fault != nil && c.verdict.fault.Kind == kind
}

// hang holds the call beyond its latency.
func (c *call) hang() {
	until := never
	if d := c.verdict.fault.Duration; d > 0 {
		until = c.verdict.arrived + d
	}
	c.waitUntil(until)
}

// waitUntil returns at the instant t, or breaks the call off if the client
// goes away or the API closes.
func (c *call) waitUntil(t instant) {
	if !c.api.wait(c.r.Context(), t) {
		c.breakOff()
	}
}

// breakOff ends a call that nobody waits for. Returning instead would send an
// empty 200 to whoever still listens.
func (c *call) breakOff() {
	a, v := c.api, &c.verdict
	a.mu.Lock()
	a.count.canceled++
	if a.cfg.KeepBroken && v.hold != 0 {
		v.acct.slots[c.endpoint].becomeJob(v.hold, v.arrived+v.latency)
		if v.acct.slots[c.endpoint].listed {
			v.hold = 0
		}
	}
	a.mu.Unlock()
	panic(http.ErrAbortHandler)
}

// release frees the call's slot, once. It comes before the last byte of the
// answer: whoever has read that may use the slot.
func (c *call) release() {
	v := &c.verdict
	if v.hold == 0 {
		return
	}
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	v.acct.slots[c.endpoint].release(v.hold)
	v.hold = 0
}

// readBody reads the request's JSON; an empty body is an empty object. It
// answers by itself, and returns false, if the body is not valid. It precedes
// every wait: until the body is read, http.Server does not notice that the
// client goes away.
func (c *call) readBody() bool {
	if c.r.Body == nil || c.r.Method != http.MethodPost {
		return true
	}
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		c.fail(400, "The request body is too large.")
		return false
	}
	if err != nil {
		c.breakOff()
	}
	if len(raw) > 0 && json.Unmarshal(raw, &c.body) != nil {
		c.fail(400, "")
		return false
	}
	return true
}

// answerAfterLatency sends a success when the call's latency has passed.
func (c *call) answerAfterLatency(body map[string]any) {
	c.waitUntil(c.verdict.arrived + c.verdict.latency)
	body["usage"] = c.usage()
	c.answer(body)
}

// usage counts the endpoint's credits and tells them.
func (c *call) usage() map[string]any {
	credits := mavera[c.endpoint].credits
	c.api.spend(credits)
	return map[string]any{"credits_used": credits}
}

func (a *API) spend(credits int) {
	a.mu.Lock()
	a.count.credits += int64(credits)
	a.mu.Unlock()
}

// sinceArrival is a fraction of the call's latency as an instant.
func (c *call) sinceArrival(part, of int) instant {
	return c.verdict.arrived + c.verdict.latency*time.Duration(part)/time.Duration(of)
}
