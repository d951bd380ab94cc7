package client

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
)

const (
	// maxJobBody is how much of a response is searched for the job's members.
	maxJobBody = 1 << 20

	// maxJobID bounds what an API may have us keep in Redis.
	maxJobID = 128
)

// jobStarted hands the slot over to the job that a successful call started.
// Without its id nobody can tell when it ends: the slot then stays taken until
// its lease does.
func jobStarted(h *hold, header http.Header, body *answer) {
	job := h.route.start
	id, status := job.find(header, body.peek(maxJobBody))
	switch {
	case slices.Contains(job.Done, status):
		h.settle(h.permit.Release)
	case validJobID(id):
		h.settle(func() { h.permit.BindJob(id) })
	default:
		h.settle(h.permit.Keep)
	}
}

// jobPolled passes on what a poll says about the job. Its name in the path
// counts, which is also the one under which it was started.
func (t *Transport) jobPolled(r route, status int, header http.Header, body *answer) {
	if !validJobID(r.job) {
		return
	}
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		t.admission.JobDone(r.poll.Start, r.job)
	case status/100 == 2:
		_, state := r.poll.find(header, body.peek(maxJobBody))
		if slices.Contains(r.poll.Done, state) {
			t.admission.JobDone(r.poll.Start, r.job)
		} else {
			t.admission.JobSeen(r.poll.Start, r.job)
		}
	}
}

// find reads the job's id and status from the members of a JSON object of
// which text is the beginning; empty is what is not there.
func (j *Job) find(header http.Header, text []byte) (id, status string) {
	dec := json.NewDecoder(plain(header, text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return "", ""
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			break
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			break
		}
		switch name {
		case j.ID:
			id = scalar(value)
		case j.Status:
			status = scalar(value)
		}
	}
	return id, status
}

// scalar is a string's content, or a number as it is written.
func scalar(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(value, &n) == nil {
		return n.String()
	}
	return ""
}

// plain undoes the gzip of a caller who asked for it himself; net/http undoes
// its own.
func plain(header http.Header, text []byte) io.Reader {
	r := bytes.NewReader(text)
	if !strings.EqualFold(header.Get("Content-Encoding"), "gzip") {
		return r
	}
	unzipped, err := gzip.NewReader(r)
	if err != nil {
		return strings.NewReader("")
	}
	return io.LimitReader(unzipped, maxJobBody)
}

func validJobID(id string) bool {
	if id == "" || len(id) > maxJobID {
		return false
	}
	for _, c := range []byte(id) {
		if c < 0x21 || c > 0x7e {
			return false
		}
	}
	return true
}
