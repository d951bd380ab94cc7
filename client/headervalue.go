package client

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// maxValueLen is far beyond any honest number or time in a header.
const maxValueLen = 64

// parseCount reads a whole number of requests, or -1. Of a list, as in the
// "100, 100;w=60" of an early RateLimit-Limit, the first number is the one
// closest to being exhausted.
func parseCount(value string) int {
	if i := strings.IndexAny(value, ",;"); i >= 0 {
		value = value[:i]
	}
	value = strings.TrimSpace(value)
	if !isNumber(value) {
		return -1
	}
	n, err := strconv.Atoi(value)
	if err != nil || n > maxCount {
		return -1
	}
	return n
}

// parseLimit is parseCount for a limit, of which 0 is no sensible value.
func parseLimit(value string) int {
	if n := parseCount(value); n > 0 {
		return n
	}
	return -1
}

// parseNumber reads a number of units, with a fraction or without, as a
// duration. What is too long for a duration is the longest one.
func parseNumber(value string, unit time.Duration) (time.Duration, bool) {
	n, ok := parseFloat(value)
	if !ok {
		return 0, false
	}
	return durationOf(n, unit), true
}

// durationOf rounds up: to wait a little longer does no harm.
func durationOf(n float64, unit time.Duration) time.Duration {
	d := math.Ceil(n * float64(unit))
	if d >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(d)
}

// parseFloat takes digits with at most one point: no sign, no exponent, no
// "inf".
func parseFloat(value string) (float64, bool) {
	value = strings.TrimSpace(value)
	if !isNumber(value) {
		return 0, false
	}
	n, err := strconv.ParseFloat(value, 64)
	return n, err == nil
}

func isNumber(value string) bool {
	if value == "" || len(value) > maxValueLen {
		return false
	}
	for _, c := range []byte(value) {
		if (c < '0' || c > '9') && c != '.' {
			return false
		}
	}
	return true
}

// What a number in a reset header can be. Delta seconds of 5e8 would be 15
// years, Unix seconds below it lie before November 1985; Unix milliseconds of
// 1e11 lie in 1973, Unix seconds of 1e11 in the year 5138. Virtual time, as of
// testing/synctest, begins in 2000.
const (
	leastUnixSeconds = 5e8
	leastUnixMillis  = 1e11
	mostUnixMillis   = 1e14
)

// parseReset reads delta seconds, Unix seconds or Unix milliseconds, told
// apart by their size, as the time from date to the reset, or -1.
func parseReset(value string, date time.Time) time.Duration {
	n, ok := parseFloat(value)
	switch {
	case !ok || n > mostUnixMillis:
		return -1
	case n >= leastUnixMillis:
		return resetAt(time.UnixMilli(int64(math.Ceil(n))), date)
	case n >= leastUnixSeconds:
		return resetAt(time.UnixMilli(int64(math.Ceil(n*1000))), date)
	default:
		return durationOf(n, time.Second)
	}
}

// resetAt is the time from date to a reset at the given time. A reset that
// just went by is one that is due; one of another day is nonsense.
func resetAt(at, date time.Time) time.Duration {
	if date.Sub(at) > maxReset {
		return -1
	}
	return until(at, date)
}

func until(at, date time.Time) time.Duration {
	return max(at.Sub(date), 0)
}

// parseDuration reads "6m0s", "1s" or "120ms", and a bare number as seconds,
// or returns -1.
func parseDuration(value string) time.Duration {
	value = strings.TrimSpace(value)
	if len(value) > maxValueLen {
		return -1
	}
	if d, ok := parseNumber(value, time.Second); ok {
		return d
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return -1
	}
	return d
}
