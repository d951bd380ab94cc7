package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

const strangerAbout = `Uses the API key without asking anybody, as a script on somebody's laptop would, at a
steady rate until it is stopped. A fleet on the same key sees it in the headers.`

func runStranger(ctx context.Context, args []string, t terminal) error {
	fs := newFlagSet("workerdemo stranger", strangerAbout, t.out)
	upstream := fs.upstream("base `URL` of the API, to which /personas is appended (required)", true)
	key := fs.key()
	rate := fs.number("rate", 60, mavera.Enterprise.RequestsPerMinute(), "requests per `minute`")
	fs.checks = append(fs.checks, func() error {
		if *key == "" {
			return &usageError{"-api-key is missing: set it or " + keyVariable}
		}
		return nil
	})
	if err := fs.parse(args); err != nil {
		return err
	}
	target := strings.TrimSuffix(*upstream, "/") + "/personas"
	tick := time.NewTicker(time.Minute / time.Duration(*rate))
	defer tick.Stop()
	told := make(map[int]int)
	for sent := 0; ; sent++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			fmt.Fprintf(t.err, "a stranger has sent %d requests; by status: %v\n", sent, told)
			return nil
		}
		status, err := sendAsStranger(ctx, target, *key)
		if err != nil && ctx.Err() == nil && told[0] == 0 {
			fmt.Fprintf(t.err, "a stranger's request failed: %v\n", err)
		}
		told[status]++
	}
}

func sendAsStranger(ctx context.Context, target, key string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
