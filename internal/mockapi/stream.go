package mockapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// stream writes server-sent events, each flushed at once.
type stream struct {
	c        *call
	flush    func() error
	sequence int
	numbered bool // events carry OpenAI's sequence_number
}

// openStream sends the headers of an event stream.
func (c *call) openStream(numbered bool) *stream {
	c.setHeaders("text/event-stream; charset=utf-8")
	c.w.Header().Set("Cache-Control", "no-cache")
	c.w.WriteHeader(http.StatusOK)
	return &stream{c: c, flush: http.NewResponseController(c.w).Flush, numbered: numbered}
}

// send writes one event, named after its type. A client that is gone ends the
// call.
func (s *stream) send(event string, data map[string]any) {
	data["type"] = event
	if s.numbered {
		data["sequence_number"] = s.sequence
		s.sequence++
	}
	raw, err := json.Marshal(data)
	if err != nil {
		panic(err) // all events are made here
	}
	if _, err := fmt.Fprintf(s.c.w, "event: %s\ndata: %s\n\n", event, raw); err != nil {
		s.c.breakOff()
	}
	if s.flush() != nil {
		s.c.breakOff()
	}
}

// pieces calls each with the pieces of the answer's text, spread evenly over
// the call's latency, the last at its end. A call that is to be cut breaks off
// half-way.
func (c *call) pieces(each func(piece string)) {
	n := c.api.cfg.StreamChunks
	for i := range n {
		if i == n/2 && c.faulty(FaultCutAfter) {
			panic(http.ErrAbortHandler)
		}
		c.waitUntil(c.sinceArrival(i+1, n))
		each(piece(i))
	}
}

func piece(i int) string { return fmt.Sprintf("Part %d of the answer. ", i+1) }

// text is the whole answer, of the same pieces.
func (c *call) text() string {
	var b strings.Builder
	for i := range c.api.cfg.StreamChunks {
		b.WriteString(piece(i))
	}
	return b.String()
}
