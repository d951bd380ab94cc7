package client

import (
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Bounds of what is believed of a header. What lies beyond them is clamped if
// it is a time and ignored if it is a count.
const (
	maxRetryAfter = 5 * time.Minute
	maxReset      = 24 * time.Hour
	maxCount      = 1_000_000_000
)

// ParseFeedback reads what a response's headers say about the budget: the
// limit, what remains of it and the time to its reset from the first of the
// dialects that finds any of them, and the time to wait from retry-after-ms or
// Retry-After, whatever the dialect.
//
// It never fails. A count that is not a whole number between 0 and 10⁹ (a
// limit: between 1 and 10⁹) is unknown, and so is a remainder above its limit.
// Reset is at most 24 hours and RetryAfter at most 5 minutes. A time of day is
// compared with the response's own Date, so that neither side's clock matters;
// only a response without Date is compared with the local clock.
//
// window is the length of the window whose budget is meant, for APIs that
// report several; 0 takes what there is.
func ParseFeedback(resp *http.Response, window time.Duration, dialects ...Dialect) coordinator.Feedback {
	date, ok := parseTime(resp.Header.Get("Date"))
	if !ok {
		date = time.Now()
	}
	f := coordinator.NoFeedback
	for _, d := range dialects {
		if found := d.read(resp.Header, date, window); found != coordinator.NoFeedback {
			f = found
			break
		}
	}
	if f.Limit >= 0 && f.Remaining > f.Limit {
		f.Remaining = -1
	}
	f.Reset = min(f.Reset, maxReset)
	f.Status = resp.StatusCode
	f.RetryAfter = retryAfter(resp.Header, date)
	return f
}

// retryAfter is -1 if neither header says anything sensible.
func retryAfter(h http.Header, date time.Time) time.Duration {
	if d, ok := parseNumber(h.Get("Retry-After-Ms"), time.Millisecond); ok {
		return min(d, maxRetryAfter)
	}
	value := h.Get("Retry-After")
	if d, ok := parseNumber(value, time.Second); ok {
		return min(d, maxRetryAfter)
	}
	if at, ok := parseTime(value); ok {
		return min(until(at, date), maxRetryAfter)
	}
	return -1
}

// parseTime spares what is not there the cost of three errors.
func parseTime(value string) (time.Time, bool) {
	if value == "" {
		return time.Time{}, false
	}
	t, err := http.ParseTime(value)
	return t, err == nil
}
