// Command workerdemo shows a fleet of worker processes that share the budget of
// one API key through Redis, without a single 429.
//
// Without flags it brings everything along: a Redis in memory, a strict mock of
// the Mavera API, and four worker processes with a mixed load. "workerdemo -h"
// lists the flags; "workerdemo worker" and "workerdemo upstream" start the parts
// alone, "workerdemo serve" a worker that never ends, for containers, and "workerdemo
// stranger" somebody who uses the key without asking.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// Exit codes.
const (
	exitOK          = 0   // every request succeeded, no 429, no violation
	exitFailed      = 1   // something did not
	exitUsage       = 2   // a flag that cannot be used
	exitInterrupted = 130 // ended by SIGINT or SIGTERM
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr *os.File) int {
	redis.SetLogger(silent{})
	command := runDemo
	if len(args) > 0 {
		switch args[0] {
		case "worker":
			command, args = runWorker, args[1:]
		case "upstream":
			command, args = runUpstream, args[1:]
		case "serve":
			command, args = runServe, args[1:]
		case "stranger":
			command, args = runStranger, args[1:]
		case "get":
			command, args = runGet, args[1:]
		}
	}
	// The parent of a worker decides when it ends: a Ctrl-C reaches every
	// process of the terminal, but a worker lives until its stdin closes.
	if len(args) == 1 && args[0] == pipeFlag {
		signal.Ignore(os.Interrupt)
		return runPiped(stdin, stdout, stderr)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)

	err := command(ctx, args, terminal{stdout, stderr})
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "workerdemo: %v\n", usage)
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, errReported):
		return exitFailed
	}
	fmt.Fprintf(stderr, "workerdemo: %v\n", err)
	return exitFailed
}

// terminal is where the program writes to: results to out, all else to err.
type terminal struct{ out, err *os.File }

var (
	errInterrupted = errors.New("interrupted")

	// errReported is a failure that the report has already told.
	errReported = errors.New("not every request succeeded")
)

// silent keeps the Redis client's notes about its connections from the screen:
// the coordinator tells what matters.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
