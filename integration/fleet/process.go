package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
)

// Process is a worker, seen from the program that has started it. It is safe for
// concurrent use.
type Process struct {
	Name string

	cmd  *exec.Cmd
	in   io.WriteCloser
	gone chan struct{}

	mu     sync.Mutex
	last   Report
	heard  bool
	stderr bytes.Buffer
	news   chan struct{} // closed and replaced with every report
}

// Start starts a worker: this program once more. It ends with Close or Kill, and on
// Linux with this program, however that ends.
func Start(s Setup) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	setup, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	p := &Process{Name: s.Worker, cmd: exec.Command(self), gone: make(chan struct{}), news: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asWorker+"=1")
	p.cmd.Stderr = &lockedWriter{mu: &p.mu, to: &p.stderr}
	dieWithParent(p.cmd)
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that started a process for the
		// end of its parent, so this goroutine keeps its thread until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.listen(out)
		_ = p.cmd.Wait() // the state tells
		close(p.gone)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	_, err = p.in.Write(append(setup, '\n'))
	return p, err
}

type lockedWriter struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to.Len() < 1<<16 {
		w.to.Write(b)
	}
	return len(b), nil
}

func (p *Process) listen(out io.Reader) {
	for from := json.NewDecoder(out); ; {
		var r Report
		if from.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		p.last, p.heard = r, true
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, out)
}

// Work lets the callers begin.
func (p *Process) Work() error { return p.tell(work) }

// Rest lets the callers finish what they are at, and returns the report of the rest.
func (p *Process) Rest() (Report, error) {
	p.mu.Lock()
	p.last.State = Working // whatever it was, the answer counts
	p.mu.Unlock()
	if err := p.tell(rest); err != nil {
		return Report{}, err
	}
	return p.Await(func(r Report) bool { return r.State == Resting && r.Rest.Goroutines > 0 })
}

func (p *Process) tell(c command) error {
	if _, err := fmt.Fprintln(p.in, c); err != nil {
		return fmt.Errorf("%s: %w\n%s", p.Name, err, p.Stderr())
	}
	return nil
}

// Last is the last report.
func (p *Process) Last() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// Await waits for a report that fits; it fails when the process ends without one.
func (p *Process) Await(fits func(Report) bool) (Report, error) {
	for {
		p.mu.Lock()
		r, heard, news := p.last, p.heard, p.news
		p.mu.Unlock()
		if heard && fits(r) {
			return r, nil
		}
		select {
		case <-news:
		case <-p.gone:
			if r = p.Last(); fits(r) {
				return r, nil
			}
			return r, fmt.Errorf("%s has ended (%v)\n%s", p.Name, p.cmd.ProcessState, p.Stderr())
		}
	}
}

// Stderr is what the process has complained about, a panic say.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Kill ends the process as a crash would, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.gone
	_ = p.in.Close()
}

// Gone is closed when the process has ended.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// Close lets the process close its coordinator and end, and returns its last report.
func (p *Process) Close() (Report, error) {
	err := p.in.Close()
	<-p.gone
	r := p.Last()
	switch {
	case err != nil:
	case !p.cmd.ProcessState.Success():
		err = fmt.Errorf("%s: %v\n%s", p.Name, p.cmd.ProcessState, p.Stderr())
	case r.State != Closed:
		err = errors.New(p.Name + " has not said that it is closed")
	}
	return r, err
}

// Freeze stops the process without ending it (SIGSTOP).
func (p *Process) Freeze() error { return signal(p.cmd.Process, freezing) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error { return signal(p.cmd.Process, thawing) }
