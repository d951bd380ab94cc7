package mockapi

import "fmt"

// job is one video analysis. Its state follows from the time alone.
type job struct {
	id            string
	key           keyHash
	created, ends instant
	fails         bool
	credited      bool // its credits are counted
}

// state is what a poll at now sees. A tenth of the job's time it is pending.
func (j *job) state(now instant) string {
	switch {
	case now < j.created+(j.ends-j.created)/10:
		return "pending"
	case now < j.ends:
		return "generating"
	case j.fails:
		return "failed"
	default:
		return "completed"
	}
}

// jobs remembers the newest jobs. API.mu guards it.
type jobs struct {
	keep  int
	byID  map[string]*job
	order queue[*job] // by creation
}

// add remembers a job and forgets the oldest that have ended.
func (js *jobs) add(j *job) {
	js.byID[j.id] = j
	js.order.push(j)
	for js.order.len() > js.keep && js.order.at(0).ends <= j.created {
		delete(js.byID, js.order.pop().id)
	}
}

// startJob answers at once (after the POST's own latency); the slot stays in
// use until the job ends.
func (c *call) startJob() {
	c.waitUntil(c.verdict.arrived + c.verdict.latency)
	c.answer(map[string]any{"id": c.newJob().id, "status": "pending"})
}

func (c *call) newJob() *job {
	a, v := c.api, &c.verdict
	a.mu.Lock()
	defer a.mu.Unlock()
	now, d := a.Since(), a.cfg.JobDuration
	mean, half := (d.Min+d.Max)/2, float64(d.Max-d.Min)/2
	jitter := 0.
	if mean > 0 {
		jitter = half / float64(mean)
	}
	j := &job{
		id:      fmt.Sprintf("va_%08x", a.nextID()),
		key:     c.key,
		created: now,
		ends:    now + a.scaled(mean, jitter),
		fails:   a.rng.Float64() < a.cfg.JobFailures,
	}
	v.acct.slots[c.endpoint].becomeJob(v.hold, j.ends)
	v.hold = 0 // ends with the job, not with the call
	a.jobs.add(j)
	return j
}

// pollJob tells a job's state as it is when the answer goes out.
func (c *call) pollJob() {
	c.waitUntil(c.verdict.arrived + c.verdict.latency)
	body, ok := c.jobNow()
	if !ok {
		c.fail(404, "There is no such video analysis.")
		return
	}
	c.answer(body)
}

// jobNow is the job as a poll shows it. Another key's job does not exist.
func (c *call) jobNow() (map[string]any, bool) {
	a := c.api
	a.mu.Lock()
	defer a.mu.Unlock()
	j, ok := a.jobs.byID[c.jobID]
	if !ok || j.key != c.key {
		return nil, false
	}
	state := j.state(a.Since())
	body := map[string]any{
		"id": j.id, "status": state, "created_at": a.wall(j.created).Unix(),
	}
	switch state {
	case "completed":
		credits := mavera[videoAnalyses].credits
		if !j.credited {
			j.credited = true
			a.count.credits += int64(credits)
		}
		body["result"] = map[string]any{"summary": c.text()}
		body["usage"] = map[string]any{"credits_used": credits}
	case "failed":
		body["error"] = map[string]any{"message": "The video could not be analysed.", "code": "analysis_failed"}
	}
	return body, true
}
