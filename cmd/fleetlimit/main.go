// Command fleetlimit shows and steers the accounts in a Redis: see who holds what
// and who waits for what, pause and resume a fleet, drain a worker, find out why
// nothing moves, check Redis. "fleetlimit --help" lists the commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
	"golang.org/x/term"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1 // doctor has found something to fix, or a question was answered with no
	exitUsage       = 2 // an argument that cannot be used, or an account that must be named
	exitRedis       = 3 // Redis does not answer, or refuses
	exitNothing     = 4 // there is no such account or worker
	exitInterrupted = 130
)

const exitCodes = `Exit codes:
  0  done
  1  doctor has found something to fix, or reset was answered with no
  2  an argument that cannot be used, or several accounts and none named
  3  Redis does not answer, or refuses
  4  there is no such account or worker
  130  interrupted`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program, but for its process.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	redis.SetLogger(silent{})
	a := &app{getenv: getenv, in: stdin, out: stdout, err: stderr, colour: isTerminal(stdout) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	a.close()
	if err == nil {
		return exitOK
	}
	code, text := explainError(ctx, err)
	if text != "" {
		fmt.Fprintf(stderr, "fleetlimit: %s\n", text)
	}
	return code
}

// errSilent is a failure that the output has already told.
var errSilent = errors.New("told already")

// usageError is an argument that cannot be used.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// nothingError is something that is not there.
type nothingError struct{ text string }

func (e *nothingError) Error() string { return e.text }

// explainError turns an error into an exit code and a text that says what to do.
func explainError(ctx context.Context, err error) (code int, text string) {
	var usage *usageError
	var nothing *nothingError
	var config *coordinator.ConfigError
	var garbage *coordinator.KeyError
	var answer redis.Error
	switch {
	case errors.Is(err, errSilent):
		return exitFailed, ""
	case errors.As(err, &usage):
		return exitUsage, usage.text
	case strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage, err.Error() + "; fleetlimit --help lists the commands"
	case errors.As(err, &config):
		return exitUsage, fmt.Sprintf("%s %v: %s", config.Field, config.Value, config.Reason)
	case errors.As(err, &nothing):
		return exitNothing, nothing.text
	case errors.Is(err, coordinator.ErrNoAccount):
		return exitNothing, err.Error() + "; fleetlimit status lists those that are there"
	case ctx.Err() != nil:
		return exitInterrupted, ""
	case errors.As(err, &garbage):
		return exitRedis, strings.ReplaceAll(err.Error(), "fleetlimit: ", "") + "; fleetlimit reset does so"
	case errors.As(err, &answer):
		return exitRedis, refusal(answer.Error())
	}
	return exitRedis, redisurl.Hide(err.Error())
}

// isTerminal says whether somebody reads along.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// silent keeps the Redis client's notes about its connections from the screen.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
