package redisurl

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestOneServer(t *testing.T) {
	c, err := Open("rediss://user:secret@example.com:6390/3?read_timeout=7s")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := c.(*redis.Client).Options()
	if o.Addr != "example.com:6390" || o.Username != "user" || o.Password != "secret" || o.DB != 3 || o.TLSConfig == nil || o.ReadTimeout.Seconds() != 7 {
		t.Errorf("%+v", o)
	}
}

func TestCluster(t *testing.T) {
	c, err := Open("redis+cluster://user:secret@a:1?addr=b:2&addr=c:3")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := c.(*redis.ClusterClient).Options()
	if strings.Join(o.Addrs, " ") != "a:1 b:2 c:3" || o.Username != "user" || o.Password != "secret" || o.TLSConfig != nil {
		t.Errorf("%+v", o)
	}
}

// A failover client keeps its options to itself: what it is given shows in the
// tests that run against Sentinels.
func TestSentinel(t *testing.T) {
	c, err := Open("redis+sentinel://user:secret@a:1/2?master_name=m&addr=b:2&sentinel_password=other")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := c.(*redis.Client).Options()
	if o.Username != "user" || o.Password != "secret" || o.DB != 2 || o.Addr != "FailoverClient" {
		t.Errorf("%+v", o)
	}
}

func TestWhatIsWrongIsSaidWithoutThePassword(t *testing.T) {
	for url, says := range map[string]string{
		"http://user:secret@a:1":                        `scheme "http"`,
		"redis+ring://user:secret@a:1":                  `scheme "redis+ring"`,
		"redis+sentinel://user:secret@a:1":              "master_name",
		"redis://user:secret@a:1?nonsense=1":            "nonsense",
		"redis://user:secret@a:1/x":                     "database",
		"redis://user:secret@a:1?ca_file=x":             "rediss",
		"rediss://user:secret@a:1?ca_file=/nowhere":     "ca_file",
		"rediss://user:secret@a:1?ca_file=/dev/null":    "no certificate",
		"rediss://user:secret@a:1?cert_file=/dev/null":  "cert_file",
		"redis+cluster://user:secret@a:1?addr=nonsense": "addr",
		"://user:secret@":                               "not a URL",
	} {
		c, err := Open(url)
		if err == nil {
			c.Close()
			t.Errorf("%s is taken", url)
			continue
		}
		if !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", url, err, says)
		}
	}
}

func TestHide(t *testing.T) {
	for text, want := range map[string]string{
		"redis://user:p@ss@host:1/0 is bad": "redis://***@host:1/0 is bad",
		"no URL, a@b":                       "no URL, a@b",
		"redis://host":                      "redis://host",
		"x://a:b@c and y://d:e@f":           "x://***@c and y://***@f",
	} {
		if got := Hide(text); got != want {
			t.Errorf("Hide(%q) = %q, want %q", text, got, want)
		}
	}
}
