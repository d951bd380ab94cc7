package coordinator

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// anyEndpoint stands, in Redis and in the dispatcher, for all requests that need
// budget alone.
const anyEndpoint = "*"

// AccountName derives the name of an account from an API key, such that the name
// does not reveal the key: the first 16 hexadecimal digits of its SHA-256, or of
// its HMAC-SHA-256 if a pepper is given. Use a pepper where keys can be guessed.
func AccountName(apiKey string, pepper []byte) string {
	if len(pepper) > 0 {
		mac := hmac.New(sha256.New, pepper)
		mac.Write([]byte(apiKey))
		return hex.EncodeToString(mac.Sum(nil))[:16]
	}
	sum := sha256.Sum256([]byte(apiKey))
	return hex.EncodeToString(sum[:])[:16]
}

func accountOf(o Options) (string, error) {
	switch {
	case o.Account == "" && o.APIKey == "":
		return "", &ConfigError{"Options.Account", `""`, "set it, or set Options.APIKey"}
	case o.Account == "":
		return AccountName(o.APIKey, o.Pepper), nil
	case o.APIKey != "" && strings.Contains(o.Account, o.APIKey):
		return "", &ConfigError{"Options.Account", "(hidden)", "must not contain the API key"}
	case !validName(o.Account, "._-@"):
		return "", &ConfigError{"Options.Account", fmt.Sprintf("%q", o.Account), "must be 1 to 128 letters, digits or any of ._-@"}
	}
	return o.Account, nil
}

func workerOf(o Options) (string, error) {
	switch {
	case o.Worker == "":
		return newWorkerName(), nil
	case o.APIKey != "" && strings.Contains(o.Worker, o.APIKey):
		return "", &ConfigError{"Options.Worker", "(hidden)", "must not contain the API key"}
	case !validName(o.Worker, "._-"):
		return "", &ConfigError{"Options.Worker", fmt.Sprintf("%q", o.Worker), "must be 1 to 128 letters, digits or any of ._-"}
	}
	return o.Worker, nil
}

// newWorkerName names this process: host, process id, and a random part that
// tells it from an earlier process with the same id.
func newWorkerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	host = strings.Map(func(r rune) rune {
		if validRune(r, "._-") {
			return r
		}
		return '-'
	}, host)
	if len(host) > 64 {
		host = host[:64]
	}
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

func validName(s, also string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, r := range s {
		if !validRune(r, also) {
			return false
		}
	}
	return true
}

func validRune(r rune, also string) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(also, r)
}

// keys names an account's keys. The braces are a cluster hash tag: all keys of an
// account live in one slot, so that one script can use them together.
type keys struct{ prefix string }

func keysOf(account string) keys { return keys{"fleetlimit:{" + account + "}:"} }

func (k keys) account() string             { return k.prefix + "account" }
func (k keys) window() string              { return k.prefix + "window" }
func (k keys) backoff() string             { return k.prefix + "backoff" }
func (k keys) queue() string               { return k.prefix + "queue" }
func (k keys) due() string                 { return k.prefix + "due" }
func (k keys) workers() string             { return k.prefix + "workers" }
func (k keys) expected() string            { return k.prefix + "expected" }
func (k keys) timeline() string            { return k.prefix + "timeline" }
func (k keys) policies() string            { return k.prefix + "policies" }
func (k keys) backoffOf(e string) string   { return k.prefix + "backoff:" + e }
func (k keys) slotsOf(e string) string     { return k.prefix + "slots:" + e }
func (k keys) queueOf(e string) string     { return k.prefix + "queue:" + e }
func (k keys) dueOf(e string) string       { return k.prefix + "due:" + e }
func (k keys) job(e, id string) string     { return k.prefix + "job:" + e + ":" + id }
func (k keys) wakeChannel(w string) string { return k.prefix + "wake:" + w }
func (k keys) wakeAll() string             { return k.prefix + "wake" }
func (k keys) budget() []string {
	return []string{k.account(), k.window(), k.backoff(), k.queue(), k.due(), k.expected()}
}
func (k keys) endpoint(e string) []string {
	return []string{k.backoffOf(e), k.slotsOf(e), k.queueOf(e), k.dueOf(e)}
}

// anys makes arguments of strings.
func anys(texts []string) []any {
	all := make([]any, 0, len(texts))
	for _, text := range texts {
		all = append(all, text)
	}
	return all
}
