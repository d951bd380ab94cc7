package lua

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// strictOf tells plainly what counts of several policies.
func strictOf(all []limits) limits {
	s := limits{limit: math.MaxInt, headroom: 1, burst: math.MaxInt}
	usable := math.MaxInt
	slots := make(map[string]int)
	for _, p := range all {
		usable = min(usable, int(float64(p.limit)*p.headroom+1e-6))
		s.window, s.jitter = max(s.window, p.window), max(s.jitter, p.jitter)
		s.headroom, s.burst = min(s.headroom, p.headroom), min(s.burst, p.burst)
		for _, e := range p.endpoints {
			if n, ok := slots[e.name]; !ok || e.slots < n {
				slots[e.name] = e.slots
			}
		}
	}
	s.limit = usable // with headroom
	for name, n := range slots {
		s.endpoints = append(s.endpoints, endpoint{name: name, slots: n})
	}
	return s
}

// A fleet whose workers have policies of their own, come, leave and die: what a heartbeat
// says to count is the strictest of the live, no earlier and no later, and no admission
// by whichever worker goes beyond it.
func TestTheStrictestPolicyOfTheLiveCounts(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		rapid.Check(t, func(t *rapid.T) {
			s.reset(t)
			drawPolicy := func() limits {
				p := limits{
					limit:  rapid.SampledFrom([]int{6, 12, 60}).Draw(t, "limit"),
					window: rapid.SampledFrom([]float64{10_000, 10_000, 20_000}).Draw(t, "window"),
					jitter: rapid.SampledFrom([]float64{0, 250}).Draw(t, "jitter"), headroom: rapid.SampledFrom([]float64{0.5, 1}).Draw(t, "headroom"),
				}
				p.burst = max(1, p.limit/rapid.IntRange(1, 3).Draw(t, "burst"))
				if rapid.IntRange(0, 3).Draw(t, "slots") > 0 {
					p.endpoints = []endpoint{{"POST /chat", rapid.IntRange(1, 3).Draw(t, "cap"), 30_000, 0}}
				}
				return p
			}
			const alive = 30_000
			pool := []limits{drawPolicy(), drawPolicy(), drawPolicy()}
			type beat struct {
				policy limits
				until  float64
			}
			workers := make(map[string]beat)     // those that live
			lingering := make(map[int][]float64) // of those that have left, by policy: until when
			live := func() (all []limits) {
				for _, w := range workers {
					if w.until > s.now() {
						all = append(all, w.policy)
					}
				}
				for i, untils := range lingering {
					for _, until := range untils {
						if until > s.now() {
							all = append(all, pool[i])
						}
					}
				}
				return all
			}
			var grants []float64
			name := func() string { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "worker") }
			index := func(p limits) int {
				for i := range pool {
					if fmt.Sprint(pool[i]) == fmt.Sprint(p) {
						return i
					}
				}
				return -1
			}
			check := func() {
				want := strictOf(live())
				got := s.field(t, "limit") * s.field(t, "headroom")
				if int(got+1e-6) != want.limit || s.field(t, "window_ms") != want.window || s.field(t, "jitter_ms") != want.jitter ||
					int(s.field(t, "burst")) != want.burst || s.field(t, "headroom") != want.headroom {
					t.Fatalf("limit × headroom %v, window %v, jitter %v, burst %v count; want %+v", got,
						s.field(t, "window_ms"), s.field(t, "jitter_ms"), s.field(t, "burst"), want)
				}
				for _, e := range want.endpoints {
					if n := int(s.field(t, "slots:"+e.name)); n != e.slots {
						t.Fatalf("%d slots of %s count, want %d", n, e.name, e.slots)
					}
				}
			}
			heartbeat := func(worker string, p limits) {
				if w, there := workers[worker]; there && index(w.policy) != index(p) {
					i := index(w.policy) // nobody has said that it counts no longer
					lingering[i] = append(lingering[i], w.until)
				}
				s.renew(t, p, worker, alive)
				workers[worker] = beat{p, s.now() + alive}
				check()
			}
			t.Repeat(map[string]func(*rapid.T){
				"beat": func(t *rapid.T) { heartbeat(name(), pool[rapid.IntRange(0, len(pool)-1).Draw(t, "policy")]) },
				"time": func(t *rapid.T) {
					s.advance(time.Duration(rapid.IntRange(1, 15_000).Draw(t, "ms")) * time.Millisecond)
				},
				"leave": func(t *rapid.T) {
					worker := name()
					w, there := workers[worker]
					if !there || w.until <= s.now() {
						t.Skip("no such worker lives")
					}
					// Others with the same policy say so in time.
					i := index(w.policy)
					others := slices.ContainsFunc(lingering[i], func(until float64) bool { return until > s.now() })
					for other, o := range workers {
						others = others || other != worker && index(o.policy) == i && o.until > s.now()
					}
					if others {
						t.Skip("others have the same policy")
					}
					s.renew(t, w.policy, worker, 0)
					delete(workers, worker)
					lingering[i] = []float64{min(w.until, s.now()+alive*3/4)}
				},
				"admit": func(t *rapid.T) {
					worker := name()
					w, there := workers[worker]
					if !there {
						t.Skip("no such worker has come")
					}
					heartbeat(worker, w.policy)
					strict, e := strictOf(live()), -1
					if len(w.policy.endpoints) > 0 && rapid.Bool().Draw(t, "with a slot") {
						e = 0
					}
					r := s.admit(t, w.policy, ask{worker: worker, endpoint: e, n: rapid.IntRange(1, 60).Draw(t, "n")})
					for range r.granted {
						grants = append(grants, s.now())
					}
					// What has left the window that counts is forgotten, also by one that gets
					// longer later.
					grants = slices.DeleteFunc(grants, func(at float64) bool { return at <= s.now()-strict.window-strict.jitter })
					if r.granted > 0 && len(grants) > strict.limit {
						t.Fatalf("%d granted in the strictest window, want at most %d (%+v)", len(grants), strict.limit, strict)
					}
					if e == 0 {
						held, err := s.rdb.ZCount(t.Context(), s.prefix+"slots:POST /chat", fmt.Sprintf("(%.3f", s.now()), "+inf").Result()
						if err != nil {
							t.Fatal(err)
						}
						for _, x := range strict.endpoints {
							if r.granted > 0 && int(held) > x.slots {
								t.Fatalf("%d slots are held, want at most %d", held, x.slots)
							}
						}
					}
				},
				"": func(t *rapid.T) { s.requireTTLs(t) },
			})
		})
	})
}

// Another policy in each process, as a mistake can make it, must not make heartbeats
// slow, nor Redis full: what counts of them remains, and the rest is forgotten.
func TestAThousandPoliciesTakeTheRoomOfFifty(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		for i := range 1000 {
			p := limits{limit: 1000 - i%700, window: 60_000, headroom: 0.9, burst: 1 + i%7}
			s.renew(t, p, fmt.Sprint("w", i), 30_000)
			if n := s.rdb.HLen(t.Context(), s.prefix+"policies").Val(); n > 51 {
				t.Fatalf("%d policies are kept", n)
			}
		}
		if limit, burst := s.field(t, "limit"), s.field(t, "burst"); limit != 301 || burst != 1 {
			t.Errorf("limit %v and burst %v count, want 301 and 1", limit, burst)
		}
		s.advance(31 * time.Second)
		s.renew(t, limits{limit: 1000, window: 60_000, headroom: 0.9, burst: 500}, "w", 30_000)
		if limit := s.field(t, "limit"); limit != 1000 {
			t.Errorf("limit %v when all others are dead, want 1000", limit)
		}
	})
}

// Whose lease TTL is short does not cut the lease of a job that another worker's policy
// lets live for long.
func TestAShortLeaseTTLCutsNoJob(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		long := limits{limit: 60, window: 60_000, headroom: 1, burst: 30, endpoints: []endpoint{{"POST /video", 1, 900_000, 900_000}}}
		short := long
		short.endpoints = []endpoint{{"POST /video", 1, 30_000, 0}}
		s.renew(t, long, "a", 30_000)
		s.renew(t, short, "b", 30_000)
		if r := s.admit(t, long, ask{worker: "a", endpoint: 0, n: 1}); r.granted != 1 {
			t.Fatalf("%+v", r)
		}
		for range 4 {
			s.admit(t, short, ask{worker: "b", endpoint: 0, n: 1})
			s.advance(10 * time.Second)
			s.renew(t, long, "a", 30_000)
			s.renew(t, short, "b", 30_000)
		}
		if r := s.admit(t, short, ask{worker: "b", endpoint: 0, n: 1}); r.granted != 0 || r.gate != "slots" {
			t.Errorf("%+v, want no slot: the job goes on", r)
		}
	})
}
