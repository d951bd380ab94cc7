package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

func (a *app) pauseCommand() *cobra.Command {
	var length time.Duration
	var reason string
	c := &cobra.Command{
		Use:   "pause --for DURATION",
		Short: "Keep the whole fleet from new requests for a while",
		Long: "No worker is admitted any more, at once; calls that are under way go on. The pause ends by\n" +
			"itself, after a day at most, or with fleetlimit resume. It replaces an earlier pause by an\n" +
			"operator, and leaves one that the API asked for as it is.",
		Example:           `  fleetlimit pause -a acme --for 5m --reason "the API is being repaired"`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if length < time.Millisecond || length > coordinator.MaxHold {
				return &usageError{fmt.Sprintf("--for %v: say how long, from 1ms to %v, as in --for 5m", length, coordinator.MaxHold)}
			}
			return a.steer(cmd.Context(), func(ctx context.Context, o *coordinator.Operator, account string) error {
				done, err := o.Pause(ctx, account, length, reason)
				if err != nil {
					return err
				}
				fmt.Fprintf(a.out, "Paused %s for %v. fleetlimit resume -a %s ends it.\n", account, length, account)
				if done.Cut > 0 {
					fmt.Fprintf(a.out, "It replaces a pause that had %s left.\n", brief(done.Cut.Milliseconds()))
				}
				return nil
			})
		},
	}
	c.Flags().DurationVar(&length, "for", 0, "how long, as in 90s, 5m or 2h; 24h at most (required)")
	c.Flags().StringVar(&reason, "reason", "by hand", "why, for those who look")
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "resume",
		Short: "End an operator's pause; the fleet moves at once",
		Long: "Ends a pause that an operator asked for, and wakes those who sleep. The fleet comes back at\n" +
			"its pace. What the API has asked for (Retry-After) stays, unless --all ends that too, of the\n" +
			"account and of its endpoints: the API may answer with another 429.",
		Example: `  fleetlimit resume -a acme
  fleetlimit resume -a acme --all`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.steer(cmd.Context(), func(ctx context.Context, o *coordinator.Operator, account string) error {
				done, err := o.Resume(ctx, account, all)
				if err != nil {
					return err
				}
				if done.Cut == 0 {
					fmt.Fprintf(a.out, "%s was not paused by an operator.\n", account)
				} else {
					fmt.Fprintf(a.out, "Resumed %s: the pause had %s left.\n", account, brief(done.Cut.Milliseconds()))
				}
				if done.Paused > 0 {
					fmt.Fprintf(a.out, "The API has asked for a pause of %s more; --all ends that too.\n", brief(done.Paused.Milliseconds()))
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also end what the API asked for")
	return c
}

func (a *app) drainCommand() *cobra.Command {
	var length time.Duration
	var reason string
	var undo bool
	c := &cobra.Command{
		Use:   "drain WORKER",
		Short: "Keep one worker from new permits",
		Long: "The worker gets no new permits, at once, and loses its places in the queues; the slots that it\n" +
			"holds stay until its calls end. Its callers wait until the drain has ended; those whose\n" +
			"deadlines pass before are told at once (gate drain). Polls of jobs are requests, and wait too.\n\n" +
			"A drain ends by itself, when the worker ends, or with --undo.",
		Example: `  fleetlimit drain w2-4711-abcdef -a acme --for 1h --reason "host 7 is to be replaced"
  fleetlimit drain w2-4711-abcdef -a acme --undo`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			worker := args[0]
			if length < time.Millisecond || length > coordinator.MaxHold {
				return &usageError{fmt.Sprintf("--for %v: must be between 1ms and %v", length, coordinator.MaxHold)}
			}
			return a.steer(cmd.Context(), func(ctx context.Context, o *coordinator.Operator, account string) error {
				s, err := o.Account(ctx, account)
				if err != nil {
					return err
				}
				if undo {
					done, err := o.Undrain(ctx, account, worker)
					if err != nil {
						return err
					}
					if done.Cut == 0 {
						return &nothingError{fmt.Sprintf("%s is not drained in account %s", worker, account)}
					}
					fmt.Fprintf(a.out, "%s gets permits again.\n", worker)
					return nil
				}
				alive := slices.ContainsFunc(s.Workers, func(w coordinator.WorkerState) bool { return w.Worker == worker })
				if !alive && s.Alive <= len(s.Workers) {
					names := make([]string, len(s.Workers))
					for i, w := range s.Workers {
						names[i] = w.Worker
					}
					return &nothingError{fmt.Sprintf("no worker %q is alive in account %s; there are: %s", worker, account, some(names, 20))}
				}
				if _, err := o.Drain(ctx, account, worker, length, reason); err != nil {
					return err
				}
				held := 0
				for _, e := range s.Endpoints {
					for _, l := range e.Leases {
						if l.Worker == worker {
							held++
						}
					}
				}
				fmt.Fprintf(a.out, "%s gets no new permits for %v; it holds %d slots. fleetlimit drain --undo %s -a %s ends that.\n", worker, length, held, worker, account)
				return nil
			})
		},
	}
	c.Flags().DurationVar(&length, "for", time.Hour, "how long, 24h at most")
	c.Flags().StringVar(&reason, "reason", "by hand", "why, for those who look")
	c.Flags().BoolVar(&undo, "undo", false, "let the worker have permits again")
	return c
}

func (a *app) resetCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "reset",
		Short: "Delete all that Redis holds of an account; asks first",
		Long: "Deletes the account's keys, in one step. Live workers notice: for five seconds each goes on\n" +
			"with its own share while they tell again what they sent in the last window and which slots\n" +
			"they hold.\n" +
			"Pauses, drains, jobs and the slots of dead workers are forgotten.",
		Example: `  fleetlimit reset -a acme
  fleetlimit reset -a acme --yes`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.steer(cmd.Context(), func(_ context.Context, o *coordinator.Operator, account string) error {
				if !yes {
					if err := a.ask(cmd.Context(), o, account); err != nil {
						return err
					}
				}
				// The answer may have taken longer than Redis may.
				ctx, cancel := a.within(cmd.Context())
				defer cancel()
				n, err := o.Reset(ctx, account)
				if err != nil {
					return err
				}
				if n == 0 {
					return fmt.Errorf("%w: %s", coordinator.ErrNoAccount, account)
				}
				fmt.Fprintf(a.out, "Deleted %d keys of %s.\n", n, account)
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// ask lets the user type the account's name.
func (a *app) ask(ctx context.Context, o *coordinator.Operator, account string) error {
	limited, cancel := a.within(ctx)
	s, err := o.Account(limited, account)
	cancel()
	var garbage *coordinator.KeyError
	switch {
	case err == nil:
		fmt.Fprintf(a.err, "This deletes the state of %s: %d workers are alive, %d requests are in its window.\n", account, s.Alive, s.Used)
	case errors.As(err, &garbage):
		fmt.Fprintf(a.err, "This deletes the state of %s, which cannot be read: its key %q holds a %s.\n", account, garbage.Key, garbage.Type)
	default:
		return err
	}
	fmt.Fprint(a.err, "Type the account's name to go on: ")
	answer := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(a.in).ReadString('\n') // without an answer the text is empty
		answer <- strings.TrimSpace(text)
	}()
	select {
	case text := <-answer:
		if text == account {
			return nil
		}
		fmt.Fprintln(a.err, "\nNothing was deleted. (--yes does not ask.)")
		return errSilent
	case <-ctx.Done():
		return ctx.Err()
	}
}

// steer does something to the account that was chosen.
func (a *app) steer(ctx context.Context, do func(context.Context, *coordinator.Operator, string) error) error {
	account, err := a.choose(ctx)
	if err != nil {
		return err
	}
	o, err := a.operator()
	if err != nil {
		return err
	}
	ctx, cancel := a.within(ctx)
	defer cancel()
	return do(ctx, o, account)
}
