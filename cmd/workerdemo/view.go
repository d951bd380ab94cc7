package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A view shows a run while it goes on. What is written to it is shown as well.
// Safe for concurrent use.
type view interface {
	io.Writer
	show(snapshot)
	log(format string, args ...any)
	close()
}

// A snapshot is what there is to show at one instant.
type snapshot struct {
	elapsed             time.Duration
	done, failed, total int // requests that have ended, that have failed, of all
	perMinute           int // requests sent in the last minute, polls included
	rejected            int // 429
	waiting             int // callers that wait for admission

	known            bool // whether Redis has told the rest
	limit, remaining int
	slots            []string // as in "chat 3/10"
	backoff          *coordinator.Backoff
}

func (s snapshot) String() string {
	parts := []string{fmt.Sprintf("%d requests/min", s.perMinute)}
	if s.known {
		parts = append(parts, fmt.Sprintf("remaining %d/%d", s.remaining, s.limit))
		if len(s.slots) > 0 {
			parts = append(parts, "slots "+strings.Join(s.slots, ", "))
		}
	}
	parts = append(parts, fmt.Sprintf("waiting %d", s.waiting))
	switch {
	case s.backoff != nil:
		parts = append(parts, fmt.Sprintf("backoff %v more (%s)", s.backoff.Left.Round(100*time.Millisecond), s.backoff.Reason))
	case s.known:
		parts = append(parts, "no backoff")
	}
	parts = append(parts, fmt.Sprintf("429s %d", s.rejected))
	if s.failed > 0 {
		parts = append(parts, fmt.Sprintf("failed %d", s.failed))
	}
	return strings.Join(parts, " · ")
}

// newView is a bar on a terminal, and plain lines elsewhere.
func newView(out interface {
	io.Writer
	Fd() uintptr
}, total int) view {
	// A terminal of unknown size has no room for a bar; on others this fails.
	if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
		return newBarView(out, total)
	}
	return &plainView{out: out}
}

// plainInterval is the time between two plain lines.
const plainInterval = 2 * time.Second

type plainView struct {
	mu    sync.Mutex
	out   io.Writer
	shown time.Duration
	last  snapshot
}

func (v *plainView) show(s snapshot) {
	v.mu.Lock()
	defer v.mu.Unlock()
	finished := s.done == s.total && v.last.done != s.total
	v.last = s
	if s.elapsed-v.shown < plainInterval && !finished {
		return
	}
	v.shown = s.elapsed
	fmt.Fprintf(v.out, "%5.1f s  %d/%d done · %v\n", s.elapsed.Seconds(), s.done, s.total, s)
}

func (v *plainView) log(format string, args ...any) {
	fmt.Fprintf(v, format+"\n", args...)
}

func (v *plainView) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.out.Write(b)
}

func (v *plainView) close() {}

type barView struct {
	progress *mpb.Progress
	bar      *mpb.Bar
	line     atomic.Pointer[string]
}

func newBarView(out io.Writer, total int) *barView {
	v := &barView{progress: mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithRefreshRate(viewInterval))}
	v.line.Store(new(string))
	second := mpb.BarFillerFunc(func(w io.Writer, s decor.Statistics) error {
		_, err := fmt.Fprintln(w, runewidth.Truncate(*v.line.Load(), max(1, s.AvailableWidth-1), "…"))
		return err
	})
	v.bar = v.progress.AddBar(int64(total),
		mpb.BarExtender(second, false),
		mpb.PrependDecorators(decor.CountersNoUnit("%d/%d requests", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_MMSS, decor.WCSyncSpace)),
	)
	return v
}

func (v *barView) show(s snapshot) {
	text := s.String()
	v.line.Store(&text)
	v.bar.SetCurrent(int64(s.done))
}

func (v *barView) log(format string, args ...any) {
	fmt.Fprintf(v, format+"\n", args...)
}

func (v *barView) Write(b []byte) (int, error) { return v.progress.Write(b) }

func (v *barView) close() {
	v.bar.Abort(false) // nothing if it is complete
	v.progress.Wait()
}
