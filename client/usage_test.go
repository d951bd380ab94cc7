package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestUsageIsFoundInWhatFlowsPast(t *testing.T) {
	for name, c := range map[string]struct {
		kind, body string
		want       float64
	}{
		"object":              {"application/json", `{"id":"x","usage":{"tokens":3,"credits_used":12.5}}`, 12.5},
		"alone in it":         {"application/json; charset=utf-8", "{\"usage\" : {\n \"credits_used\" : 7\n}\n}", 7},
		"nested":              {"application/json", `{"response":{"usage":{"credits_used":1e2}}}`, 100},
		"problem+json":        {"application/problem+json", `{"usage":{"credits_used":1}}`, 1},
		"after an inner one":  {"application/json", `{"usage":{"details":{"a":[1,{}]},"credits_used":4}}`, 4},
		"events, last counts": {"text/event-stream", "event: a\ndata: {\"usage\":{\"credits_used\":1}}\n\ndata: {\"response\":{\"usage\":{\"credits_used\":3}}}\n\n", 3},
		"after a cut event":   {"text/event-stream", "data: {\"text\":\"half\n\ndata: {\"usage\":{\"credits_used\":3}}\n\n", 3},
		"cut inside usage":    {"text/event-stream", "data: {\"usage\":{\n\ndata: {\"credits_used\":3}\n\n", 0},
		"not in usage":        {"application/json", `{"credits_used":5,"usage":{"total":1},"meta":{"credits_used":5}}`, 0},
		"below usage":         {"application/json", `{"usage":{"a":{"credits_used":5}}}`, 0},
		"usage is a list":     {"application/json", `{"usage":[{"credits_used":5}]}`, 0},
		"in a text":           {"application/json", `{"text":"{\"usage\":{\"credits_used\":9}}","a":"usage"}`, 0},
		"a text":              {"application/json", `{"usage":{"credits_used":"9"}}`, 0},
		"negative":            {"application/json", `{"usage":{"credits_used":-9}}`, 0},
		"beyond":              {"application/json", `{"usage":{"credits_used":1e300}}`, 0},
		"endless":             {"application/json", `{"usage":{"credits_used":` + strings.Repeat("1", 1000) + `}}`, 0},
		"null":                {"application/json", `{"usage":{"credits_used":null}}`, 0},
		"no JSON":             {"text/html", `{"usage":{"credits_used":9}}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for step := range 7 { // whole, and in pieces
				s := newUsageScanner(http.Header{"Content-Type": {c.kind}})
				for rest := []byte(c.body); len(rest) > 0; {
					n := len(rest)
					if step > 0 {
						n = min(n, step)
					}
					s.scan(rest[:n])
					rest = rest[n:]
				}
				if got := s.credits(); got != c.want {
					t.Errorf("in pieces of %d: %v credits, want %v", step, got, c.want)
				}
			}
		})
	}
	if newUsageScanner(http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}) != nil {
		t.Error("a compressed body is looked into")
	}
}

func TestAnswersAreToldOnceWithTheirCredits(t *testing.T) {
	var told []Answer
	json := http.Header{"Content-Type": {"application/json"}}
	tr, _ := newTestTransport(t, answers(
		withBody(&http.Response{StatusCode: 429, Header: json}, `{"usage":{"credits_used":1}}`),
		withBody(&http.Response{StatusCode: 200, Header: json}, `{"usage":{"credits_used":2}}`),
	), Options{OnAnswer: func(a Answer) { told = append(told, a) }})
	req := newRequest(t, context.Background(), "POST", "/v1/chat", "")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body.Close()
	const want = "[{ POST /chat 429 1} { POST /chat 200 2}]"
	if got := fmt.Sprint(told); got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

func FuzzUsageScanner(f *testing.F) {
	f.Add([]byte("data: {\"usage\":{\"credits_used\":1}}\n\n"))
	f.Add([]byte(`}}]"\\u`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := newUsageScanner(http.Header{"Content-Type": {"text/event-stream"}})
		s.scan(body)
		if c := s.credits(); c < 0 || c > maxCredits {
			t.Errorf("%v credits", c)
		}
		if len(s.text) > maxUsageText || len(s.number) > 2*maxUsageText+1 {
			t.Errorf("keeps %d and %d bytes", len(s.text), len(s.number))
		}
	})
}
