package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

func (a *app) watchCommand() *cobra.Command {
	var every time.Duration
	c := &cobra.Command{
		Use:   "watch",
		Short: "Show the accounts live",
		Long: "Shows what fleetlimit status shows, again and again. On a terminal: Tab or the arrow keys change\n" +
			"the account, q ends. Elsewhere it writes one status after the other, until it is interrupted.",
		Example: `  fleetlimit watch
  fleetlimit watch -a acme --every 250ms`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Hour {
				return &usageError{fmt.Sprintf("--every %v: must be between 100ms and 1h", every)}
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			if isTerminal(a.out) && isTerminal(a.in) {
				return a.watchLive(cmd.Context(), every)
			}
			return a.watchPlain(cmd.Context(), every)
		},
	}
	c.Flags().DurationVar(&every, "every", time.Second, "how often to look")
	return c
}

// screen is what there is to see now: the text, and which account of which it shows.
func (a *app) screen(ctx context.Context, chosen int) (text string, of int) {
	names := []string{a.account}
	if a.account == "" {
		var err error
		if names, err = a.list(ctx); err != nil {
			_, text := explainError(ctx, err)
			return text + "\n", 0
		}
	}
	if len(names) == 0 {
		return "No account in this Redis: no worker has used it in the last ten minutes.\n", 0
	}
	name := names[((chosen%len(names))+len(names))%len(names)]
	v, err := a.read(ctx, name)
	if err != nil {
		_, text := explainError(ctx, err)
		return text + "\n", len(names)
	}
	p := painter{colour: a.colour}
	text = p.account(v)
	if i, err := a.sparks(ctx, name); err == nil {
		text += i
	}
	return text, len(names)
}

// sparks draws the last ten minutes.
func (a *app) sparks(ctx context.Context, account string) (string, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	samples, err := coordinator.NewInspector(a.rdb).Timeline(ctx, account)
	if err != nil || len(samples) < 3 {
		return "", err
	}
	var admitted, waiting []float64
	for i := 1; i < len(samples); i++ {
		past, now := samples[i-1], samples[i]
		seconds := max(0.001, (past.Ago - now.Ago).Seconds())
		admitted = append(admitted, float64(max(0, now.Granted-past.Granted))/seconds*60)
		waiting = append(waiting, float64(now.Waiting))
	}
	return fmt.Sprintf("\nlast %s\nadmitted a minute  %s\nwaiting            %s\n",
		samples[0].Ago.Round(time.Second), spark(admitted, 60), spark(waiting, 60)), nil
}

// spark draws numbers as columns, and says the highest; at most width columns, each
// the highest of its share.
func spark(values []float64, width int) string {
	const columns = "▁▂▃▄▅▆▇█"
	runes := []rune(columns)
	highest := 0.0
	for _, v := range values {
		highest = max(highest, v)
	}
	n := min(width, len(values))
	var b strings.Builder
	for i := range n {
		most := 0.0
		for _, v := range values[i*len(values)/n : (i+1)*len(values)/n] {
			most = max(most, v)
		}
		level := 0
		if highest > 0 {
			level = int(most / highest * float64(len(runes)-1))
		}
		b.WriteRune(runes[level])
	}
	return fmt.Sprintf("%s  at most %.0f", b.String(), highest)
}

func (a *app) watchPlain(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		text, _ := a.screen(ctx, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := fmt.Fprintf(a.out, "%s\n%s\n", time.Now().Format(time.TimeOnly), text); err != nil {
			return errSilent // nobody reads any more
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A live is the model of the live view.
type live struct {
	app    *app
	ctx    context.Context
	every  time.Duration
	chosen int
	of     int
	text   string
	height int
	width  int
}

type shot struct {
	text string
	of   int
}

type look struct{}

func (m live) shoot() tea.Msg {
	text, of := m.app.screen(m.ctx, m.chosen)
	return shot{text, of}
}

func (m live) Init() tea.Cmd { return m.shoot }

func (m live) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		case "tab", "right", "down", "j", "l":
			m.chosen++
			return m, m.shoot
		case "shift+tab", "left", "up", "k", "h":
			m.chosen--
			return m, m.shoot
		}
	case shot:
		m.text, m.of = msg.text, msg.of
		return m, tea.Tick(m.every, func(time.Time) tea.Msg { return look{} })
	case look:
		return m, m.shoot
	}
	return m, nil
}

func (m live) View() tea.View {
	foot := "q ends"
	if m.of > 1 {
		foot = fmt.Sprintf("account %d of %d · Tab: the next · q ends", ((m.chosen%m.of)+m.of)%m.of+1, m.of)
	}
	lines := strings.Split(strings.TrimRight(m.text, "\n"), "\n")
	if m.height > 2 && len(lines) > m.height-2 {
		lines = append(lines[:m.height-3], "…")
	}
	v := tea.NewView(strings.Join(lines, "\n") + "\n\n" + foot)
	v.AltScreen = true
	v.WindowTitle = "fleetlimit"
	return v
}

func (a *app) watchLive(ctx context.Context, every time.Duration) error {
	_, err := tea.NewProgram(live{app: a, ctx: ctx, every: every}, tea.WithContext(ctx), tea.WithInput(a.in), tea.WithOutput(a.out)).Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
