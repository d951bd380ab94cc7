package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
)

// A member is one worker of the fleet, seen from the parent.
type member struct {
	name string
	pid  int // 0: not a process of its own

	inbox chan any // what it is told; closing it ends the worker
	kill  func()
}

// An event is what the parent learns of a member.
type event struct {
	member *member
	report report
	ended  bool  // the last event of the member
	err    error // how it ended; nil: as it should
}

// inboxSize exceeds what a member can be owed: one message for each caller that
// waits, so that telling it something never blocks.
const inboxSize = 4096

// hire starts a member that talks through the given ends, and sends its events
// until wait has returned.
func hire(name string, s setup, in io.WriteCloser, out io.Reader, wait func() error, events chan<- event) *member {
	m := &member{name: name, inbox: make(chan any, inboxSize), kill: func() {}}
	m.inbox <- s
	go func() {
		defer in.Close()
		to := json.NewEncoder(in)
		broken := false
		for message := range m.inbox {
			// A dead member's end shows in what it says, not in what it hears.
			broken = broken || to.Encode(message) != nil
		}
	}()
	go func() {
		from := json.NewDecoder(out)
		for {
			var r report
			if from.Decode(&r) != nil {
				break
			}
			events <- event{member: m, report: r}
		}
		_, _ = io.Copy(io.Discard, out) // a worker must never block on a parent that has stopped listening
		events <- event{member: m, ended: true, err: wait()}
	}()
	return m
}

// spawn starts a worker process: this program once more. What it writes to its
// stderr goes to log.
func spawn(name string, s setup, log io.Writer, events chan<- event) (*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program to start %s: %w", name, err)
	}
	cmd := exec.Command(self, "worker", pipeFlag)
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	m := hire(name, s, in, out, cmd.Wait, events)
	m.pid = cmd.Process.Pid
	m.kill = func() { _ = cmd.Process.Kill() } // it may have ended by itself
	return m, nil
}

// engage runs a worker within this process.
func engage(name string, s setup, connect func(setup) (connections, error), log *slog.Logger, events chan<- event) *member {
	workerIn, toWorker := io.Pipe()
	fromWorker, workerOut := io.Pipe()
	ctx, cancel := context.WithCancelCause(context.Background())
	var run sync.WaitGroup
	var err error
	run.Go(func() {
		err = work(ctx, workerIn, workerOut, connect, log)
		workerIn.Close()
		workerOut.Close()
	})
	m := hire(name, s, toWorker, fromWorker, func() error { run.Wait(); cancel(nil); return err }, events)
	m.kill = func() { cancel(errors.New("killed")) }
	return m
}
