//go:build unix

package fleet

import (
	"os"
	"syscall"
)

const (
	freezing = syscall.SIGSTOP
	thawing  = syscall.SIGCONT
)

func signal(p *os.Process, s syscall.Signal) error { return p.Signal(s) }
