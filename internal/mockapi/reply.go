package mockapi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// errorBody is the part of an error that depends on its status.
type errorBody struct{ typ, code, message string }

var errorBodies = map[int]errorBody{
	400: {"invalid_request_error", "invalid_request", "The request body is not valid."},
	401: {"authentication_error", "invalid_api_key", "Missing or malformed API key."},
	402: {"billing_error", "credits_exhausted", "The account has no credits left."},
	403: {"permission_error", "forbidden", "The API key may not do this."},
	404: {"not_found_error", "not_found", "There is no such resource."},
	429: {"rate_limit_error", "rate_limit_exceeded", "Rate limit exceeded. Please slow down."},
	500: {"api_error", "internal_error", "An internal error occurred."},
	503: {"api_error", "service_unavailable", "The service is temporarily unavailable."},
}

// fail answers with an error; message, if given, replaces the usual one.
func (c *call) fail(status int, message string) {
	b := errorBodies[status]
	if message == "" {
		message = b.message
	}
	if c.verdict.retryAfter > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(c.verdict.retryAfter/time.Second)))
	}
	c.send(status, map[string]any{"error": map[string]any{
		"message": message, "type": b.typ, "code": b.code, "param": nil,
	}})
}

// answer sends a success, unless the call is to be cut first.
func (c *call) answer(body any) {
	if c.faulty(FaultCutAfter) {
		panic(http.ErrAbortHandler)
	}
	c.send(http.StatusOK, body)
}

func (c *call) send(status int, body any) {
	c.release()
	c.setHeaders("application/json")
	writeJSON(c.w, status, body)
}

// setHeaders sets the headers that every answer carries. Only a request that
// names a key has a budget to tell.
func (c *call) setHeaders(contentType string) {
	a, v, h := c.api, &c.verdict, c.w.Header()
	now := a.Since()
	h.Set("Content-Type", contentType)
	h.Set("Date", a.wall(now).UTC().Format(http.TimeFormat))
	if v.acct == nil {
		return
	}
	b := a.budgetToTell(v, now)
	h.Set("X-RateLimit-Limit", strconv.Itoa(b.limit))
	h.Set("X-RateLimit-Remaining", strconv.Itoa(b.remaining))
	h.Set("X-RateLimit-Reset", strconv.FormatInt(a.unixSeconds(b.reset), 10))
}

// budgetToTell returns what the headers of an answer say, and notes that the
// fleet now knows the limit.
func (a *API) budgetToTell(v *verdict, now instant) budget {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cfg.HeadersAtResponse && v.status != http.StatusTooManyRequests {
		v.acct.window.advance(now)
		v.budget = a.budgetOf(v.acct, now)
	}
	// An answer to a call from before a tier change tells the old limit, and
	// so nothing new.
	if v.budget.limit == a.limit {
		v.acct.announce(now, a.limit, a.cfg.Grace)
	}
	return v.budget
}

// unixSeconds rounds an instant by the API's clock to whole Unix seconds.
func (a *API) unixSeconds(t instant) int64 {
	wall := a.wall(t)
	switch a.cfg.HeaderRounding {
	case RoundUp:
		wall = wall.Add(time.Second - 1)
	case RoundNearest:
		wall = wall.Add(time.Second / 2)
	}
	return wall.Unix()
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // all bodies are made here
	}
	w.WriteHeader(status)
	w.Write(raw)
}
