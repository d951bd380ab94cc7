package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

func TestDefaultsAreTheDemo(t *testing.T) {
	o, err := parseDemo(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.workers != 4 || o.requests != 120 || o.plan.Tier != mavera.Enterprise || o.plan.Headroom != 1 ||
		o.window != mockapi.Sliding || o.redis != "" || o.upstream != "" || o.kill || o.json {
		t.Errorf("%+v", o)
	}
	p := o.plan.policy()
	if p.LeaseTTL != demoLeaseTTL || o.plan.jobTTL(mavera.VideoAnalyses) != demoJobTTL || o.plan.jobTTL(mavera.Chat) != 0 {
		t.Errorf("leases last %v, those of jobs %v", p.LeaseTTL, o.plan.jobTTL(mavera.VideoAnalyses))
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
}

func TestFlagsAreRead(t *testing.T) {
	o, err := parseDemo([]string{"-workers", "8", "-requests=1000", "-mix", "POST /responses=1", "-tier", "Basic",
		"-window", "fixed", "-headroom", "0.5", "-kill", "-json", "-redis", "redis+cluster://:pw@h:1?addr=h2:1", "-upstream", "https://h/api/v1", "-api-key", "k"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.workers != 8 || o.requests != 1000 || len(o.mix) != 1 || o.plan != (plan{Tier: mavera.Basic, Headroom: 0.5}) ||
		o.window != mockapi.Fixed || !o.kill || !o.json || o.redis != "redis+cluster://:pw@h:1?addr=h2:1" || o.upstream != "https://h/api/v1" || o.key != "k" {
		t.Errorf("%+v", o)
	}
}

func TestABadFlagIsNamedWithItsValue(t *testing.T) {
	tests := []struct {
		args string // separated by |
		want []string
	}{
		{"-workers|0", []string{"-workers", `"0"`}},
		{"-workers|x", []string{"-workers", `"x"`}},
		{"-workers|100000", []string{"-workers", `"100000"`, "512"}},
		{"-requests|-3", []string{"-requests", `"-3"`}},
		{"-tier|gold", []string{"-tier", `"gold"`, "professional"}},
		{"-window|round", []string{"-window", `"round"`, "fixed"}},
		{"-headroom|0", []string{"-headroom", `"0"`}},
		{"-headroom|NaN", []string{"-headroom", `"NaN"`}},
		{"-headroom|1.01", []string{"-headroom", `"1.01"`}},
		{"-headroom|0.001", []string{"-headroom", `"0.001"`}},
		{"-mix|POST /responses", []string{"-mix", `"POST /responses"`}},
		{"-mix|POST /elsewhere=1", []string{"-mix", `"POST /elsewhere"`, "mock"}},
		{"-redis|127.0.0.1:6379", []string{"-redis", `"127.0.0.1:6379"`}},
		{"-upstream|ftp://h", []string{"-upstream", `"ftp://h"`}},
		{"-upstream|http://h?a=b", []string{"-upstream", `"http://h?a=b"`}},
		{"-kill|-workers|1", []string{"-kill", "-workers"}},
		{"-json=perhaps", []string{"-json", `"perhaps"`}},
		{"-nonsense", []string{"-nonsense"}},
		{"upwards", []string{`"upwards"`}},
	}
	for _, test := range tests {
		_, err := parseDemo(strings.Split(test.args, "|"), io.Discard)
		var usage *usageError
		if !errors.As(err, &usage) {
			t.Errorf("%s: error %v, want one about the flag", test.args, err)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(usage.Error(), part) {
				t.Errorf("%s: error %q does not say %s", test.args, usage, part)
			}
		}
	}
}

func TestNoSecretShows(t *testing.T) {
	const secret = "mvra_live_secret"
	t.Setenv(keyVariable, secret)
	for _, args := range [][]string{
		{"-h"},
		{"-redis", "http://user:" + secret + "@host"},
		{"-redis", "redis://user:" + secret + "@host:x"},
		{"-upstream", "https://user:" + secret + "@host"},
		{"-api-key", secret + " with spaces"},
		{"-api-key", secret, "-workers", "0"},
	} {
		var help bytes.Buffer
		_, err := parseDemo(args, &help)
		if err == nil {
			t.Errorf("%q is accepted", args)
		} else if strings.Contains(help.String()+err.Error(), secret) {
			t.Errorf("%q: help %q, error %q", args, help.String(), err)
		}
	}
}

func TestTheKeyComesFromTheEnvironmentUnlessItIsGiven(t *testing.T) {
	t.Setenv(keyVariable, "from_environment")
	for want, args := range map[string][]string{"from_environment": nil, "given": {"-api-key", "given"}} {
		if o, err := parseDemo(args, io.Discard); err != nil || o.key != want {
			t.Errorf("%q: key %q, error %v", args, o.key, err)
		}
	}
}

func TestHelpListsTheFlags(t *testing.T) {
	var help bytes.Buffer
	if _, err := parseDemo([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v", err)
	}
	for _, name := range []string{"redis", "upstream", "api-key", "tier", "workers", "requests", "mix", "window", "headroom", "kill", "json"} {
		if !strings.Contains(help.String(), "\n  -"+name) {
			t.Errorf("-%s is missing", name)
		}
	}
}
