package redistest

import (
	"context"
	"testing"
)

func TestServerAnswersAndEndsWithTheTest(t *testing.T) {
	var url string
	t.Run("running", func(t *testing.T) {
		s := Start(t, "--maxclients", "50")
		url = s.URL
		if err := s.Client(t).Ping(context.Background()).Err(); err != nil {
			t.Error(err)
		}
	})
	s := Server{URL: url}
	if err := s.Client(t).Ping(context.Background()).Err(); err == nil {
		t.Error("the server runs on after the test")
	}
}
