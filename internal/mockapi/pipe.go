package mockapi

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// PipeListener serves in-memory connections, for tests in a testing/synctest
// bubble, where nothing may touch the network. It is safe for concurrent use.
type PipeListener struct {
	server *http.Server
	pipe   *pipe
	// running counts Serve and the server's connections.
	running sync.WaitGroup
}

// Listen starts an http.Server that serves the API in memory until the
// listener or the API is closed.
func (a *API) Listen() *PipeListener {
	l := ServePipe(a)
	a.mu.Lock()
	closed := a.closed()
	if !closed {
		a.listeners = append(a.listeners, l)
	}
	a.mu.Unlock()
	if closed {
		l.Close()
	}
	return l
}

// ServePipe serves any handler in memory, such as one around an API, until the
// listener is closed.
func ServePipe(h http.Handler) *PipeListener {
	l := &PipeListener{pipe: &pipe{
		dialed: make(chan net.Conn),
		done:   make(chan struct{}),
		conns:  make(map[net.Conn]bool),
	}}
	l.server = &http.Server{Handler: h, ConnState: func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			l.running.Add(1)
		case http.StateClosed, http.StateHijacked:
			l.pipe.forget(conn)
			l.running.Done()
		}
	}}
	l.running.Go(func() {
		l.server.Serve(l.pipe) // ends with http.ErrServerClosed
	})
	return l
}

// Close ends the server and all its connections and waits for them. It is
// idempotent.
func (l *PipeListener) Close() error {
	l.server.Close()
	// Server.Close can miss a connection that was accepted just before.
	l.pipe.Close()
	l.running.Wait()
	return nil
}

// DialContext connects to the listener whatever the address; it fits
// http.Transport.DialContext.
func (l *PipeListener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	var err error
	select {
	case l.pipe.dialed <- there:
		return here, nil
	case <-l.pipe.done:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	here.Close()
	there.Close()
	return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: pipeAddr{}, Err: err}
}

// URL is a base URL for requests through Transport.
func (l *PipeListener) URL() string { return "http://mavera.test/api/v1" }

// Transport returns a new http.Transport that connects to the listener.
func (l *PipeListener) Transport() *http.Transport {
	return &http.Transport{DialContext: l.DialContext, MaxIdleConnsPerHost: 1000}
}

// Client returns a new http.Client over a Transport of its own.
func (l *PipeListener) Client() *http.Client {
	return &http.Client{Transport: l.Transport()}
}

// pipe is the net.Listener of a PipeListener.
type pipe struct {
	dialed chan net.Conn
	done   chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool // accepted and not closed
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.dialed:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			conn.Close()
			return nil, net.ErrClosed
		}
		p.conns[conn] = true
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipe) forget(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

func (p *pipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.done)
	}
	for conn := range p.conns {
		conn.Close()
	}
	return nil
}

func (p *pipe) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
