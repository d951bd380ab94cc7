package redistest

import (
	"io"
	"net"
)

// Virtual is a Redis in this process, such as a *miniredis.Miniredis.
type Virtual interface{ Dial() (net.Conn, error) }

// Dial connects to one, with room in the connection.
func Dial(r Virtual) (net.Conn, error) {
	conn, err := r.Dial()
	if err != nil {
		return nil, err
	}
	return buffered(conn), nil
}

// buffered gives a connection to miniredis the room that a kernel's socket buffers
// have: the server's writes go on while the client does not read. Without it, a
// client that pauses before it reads a subscription stops the whole server, and with
// it the clock of a synctest bubble.
func buffered(inner net.Conn) net.Conn {
	near, far := net.Pipe()
	go func() {
		_, _ = io.Copy(inner, far) // ends when either side closes
		inner.Close()
	}()
	chunks := make(chan []byte, 4096)
	go func() {
		defer close(chunks)
		for {
			b := make([]byte, 4096)
			n, err := inner.Read(b)
			if n > 0 {
				chunks <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		for b := range chunks {
			_, _ = far.Write(b) // after a close the rest is dropped
		}
		far.Close()
	}()
	return near
}
