package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo-terminal: what one writes to tty, a person
// reads from screen, and the other way round.
func openTerminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	must(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	must(unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must(err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	t.Cleanup(func() { tty.Close() })
	return screen, tty
}

// onTerminal runs a command on a terminal, types keys once the text shows, and returns
// all that was shown.
func (d desk) onTerminal(text, keys string, args ...string) (shown string) {
	d.t.Helper()
	screen, tty := openTerminal(d.t)
	read := make(chan string)
	go func() {
		var all strings.Builder
		typed := keys == ""
		for part := make([]byte, 4096); ; {
			n, err := screen.Read(part)
			all.Write(part[:n])
			if !typed && strings.Contains(all.String(), text) {
				typed = true
				_, _ = io.WriteString(screen, keys)
			}
			if err != nil { // EIO: the program has ended
				read <- all.String()
				return
			}
		}
	}()
	code := run(d.t.Context(), append(args, "--redis", d.url), os.Getenv, tty, tty, tty)
	tty.Close()
	shown = <-read
	if code != exitOK || !strings.Contains(shown, text) {
		d.t.Errorf("fleetlimit %q: exit code %d, want %q\n%s", args, code, text, shown)
	}
	return shown
}

// colour is a sequence that changes how text looks, other than back to plain.
var colour = regexp.MustCompile(`\x1b\[[0-9;]*[1-9][0-9;]*m`)

func TestColoursOnATerminalUnlessNO_COLOR(t *testing.T) {
	mini := miniredis.RunT(t)
	mini.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer rdb.Close()
	newFleet(t, rdb, "acme")
	for _, test := range []struct {
		term, noColor string
		coloured      bool
	}{
		{"xterm-256color", "", true}, // empty is as good as not there: https://no-color.org
		{"xterm-256color", "1", false},
		{"dumb", "", false},
	} {
		t.Setenv("TERM", test.term)
		t.Setenv("NO_COLOR", test.noColor)
		d := desk{t: t, url: "redis://" + mini.Addr()}
		for _, command := range []string{"status", "explain", "doctor"} {
			text := map[string]string{"status": "acme", "explain": "acme", "doctor": "ok"}[command]
			shown := d.onTerminal(text, "", command)
			if colour.MatchString(shown) != test.coloured || !test.coloured && strings.Contains(shown, "\x1b") {
				t.Errorf("TERM=%s NO_COLOR=%s fleetlimit %s shows %q", test.term, test.noColor, command, shown)
			}
		}
		// The live view moves the cursor, but its text has no colours either.
		if shown := d.onTerminal("acme", "q", "watch"); colour.MatchString(shown) != test.coloured {
			t.Errorf("TERM=%s NO_COLOR=%s fleetlimit watch shows %q", test.term, test.noColor, shown)
		}
	}
}
