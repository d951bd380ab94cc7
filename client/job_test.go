package client

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestWhatBecomesOfTheSlotOfACallThatStartsAJob(t *testing.T) {
	long := `{"text":"` + strings.Repeat("x", maxJobBody) + `","id":"va_1"}`
	tests := []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"the job has it", 202, `{"id":"va_1","status":"pending"}`, "1: bind va_1"},
		{"a number is a name too", 200, `{"id":42,"status":"pending"}`, "1: bind 42"},
		{"nothing said of the status", 201, `{"id":"va_1"}`, "1: bind va_1"},
		{"done already", 200, `{"id":"va_1","status":"completed"}`, "1: release"},
		{"failed already", 200, `{"id":"va_1","status":"failed"}`, "1: release"},
		{"no id", 200, `{"status":"pending"}`, "1: keep"},
		{"an id in another object", 200, `{"meta":{"id":"va_1"}}`, "1: keep"},
		{"an empty id", 200, `{"id":""}`, "1: keep"},
		{"an id with a line break", 200, `{"id":"va\n1"}`, "1: keep"},
		{"an id not in ASCII", 200, `{"id":"vä_1"}`, "1: keep"},
		{"an endless id", 200, `{"id":"` + strings.Repeat("x", maxJobID+1) + `"}`, "1: keep"},
		{"not an object", 200, `["va_1"]`, "1: keep"},
		{"not JSON", 200, `<html>`, "1: keep"},
		{"nothing", 200, ``, "1: keep"},
		{"an id ahead of a long text", 200, `{"id":"va_1",` + long[1:], "1: bind va_1"},
		{"an id behind a long text", 200, long, "1: keep"},
		{"refused", 400, `{"error":{"message":"no"}}`, "1: release"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr, fleet := newTestTransport(t, answers(withBody(response(tt.status), tt.body)), Options{})
			resp, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/jobs", ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, resp); got != tt.body {
				t.Errorf("the caller reads %d bytes of %d", len(got), len(tt.body))
			}
			expect(t, fleet, `1: acquire "POST /jobs"`, tt.want)
		})
	}
}

func TestAStartWhoseAnswerBreaksOffKeepsItsSlot(t *testing.T) {
	resp := response(200)
	resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"stat`), failure{errBroken}))
	tr, fleet := newTestTransport(t, answers(resp), Options{})
	got, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/jobs", ""))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(got.Body)
	if string(text) != `{"stat` || !errors.Is(err, errBroken) {
		t.Errorf("the caller reads %q, %v", text, err)
	}
	expect(t, fleet, `1: acquire "POST /jobs"`, "1: keep")
}

func TestAnAnswerInGzipIsUnderstood(t *testing.T) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	w.Write([]byte(`{"id":"va_1"}`))
	w.Close()
	resp := withBody(response(200, "Content-Encoding: gzip"), zipped.String())
	tr, fleet := newTestTransport(t, answers(resp), Options{})
	got, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/jobs", ""))
	if err != nil {
		t.Fatal(err)
	}
	if mustRead(t, got) != zipped.String() {
		t.Error("the caller does not read what was sent")
	}
	expect(t, fleet, `1: acquire "POST /jobs"`, "1: bind va_1")
}

func TestAPollTellsTheFleetAboutTheJob(t *testing.T) {
	tests := []struct {
		name   string
		method string
		path   string
		status int
		body   string
		want   string
	}{
		{"pending", "GET", "/v1/jobs/va_1", 200, `{"id":"va_1","status":"pending"}`, "seen POST /jobs va_1"},
		{"generating", "GET", "/v1/jobs/va_1", 200, `{"status":"generating"}`, "seen POST /jobs va_1"},
		{"completed", "GET", "/v1/jobs/va_1", 200, `{"status":"completed","result":{}}`, "done POST /jobs va_1"},
		{"failed", "GET", "/v1/jobs/va_1", 200, `{"status":"failed"}`, "done POST /jobs va_1"},
		{"cancelled", "GET", "/v1/jobs/va_1", 200, `{"status":"cancelled"}`, "done POST /jobs va_1"},
		{"a status inside another object", "GET", "/v1/jobs/va_1", 200, `{"x":{"status":"failed"}}`, "seen POST /jobs va_1"},
		{"not JSON", "GET", "/v1/jobs/va_1", 200, `hello`, "seen POST /jobs va_1"},
		{"completed, with a huge result", "GET", "/v1/jobs/va_1", 200, `{"status":"completed","result":"` + strings.Repeat("x", 2*maxJobBody) + `"}`, "done POST /jobs va_1"},
		{"gone", "GET", "/v1/jobs/va_1", 410, ``, "done POST /jobs va_1"},
		{"not found", "GET", "/v1/jobs/va_1", 404, `{"error":{}}`, "done POST /jobs va_1"},
		{"forbidden", "GET", "/v1/jobs/va_1", 403, `{"status":"completed"}`, ""},
		{"an impossible name", "GET", "/v1/jobs/va%0A1", 200, `{"status":"completed"}`, ""},
		{"deleted", "DELETE", "/v1/jobs/va_1", 200, `{"status":"completed"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr, fleet := newTestTransport(t, answers(withBody(response(tt.status), tt.body)), Options{})
			resp, err := tr.RoundTrip(newRequest(t, t.Context(), tt.method, tt.path, ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, resp); got != tt.body {
				t.Errorf("the caller reads %d bytes of %d", len(got), len(tt.body))
			}
			want := []string{`1: acquire ""`}
			if tt.want != "" {
				want = append(want, tt.want)
			}
			expect(t, fleet, append(want, "1: release")...)
		})
	}
}

func TestAnAnswerThatIsPeekedIsReadOnceByTheCaller(t *testing.T) {
	body := &trackedBody{Reader: strings.NewReader(`{"id":"va_1"}`)}
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: body}
	tr, _ := newTestTransport(t, answers(resp), Options{})
	got, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/jobs", ""))
	if err != nil {
		t.Fatal(err)
	}
	if text := mustRead(t, got); text != `{"id":"va_1"}` {
		t.Errorf("the caller reads %q", text)
	}
	if !body.closed {
		t.Error("the connection's body was not closed")
	}
}
