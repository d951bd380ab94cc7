package fleet

import (
	"os/exec"
	"syscall"
)

// dieWithParent ends the worker even if its parent is killed while the worker is frozen.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
