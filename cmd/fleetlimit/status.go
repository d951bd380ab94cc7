package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/accountview"
)

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the accounts: window, slots, who holds them, who waits",
		Long: "Shows one account in detail: the one that -a names, or the only one there is. Where there\n" +
			"are several, it lists them, one a line.\n\n" +
			"An account stays in Redis for ten minutes after its last use.",
		Example: `  fleetlimit status
  fleetlimit status -a acme
  fleetlimit status -a acme -o json | jq .window`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
	a.outputFlag(c)
	return c
}

// read reads one account; its jobs too if the user may look for them.
func (a *app) read(ctx context.Context, account string) (accountview.Account, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	i := coordinator.NewInspector(a.rdb)
	s, err := i.Account(ctx, account)
	if err != nil {
		return accountview.Account{}, err
	}
	jobs, err := i.Jobs(ctx, account)
	if err != nil {
		jobs = nil // a worker's user may not SCAN: then the leases stand without their jobs
	}
	return accountview.Of(s, jobs), nil
}

func (a *app) status(ctx context.Context) error {
	if err := a.checkOutput(); err != nil {
		return err
	}
	names := []string{a.account}
	if a.account == "" {
		var err error
		if names, err = a.list(ctx); err != nil {
			return fmt.Errorf("%w; with --account nothing has to be listed", err)
		}
	} else if err := a.connect(ctx); err != nil {
		return err
	}
	views := []accountview.Account{}
	var unreadable error
	for _, name := range names {
		v, err := a.read(ctx, name)
		var garbage *coordinator.KeyError
		switch {
		case err == nil:
			views = append(views, v)
		case errors.Is(err, coordinator.ErrNoAccount) && a.account == "": // it has just gone
		case errors.As(err, &garbage):
			unreadable = errors.Join(unreadable, err) // the others can be told nevertheless
		default:
			return err
		}
	}
	if len(views) == 0 && unreadable != nil {
		return unreadable
	}
	if err := a.show(views); err != nil {
		return err
	}
	return unreadable
}

// show writes what was read.
func (a *app) show(views []accountview.Account) error {
	if a.output == "json" {
		return a.json(views)
	}
	p := painter{colour: a.colour}
	switch {
	case len(views) == 0:
		fmt.Fprintln(a.out, "No account in this Redis: no worker has used it in the last ten minutes.")
	case len(views) == 1:
		fmt.Fprint(a.out, p.account(views[0]))
	default:
		fmt.Fprint(a.out, p.accounts(views))
	}
	return nil
}

// json writes one value.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (a *app) explainCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "explain",
		Short: "Say why nothing is moving: the gate, the numbers, the time",
		Long: "Names, for requests that need budget alone and for each endpoint with slots, the gate that\n" +
			"is shut, the numbers behind it, how long it stays shut, and what can be done.\n\n" +
			"The gates, in the order in which admission evaluates them:\n" +
			"  backoff  the API pushed back, or an operator has paused the account\n" +
			"  pace     requests are spread evenly over the window\n" +
			"  window   the limit of the window is used up\n" +
			"  slots    all calls that the endpoint allows at once are under way\n" +
			"  turn     others have waited longer",
		Example: `  fleetlimit explain
  fleetlimit explain -a acme -o json | jq -r .summary`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			account, err := a.choose(cmd.Context())
			if err != nil {
				return err
			}
			v, err := a.read(cmd.Context(), account)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(v.Diagnosis)
			}
			fmt.Fprint(a.out, painter{colour: a.colour}.diagnosis(v))
			return nil
		},
	}
	a.outputFlag(c)
	return c
}

// brief writes milliseconds for people.
func brief(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case ms < 0:
		return "-"
	case d < time.Second:
		return d.String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
