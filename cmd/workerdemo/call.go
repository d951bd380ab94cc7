package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// do carries an item out: one request, and polls until the job it has started
// is over. Polls take budget, but are not counted as requests.
func (w *worker) do(ctx context.Context, c *call) error {
	jobs := slices.IndexFunc(w.profile.Jobs, func(j client.Job) bool { return j.Start == c.item.Endpoint })
	id := c.item.Job
	if id == "" {
		answer, err := w.send(ctx, c.item.Endpoint, bodyOf(c.item))
		if err != nil || jobs < 0 {
			return err
		}
		if id = answer.member(w.profile.Jobs[jobs].ID); id == "" {
			return errors.New("the API has started a job, but did not tell its id")
		}
		w.report(report{Kind: started, Item: c.item.ID, Job: id})
	}
	return w.follow(ctx, c, w.profile.Jobs[jobs], id)
}

// follow polls a job until it is over.
func (w *worker) follow(ctx context.Context, c *call, job client.Job, id string) error {
	// A poll that finds the job done frees a slot for somebody who waits.
	ctx = client.WithPriority(ctx, coordinator.Interactive)
	method, path, _ := strings.Cut(job.Poll, " ")
	target := method + " " + strings.ReplaceAll(path, "{id}", url.PathEscape(id))
	c.mu.Lock()
	c.poll = true
	c.mu.Unlock()
	for begun := time.Now(); ; {
		if err := sleep(ctx, w.pollInterval(job.Start, time.Since(begun))); err != nil {
			return err
		}
		answer, err := w.send(ctx, target, nil)
		if err != nil {
			return err
		}
		switch status := answer.member(job.Status); {
		case status == "completed":
			return nil
		case slices.Contains(job.Done, status):
			return fmt.Errorf("job %s ended as %q", id, status)
		}
	}
}

// pollInterval lets the polls of all jobs together take at most a third of the
// budget; the longer a job lasts, the rarer it is asked, up to 10 s.
func (w *worker) pollInterval(endpoint string, age time.Duration) time.Duration {
	interval := 100 * time.Millisecond
	for _, e := range w.policy.Endpoints {
		if e.Pattern == endpoint {
			interval = 3 * time.Duration(e.Slots) * w.policy.Window / time.Duration(w.policy.Limit)
		}
	}
	return max(interval, min(age/10, 10*time.Second))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// An answer is the body of a response, read to its end.
type answer []byte

// member returns a string member of the JSON object.
func (a answer) member(name string) string {
	var members map[string]json.RawMessage
	var s string
	if json.Unmarshal(a, &members) == nil {
		_ = json.Unmarshal(members[name], &s) // no string: none
	}
	return s
}

// refusal is a response that is no success.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s: %s", e.status, http.StatusText(e.status), e.text))
}

func (w *worker) send(ctx context.Context, endpoint string, body []byte) (answer, error) {
	method, path, _ := strings.Cut(endpoint, " ")
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body) // a streamed answer keeps its slot to the end
	switch {
	case resp.StatusCode/100 != 2:
		return nil, &refusal{resp.StatusCode, gist(text)}
	case err != nil:
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return text, nil
}

// gist is the message of an error body, or the beginning of whatever it is.
func gist(text []byte) string {
	var body struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(text, &body) == nil && body.Error.Message != "" {
		return body.Error.Message
	}
	const most = 200
	s := strings.Join(strings.Fields(string(text)), " ")
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}

// bodyOf is a body that the endpoint takes. Every second chat is streamed.
func bodyOf(it item) []byte {
	if !strings.HasPrefix(it.Endpoint, "POST ") {
		return nil
	}
	body := map[string]any{}
	switch it.Endpoint {
	case "POST /responses":
		body["model"], body["persona_id"] = "mavera-1", "persona_1"
		body["input"] = fmt.Sprintf("Would you buy product %d?", it.ID)
	case mavera.Chat:
		body["message"] = fmt.Sprintf("What do you think of product %d?", it.ID)
		body["stream"] = it.ID%2 == 0
	case mavera.FocusGroups:
		body["topic"] = fmt.Sprintf("Product %d", it.ID)
	case mavera.VideoAnalyses:
		body["video_url"] = fmt.Sprintf("https://example.com/advert-%d.mp4", it.ID)
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings, numbers and booleans alone
	}
	return text
}
