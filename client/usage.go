package client

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// A usageScanner looks for usage.credits_used in a response body that flows past
// it: a JSON document, or a stream of server-sent events with JSON in them. It
// keeps a few bytes of what it has seen, whatever the body's length, and changes
// nothing. The number counts that is the value of "credits_used" in an object
// that is itself the value of "usage", at any depth; of several the last, since
// streams tell totals. What is no JSON tells nothing.
type usageScanner struct {
	mu sync.Mutex

	events bool // server-sent events: an empty line ends one, whatever is open
	empty  bool // nothing has come since the last line feed

	depth  int  // of objects and arrays that are open
	usage  int  // depth of the usage object; 0: not in one
	quoted bool // in a string
	escape bool // behind a backslash in a string
	text   []byte
	key    string // the last string, if a colon has followed it
	number []byte // of the value of credits_used
	wanted bool   // the value of credits_used comes next
	found  float64
}

const (
	maxUsageText = 16      // longer strings are none of the names
	maxCredits   = 1 << 53 // whole numbers beyond are not exact
)

// newUsageScanner returns nil for a body that cannot be read: of another type, or
// compressed, which net/http undoes unless the caller has asked for it himself.
func newUsageScanner(h http.Header) *usageScanner {
	kind, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	if h.Get("Content-Encoding") != "" || kind != "text/event-stream" && kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		return nil
	}
	return &usageScanner{events: kind == "text/event-stream"}
}

// credits is what has been found so far.
func (s *usageScanner) credits() float64 {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found
}

func (s *usageScanner) scan(p []byte) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range p {
		if s.quoted {
			s.inString(b)
		} else {
			s.outside(b)
		}
	}
}

func (s *usageScanner) inString(b byte) {
	switch {
	case b == '\n': // no JSON string has one: an event was cut short
		s.reset()
	case s.escape:
		s.escape = false
	case b == '\\':
		s.escape = true
		s.add('\\') // none of the names has one
	case b == '"':
		s.quoted = false
	default:
		s.add(b)
	}
}

func (s *usageScanner) add(b byte) {
	if len(s.text) < maxUsageText {
		s.text = append(s.text, b)
	}
}

func (s *usageScanner) outside(b byte) {
	if s.wanted && (b >= '0' && b <= '9' || b == '.' || b == 'e' || b == 'E' || b == '+' || b == '-') {
		if len(s.number) <= 2*maxUsageText {
			s.number = append(s.number, b)
		}
		return
	}
	switch b {
	case '\n':
		if s.events && s.empty {
			s.reset()
		}
		s.empty = true
		return
	case ' ', '\t', '\r':
		return // a number does not end here: what follows it does that
	}
	s.empty = false
	switch b {
	case '"':
		s.quoted, s.text, s.wanted = true, s.text[:0], false
	case ':':
		s.key = ""
		switch string(s.text) {
		case "usage":
			s.key = "usage"
		case "credits_used":
			s.wanted, s.number = s.usage > 0 && s.depth == s.usage, s.number[:0]
		}
	case '{', '[':
		s.depth++
		if b == '{' && s.key == "usage" {
			s.usage = s.depth
		}
		s.forget()
	case '}', ']':
		s.take()
		if s.depth == s.usage {
			s.usage = 0
		}
		s.depth = max(0, s.depth-1)
		s.forget()
	case ',':
		s.take()
		s.forget()
	default:
		s.wanted = false
	}
}

func (s *usageScanner) reset() {
	s.depth, s.usage, s.quoted, s.escape = 0, 0, false, false
	s.forget()
}

func (s *usageScanner) forget() { s.key, s.text, s.wanted = "", s.text[:0], false }

func (s *usageScanner) take() {
	if !s.wanted {
		return
	}
	if x, err := strconv.ParseFloat(string(s.number), 64); err == nil && x >= 0 && x <= maxCredits {
		s.found = x
	}
}
