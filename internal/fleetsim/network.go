package fleetsim

import (
	"context"
	"errors"
	"net"
	"sync"
)

var (
	errRefused = errors.New("connection refused")
	errKilled  = errors.New("the process was killed")
)

// A link is the way from one process to one server. It can be cut, which breaks
// what is open and refuses what is dialled, and mended.
type link struct {
	dial func(context.Context) (net.Conn, error)

	mu    sync.Mutex
	cause error // why nothing can be dialled; nil: it can
	dead  bool  // never again
	conns map[net.Conn]bool
}

func newLink(dial func(context.Context) (net.Conn, error)) *link {
	return &link{dial: dial, conns: make(map[net.Conn]bool)}
}

// DialContext fits http.Transport and redis.Options; the address does not matter.
func (l *link) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := l.broken(); err != nil {
		return nil, err
	}
	inner, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := &linked{Conn: inner, link: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil { // cut while it was dialled
		inner.Close()
		return nil, l.cause
	}
	l.conns[conn] = true
	return conn, nil
}

func (l *link) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

func (l *link) cut(cause error) {
	l.mu.Lock()
	open := l.conns
	l.conns = make(map[net.Conn]bool)
	if !l.dead {
		l.cause, l.dead = cause, cause == errKilled
	}
	l.mu.Unlock()
	for conn := range open {
		conn.(*linked).Conn.Close()
	}
}

// set makes the link passable, or not.
func (l *link) set(open bool) {
	if open {
		l.mend()
	} else {
		l.cut(errRefused)
	}
}

func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.cause = nil
	}
}

// linked is a connection that its link can cut.
type linked struct {
	net.Conn
	link *link
}

func (c *linked) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	return c.Conn.Close()
}
