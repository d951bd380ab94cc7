package coordinator

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logEvery is how often one message may be logged: a fleet in trouble must not
// drown its logs.
const logEvery = 10 * time.Second

// A calmHandler passes each message on at most once in logEvery. The next one to
// pass says how many were suppressed.
type calmHandler struct {
	slog.Handler
	spoken *spoken
}

// spoken is shared by all loggers that derive from one.
type spoken struct {
	mu       sync.Mutex
	messages map[string]*message // few: messages are constants
}

type message struct {
	last       time.Time
	suppressed int
}

func calm(l *slog.Logger) *slog.Logger {
	return slog.New(&calmHandler{l.Handler(), &spoken{messages: make(map[string]*message)}})
}

func (h *calmHandler) Handle(ctx context.Context, r slog.Record) error {
	suppressed, ok := h.spoken.may(r.Message, r.Time)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return h.Handler.Handle(ctx, r)
}

func (s *spoken) may(text string, now time.Time) (suppressed int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.messages[text]
	if m == nil {
		m = new(message)
		s.messages[text] = m
	} else if now.Sub(m.last) < logEvery {
		m.suppressed++
		return 0, false
	}
	suppressed, m.suppressed, m.last = m.suppressed, 0, now
	return suppressed, true
}

func (h *calmHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calmHandler{h.Handler.WithAttrs(attrs), h.spoken}
}

func (h *calmHandler) WithGroup(name string) slog.Handler {
	return &calmHandler{h.Handler.WithGroup(name), h.spoken}
}
