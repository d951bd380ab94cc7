// Package redisurl makes a Redis client of a URL, whatever stands behind it: one
// server, Sentinels, or a cluster.
package redisurl

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Forms is what a URL may look like, for help texts.
const Forms = "redis://[user:password@]host:port[/db], redis+sentinel://…?master_name=NAME&addr=host2:port2, " +
	"redis+cluster://…?addr=host2:port2; rediss… for TLS, with ca_file, cert_file and key_file"

// Open returns a client of what the URL names; it does not connect yet.
//
//	redis://[user:password@]host:port[/db]                   one server
//	unix://[user:password@]/path/to/redis.sock[?db=2]        one server
//	redis+sentinel://[user:password@]host:port[/db]?master_name=NAME&addr=host2:port2
//	redis+cluster://[user:password@]host:port?addr=host2:port2&addr=host3:port3
//
// With rediss instead of redis the connections use TLS; ca_file=PATH then trusts
// the authorities in that PEM file instead of the system's, and cert_file and
// key_file present a client certificate. All other query parameters are those of
// [redis.ParseURL], [redis.ParseFailoverURL] and [redis.ParseClusterURL].
//
// User and password of a redis+sentinel URL are those of the servers; the
// Sentinels' own are sentinel_username and sentinel_password. No error shows the
// user part of the URL.
func Open(text string) (redis.UniversalClient, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL") // its text may hold a password
	}
	scheme, topology, _ := strings.Cut(u.Scheme, "+")
	secure := scheme == "rediss"
	if scheme != "redis" && !secure && (scheme != "unix" || topology != "") {
		return nil, fmt.Errorf("scheme %q is none of redis, rediss, unix, redis+sentinel, redis+cluster", u.Scheme)
	}
	config, err := takeTLS(u, secure)
	if err != nil {
		return nil, err
	}
	u.Scheme = scheme
	switch topology {
	case "":
		return open(u, redis.ParseURL, func(o *redis.Options) redis.UniversalClient {
			trust(o.TLSConfig, config)
			return redis.NewClient(o)
		})
	case "sentinel":
		if u.Query().Get("master_name") == "" {
			return nil, errors.New("redis+sentinel needs ?master_name=")
		}
		// go-redis takes the user of the URL for that of the Sentinels.
		q := u.Query()
		user, password := q.Get("sentinel_username"), q.Get("sentinel_password")
		q.Del("sentinel_username")
		q.Del("sentinel_password")
		u.RawQuery = q.Encode()
		return open(u, redis.ParseFailoverURL, func(o *redis.FailoverOptions) redis.UniversalClient {
			o.Username, o.Password = o.SentinelUsername, o.SentinelPassword
			o.SentinelUsername, o.SentinelPassword = user, password
			trust(o.TLSConfig, config)
			return redis.NewFailoverClient(o)
		})
	case "cluster":
		return open(u, redis.ParseClusterURL, func(o *redis.ClusterOptions) redis.UniversalClient {
			trust(o.TLSConfig, config)
			return redis.NewClusterClient(o)
		})
	}
	return nil, fmt.Errorf("scheme %q is none of redis, rediss, unix, redis+sentinel, redis+cluster", u.Scheme+"+"+topology)
}

func open[T any](u *url.URL, parse func(string) (*T, error), client func(*T) redis.UniversalClient) (redis.UniversalClient, error) {
	o, err := parse(u.String())
	if err != nil {
		return nil, errors.New(Hide(err.Error()))
	}
	return client(o), nil
}

// takeTLS takes what go-redis does not know out of the query.
func takeTLS(u *url.URL, secure bool) (*tls.Config, error) {
	q := u.Query()
	ca, cert, key := q.Get("ca_file"), q.Get("cert_file"), q.Get("key_file")
	for _, name := range []string{"ca_file", "cert_file", "key_file"} {
		if q.Has(name) && !secure {
			return nil, fmt.Errorf("%s is for rediss URLs", name)
		}
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	config := &tls.Config{}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate in PEM", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// trust adds to the configuration that go-redis has made, if it has.
func trust(to, from *tls.Config) {
	if to == nil {
		return
	}
	to.RootCAs, to.Certificates = from.RootCAs, from.Certificates
}

// Hide replaces the user part of whatever looks like a URL in a text.
func Hide(text string) string {
	var b strings.Builder
	for {
		i := strings.Index(text, "://")
		if i < 0 {
			break
		}
		b.WriteString(text[:i+3])
		text = text[i+3:]
		end := strings.IndexAny(text, "/?# \"'")
		if end < 0 {
			end = len(text)
		}
		if at := strings.LastIndexByte(text[:end], '@'); at >= 0 {
			b.WriteString("***")
			text = text[at:]
		}
	}
	b.WriteString(text)
	return b.String()
}
