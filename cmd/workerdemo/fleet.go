package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A fleet is the parent's side of a run: it hands the items out, hears the
// workers, and knows at the end how it went. Its fields belong to the goroutine
// of run.
type fleet struct {
	plan     plan
	portions []portion
	kill     bool // one worker, when half of the requests have ended
	scaled   bool // the API is the demo's mock, whose jobs are short
	view     view
	stats    func(context.Context) (*coordinator.State, error)

	start   func(name string, callers map[string]int, events chan<- event) (*member, error)
	members []*member
	board   *board
	tally   *tally
	state   *coordinator.State // nil: not known yet
	victim  *victim            // nil: nobody was killed
	stopped error              // why the run was given up; nil: it was not
}

// A victim is the worker that was killed.
type victim struct {
	name   string
	killed time.Time
	dead   bool
	states int // states of the account that were read since

	takenOver int           // items that went to the others
	slots     int           // held when it died
	slotsBack time.Duration // after the kill; -1: not yet
}

const (
	// callersPerEndpoint is how many of one worker's callers wait at one endpoint.
	callersPerEndpoint = 8

	// stopGrace is how long workers have to give their leases back; then they
	// are killed.
	stopGrace = time.Second

	startGrace    = 15 * time.Second
	viewInterval  = 250 * time.Millisecond
	stateInterval = 500 * time.Millisecond
)

// callers is how many of a worker's callers wait at each endpoint: so many that
// the work is spread evenly, and at most callersPerEndpoint.
func callers(portions []portion, workers int) map[string]int {
	n := make(map[string]int, len(portions))
	for _, p := range portions {
		n[p.endpoint] = min(callersPerEndpoint, (p.requests+workers-1)/workers)
	}
	return n
}

// run lets workers with the given names do the work. It returns when all of it
// is done, or cannot be, or ctx has ended; no worker is left then.
func (f *fleet) run(ctx context.Context, names []string) error {
	f.board, f.tally = newBoard(f.portions), newTally(names)
	events := make(chan event)
	defer func() { f.stop(events) }()
	for _, name := range names {
		m, err := f.start(name, callers(f.portions, len(names)), events)
		if err != nil {
			return err
		}
		f.members = append(f.members, m)
		if m.pid != 0 {
			f.view.log("%s is process %d", name, m.pid)
		}
	}
	if err := f.muster(ctx, events); err != nil {
		return err
	}
	f.tally.begun = time.Now()

	watch, cancel := context.WithCancel(ctx)
	states := f.watch(watch)
	defer func() {
		cancel()
		for range states {
		}
	}()
	refresh := time.NewTicker(viewInterval)
	defer refresh.Stop()
	f.handOut()
	for f.board.left > 0 || !f.slotsAreBack() {
		select {
		case e := <-events:
			f.hear(e)
		case s := <-states:
			f.state = s
			f.lookAfterVictim()
		case <-refresh.C:
			f.view.show(f.snapshot())
		case <-ctx.Done():
			f.stopped = errInterrupted
		}
		if f.stopped != nil {
			return nil
		}
	}
	f.view.show(f.snapshot())
	return nil
}

// muster waits until every worker is ready, so that the first to start does not
// take all the work.
func (f *fleet) muster(ctx context.Context, events <-chan event) error {
	late := time.NewTimer(startGrace)
	defer late.Stop()
	for n := 0; n < len(f.members); {
		select {
		case e := <-events:
			if e.ended {
				f.dismiss(e)
				return fmt.Errorf("%s did not start: %s", e.member.name, fate(e.err))
			}
			f.take(e)
			if e.report.Kind == ready {
				n++
			}
		case <-late.C:
			return fmt.Errorf("only %d of %d workers are ready after %v", n, len(f.members), startGrace)
		case <-ctx.Done():
			f.stopped = errInterrupted
			return nil
		}
	}
	return nil
}

// hear acts on one event.
func (f *fleet) hear(e event) {
	if e.ended {
		f.dismiss(e)
	} else {
		f.take(e)
	}
	if f.stopped == nil {
		f.handOut()
	}
}

func (f *fleet) take(e event) {
	name, r := e.member.name, e.report
	switch r.Kind {
	case want:
		f.board.want(name, r.Endpoint, r.N)
	case sent:
		f.tally.sent(name, r)
		f.board.sent(name, r.Item)
	case answered:
		f.tally.answered(name, r.Status)
		if r.Status == 401 || r.Status == 402 || r.Status == 403 {
			f.stopped = fmt.Errorf("the API refuses the key: status %d", r.Status)
		}
	case started:
		f.board.started(name, r.Item, r.Job)
	case done:
		if f.board.done(name, r.Item) {
			f.tally.done(name, r.Error, r.Again)
			f.perhapsKill()
		}
	}
}

// dismiss notes the end of a worker; its work goes to the others.
func (f *fleet) dismiss(e event) {
	name := e.member.name
	close(e.member.inbox)
	f.members = slices.DeleteFunc(f.members, func(m *member) bool { return m == e.member })
	n := f.board.lost(name)
	if f.victim != nil && f.victim.name == name {
		f.tally.buried(name, "killed")
		f.victim.dead, f.victim.takenOver = true, n
		f.view.log("%s is dead; its %d unfinished requests go to the others", name, n)
	} else {
		f.tally.buried(name, fate(e.err))
		f.view.log("%s has ended: %s", name, fate(e.err))
	}
	if len(f.members) == 0 {
		f.stopped = fmt.Errorf("no worker is left")
	}
}

func fate(err error) string {
	if err == nil {
		return "too early"
	}
	return err.Error()
}

func (f *fleet) handOut() {
	for _, o := range f.board.assign() {
		i := slices.IndexFunc(f.members, func(m *member) bool { return m.name == o.worker })
		f.members[i].inbox <- o.item
		f.tally.handed(o.worker)
	}
}

// stop ends all workers and hears them out.
func (f *fleet) stop(events <-chan event) {
	members := f.members
	f.members = nil
	for _, m := range members {
		close(m.inbox)
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	for left := len(members); left > 0; {
		select {
		case e := <-events:
			if e.ended {
				left--
			}
		case <-grace.C:
			for _, m := range members {
				m.kill()
			}
		}
	}
}

// watch reads the account's state again and again. A state that cannot be read
// is left out: the workers say what is wrong with Redis.
func (f *fleet) watch(ctx context.Context) <-chan *coordinator.State {
	states := make(chan *coordinator.State)
	go func() {
		defer close(states)
		tick := time.NewTicker(stateInterval)
		defer tick.Stop()
		for {
			if s, err := f.stats(ctx); err == nil {
				select {
				case states <- s:
				case <-ctx.Done():
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return states
}

// snapshot is what the view shows.
func (f *fleet) snapshot() snapshot {
	s := snapshot{
		elapsed: time.Since(f.tally.begun), done: f.tally.succeeded + f.tally.failed, failed: f.tally.failed,
		perMinute: f.tally.perMinute(), waiting: f.tally.waiting(), rejected: f.tally.rejected(),
	}
	for _, p := range f.portions {
		s.total += p.requests
	}
	if f.state == nil {
		return s
	}
	s.known, s.limit, s.remaining, s.backoff = true, f.state.Limit, f.state.Remaining, f.state.Backoff
	for _, e := range f.state.Endpoints {
		if slices.ContainsFunc(f.portions, func(p portion) bool { return p.endpoint == e.Pattern }) {
			name := e.Pattern[strings.LastIndex(e.Pattern, "/")+1:]
			s.slots = append(s.slots, fmt.Sprintf("%s %d/%d", name, e.InUse, e.Slots))
		}
	}
	return s
}
