package coordinator

import (
	"context"
	"sync"
)

// maxNews bounds what waits for a slow listener.
const maxNews = 1000

// An announcer calls functions one after the other, in order, on a goroutine that
// lives only while there is something to tell. So whoever has news may hold a lock,
// and a listener that hangs stops nobody.
type announcer struct {
	mu    sync.Mutex
	queue []func()
	idle  chan struct{} // closed when all has been told; nil: nothing under way
}

func (a *announcer) announce(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) >= maxNews {
		return
	}
	a.queue = append(a.queue, f)
	if a.idle == nil {
		a.idle = make(chan struct{})
		go a.tell()
	}
}

func (a *announcer) tell() {
	for {
		a.mu.Lock()
		news := a.queue
		a.queue = nil
		if len(news) == 0 {
			close(a.idle)
			a.idle = nil
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		for _, f := range news {
			f()
		}
	}
}

// wait returns when all has been told, or with the context.
func (a *announcer) wait(ctx context.Context) {
	a.mu.Lock()
	idle := a.idle
	a.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
