package client

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// How much is read, and for how long, of a body that nobody wants, so that its
// connection can be used again and its slot be given back at once.
const (
	drainBytes   = 64 << 10
	drainDiscard = time.Second           // a response that is retried
	drainOnClose = 50 * time.Millisecond // a body closed before its end
)

// answer is a response body that ends its attempt: a slot is in use until the
// API has sent the last byte, which for a stream is long after the header.
type answer struct {
	src  io.Reader // what is left to read: inner, or what was peeked and then inner
	raw  io.ReadCloser
	hold *hold

	usage *usageScanner // nil: nobody wants to know

	reading atomic.Int32 // calls of Read under way
	ended   atomic.Bool  // Read has returned an error or Close was called
}

func newAnswer(raw io.ReadCloser, h *hold) *answer {
	return &answer{src: raw, raw: raw, hold: h}
}

func (a *answer) Read(p []byte) (int, error) {
	a.reading.Add(1)
	defer a.reading.Add(-1)

	n, err := a.src.Read(p)
	a.usage.scan(p[:n])
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		a.hold.finish(a.hold.permit.Release)
	default:
		err = a.hold.explain(err)
		a.hold.finish(a.hold.releaseLater)
	}
	a.ended.Store(true)
	return n, err
}

// Close gives the slot back. Many readers stop at the last byte that they need
// without having seen the end, which is there already: it is looked for, for a
// moment, since a call that is broken off keeps its slot longer.
func (a *answer) Close() error {
	if a.hold.route.endpoint == "" {
		return a.close(0)
	}
	return a.close(drainOnClose)
}

// discard is Close for a response that nobody will see.
func (a *answer) discard() {
	_ = a.close(drainDiscard) // the attempt has failed anyway
}

func (a *answer) close(drain time.Duration) error {
	// A Read under way in another goroutine is to be broken off, not joined.
	if drain > 0 && !a.ended.Load() && a.reading.Load() == 0 && !a.hold.settled.Load() {
		a.drain(drain)
	}
	a.ended.Store(true)
	err := a.raw.Close()
	a.hold.finish(a.hold.releaseLater)
	return err
}

func (a *answer) drain(d time.Duration) {
	timer := time.AfterFunc(d, a.hold.cancel)
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, a, drainBytes) // Read settles what it finds
}

// peek reads up to limit bytes without taking them from the caller, who will
// also see the error that ended the reading, if any.
func (a *answer) peek(limit int64) []byte {
	head, err := io.ReadAll(io.LimitReader(a.src, limit))
	rest := a.src
	switch {
	case err != nil:
		rest = failure{err}
	case int64(len(head)) < limit:
		rest = failure{io.EOF}
	}
	a.src = io.MultiReader(bytes.NewReader(head), rest)
	return head
}

// forCaller is the body to hand out. From here on the context covers a body
// that is never closed.
func (a *answer) forCaller() io.ReadCloser {
	if a.raw == http.NoBody {
		a.hold.finish(a.hold.permit.Release)
		return http.NoBody
	}
	if a.hold.route.endpoint != "" || a.hold.ended != nil {
		a.hold.watch() // otherwise nothing waits for the end
	}
	if w, ok := a.raw.(io.Writer); ok {
		return upgraded{a, w}
	}
	return a
}

// upgraded is the body of a 101 response, which can be written to.
type upgraded struct {
	*answer
	io.Writer
}

type failure struct{ err error }

func (f failure) Read([]byte) (int, error) { return 0, f.err }
