package lua

import "math"

// A saying is the operation said of exchange.lua. Endpoint -1: budget alone.
type saying struct {
	endpoint                            int
	seq                                 int64
	admitted                            float64
	base, epoch                         int64
	status                              int
	limit, remaining, reset, retryAfter float64
	random                              float64
}

func (s saying) args() []any {
	return []any{"said", s.endpoint + 1, s.seq, s.admitted, s.base, s.epoch, s.status,
		s.limit, s.remaining, s.reset, s.retryAfter, s.random}
}

// said takes over what the API said about a permit that was admitted when the
// account had granted up to number last, own of them in the window. What the
// scripts now believe of strangers must follow from it, and is taken over: the API
// has counted what the account had, what it granted up to one jitter after, and
// perhaps the rest of the last bucket; all the rest is foreign.
func (m *model) said(f fails, now float64, s saying, last int64, own int, foreign float64) {
	f.Helper()
	if s.seq <= m.observed || s.seq > m.seq || s.limit < 1 {
		if foreign != m.foreign {
			f.Fatalf("foreign %v after an old or empty observation, want %v", foreign, m.foreign)
		}
		if s.seq <= m.seq && s.limit >= 1 && s.limit < float64(m.limit) && (m.reported == 0 || s.limit < m.reported) {
			end := now + m.pauseLeft(0, now)
			level := m.level(end)
			m.reported = s.limit
			m.setLevel(end, min(level, m.bucketSize()))
		}
	} else {
		end := now + m.pauseLeft(0, now)
		level := m.level(end)
		m.observed, m.reported = s.seq, s.limit
		m.setLevel(end, min(level, m.bucketSize()))
		if s.remaining >= 0 {
			used := s.limit - min(s.remaining, s.limit)
			end := s.admitted + m.jitter
			unsent := 0
			for _, seq := range m.returned {
				if seq > s.base {
					unsent++
				}
			}
			most := max(0, used-float64(own+m.grantedBetween(last, end)-unsent))
			least := max(0, used-float64(own+m.grantedBetween(last, end+m.window/buckets)))
			if end <= now-m.horizon() { // too old: it will be forgotten at once
				least = 0
			}
			if !m.setBack && (foreign < least || foreign > most) {
				f.Fatalf("foreign %v, want between %v and %v", foreign, least, most)
			}
			m.foreign, m.foreignAt = foreign, min(now, s.admitted)
			if foreign > 0 {
				m.strangerAt, m.paceKnown = now, false
			}
		}
	}
	m.pushback(now, s)
}

// grantedBetween counts the permits behind number last that were granted up to an
// instant.
func (m *model) grantedBetween(last int64, end float64) (n int) {
	for _, r := range m.granted {
		if r.seq > last && r.at <= end {
			n++
		}
	}
	return n
}

func (m *model) pushback(now float64, s saying) {
	asked := s.retryAfter
	switch ok := s.status >= 200 && s.status < 400; {
	case s.status == 429 && s.endpoint >= 0 && s.remaining > 0:
		m.pause(now, 1+s.endpoint, s, asked)
	case s.status == 429:
		if asked < 0 {
			asked = s.reset
		}
		m.pauseAccount(now, s, asked)
	case s.status == 503 && asked >= 0:
		m.pauseAccount(now, s, asked)
	case ok && s.epoch >= m.epoch:
		m.pauses[0].strikes = 0
		if s.endpoint >= 0 {
			m.pauses[1+s.endpoint].strikes = 0
		}
	}
}

func (m *model) pauseAccount(now float64, s saying, asked float64) {
	m.pause(now, 0, s, asked)
	debt := m.pauseLeft(0, now) / m.emissionInterval()
	m.setLevel(now, min(m.level(now), 1-debt))
}

// pause begins or prolongs a pause. Only what was granted after the last pushback
// is a new strike.
func (m *model) pause(now float64, i int, s saying, asked float64) {
	p := &m.pauses[i]
	left := m.pauseLeft(i, now)
	fresh := s.epoch >= m.epoch || left == 0
	strikes := p.strikes
	if fresh {
		strikes++
	}
	length := asked
	if length <= 0 {
		length = 1000 * math.Pow(2, float64(min(16, max(0, strikes-1))))
	}
	length = min(longestPause, length+s.random*min(1000, length/10))
	if !fresh && length <= left {
		return
	}
	if fresh {
		m.epoch++
	}
	*p = pause{until: now + length, length: length, kept: math.Ceil(length), strikes: strikes}
}
