package redistest

import (
	"os/exec"
	"syscall"
)

// dieWithParent ends the server even if the test binary is killed.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
