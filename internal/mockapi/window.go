package mockapi

import "time"

// Instants in this package are offsets from New, so that no step of the wall
// clock disturbs the judge.
type instant = time.Duration

// source says whose a counted request is.
type source uint8

const (
	fleet source = iota
	stranger
	fleetRejected // counted under Config.CountRejected
	strangerRejected
	sources // their number
)

func (s source) rejected() bool { return s == fleetRejected || s == strangerRejected }

type arrival struct {
	at   instant
	from source
}

// window counts the requests of one key. A call costs O(1) amortised; memory
// is bounded by what two windows hold.
type window struct {
	mode   Mode
	length time.Duration
	phase  time.Duration

	// log holds, oldest first, the arrivals in (now-length, now]: all that
	// count in Sliding mode, in Fixed mode those of the fleet that were
	// accepted, for MaxInWindow.
	log   queue[arrival]
	inLog [sources]int

	// In Fixed mode: the number of the current window and its count. Window
	// k ends at phase + (k+1) × length.
	index   int64
	inFixed [sources]int
}

// advance forgets what has left the window at now. Every other method expects
// that it was called with the same now.
func (w *window) advance(now instant) {
	for w.log.len() > 0 && w.log.at(0).at <= now-w.length {
		w.inLog[w.log.pop().from]--
	}
	if w.mode != Fixed {
		return
	}
	if index := floorDiv(now-w.phase, w.length); index != w.index {
		w.index = index
		w.inFixed = [sources]int{}
	}
}

// add counts a request.
func (w *window) add(now instant, from source, limit int) {
	if w.mode == Fixed {
		w.inFixed[from]++
		if from != fleet {
			return
		}
	}
	w.log.push(arrival{now, from})
	w.inLog[from]++
	// Only a flood of rejected requests can fill the log beyond the limit. The
	// newest limit entries alone decide, so the oldest may go.
	for from.rejected() && w.log.len() > 4*limit+1024 {
		w.inLog[w.log.pop().from]--
	}
}

// counts returns what counts against the limit: for the API, not for MaxInWindow.
func (w *window) counts() *[sources]int {
	if w.mode == Fixed {
		return &w.inFixed
	}
	return &w.inLog
}

// used is the number of requests that count against the limit.
func (w *window) used() (n int) {
	for _, c := range w.counts() {
		n += c
	}
	return n
}

// ofFleet is the fleet's part of used.
func (w *window) ofFleet() int {
	c := w.counts()
	return c[fleet] + c[fleetRejected]
}

// resetAt is the instant at which capacity returns. In a Fixed window that is
// its end. In a Sliding one it is the instant at which the oldest request
// leaves; if more than limit are counted (the tier was lowered), that at which
// enough have left; if none is, now.
func (w *window) resetAt(now instant, limit int) instant {
	if w.mode == Fixed {
		return w.phase + time.Duration(w.index+1)*w.length
	}
	if w.log.len() == 0 {
		return now
	}
	return w.log.at(max(0, w.log.len()-limit)).at + w.length
}

func floorDiv(a, b time.Duration) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return int64(q)
}

// queue is a first-in first-out ring. Its memory follows the most elements
// that it held at once.
type queue[T any] struct {
	ring []T // len is a power of two, or 0
	head int
	n    int
}

func (q *queue[T]) len() int { return q.n }

// at returns the element i places behind the oldest.
func (q *queue[T]) at(i int) T { return q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue[T]) push(v T) {
	if q.n == len(q.ring) {
		ring := make([]T, max(16, 2*q.n))
		for i := range q.n {
			ring[i] = q.at(i)
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)&(len(q.ring)-1)] = v
	q.n++
}

func (q *queue[T]) pop() T {
	v := q.at(0)
	var zero T
	q.ring[q.head] = zero
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	return v
}
