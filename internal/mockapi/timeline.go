package mockapi

import "time"

// timeline counts accepted requests per small bucket of time, for utilisation
// over any span. The last timelineBuckets are kept.
type timeline struct {
	bucket  time.Duration
	dropped int // buckets forgotten at the front
	buckets []usage
}

type usage struct{ fleet, stranger, capacity float32 }

// timelineBuckets is 24 h of 60 s windows in sixtieths.
const timelineBuckets = 24 * 60 * bucketsPerWindow

const bucketsPerWindow = 60

// advance extends the timeline to now; capacity is the sum of the keys' limits
// since the last call.
func (t *timeline) advance(now instant, capacity int) *usage {
	last := int(now / t.bucket)
	if missing := last - t.dropped - len(t.buckets) + 1; missing > timelineBuckets {
		// Idle for longer than the memory: start anew.
		t.dropped, t.buckets = last-timelineBuckets+1, t.buckets[:0]
	}
	for t.dropped+len(t.buckets) <= last {
		t.buckets = append(t.buckets, usage{capacity: float32(capacity) / bucketsPerWindow})
	}
	// Dropping in lumps keeps this O(1) amortised.
	if len(t.buckets) > 2*timelineBuckets {
		n := len(t.buckets) - timelineBuckets
		t.dropped += n
		t.buckets = append(t.buckets[:0], t.buckets[n:]...)
	}
	return &t.buckets[len(t.buckets)-1]
}

// change notes that the capacity changes now; the current bucket has the old
// one for its past and the new one for its rest.
func (t *timeline) change(now instant, from, to int) {
	current := t.advance(now, from)
	rest := 1 - float32(now%t.bucket)/float32(t.bucket)
	current.capacity += float32(to-from) / bucketsPerWindow * rest
}

// between sums the buckets that begin in [from, to).
func (t *timeline) between(from, to instant) (sum struct{ fleet, stranger, capacity float64 }) {
	first := int((from+t.bucket-1)/t.bucket) - t.dropped
	last := int((to+t.bucket-1)/t.bucket) - t.dropped
	for i := max(first, 0); i < min(last, len(t.buckets)); i++ {
		sum.fleet += float64(t.buckets[i].fleet)
		sum.stranger += float64(t.buckets[i].stranger)
		sum.capacity += float64(t.buckets[i].capacity)
	}
	return sum
}

// Utilization is the share of the capacity (limit × time / window, summed over
// the keys) that was used between two offsets from New: by the fleet, and by
// strangers. Its resolution is a sixtieth of the window: a request counts if
// its bucket begins in [from, to). An empty span gives 0. Usage older than
// 1,440 windows is forgotten.
func (a *API) Utilization(from, to time.Duration) (fleet, stranger float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timeline.advance(a.Since(), a.capacity())
	sum := a.timeline.between(max(from, 0), to)
	if sum.capacity == 0 {
		return 0, 0
	}
	return sum.fleet / sum.capacity, sum.stranger / sum.capacity
}

// capacity is the sum of the limits of the keys in use. a.mu is held.
func (a *API) capacity() int {
	return max(1, len(a.accounts)) * a.limit
}
