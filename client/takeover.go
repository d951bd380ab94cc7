package client

import (
	"context"
	"sync"
	"time"
)

// A Hold keeps the slot of a request for work that goes on after its response, and that
// the transport cannot see: a session that another connection serves, an upload that
// somebody else finishes, a job whose end is told by a webhook. [WithHold] makes one for a
// request; once the response is there the slot is the hold's. Heartbeats renew it until
// Release is called, however long that takes.
//
// For work that no request of the transport begins, take a permit by hand:
// [coordinator.Coordinator.Acquire].
//
// A Hold is safe for concurrent use.
type Hold struct {
	mu       sync.Mutex
	permit   permit // nil: nothing is held
	released bool
}

// WithHold returns a context for one request, and the hold that takes over its slot if the
// response is a success (2xx), also on an endpoint whose calls start jobs. In any other
// case, and for an endpoint without slots, the request ends as it always does, and nothing
// is held. Of several requests with the context the first to succeed is held.
//
// The hold outlives the context. It must be released.
func WithHold(ctx context.Context) (context.Context, *Hold) {
	h := new(Hold)
	return context.WithValue(ctx, holdKey{}, h), h
}

type holdKey struct{}

func holdOf(ctx context.Context) *Hold {
	h, _ := ctx.Value(holdKey{}).(*Hold)
	return h
}

// take takes over the slot of a call that has succeeded; false: the hold is not for it, or
// the slot has found its end already.
func (h *Hold) take(call *hold) (taken bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.permit != nil || h.released {
		return false
	}
	call.settle(func() {
		h.permit, taken = call.permit, true
	})
	return taken
}

func (h *Hold) current() permit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.permit
}

// Held says whether the slot of a request has been taken over. It remains true after
// Release, and when the slot has been lost.
func (h *Hold) Held() bool { return h.current() != nil }

// Lost is closed when the slot was lost before it was released: Redis forgot it, it could
// not be renewed in time, or the coordinator was closed. The work then counts for nobody,
// and should be broken off. The channel is nil, so that it is never ready, while nothing
// is held.
func (h *Hold) Lost() <-chan struct{} {
	if p := h.current(); p != nil {
		return p.Lost()
	}
	return nil
}

// Context returns a child of parent for the work. It ends with the cause
// [coordinator.ErrLeaseLost] when the slot is lost, and with
// [coordinator.ErrClosed] when the coordinator is closed. The function frees its resources
// and must be called; it does not release the slot. While nothing is held the context ends
// with parent alone.
func (h *Hold) Context(parent context.Context) (context.Context, context.CancelFunc) {
	if p := h.current(); p != nil {
		return p.Context(parent)
	}
	return context.WithCancel(parent)
}

// Release gives the slot back: the work is done. Before the response is there it gives the
// hold up, and the request ends as it always does. Releasing twice changes nothing.
func (h *Hold) Release() {
	if p := h.release(); p != nil {
		p.Release()
	}
}

// ReleaseAfter gives the slot back after d: the work was broken off, and the API may take
// this long to notice. The slot goes back sooner if its lease is shorter than that.
func (h *Hold) ReleaseAfter(d time.Duration) {
	if p := h.release(); p != nil {
		p.ReleaseAfter(d)
	}
}

func (h *Hold) release() permit {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return nil
	}
	h.released = true
	return h.permit
}
