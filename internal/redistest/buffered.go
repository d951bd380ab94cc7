package redistest

import (
	"io"
	"net"
)

// Buffered gives a connection to miniredis the room that a kernel's socket buffers
// have: the server's writes go on while the client does not read. Without it, a
// client that pauses before it reads a subscription stops the whole server, and with
// it the clock of a synctest bubble.
func Buffered(inner net.Conn) net.Conn {
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
