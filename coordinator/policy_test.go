package coordinator

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestBadConfigurationNamesFieldAndValue(t *testing.T) {
	const key = "mvra_live_0123456789abcdef"
	good := Policy{Limit: 60}
	chat := Endpoint{Pattern: "POST /mave/chat", Slots: 10}
	tests := []struct {
		name   string
		policy Policy
		opts   Options
		field  string
		value  string
	}{
		{"no limit", Policy{}, Options{}, "Policy.Limit", "0"},
		{"negative limit", Policy{Limit: -5}, Options{}, "Policy.Limit", "-5"},
		{"absurd limit", Policy{Limit: math.MaxInt}, Options{}, "Policy.Limit", fmt.Sprint(math.MaxInt)},
		{"headroom above one", Policy{Limit: 60, Headroom: 1.5}, Options{}, "Policy.Headroom", "1.5"},
		{"negative headroom", Policy{Limit: 60, Headroom: -0.1}, Options{}, "Policy.Headroom", "-0.1"},
		{"headroom is no number", Policy{Limit: 60, Headroom: math.NaN()}, Options{}, "Policy.Headroom", "NaN"},
		{"headroom leaves nothing", Policy{Limit: 5, Headroom: 0.1}, Options{}, "Policy.Headroom", "0.1"},
		{"burst above limit", Policy{Limit: 60, Burst: 61}, Options{}, "Policy.Burst", "61"},
		{"negative burst", Policy{Limit: 60, Burst: -1}, Options{}, "Policy.Burst", "-1"},
		{"window too short", Policy{Limit: 60, Window: time.Millisecond}, Options{}, "Policy.Window", "1ms"},
		{"jitter above half the window", Policy{Limit: 60, Jitter: 40 * time.Second}, Options{}, "Policy.Jitter", "40s"},
		{"lease shorter than a heartbeat", Policy{Limit: 60, LeaseTTL: 100 * time.Millisecond}, Options{}, "Policy.LeaseTTL", "100ms"},
		{"no pattern", Policy{Limit: 60, Endpoints: []Endpoint{{Slots: 1}}}, Options{}, "Policy.Endpoints[0].Pattern", `""`},
		{"control character", Policy{Limit: 60, Endpoints: []Endpoint{chat, {Pattern: "POST /\n", Slots: 1}}}, Options{}, "Policy.Endpoints[1].Pattern", `"POST /\n"`},
		{"pattern twice", Policy{Limit: 60, Endpoints: []Endpoint{chat, chat}}, Options{}, "Policy.Endpoints[1].Pattern", "POST /mave/chat"},
		{"no slots", Policy{Limit: 60, Endpoints: []Endpoint{{Pattern: "POST /x"}}}, Options{}, "Policy.Endpoints[0].Slots", "0"},
		{"job lease too short", Policy{Limit: 60, Endpoints: []Endpoint{{Pattern: "POST /x", Slots: 1, JobTTL: 1}}}, Options{}, "Policy.Endpoints[0].JobTTL", "1ns"},
		{"braces in the account", good, Options{Account: "a{b}c"}, "Options.Account", `"a{b}c"`},
		{"space in the worker", good, Options{Account: "acme", Worker: "a b"}, "Options.Worker", `"a b"`},
		{"negative timeout", good, Options{Account: "acme", RedisTimeout: -1}, "Options.RedisTimeout", "-1ns"},
		{"key as the account", good, Options{Account: key, APIKey: key}, "Options.Account", "(hidden)"},
		{"key as the worker", good, Options{APIKey: key, Worker: "w-" + key}, "Options.Worker", "(hidden)"},
	}
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.opts.Account == "" && test.opts.APIKey == "" {
				test.opts.Account = "acme"
			}
			_, err := New(rdb, test.policy, test.opts)
			var bad *ConfigError
			if !errors.As(err, &bad) {
				t.Fatalf("New: error %v, want a ConfigError", err)
			}
			if bad.Field != test.field || !strings.Contains(fmt.Sprint(bad.Value), test.value) {
				t.Errorf("New: %v, want field %s, value %s", err, test.field, test.value)
			}
			if strings.Contains(err.Error(), key) {
				t.Errorf("the error shows the API key: %v", err)
			}
		})
	}
	if _, err := New(rdb, good, Options{}); err == nil {
		t.Error("New without an account: no error")
	}
	if _, err := New(nil, good, Options{Account: "acme"}); err == nil {
		t.Error("New without Redis: no error")
	}
}

func TestAccountNameHidesTheKey(t *testing.T) {
	const key = "mvra_live_0123456789abcdef"
	plain, peppered := AccountName(key, nil), AccountName(key, []byte("pepper"))
	if plain != "96c59ecec0a0ea71" && len(plain) != 16 {
		t.Errorf("AccountName = %q, want 16 hexadecimal digits", plain)
	}
	if plain == peppered {
		t.Error("the pepper changes nothing")
	}
	if AccountName(key, nil) != plain {
		t.Error("two workers would not agree on the account")
	}
}
