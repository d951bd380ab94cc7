package lua

import (
	"math"
	"strings"
)

// A model is what an account is, told plainly: a log of requests, a bucket that
// fills, maps of leases and of pauses. What the scripts may answer follows from
// it. Times are milliseconds.
//
// The scripts count requests in buckets of window/512, so a request leaves their
// count a little later than the log says: the model gives both bounds.
type model struct {
	limits
	expiry bool // whether keys expire as virtual time passes

	now  float64
	last float64 // instant of the youngest request in the log
	seq  int64   // number of the last permit; 0: there is no account yet
	kept float64 // how long Redis keeps the account without a write
	log  []request

	granted   []request // all permits ever, for what the API may have counted
	returned  []int64   // those that were never sent
	full      float64   // instant at which the pace bucket is full
	paceKnown bool      // neither strangers, nor silent workers, nor a return that the clock fell behind have changed the pace
	silence   bool      // workers may be silent, so that less is granted
	queued    bool      // somebody has a place in a queue: grants depend on turns
	setBack   bool      // a jump of the clock has made the log's instants uncertain

	reported, foreign, foreignAt, strangerAt float64
	observed                                 int64

	epoch     int64
	pauses    []pause // of the account, then of each endpoint
	semaphore []semaphore
	jobs      map[string]*job
}

type request struct {
	at   float64
	seq  int64 // 0: it left late and is known by no number any more
	gone bool  // outside the window, though the scripts may not have noticed
}

type pause struct {
	until, length, kept float64
	strikes             int
}

type semaphore struct {
	leases map[string]float64 // instant at which each expires
	kept   float64            // how long Redis keeps the key
}

type job struct {
	lease string
	kept  float64
}

const (
	longestPause = 300_000
	idleTTL      = 600_000
	grace        = 1000
	buckets      = 512
	tolerance    = 0.01 // permits; instants are rounded to a microsecond
)

func newModel(p limits, expiry bool, now float64) *model {
	m := &model{limits: p, expiry: expiry, now: now, paceKnown: true, jobs: make(map[string]*job)}
	m.pauses = make([]pause, 1+len(p.endpoints))
	m.semaphore = make([]semaphore, len(p.endpoints))
	for e := range m.semaphore {
		m.semaphore[e].leases = make(map[string]float64)
	}
	return m
}

// pass moves the clock to now; keys live by the time that has passed, not by
// where the clock has been set back to.
func (m *model) pass(now float64) {
	elapsed := now - m.now
	m.now = now
	if elapsed < 0 && len(m.returned) > 0 {
		m.paceKnown = false // what a return put into the bucket later than now may stay there, or not
	}
	if !m.expiry || elapsed <= 0 {
		return
	}
	if m.kept -= elapsed; m.kept <= 0 {
		m.forgetAccount()
	}
	for i := range m.pauses {
		if m.pauses[i].kept -= elapsed; m.pauses[i].kept <= 0 {
			m.pauses[i].until = 0
		}
	}
	for e := range m.semaphore {
		if m.semaphore[e].kept -= elapsed; m.semaphore[e].kept <= 0 {
			clear(m.semaphore[e].leases)
		}
	}
	for name, j := range m.jobs {
		if j.kept -= elapsed; j.kept <= 0 {
			delete(m.jobs, name)
		}
	}
}

func (m *model) forgetAccount() {
	m.log, m.granted, m.returned, m.last, m.seq, m.full, m.paceKnown = nil, nil, nil, 0, 0, 0, true
	m.reported, m.foreign, m.foreignAt, m.strangerAt, m.observed = 0, 0, 0, 0, 0
	m.epoch, m.setBack = 0, false
	for i := range m.pauses {
		m.pauses[i].strikes = 0
	}
}

// load is what every call of admit and settle begins with. It returns the
// account's time: the clock never runs backwards by a little, and after a jump
// backwards everything counts as granted at that moment.
func (m *model) load() float64 {
	now := m.now
	if m.seq == 0 {
		m.seq = int64(math.Floor(now))
	}
	if m.last > now+1000 {
		for i := range m.log {
			m.log[i].at = now
		}
		m.last, m.setBack = now, true
	}
	now = max(now, m.last)
	m.foreignAt, m.strangerAt = min(m.foreignAt, now), min(m.strangerAt, now)
	kept := m.log[:0]
	for _, r := range m.log {
		edge := now - m.horizon()
		r.gone = r.gone || r.at <= edge
		if r.at > edge-m.window/buckets {
			kept = append(kept, r)
		}
	}
	m.log = kept
	if now-m.foreignAt >= m.horizon()-0.001 { // as exact as instants are
		m.foreign = 0
	}
	m.kept = m.accountTTL()
	return now
}

func (m *model) accountTTL() float64 { return max(idleTTL, 2*m.horizon()) }

// counted returns how many requests the window holds, and how many the scripts
// may believe that it holds.
func (m *model) counted() (exact, most int) {
	for _, r := range m.log {
		if !r.gone {
			exact++
		}
	}
	return exact, len(m.log)
}

func (m *model) usable() int {
	limit := float64(m.limit)
	if m.reported > 0 {
		limit = min(limit, m.reported)
	}
	return max(1, int(limit*m.headroom+1e-6))
}

func (m *model) emissionInterval() float64 { return m.window / float64(m.usable()) }

func (m *model) bucketSize() float64 {
	burst := float64(m.burst)
	if m.reported > 0 && m.reported < float64(m.limits.limit) {
		burst *= m.reported / float64(m.limits.limit)
	}
	return max(1, min(float64(m.usable()), math.Floor(burst+0.5)))
}

func (m *model) level(now float64) float64 {
	return min(m.bucketSize(), m.bucketSize()-(m.full-now)/m.emissionInterval())
}

func (m *model) setLevel(now, level float64) {
	m.full = now + (m.bucketSize()-level)*m.emissionInterval()
}

func (m *model) pauseLeft(i int, now float64) float64 {
	p := &m.pauses[i]
	if p.until == 0 {
		return 0
	}
	longest := min(p.length, longestPause)
	if p.until-now > longest+1 { // the clock was set back
		p.until, p.kept = now+longest, math.Ceil(longest)
	}
	return max(0, min(p.until-now, longest))
}

// extend sets a lease's expiry. Redis keeps the key for the longest of them, and a fourth
// longer when it begins to.
func (s *semaphore) extend(lease string, now, ttl float64) {
	if len(s.leases) == 0 {
		s.kept = 0 // the key went with the last lease
	}
	s.leases[lease] = now + ttl
	if s.kept < ttl+grace {
		s.kept = math.Round((ttl + grace) * 1.25)
	}
}

// renew is extend by a heartbeat.
func (s *semaphore) renew(lease string, now, ttl float64) {
	s.leases[lease] = now + ttl
	s.kept = max(s.kept, ttl+grace)
}

// free is how many of an endpoint's slots are free, without expired leases.
func (m *model) free(e int, now float64) int {
	s := &m.semaphore[e]
	for lease, expiry := range s.leases {
		if expiry <= now {
			delete(s.leases, lease)
		}
	}
	free := m.endpoints[e].slots - len(s.leases)
	if free <= 0 {
		for lease, expiry := range s.leases {
			s.leases[lease] = min(expiry, now+m.endpoints[e].lease)
		}
	}
	return free
}

// admit checks the answer of exchange.lua against the model and takes it over.
func (m *model) admit(f fails, a ask, r admission) {
	f.Helper()
	now := m.load()
	if math.Abs(r.at-now) > 0.0015 {
		f.Fatalf("admitted at %.3f, want %.3f", r.at, now)
	}
	paused := m.pauseLeft(0, now)
	if a.endpoint >= 0 {
		paused = max(paused, m.pauseLeft(1+a.endpoint, now))
	}
	m.full = min(m.full, now+paused+m.bucketSize()*m.emissionInterval())
	exact, most := m.counted()
	stranger := m.strangerAt > 0 && now-m.strangerAt <= m.horizon()

	upper := min(a.n, m.usable()-exact-int(m.foreign))
	if m.epoch > 0 { // after a pause one may go and look whether the strangers have gone
		upper = max(upper, min(a.n, m.usable()-exact, 1))
	}
	lower := min(a.n, m.usable()-most-int(m.foreign))
	if m.paceKnown && !m.silence {
		upper = min(upper, int(math.Floor(m.level(now)+tolerance)))
		lower = min(lower, int(math.Floor(m.level(now)-tolerance)))
	}
	free := math.MaxInt
	if a.endpoint >= 0 {
		free = m.free(a.endpoint, now)
		upper, lower = min(upper, free), min(lower, free)
	}
	if paused > 0 {
		upper, lower = 0, 0
	}
	if m.queued || stranger || !m.paceKnown || m.silence {
		lower = 0
	}
	if r.granted > max(0, upper) || r.granted < lower {
		f.Fatalf("%d of %d granted, want between %d and %d (usable %d, in the window %d to %d, foreign %v, bucket %.4f, slots %d, pause %v)",
			r.granted, a.n, lower, max(0, upper), m.usable(), exact, most, m.foreign, m.level(now), free, paused)
	}
	if own := r.own - r.granted; own < exact || own > most {
		f.Fatalf("own requests %d, want between %d and %d", own, exact, most)
	}
	if r.last != m.seq+int64(r.granted) || r.epoch != m.epoch {
		f.Fatalf("number %d and epoch %d, want %d and %d", r.last, r.epoch, m.seq+int64(r.granted), m.epoch)
	}
	m.checkGate(f, r, paused, free)

	for seq := m.seq + 1; seq <= r.last; seq++ {
		m.log = append(m.log, request{at: now, seq: seq})
		m.granted = append(m.granted, request{at: now, seq: seq})
		m.last = now
		if a.endpoint >= 0 {
			m.semaphore[a.endpoint].extend(r.lease(a.worker, seq), now, m.endpoints[a.endpoint].lease)
		}
	}
	m.seq = r.last
	m.setLevel(now, m.level(now)-float64(r.granted))
	m.queued = m.queued || a.queue && r.gate != ""
}

func (m *model) checkGate(f fails, r admission, paused float64, free int) {
	f.Helper()
	switch {
	case r.gate == "":
	case (r.gate == "backoff") != (paused > 0):
		f.Fatalf("gate %q although the pause is %v", r.gate, paused)
	case r.gate == "backoff" && r.wait < paused-0.001:
		f.Fatalf("wait %v in a pause of %v", r.wait, paused)
	case r.gate == "slots" && !m.queued && free-r.granted > 0:
		f.Fatalf("gate slots although %d are free", free-r.granted)
	case r.wait < 1 || r.wait > longestPause:
		f.Fatalf("wait %v, want between 1 ms and 5 minutes", r.wait)
	}
}

// release returns 1 if the lease was there and the worker's.
func (m *model) release(now float64, worker string, e int, lease string, linger float64) int {
	_, there := m.semaphore[e].leases[lease]
	switch {
	case !there || !strings.HasPrefix(lease, worker+":"):
		return 0
	case linger > 0:
		m.semaphore[e].extend(lease+"!", now, linger)
		delete(m.semaphore[e].leases, lease)
		return 0
	}
	delete(m.semaphore[e].leases, lease)
	return 1
}

// giveBack undoes a grant that the window still holds.
func (m *model) giveBack(now float64, seq int64) {
	for i, r := range m.log {
		if r.seq == seq && !r.gone {
			m.log = append(m.log[:i], m.log[i+1:]...)
			m.setLevel(now, min(m.bucketSize(), m.level(now)+1))
			m.returned = append(m.returned, seq)
			return
		}
	}
}

// leftLate moves a request to this instant.
func (m *model) leftLate(now float64, seq int64) {
	for i, r := range m.log {
		if r.seq == seq && !r.gone {
			m.log = append(m.log[:i], m.log[i+1:]...)
			break
		}
	}
	m.sentAgain(now)
}

// sentAgain counts one more request, which no permit stands for.
func (m *model) sentAgain(now float64) {
	m.log = append(m.log, request{at: now})
	m.last = now
}

// spent counts requests that were sent a while ago.
func (m *model) spent(now float64, n int, age float64) {
	if age >= m.horizon() {
		return
	}
	for range n {
		m.log = append(m.log, request{at: now - age})
	}
	if at := now - age; at <= m.foreignAt-m.jitter && at >= m.foreignAt-m.window+m.jitter {
		m.foreign = max(0, m.foreign-float64(n)) // it was among what the headers showed
	}
	m.last = max(m.last, now-age)
}

// expired counts an endpoint's leases that have expired and that nobody has removed.
func (m *model) expired(e int) (n int) {
	for _, expiry := range m.semaphore[e].leases {
		if expiry <= m.now {
			n++
		}
	}
	return n
}
