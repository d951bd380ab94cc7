package redistest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// FreePort returns a port of 127.0.0.1 that no other caller gets, in any process, as long
// as this one lives: a server may be stopped for a while, and whoever started another on its
// port would meet its clients. It is below the ports that systems give to outgoing
// connections: one of those could hold the port meanwhile, and the server could not be
// restarted.
func FreePort() (int, error) {
	for range attempts {
		if port := 12_000 + rand.N(20_000); reserve(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("none of %d random ports is free", attempts)
}

// reservations are UDP sockets that nobody sends to: their numbers are independent of those
// of TCP, and the system ends them with the process.
var reservations struct {
	sync.Mutex
	sockets []net.PacketConn
}

// reserve says whether the port is free and now the caller's.
func reserve(port int) bool {
	addr := fmt.Sprint("127.0.0.1:", port)
	socket, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		socket.Close()
		return false
	}
	listener.Close()
	reservations.Lock()
	defer reservations.Unlock()
	reservations.sockets = append(reservations.sockets, socket)
	return true
}
