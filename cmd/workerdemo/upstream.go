package main

import (
	"context"
	"fmt"
)

const upstreamAbout = `Serves the strict mock of the Mavera API until it is interrupted, at / and below
/api/v1. It accepts any API key; each has a budget of its own. GET /_stats tells
what it has counted, violations included.`

func runUpstream(ctx context.Context, args []string, t terminal) error {
	fs := newFlagSet("workerdemo upstream", upstreamAbout, t.out)
	addr := fs.text("addr", "127.0.0.1:8080", "`address` to listen on")
	tier := fs.tier()
	window := fs.window()
	scale := fs.float("time-scale", timeScale, func(x float64) bool { return x > 0 && x <= 1000 },
		"must be above 0 and at most 1000", "`factor` of the documented latencies (a chat lasts 30-90 s, a video analysis 2-10 min); windows keep their length")
	if err := fs.parse(args); err != nil {
		return err
	}
	api, url, stop, err := serveMock(mockConfig(*tier, *window, *scale), *addr)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Fprintf(t.err, "the mock API listens on %s (%s, %s window)\n", url, *tier, *window)
	<-ctx.Done()
	s := api.Stats()
	fmt.Fprintf(t.err, "%d requests, 429s: %d, violations of the limit: %d, of slots: %d, of pauses: %d\n",
		s.Requests, s.Responses429, s.LimitViolations, s.SlotViolations, s.PauseViolations)
	return nil
}
