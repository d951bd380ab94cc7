package client

import (
	"fmt"
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Dialect names a family of response headers that report the budget.
type Dialect string

// The dialects.
const (
	// XRateLimit is X-RateLimit-Limit, -Remaining and -Reset. The reset is
	// Unix seconds, Unix milliseconds or delta seconds, told apart by size.
	XRateLimit Dialect = "x-ratelimit"

	// RateLimit is RateLimit and RateLimit-Policy of the IETF draft
	// "RateLimit header fields for HTTP", in the structured form of its later
	// versions and the dictionary form of draft 07, or RateLimit-Limit,
	// -Remaining and -Reset of the versions before.
	//
	// Of several policies, only those that count requests are looked at, and
	// of those the ones whose window is the wanted one or is not given; among
	// these the one with the smallest share left. If all have another window,
	// their numbers say nothing about the wanted one and are left out, and the
	// longest reset of those with nothing left is all that is reported.
	RateLimit Dialect = "ratelimit"

	// OpenAI is x-ratelimit-limit-requests, -remaining-requests and
	// -reset-requests, the reset being a duration such as "6m0s" or "120ms".
	// A reset further away than the wanted window belongs to a daily limit,
	// whose numbers are left out.
	OpenAI Dialect = "openai"

	// Anthropic is anthropic-ratelimit-requests-limit, -remaining and -reset,
	// the reset being an RFC 3339 time.
	Anthropic Dialect = "anthropic"
)

// read returns what the dialect finds, [coordinator.NoFeedback] if nothing.
func (d Dialect) read(h http.Header, date time.Time, window time.Duration) coordinator.Feedback {
	switch d {
	case XRateLimit:
		return readXRateLimit(h, date)
	case RateLimit:
		return readRateLimit(h, date, window)
	case OpenAI:
		return readOpenAI(h, window)
	case Anthropic:
		return readAnthropic(h, date)
	}
	return coordinator.NoFeedback
}

func checkDialects(ds []Dialect) error {
	for i, d := range ds {
		switch d {
		case XRateLimit, RateLimit, OpenAI, Anthropic:
		default:
			return &coordinator.ConfigError{
				Field:  fmt.Sprintf("Profile.Dialects[%d]", i),
				Value:  d,
				Reason: fmt.Sprintf("must be %s, %s, %s or %s", XRateLimit, RateLimit, OpenAI, Anthropic),
			}
		}
	}
	return nil
}

// The names of headers stand here as net/http spells them: others cost an allocation.

func readXRateLimit(h http.Header, date time.Time) coordinator.Feedback {
	f := coordinator.NoFeedback
	f.Limit = parseLimit(h.Get("X-Ratelimit-Limit"))
	f.Remaining = parseCount(h.Get("X-Ratelimit-Remaining"))
	f.Reset = parseReset(h.Get("X-Ratelimit-Reset"), date)
	return f
}

func readOpenAI(h http.Header, window time.Duration) coordinator.Feedback {
	f := coordinator.NoFeedback
	f.Limit = parseLimit(h.Get("X-Ratelimit-Limit-Requests"))
	f.Remaining = parseCount(h.Get("X-Ratelimit-Remaining-Requests"))
	f.Reset = parseDuration(h.Get("X-Ratelimit-Reset-Requests"))
	if window > 0 && f.Reset > window {
		f.Limit, f.Remaining = -1, -1
	}
	return f
}

func readAnthropic(h http.Header, date time.Time) coordinator.Feedback {
	f := coordinator.NoFeedback
	f.Limit = parseLimit(h.Get("Anthropic-Ratelimit-Requests-Limit"))
	f.Remaining = parseCount(h.Get("Anthropic-Ratelimit-Requests-Remaining"))
	if at, err := time.Parse(time.RFC3339, h.Get("Anthropic-Ratelimit-Requests-Reset")); err == nil {
		f.Reset = resetAt(at, date)
	}
	return f
}
