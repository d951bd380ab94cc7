package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// stream is a response whose body the test writes. Like that of net/http it
// breaks off with the request's context.
func stream(status int, body *io.PipeReader) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		context.AfterFunc(r.Context(), func() { body.CloseWithError(context.Cause(r.Context())) })
		resp := response(status)
		resp.Body = body
		return resp, nil
	}
}

func openStream(t *testing.T, ctx context.Context) (*http.Response, *io.PipeWriter, *fakeFleet) {
	t.Helper()
	r, w := io.Pipe()
	tr, fleet := newTestTransport(t, stream(200, r), Options{})
	resp, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", ""))
	if err != nil {
		t.Fatal(err)
	}
	return resp, w, fleet
}

const acquired = `1: acquire "POST /chat"`

func TestAStreamHoldsItsSlotToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w, fleet := openStream(t, t.Context())
		go func() {
			for range 3 {
				time.Sleep(30 * time.Second)
				w.Write([]byte("data\n"))
			}
			w.Close()
		}()
		buf := make([]byte, 100)
		for range 3 {
			if _, err := resp.Body.Read(buf); err != nil {
				t.Fatal(err)
			}
			expect(t, fleet, acquired)
		}
		if _, err := resp.Body.Read(buf); err != io.EOF {
			t.Fatal(err)
		}
		expect(t, fleet, acquired, "1: release")
		resp.Body.Close()
		resp.Body.Close()
		expect(t, fleet, acquired, "1: release")
	})
}

func TestAStreamClosedEarlyKeepsItsSlotForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w, fleet := openStream(t, t.Context())
		go w.Write([]byte("data\n"))
		start := time.Now()
		resp.Body.Close()
		if d := time.Since(start); d > drainOnClose {
			t.Errorf("Close took %v", d)
		}
		expect(t, fleet, acquired, "1: release after 1s")
	})
}

func TestAnAnswerClosedAtItsLastByteFreesItsSlotAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w, fleet := openStream(t, t.Context())
		go func() {
			w.Write([]byte("[DONE]"))
			w.Close()
		}()
		if _, err := io.ReadFull(resp.Body, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		expect(t, fleet, acquired)
		resp.Body.Close()
		expect(t, fleet, acquired, "1: release")
	})
}

func TestCloseBreaksOffAReadOfAnotherGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, _, fleet := openStream(t, t.Context())
		failed := make(chan error)
		go func() {
			_, err := resp.Body.Read(make([]byte, 1))
			failed <- err
		}()
		synctest.Wait()
		resp.Body.Close()
		if err := <-failed; err == nil {
			t.Error("the read went on")
		}
		expect(t, fleet, acquired, "1: release after 1s")
	})
}

func TestABodyNeverClosedIsCoveredByTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, _, fleet := openStream(t, ctx)
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		expect(t, fleet, acquired)
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, fleet, acquired, "1: release after 1s")
	})
}

func TestABrokenAnswerKeepsItsSlotForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w, fleet := openStream(t, t.Context())
		go w.CloseWithError(errBroken)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, errBroken) {
			t.Errorf("error = %v", err)
		}
		expect(t, fleet, acquired, "1: release after 1s")
	})
}

func TestALostLeaseEndsTheStreamWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, _, fleet := openStream(t, t.Context())
		close(fleet.permits[0].lost)
		_, err := io.ReadAll(resp.Body)
		if !errors.Is(err, coordinator.ErrLeaseLost) || !strings.Contains(err.Error(), "POST /chat") {
			t.Errorf("error = %v, want one that wraps ErrLeaseLost", err)
		}
	})
}

func TestALostLeaseEndsTheCallWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		tr, fleet := newTestTransport(t, base, Options{})
		go func() {
			synctest.Wait()
			close(fleet.permits[0].lost)
		}()
		_, err := tr.Client().Do(newRequest(t, t.Context(), "POST", "/v1/chat", ""))
		if !errors.Is(err, coordinator.ErrLeaseLost) {
			t.Errorf("error = %v, want one that wraps ErrLeaseLost", err)
		}
	})
}

func TestAnAnswerWithoutABodyFreesItsSlotAtOnce(t *testing.T) {
	for _, body := range []io.ReadCloser{http.NoBody, nil} {
		resp := response(204)
		resp.Body = body
		tr, fleet := newTestTransport(t, answers(resp), Options{})
		got, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", ""))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, fleet, acquired, "1: release")
		if got.Body == nil {
			t.Error("the body is nil")
		}
	}
}

func TestARetriedAnswerThatNeverEndsIsBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := io.Pipe()
		calls := 0
		base := roundTripper(func(req *http.Request) (*http.Response, error) {
			if calls++; calls == 1 {
				return stream(429, r)(req)
			}
			return response(200), nil
		})
		tr, fleet := newTestTransport(t, base, Options{})
		start := time.Now()
		resp, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", ""))
		if err != nil || resp.StatusCode != 200 || time.Since(start) != drainDiscard {
			t.Errorf("got %v, %v after %v", resp, err, time.Since(start))
		}
		expect(t, fleet, acquired, "1: release after 1s", `2: acquire "POST /chat" again after 1`, "2: release")
	})
}

func TestAnUpgradedConnectionCanBeWritten(t *testing.T) {
	var wire bytes.Buffer
	resp := response(101)
	resp.Body = struct {
		io.Reader
		io.Writer
		io.Closer
	}{strings.NewReader("hello"), &wire, io.NopCloser(nil)}
	tr, fleet := newTestTransport(t, answers(resp), Options{})
	got, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", ""))
	if err != nil {
		t.Fatal(err)
	}
	w, ok := got.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatalf("the body is a %T", got.Body)
	}
	if _, err := w.Write([]byte("hi")); err != nil || wire.String() != "hi" {
		t.Errorf("wrote %q, %v", wire.String(), err)
	}
	if text := mustRead(t, got); text != "hello" {
		t.Errorf("read %q", text)
	}
	expect(t, fleet, acquired, "1: release")
}
