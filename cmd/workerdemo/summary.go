package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// A summary is what there is to tell at the end; its JSON is what -json prints.
// What only the mock can know is null without it.
type summary struct {
	Workers         int            `json:"workers"`
	Requests        int            `json:"requests"` // asked for; polls and retries apart
	Succeeded       int            `json:"succeeded"`
	Failed          int            `json:"failed"`
	Sent            int            `json:"sent"` // polls and retries included
	Polls           int            `json:"polls"`
	Responses429    int64          `json:"responses_429"`
	LimitViolations *int64         `json:"limit_violations"`
	SlotViolations  *int64         `json:"slot_violations"`
	PauseViolations *int64         `json:"pause_violations"`
	MaxInFlight     map[string]int `json:"max_in_flight"` // by endpoint; of video analyses, the jobs
	MaxInWindow     *int           `json:"max_in_window"` // requests in any sliding minute
	Limit           int            `json:"limit"`         // requests per minute of the tier, or fewer if the API said so
	DurationSeconds float64        `json:"duration_seconds"`
	Utilization     float64        `json:"utilization"`
	WaitP50MS       float64        `json:"wait_p50_ms"`
	WaitP99MS       float64        `json:"wait_p99_ms"`
	Interrupted     bool           `json:"interrupted"`
	PerWorker       []workerLine   `json:"per_worker"`
	Killed          *killed        `json:"killed"` // null without -kill
	Errors          map[string]int `json:"errors"` // how often each occurred

	crashed bool
}

type workerLine struct {
	Worker       string  `json:"worker"`
	Succeeded    int     `json:"succeeded"`
	Failed       int     `json:"failed"`
	Sent         int     `json:"sent"`
	Polls        int     `json:"polls"`
	Responses429 int     `json:"responses_429"`
	WaitP50MS    float64 `json:"wait_p50_ms"`
	WaitP99MS    float64 `json:"wait_p99_ms"`
	Fate         string  `json:"fate,omitempty"`
}

type killed struct {
	Worker           string   `json:"worker"`
	TakenOver        int      `json:"requests_taken_over"`
	Slots            int      `json:"slots_held"`
	SlotsBackSeconds *float64 `json:"slots_back_seconds"` // after the kill; null: not while the demo ran
}

// summarize tells how the run of a fleet went. mock is nil without one.
func (f *fleet) summarize(mock *mockapi.Stats) summary {
	t := f.tally
	s := summary{
		Workers: len(t.workers), Succeeded: t.succeeded, Failed: t.failed,
		Limit:       f.plan.Tier.RequestsPerMinute(),
		Interrupted: f.stopped == errInterrupted,
		Errors:      maps.Clone(t.failures),
		PerWorker:   []workerLine{},
	}
	for _, p := range f.portions {
		s.Requests += p.requests
	}
	if f.stopped != nil && !s.Interrupted {
		s.Errors[f.stopped.Error()]++
	}
	for _, w := range t.workers {
		s.Sent += w.sent
		s.Polls += w.polls
		s.Responses429 += int64(w.rejected)
		s.crashed = s.crashed || w.fate != "" && (f.victim == nil || w.name != f.victim.name)
		s.PerWorker = append(s.PerWorker, workerLine{
			Worker: w.name, Succeeded: w.succeeded, Failed: w.failed, Sent: w.sent, Polls: w.polls,
			Responses429: w.rejected, WaitP50MS: ms(percentile(w.waits, 50)), WaitP99MS: ms(percentile(w.waits, 99)), Fate: w.fate,
		})
	}
	if f.state != nil && f.state.Reported > 0 {
		s.Limit = min(s.Limit, f.state.Reported)
	}
	if !t.ended.IsZero() {
		s.DurationSeconds = round(t.ended.Sub(t.begun).Seconds(), 1000)
	}
	s.Utilization = round(t.utilization(s.Limit, time.Minute), 10000)
	s.WaitP50MS, s.WaitP99MS = ms(percentile(t.waits(), 50)), ms(percentile(t.waits(), 99))
	if v := f.victim; v != nil {
		s.Killed = &killed{Worker: v.name, TakenOver: v.takenOver, Slots: v.slots}
		if v.slotsBack >= 0 {
			seconds := round(v.slotsBack.Seconds(), 1000)
			s.Killed.SlotsBackSeconds = &seconds
		}
	}
	if mock != nil {
		s.Responses429 = max(s.Responses429, mock.Responses429) // the mock also knows those of a worker that died
		s.LimitViolations, s.SlotViolations, s.PauseViolations = &mock.LimitViolations, &mock.SlotViolations, &mock.PauseViolations
		s.MaxInFlight, s.MaxInWindow = make(map[string]int), &mock.MaxInWindow
		for _, p := range f.portions {
			s.MaxInFlight[p.endpoint] = mock.MaxInFlight[p.endpoint]
		}
	}
	return s
}

// ok is whether every request succeeded with no 429 and no violation, no worker
// ended before its time, and the slots of one that was killed came back.
func (s summary) ok() bool {
	for _, violations := range []*int64{s.LimitViolations, s.SlotViolations, s.PauseViolations} {
		if violations != nil && *violations > 0 {
			return false
		}
	}
	return s.Succeeded == s.Requests && s.Failed == 0 && s.Responses429 == 0 && !s.Interrupted && !s.crashed &&
		len(s.Errors) == 0 && (s.Killed == nil || s.Killed.SlotsBackSeconds != nil)
}

func (s summary) writeJSON(out io.Writer) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", text)
	return err
}

func (s summary) writeTable(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w)
	fmt.Fprintln(w, "worker\trequests\tpolls\tfailed\t429s\twait p50\twait p99\t")
	for _, l := range s.PerWorker {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", l.Worker, l.Succeeded+l.Failed, l.Polls, l.Failed, l.Responses429,
			seconds(l.WaitP50MS), seconds(l.WaitP99MS), brackets(l.Fate))
	}
	fmt.Fprintf(w, "all\t%d\t%d\t%d\t%d\t%s\t%s\t\n", s.Succeeded+s.Failed, s.Polls, s.Failed, s.Responses429,
		seconds(s.WaitP50MS), seconds(s.WaitP99MS))
	w.Flush() // to the same writer as the lines below, whose error would show there

	fmt.Fprintf(out, "\n%d of %d requests succeeded in %.1f s, with %d polls: %.1f %% of the tier's %d per minute\n",
		s.Succeeded, s.Requests, s.DurationSeconds, s.Polls, 100*s.Utilization, s.Limit)
	if s.LimitViolations != nil {
		fmt.Fprintf(out, "violations of the limit: %d, of slots: %d, of pauses: %d; most requests in any minute: %d\n",
			*s.LimitViolations, *s.SlotViolations, *s.PauseViolations, *s.MaxInWindow)
		for _, endpoint := range slices.Sorted(maps.Keys(s.MaxInFlight)) {
			fmt.Fprintf(out, "most in flight at %s: %d\n", endpoint, s.MaxInFlight[endpoint])
		}
	}
	if k := s.Killed; k != nil && k.SlotsBackSeconds != nil {
		fmt.Fprintf(out, "%s was killed: the others finished %d requests of it, and its slots (%d) were back after %.1f s\n", k.Worker, k.TakenOver, k.Slots, *k.SlotsBackSeconds)
	} else if k != nil {
		fmt.Fprintf(out, "%s was killed: the others took over %d requests of it; its slots (%d) have not come back\n", k.Worker, k.TakenOver, k.Slots)
	}
	for _, text := range slices.Sorted(maps.Keys(s.Errors)) {
		fmt.Fprintf(out, "%d × %s\n", s.Errors[text], text)
	}
	if s.Interrupted {
		fmt.Fprintln(out, "interrupted")
	}
}

func brackets(s string) string {
	if s == "" {
		return ""
	}
	return "  (" + s + ")"
}

func seconds(ms float64) string { return fmt.Sprintf("%.2f s", ms/1000) }

func ms(d time.Duration) float64 { return round(float64(d)/float64(time.Millisecond), 1000) }

func round(x, parts float64) float64 { return float64(int64(x*parts+0.5)) / parts }
