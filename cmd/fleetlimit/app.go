package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

// app is what all commands share.
type app struct {
	getenv   func(string) string
	in       io.Reader
	out, err io.Writer
	colour   bool

	// Flags.
	redis   string
	account string
	timeout time.Duration
	output  string

	url string                // of Redis, once it is known
	rdb redis.UniversalClient // nil: not connected yet
}

const defaultRedis = "redis://127.0.0.1:6379"

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "fleetlimit",
		Short: "See and steer fleets that share an API key",
		Long: "Shows and steers the accounts in a Redis: who holds which slots, who waits and behind\n" +
			"which gate, what the pause is for; and pauses, resumes, drains and resets by hand.\n\n" + exitCodes,
		Example: `  export REDIS_URL=redis://127.0.0.1:6379
  fleetlimit status                         # all accounts, or the only one in detail
  fleetlimit explain -a acme                # why is nothing moving?
  fleetlimit pause -a acme --for 5m --reason "the API is being repaired"
  fleetlimit resume -a acme
  fleetlimit doctor                         # is this Redis fit?`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.redis, "redis", "", "`URL` of Redis: "+redisurl.Forms+" (default: $REDIS_URL, or "+defaultRedis+")")
	flags.StringVarP(&a.account, "account", "a", "", "`name` of the account (default: the only one there is)")
	flags.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long to wait for Redis")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err.Error() + "; " + cmd.CommandPath() + " --help lists the flags"}
	})
	_ = root.RegisterFlagCompletionFunc("account", a.completeAccount) // it is there
	_ = root.RegisterFlagCompletionFunc("redis", cobra.NoFileCompletions)
	root.AddCommand(a.statusCommand(), a.watchCommand(), a.explainCommand(), a.pauseCommand(), a.resumeCommand(),
		a.drainCommand(), a.resetCommand(), a.doctorCommand())
	for _, c := range root.Commands() {
		if c.Args != nil {
			check := c.Args
			c.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return &usageError{err.Error() + "; see " + cmd.CommandPath() + " --help"}
				}
				return nil
			}
		}
	}
	return root
}

// outputFlag adds -o.
func (a *app) outputFlag(c *cobra.Command) {
	c.Flags().StringVarP(&a.output, "output", "o", "text", "`format`: text or json")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) checkOutput() error {
	if a.output != "text" && a.output != "json" {
		return &usageError{fmt.Sprintf("--output %q: must be text or json", a.output)}
	}
	return nil
}

// connect opens Redis and makes sure that it answers.
func (a *app) connect(ctx context.Context) error {
	if a.rdb != nil {
		return nil
	}
	url, from := a.redis, "--redis"
	if url == "" {
		url, from = a.getenv("REDIS_URL"), "REDIS_URL"
	}
	if url == "" {
		url, from = defaultRedis, "the default"
	}
	if a.timeout <= 0 {
		return &usageError{fmt.Sprintf("--timeout %v: must be above zero", a.timeout)}
	}
	rdb, err := redisurl.Open(url)
	if err != nil {
		return &usageError{fmt.Sprintf("%s %q: %v", from, redisurl.Hide(url), err)}
	}
	a.rdb, a.url = rdb, url
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if err := rdb.Ping(ctx).Err(); err != nil {
		var answer redis.Error
		if errors.As(err, &answer) && !strings.HasPrefix(answer.Error(), "LOADING") {
			return fmt.Errorf("%s %s: %w", from, redisurl.Hide(url), err)
		}
		return fmt.Errorf("no answer from Redis at %s (from %s): %w; is it running, and reachable from here?", redisurl.Hide(url), from, err)
	}
	return nil
}

// refusal says what to do about an error that Redis answered.
func refusal(text string) string {
	switch {
	case strings.HasPrefix(text, "WRONGPASS"):
		return "Redis refuses the password (" + text + "): check user and password in the URL"
	case strings.HasPrefix(text, "NOAUTH"), strings.Contains(text, "without any password configured"):
		return "Redis asks for a password (" + text + "): use redis://user:password@host:port"
	case strings.HasPrefix(text, "NOPERM"):
		return "the Redis user may not do that (" + text + "): deploy/redis/README.md lists what is needed"
	}
	return "Redis refuses: " + text
}

func (a *app) close() {
	if a.rdb != nil {
		a.rdb.Close()
	}
}

func (a *app) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// choose returns the account that the flag names, or the only one there is.
func (a *app) choose(ctx context.Context) (string, error) {
	if err := a.connect(ctx); err != nil {
		return "", err
	}
	if a.account != "" {
		return a.account, nil
	}
	ctx, cancel := a.within(ctx)
	defer cancel()
	names, err := coordinator.NewInspector(a.rdb).Accounts(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w; with --account nothing has to be listed", err)
	case len(names) == 0:
		return "", &nothingError{"there is no account in this Redis: no worker has used it in the last ten minutes"}
	case len(names) > 1:
		return "", &usageError{fmt.Sprintf("there are %d accounts, name one with -a: %s", len(names), some(names, 20))}
	}
	return names[0], nil
}

func some(names []string, most int) string {
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// operator is this person, as far as the machine knows.
func (a *app) operator() (*coordinator.Operator, error) {
	name := a.getenv("USER")
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return coordinator.NewOperator(a.rdb, name)
}

func (a *app) completeAccount(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	names, err := a.list(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, begun) }), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeWorker(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	account, err := a.choose(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := a.within(cmd.Context())
	defer cancel()
	s, err := coordinator.NewInspector(a.rdb).Account(ctx, account)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, w := range s.Workers {
		if strings.HasPrefix(w.Worker, begun) {
			names = append(names, w.Worker)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) list(ctx context.Context) ([]string, error) {
	if err := a.connect(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := a.within(ctx)
	defer cancel()
	return coordinator.NewInspector(a.rdb).Accounts(ctx)
}
