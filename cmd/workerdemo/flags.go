package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// keyVariable holds the API key where a command line would show it to everybody.
const keyVariable = "FLEETLIMIT_API_KEY"

const (
	maxWorkers  = 512
	maxRequests = 1_000_000
)

// usageError is a flag that cannot be used.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func badFlag(name, value, reason string) error {
	return &usageError{fmt.Sprintf("-%s %q: %s", name, value, reason)}
}

// A flagSet reads the flags of one command. Every check names the flag and the
// value; the first that fails counts.
type flagSet struct {
	*flag.FlagSet
	checks []func() error
	help   func()
}

func newFlagSet(command, about string, stdout io.Writer) *flagSet {
	fs := &flagSet{FlagSet: flag.NewFlagSet(command, flag.ContinueOnError)}
	fs.SetOutput(io.Discard)
	fs.Usage = func() {} // an error takes one line
	fs.help = func() {
		fmt.Fprintf(stdout, "Usage: %s [flags]\n\n%s\n\nFlags:\n", command, about)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
	}
	return fs
}

// text is the value of a flag as it was typed.
type text string

func (t *text) String() string { return string(*t) }

func (t *text) Set(s string) error { *t = text(s); return nil }

func (fs *flagSet) text(name, value, about string) *string {
	t := text(value)
	fs.Var(&t, name, about)
	return (*string)(&t)
}

func (fs *flagSet) parse(args []string) error {
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.help()
		return err
	case err != nil:
		return &usageError{err.Error() + "; -h lists the flags"}
	case fs.NArg() > 0:
		return &usageError{fmt.Sprintf("unexpected argument %q; -h lists the flags", fs.Arg(0))}
	}
	for _, check := range fs.checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// number is a flag for a whole number between 1 and most.
func (fs *flagSet) number(name string, value, most int, about string) *int {
	text := fs.text(name, strconv.Itoa(value), about)
	n := value
	fs.checks = append(fs.checks, func() error {
		var err error
		if n, err = strconv.Atoi(*text); err != nil || n < 1 || n > most {
			return badFlag(name, *text, fmt.Sprintf("must be a whole number between 1 and %d", most))
		}
		return nil
	})
	return &n
}

// float is a flag for a number that ok accepts.
func (fs *flagSet) float(name string, value float64, ok func(float64) bool, reason, about string) *float64 {
	text := fs.text(name, strconv.FormatFloat(value, 'g', -1, 64), about)
	x := value
	fs.checks = append(fs.checks, func() error {
		var err error
		if x, err = strconv.ParseFloat(*text, 64); err != nil || !ok(x) {
			return badFlag(name, *text, reason)
		}
		return nil
	})
	return &x
}

func (fs *flagSet) tier() *mavera.Tier {
	text := fs.text("tier", string(mavera.Enterprise), "the key's `tier`: starter, basic, professional or enterprise (60, 120, 240 or 600 requests per minute)")
	tier := mavera.Enterprise
	fs.checks = append(fs.checks, func() error {
		var err error
		if tier, err = mavera.ParseTier(*text); err != nil {
			return badFlag("tier", *text, "must be starter, basic, professional or enterprise")
		}
		return nil
	})
	return &tier
}

func (fs *flagSet) window() *mockapi.Mode {
	text := fs.text("window", string(mockapi.Sliding), "how the mock counts its minute: `sliding or fixed` (one that resets)")
	mode := mockapi.Sliding
	fs.checks = append(fs.checks, func() error {
		if mode = mockapi.Mode(*text); mode != mockapi.Sliding && mode != mockapi.Fixed {
			return badFlag("window", *text, "must be sliding or fixed")
		}
		return nil
	})
	return &mode
}

func (fs *flagSet) headroom(tier *mavera.Tier) *float64 {
	x := fs.float("headroom", 1, func(x float64) bool { return x > 0 && x <= 1 },
		"must be above 0 and at most 1", "`fraction` of the tier to use, in (0, 1]; the library's own default is 0.9")
	fs.checks = append(fs.checks, func() error {
		if *x*float64(tier.RequestsPerMinute()) < 1 {
			return badFlag("headroom", fs.Lookup("headroom").Value.String(), "leaves less than one request per minute of the tier")
		}
		return nil
	})
	return x
}

func (fs *flagSet) mix() *mix {
	text := fs.text("mix", defaultMix, "`weights` of the endpoints: METHOD /path=WEIGHT,…")
	var m mix
	fs.checks = append(fs.checks, func() error {
		var err error
		if m, err = parseMix(*text); err != nil {
			return badFlag("mix", *text, err.Error())
		}
		return nil
	})
	return &m
}

func (fs *flagSet) redis(about string, required bool) *string {
	text := fs.text("redis", "", about)
	fs.checks = append(fs.checks, func() error {
		if *text == "" {
			if required {
				return &usageError{"-redis is missing: want the URL of a Redis, as in redis://127.0.0.1:6379/0"}
			}
			return nil
		}
		rdb, err := redisurl.Open(*text)
		if err != nil {
			return badFlag("redis", redisurl.Hide(*text), "must be a URL as in redis://127.0.0.1:6379/0 ("+err.Error()+")")
		}
		return rdb.Close()
	})
	return text
}

func (fs *flagSet) upstream(about string, required bool) *string {
	text := fs.text("upstream", "", about)
	fs.checks = append(fs.checks, func() error {
		if *text == "" {
			if required {
				return &usageError{"-upstream is missing: want the base URL of the API, as in " + mavera.BaseURL}
			}
			return nil
		}
		u, err := url.Parse(*text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return badFlag("upstream", hidePassword(*text), "must be a base URL as in "+mavera.BaseURL)
		}
		return nil
	})
	return text
}

// key is the API key of the flag or of the environment, which other users of
// the machine cannot read. Neither help nor error shows it.
func (fs *flagSet) key() *string {
	text := fs.text("api-key", "", "the API `key`; the mock needs none; better in the environment as "+keyVariable+", where ps does not show it")
	fs.checks = append(fs.checks, func() error {
		name := "-api-key"
		if *text == "" {
			*text, name = os.Getenv(keyVariable), keyVariable
		}
		if strings.ContainsFunc(*text, func(r rune) bool { return r > unicode.MaxASCII || r <= ' ' || r == 0x7f }) {
			return &usageError{name + " (hidden): must be printable ASCII characters without spaces"}
		}
		return nil
	})
	return text
}

var userInfo = regexp.MustCompile(`//.*@`)

// hidePassword masks what may hold a password in something like a URL.
func hidePassword(s string) string { return userInfo.ReplaceAllString(s, "//***@") }
