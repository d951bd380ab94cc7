package coordinator

import "time"

// The slots of jobs are leased for as long as a job may last from the start, so that a
// worker's death between the start of a job and the moment at which it writes the id down
// frees nothing. If the reply to an admission is lost, such a slot would stay taken all that
// time although nothing was started. So the worker remembers which permits it has heard of,
// and has Redis free those that it has not, with its next heartbeats.

// A doubt is that a reply was lost which may have granted slots.
type doubt struct {
	after int64     // number of the last permit that was heard of before
	since time.Time // when Redis was first told to forget them; zero: not yet
}

// A grantHeard is a lease that a reply told of.
type grantHeard struct {
	lease string
	at    time.Time
}

// maxGrantsHeard bounds what is remembered while there is a doubt. If there is more, the
// slots in doubt come back when their leases end.
const maxGrantsHeard = 1000

// hearsay is an age at which a lease's reply has been heard, or never will be.
func (c *Coordinator) hearsay() time.Duration { return max(10*time.Second, 5*c.timeout) }

// hearReply takes over what a reply to an admission says of all. c.mu must be held.
func (c *Coordinator) hearReply(r admission) {
	c.epoch, c.share.instant = r.epoch, r.instant()
	if r.born == c.share.born { // else it is the number of an account that is no more
		c.lastHeard = max(c.lastHeard, r.last)
	}
}

// hearLease remembers the lease of a job: without a doubt, as long as a reply that was
// asked for before it can be under way. c.mu must be held.
func (c *Coordinator) hearLease(p *Permit) {
	l, now := p.lane, p.counted
	if l.jobTTL == 0 || p.alone {
		return
	}
	if l.doubt == nil {
		old := 0
		for old < len(l.granted) && now.Sub(l.granted[old].at) > 2*c.timeout {
			old++
		}
		l.granted = l.granted[old:]
	}
	l.granted = append(l.granted, grantHeard{p.lease, now})
	if len(l.granted) > maxGrantsHeard {
		l.granted, l.doubt, l.deaf = nil, nil, now.Add(2*c.timeout)
	}
}

// doubt notes that the reply to these wishes was lost. A worker that has heard no reply
// before cannot tell its leases from those of an earlier process of its name. c.mu must be
// held.
func (c *Coordinator) doubt(asks []ask) {
	for _, a := range asks {
		if l := a.lane; l.jobTTL > 0 && a.after > 0 && time.Now().After(l.deaf) {
			after := a.after
			if l.doubt != nil {
				after = min(after, l.doubt.after)
			}
			l.doubt = &doubt{after: after}
		}
	}
}

// postForgets tells Redis to free what was granted in vain.
func (c *Coordinator) postForgets() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lanes {
		if l.doubt == nil || l.spoiled != nil || c.away != nil {
			continue
		}
		o := op{kind: opForget, lane: l, after: l.doubt.after}
		for _, g := range l.granted {
			o.heard = append(o.heard, g.lease)
		}
		c.append(o)
		c.signal()
	}
}

// forgotten notes that Redis has been told. What was sent may be carried out later than it
// was sent, by a server that hung; so it is told again until that has had time to come and
// to be old enough. c.mu must be held.
func (c *Coordinator) forgotten(l *lane, now time.Time) {
	switch d := l.doubt; {
	case d == nil:
	case d.since.IsZero():
		d.since = now
	case now.Sub(d.since) > 2*c.hearsay():
		l.doubt = nil
	}
}
