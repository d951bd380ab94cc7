package coordinator

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
)

// What Redis says is untrusted: it may be another program's, or an older script's. Each
// of these takes it as it comes, and nothing that is passed on is out of its bounds.

// replies that exchange.lua gives, and some that it never should.
var exchangeReplies = []string{
	"0|3|0.000|0.000|1800000000000|12|60|4.000|2|0|1800000000123.456|1|1800000000012|12||0.000|1800000000123.456",
	"0|0|19000.000|0.000|1|60|60|-3.250|2|7|5.000|0|9|60|window|812.500|4.000",
	"1|0|4000.000|4000.000|1|60|60|0.000|4|0|5.000|0|9|60|away|4000.000|4.000",
	"0|0|0|0|0|0|9223372036854775807|1e308|9223372036854775807|9223372036854775807|inf|1|-1|0||1e300|x",
	"0|0|nan|-1|1|0|60|inf|1|0|NaN|1|1|1|\x00|nan|",
	"0|0|0|0|1|0|60|-inf|1|0|1|7|1|1||0|1",
	"0|0|0|0|1|0|9223372036854775807|0|1|0|1|1|1|1||0|1",
	"0|0|0|0|1|0|60|1|1|0|1|-1|1|1||0|1",
	"",
}

func FuzzParseAnswer(f *testing.F) {
	for _, reply := range exchangeReplies {
		f.Add(reply)
	}
	p := Policy{Limit: 60, Headroom: 1}.WithDefaults()
	l := &lane{name: anyEndpoint}
	f.Fuzz(func(t *testing.T, reply string) {
		const wanted = 4
		a, err := parseAnswer(strings.Split(reply, "|"), []ask{{lane: l, n: wanted}})
		if err != nil {
			return
		}
		r := a.replies[0]
		for name, d := range map[string]time.Duration{"paused": a.settled.paused, "resumption": a.settled.resumption, "wait": r.wait} {
			if d < 0 || d > 24*time.Hour {
				t.Errorf("%s %v", name, d)
			}
		}
		if r.granted < 0 || r.granted > wanted || r.own < 0 || r.foreign < 0 || math.IsNaN(r.credit) {
			t.Errorf("%+v", r)
		}
		// Whatever it was, a worker that goes on alone with it keeps to the policy.
		now := time.Unix(1_800_000_000, 0)
		s := share{policy: p}
		s.hear(r.budget, now)
		s.begin(now, now)
		end, spent := now.Add(3*s.horizon()), []time.Duration(nil)
		for at := now; at.Before(end) && len(spent) <= 4*p.Limit; {
			wait := s.wait(at)
			if wait < 0 || wait > s.horizon()+time.Millisecond {
				t.Fatalf("a wait of %v in a horizon of %v", wait, s.horizon())
			}
			if wait == 0 {
				s.take(at)
				spent = append(spent, at.Sub(now))
			}
			at = at.Add(wait)
		}
		if most := mostWithin(spent, p.Window); most > p.Limit {
			t.Errorf("%d requests alone in one window of %d", most, p.Limit)
		}
	})
}

func FuzzParseRenewal(f *testing.F) {
	const policy = "60 60000.000 250.000 1 30\n2 30000.000 POST /mave/chat"
	for _, reply := range []string{
		"2|1800000000000|1|" + policy + "|0|w1:1.000:2|w1:1.000:3",
		"0||2|" + policy + "|1|fleetlimit:{acme}:slots:POST /mave/chat",
		"2|1|1|" + policy + "|9223372036854775807", "2|1|1|" + policy + "|-1|x", "99999999999999999999|1|1|" + policy + "|0",
		"1|1|1||0", "1|1|1|1e300 nan inf -1 0|0", "1|1|1|60 60000 99999 1 30|0", "1|1", "",
		"1|1|1|" + policy + "\n\n1\n1 1\n-1 1 x\n1e9 1 y\n5 1 \x00|0",
	} {
		f.Add(reply)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		r, err := parseRenewal(strings.Split(reply, "|"))
		if err != nil {
			if text := err.Error(); len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("the error cannot be shown: %q", text)
			}
			return
		}
		p := r.strictest.policy
		if r.workers < 0 || r.strictest.policies < 0 || len(p.Endpoints) > maxEndpoints {
			t.Errorf("%+v", r)
		}
		if p.Limit < 1 || p.Limit > maxLimit || p.Window < minWindow || p.Window > maxWindow || p.Jitter < 0 || p.Jitter > p.Window ||
			!(p.Headroom > 0 && p.Headroom <= 1) || p.Burst < 0 || p.Burst > maxLimit {
			t.Errorf("policy %+v", p)
		}
		for _, e := range p.Endpoints {
			if e.Slots < 1 || e.Slots > maxSlots || !validPattern(e.Pattern) {
				t.Errorf("endpoint %+v", e)
			}
		}
	})
}

// A message can only call somebody earlier who waits, and never makes a lane.
func FuzzHear(f *testing.F) {
	for _, payload := range []string{
		"0.000 " + chat, "812.500 *", "1e300 *", "-5 *", "nan *", "inf *", " *", "*", "0.000 POST /nowhere", "0.000  *", "", "0.000 *\r\n", "\xff \xff",
	} {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		begin := time.Now()
		waits := begin.Add(time.Minute)
		c := &Coordinator{news: make(chan struct{}, 1), lanes: map[string]*lane{}}
		for _, name := range []string{anyEndpoint, chat} {
			c.lanes[name] = &lane{name: name, placed: true, notBefore: waits}
		}
		c.hear(payload)
		for name, l := range c.lanes {
			if l.notBefore.After(waits) || l.notBefore.Before(begin) || l.called.After(time.Now().Add(24*time.Hour)) {
				t.Errorf("%q puts %s off to %v and calls it at %v", payload, name, l.notBefore.Sub(begin), l.called.Sub(begin))
			}
		}
		if len(c.lanes) != 2 {
			t.Errorf("%q has made a lane", payload)
		}
	})
}

var oddNames = []string{
	"acme", "0123456789abcdef", "a.b_c-d@e", "{acme}", "a}:account", "}{", "{}", "a b", "a:b", "a*", "a?[b]", "\x00", "é", "\xff", "a\n", "*", "",
	strings.Repeat("a", 128), strings.Repeat("a", 129),
}

// A name that is accepted can be told from all others in a key, a place and a lease, and
// all keys of the account lie in one slot of a cluster.
func FuzzNames(f *testing.F) {
	for i, name := range oddNames {
		f.Add(name, oddNames[(i+1)%len(oddNames)], chat)
	}
	f.Add("acme", "w1", "POST /a:b} {c")
	f.Fuzz(func(t *testing.T, account, worker, endpoint string) {
		if _, err := accountOf(Options{Account: account}); err == nil && account != "" {
			for _, key := range []string{keysOf(account).account(), keysOf(account).slotsOf(endpoint), keysOf(account).job(endpoint, worker)} {
				if got, _, ok := splitKey(key); !ok || got != account {
					t.Errorf("key %q is of account %q, want %q", key, got, account)
				}
				if tag := key[strings.IndexByte(key, '{')+1:]; tag[:strings.IndexByte(tag, '}')] != account {
					t.Errorf("key %q has another hash tag than its account", key)
				}
			}
			if _, err := keysOfAccount(account); err != nil {
				t.Errorf("an operator cannot look at %q: %v", account, err)
			}
		}
		if _, err := workerOf(Options{Worker: worker}); err == nil && worker != "" {
			if got := holderOf(worker + ":1.000:2"); got != worker {
				t.Errorf("a lease of %q is of %q", worker, got)
			}
			if got, rest, _ := strings.Cut(worker+" "+endpoint, " "); got != worker || rest != endpoint {
				t.Errorf("a place of %q for %q is of %q for %q", worker, endpoint, got, rest)
			}
			if strings.ContainsAny(worker, "*?[]{}") {
				t.Errorf("%q is a pattern", worker)
			}
		}
		if account, _, ok := splitKey(endpoint); ok && !validName(account, "._-@") {
			t.Errorf("%q is a key of account %q", endpoint, account)
		}
	})
}

// No API key comes through in an error about a name that contains it.
func FuzzNoNameShowsTheKey(f *testing.F) {
	for _, name := range oddNames {
		f.Add("mvra_live_secret", name, name)
		f.Add("mvra_live_secret", name+"mvra_live_secret", "mvra_live_secret"+name)
	}
	f.Fuzz(func(t *testing.T, key, account, worker string) {
		for _, text := range []string{key, account, worker} {
			if strconv.Quote(text) != `"`+text+`"` {
				return // quoting in an error could make a key of what is none
			}
		}
		if len(key) < 8 {
			return
		}
		for _, o := range []Options{{APIKey: key, Account: account}, {APIKey: key, Account: "acme", Worker: worker}} {
			name, err := accountOf(o)
			if err == nil {
				_, err = workerOf(o)
			}
			if err != nil && strings.Contains(err.Error(), key) && !strings.Contains("Options.Account Options.Worker must be 1 to 128 letters, digits or any of", key) {
				t.Errorf("%v", err)
			}
			if strings.Contains(name, key) {
				t.Errorf("the account's name %q shows the key", name)
			}
		}
	})
}

func FuzzClean(f *testing.F) {
	for _, s := range append(oddNames, "\u202e", "\ud7ff", strings.Repeat("é", 400), "\x1b[31m") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := clean(s); len(got) > 4*longestText || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q cannot be shown", got)
		}
	})
}
