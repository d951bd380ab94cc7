package fleetsim

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// A Call is one wish of one caller. Its instants are offsets from the start.
type Call struct {
	Process  int
	Endpoint string
	Begun    time.Duration
	Ended    time.Duration
	// Waited is the time until the attempt left that got the last answer;
	// negative: none left.
	Waited time.Duration
	Status int // 0: no answer
	// Unfinished tells that the scenario, or the process, ended before the call.
	Unfinished bool
}

// call is one call of one caller, its answer read to the end; where it starts a
// job, with that job.
func (w *World) call(ctx context.Context, p *Process, load Load) {
	text := w.request(ctx, p, load.Endpoint)
	if load.Endpoint == mockapi.PostVideoAnalyses {
		w.follow(ctx, p, load, text)
	}
}

func (w *World) request(ctx context.Context, p *Process, endpoint string) (answer []byte) {
	c := Call{Process: p.Number, Endpoint: endpoint, Begun: w.now(), Waited: -1}
	timed := context.WithValue(ctx, stopwatchKey{}, func() { c.Waited = w.now() - c.Begun })
	method, path, _ := strings.Cut(endpoint, " ")
	req, err := http.NewRequestWithContext(timed, method, w.listener.URL()+path, strings.NewReader(`{"model":"mavera-1","input":"hello"}`))
	if err != nil {
		w.must(err)
		return nil
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.client.Do(req)
	if err == nil {
		answer, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		c.Status = resp.StatusCode
	}
	c.Ended, c.Unfinished = w.now(), err != nil && ctx.Err() != nil
	w.mu.Lock()
	w.calls = append(w.calls, c)
	w.mu.Unlock()
	if err != nil {
		sleep(ctx, 100*time.Millisecond) // as anybody would, rather than spin
	}
	return answer
}

// A job is a video analysis as the users of the fleet see it: their list of open
// jobs survives the worker that started one.
type job struct {
	id    string
	load  Load
	by    int // the process that started it
	owner int // the process that polls it
}

// JobDone is a job that was seen done: when, and whether by another process than
// the one that started it.
type JobDone struct {
	At      time.Duration
	Adopted bool
}

// follow polls a job until it is done. If the process dies, another takes its
// jobs over.
func (w *World) follow(ctx context.Context, p *Process, load Load, text []byte) {
	j := &job{id: readJob(text).ID, load: load, by: p.Number}
	if j.id == "" {
		return
	}
	w.poll(ctx, p, j)
}

func (w *World) poll(ctx context.Context, p *Process, j *job) {
	w.mu.Lock()
	j.owner = p.Number
	w.jobs[j.id] = j
	w.mu.Unlock()
	for sleep(ctx, j.load.Poll) {
		seen := readJob(w.request(ctx, p, "GET /video-analyses/"+j.id))
		if seen.Status == "completed" || seen.Status == "failed" {
			w.mu.Lock()
			delete(w.jobs, j.id)
			w.done = append(w.done, JobDone{w.now(), j.owner != j.by})
			w.mu.Unlock()
			return
		}
	}
	if w.ctx.Err() != nil {
		return
	}
	// The process has died: its neighbour finds the job on the list.
	if !sleep(w.ctx, takeOver) {
		return
	}
	heir := w.process(p.Number + 1)
	w.running.Go(func() { w.poll(heir.ctx, heir, j) })
}

// takeOver is the time after which a job of a dead worker is taken over.
const takeOver = 15 * time.Second

func readJob(text []byte) (j struct{ ID, Status string }) {
	_ = json.Unmarshal(text, &j) // what is no job has no ID
	return j
}
