package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/fleetlimit/fleetlimit/internal/accountview"
)

// A painter writes accounts for people. What it is given has been cleaned: no text
// from Redis holds a control character.
type painter struct{ colour bool }

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (p painter) in(colour, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// bar draws parts of a whole, one rune each.
func (p painter) bar(width, whole int, parts ...int) string {
	runes := []string{"█", "▓", "▒"}
	colours := []string{green, yellow, dim}
	var b strings.Builder
	left := width
	for i, part := range parts {
		n := 0
		if whole > 0 {
			n = min(left, (part*width+whole/2)/whole)
		}
		if part > 0 && n == 0 && left > 0 {
			n = 1
		}
		b.WriteString(p.in(colours[i%3], strings.Repeat(runes[i%3], n)))
		left -= n
	}
	b.WriteString(p.in(dim, strings.Repeat("░", left)))
	return b.String()
}

// table aligns rows; colour must stay out of its cells.
func table(b *strings.Builder, rows [][]string) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
}

// accounts is one line for each.
func (p painter) accounts(views []accountview.Account) string {
	rows := [][]string{{"ACCOUNT", "USED", "LIMIT", "FOREIGN", "429S", "WAITING", "SLOTS", "WORKERS", "STATE"}}
	for _, v := range views {
		inUse, slots, waiting := 0, 0, v.Queued
		for _, e := range v.Endpoints {
			inUse, slots, waiting = inUse+e.InUse, slots+e.Slots, max(waiting, e.Waiting)
		}
		rows = append(rows, []string{
			v.Account, fmt.Sprint(v.Window.Used), fmt.Sprint(v.Window.Limit), fmt.Sprint(v.Window.Foreign), fmt.Sprint(v.Rejected),
			fmt.Sprint(waiting), fmt.Sprintf("%d/%d", inUse, slots), fmt.Sprint(v.Alive), state(v),
		})
	}
	var b strings.Builder
	table(&b, rows)
	b.WriteString("\nOne in detail: fleetlimit status -a NAME. Why is it not moving: fleetlimit explain -a NAME.\n")
	return b.String()
}

// state is an account in a word.
func state(v accountview.Account) string {
	switch {
	case v.Hold != nil:
		return "paused by " + v.Hold.By
	case v.Backoff != nil:
		return "paused: " + v.Backoff.Reason
	case v.Alive == 0:
		return "no worker"
	case v.Window.Room < 1 && v.Known:
		return "window full"
	}
	return "open"
}

// account is one account in detail.
func (p painter) account(v accountview.Account) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("account", "%s", p.in(bold, v.Account))
	w := v.Window
	if v.Known {
		line("window", "%s %d of %d in %s, room for %d", p.bar(30, w.Limit, w.Used, w.Foreign, w.Reserve), w.Used+w.Foreign, w.Limit, brief(w.LengthMS), w.Room)
		reported := "nothing reported yet"
		if w.Reported > 0 {
			reported = fmt.Sprintf("the API reports %d", w.Reported)
		}
		line("limit", "%d in force: policy %d, %s, headroom %g", w.Limit, w.PolicyLimit, reported, w.Headroom)
		if len(v.Differences) > 0 {
			line("policies", "%s", p.in(yellow, fmt.Sprintf("%d different, the strictest counts: %s", v.Policies, strings.Join(v.Differences, "; "))))
		}
		if w.Foreign > 0 || w.StrangersMS >= 0 && w.StrangersMS <= w.LengthMS {
			line("strangers", "%s", p.in(yellow, fmt.Sprintf("%d requests in the window, %d kept free for them, seen %s ago", w.Foreign, w.Reserve, brief(w.StrangersMS))))
		} else {
			line("strangers", "none seen")
		}
		line("pace", "one request every %s, bucket %.1f of %.0f", brief(int64(v.Pace.IntervalMS)), max(0, v.Pace.Credit), v.Pace.Size)
	} else {
		line("window", "no worker has told its policy yet")
	}
	if v.Hold != nil {
		line("pause", "%s", p.in(red, fmt.Sprintf("by %s: %s; %s more", v.Hold.By, v.Hold.Reason, brief(v.Hold.LeftMS))))
	}
	if v.Backoff != nil {
		line("pause", "%s", p.in(red, fmt.Sprintf("%s, seen by %s %s ago; %s more", v.Backoff.Reason, v.Backoff.By, brief(v.Backoff.SinceMS), brief(v.Backoff.LeftMS))))
	}
	if v.Hold == nil && v.Backoff == nil {
		line("pause", "none")
	}
	rejected := fmt.Sprint(v.Rejected)
	if v.Rejected > 0 {
		rejected = p.in(red, rejected)
	}
	line("429s", "%s", rejected)
	names := make([]string, len(v.Workers))
	for i, x := range v.Workers {
		names[i] = x.Worker
	}
	line("workers", "%d alive: %s", v.Alive, some(names, 8))
	for _, d := range v.Drained {
		line("drained", "%s", p.in(yellow, fmt.Sprintf("%s by %s: %s; %s more", d.Worker, d.By, d.Reason, brief(d.LeftMS))))
	}
	line("diagnosis", "%s", p.in(cyan, v.Diagnosis.Summary))
	p.endpoints(&b, v)
	p.places(&b, v)
	return b.String()
}

func (p painter) endpoints(b *strings.Builder, v accountview.Account) {
	if len(v.Endpoints) == 0 {
		return
	}
	rows := [][]string{{"ENDPOINT", "SLOTS", "WAITING", "HELD BY", "SINCE", "ENDS", "JOB"}}
	for _, e := range v.Endpoints {
		name, slots, waiting := e.Endpoint, fmt.Sprintf("%d/%d", e.InUse, e.Slots), fmt.Sprint(e.Waiting)
		if e.Backoff != nil {
			slots += fmt.Sprintf(" paused %s", brief(e.Backoff.LeftMS))
		}
		if len(e.Leases) == 0 {
			rows = append(rows, []string{name, slots, waiting, "-", "-", "-", "-"})
		}
		for _, l := range e.Leases {
			job := l.Job
			if job == "" {
				job = "-"
			}
			rows = append(rows, []string{name, slots, waiting, l.Worker, brief(l.HeldMS), brief(l.LeftMS), job})
			name, slots, waiting = "", "", ""
		}
	}
	b.WriteByte('\n')
	table(b, rows)
}

// places lists who waits; who waits for a slot and for budget stands there once.
func (p painter) places(b *strings.Builder, v accountview.Account) {
	rows := [][]string{{"WAITING", "ENDPOINT", "FOR", "GATE"}}
	seen := make(map[string]bool)
	add := func(list []accountview.Place) {
		for _, x := range list {
			key := x.Worker + " " + x.Endpoint
			if seen[key] {
				continue
			}
			seen[key] = true
			endpoint := x.Endpoint
			if endpoint == "" {
				endpoint = "(budget alone)"
			}
			rows = append(rows, []string{x.Worker, endpoint, brief(x.WaitedMS), x.Gate})
		}
	}
	add(v.Waiting)
	for _, e := range v.Endpoints {
		add(e.Queue)
	}
	if len(rows) == 1 {
		return
	}
	b.WriteByte('\n')
	const most = 30
	more := len(rows) - 1 - most
	table(b, rows[:min(len(rows), most+1)])
	if more > 0 {
		fmt.Fprintf(b, "and %d more\n", more)
	}
}

// diagnosis says why the account moves, or does not.
func (p painter) diagnosis(v accountview.Account) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", p.in(bold, v.Account), v.Diagnosis.Summary)
	for _, x := range v.Diagnosis.Kinds {
		name := x.Endpoint
		if name == "" {
			name = "any request (budget)"
		}
		waiting := "nobody waits"
		if x.Waiting > 0 {
			waiting = fmt.Sprintf("%d waiting", x.Waiting)
		}
		fmt.Fprintf(&b, "\n%s, %s\n", p.in(bold, name), waiting)
		for _, g := range x.Gates {
			mark, colour := "open", green
			if !g.Open {
				mark, colour = "SHUT", red
			}
			fmt.Fprintf(&b, "  %-8s %s  %s\n", g.Gate, p.in(colour, mark), g.Reason)
		}
		if x.Advice != "" && x.Gate != "" {
			fmt.Fprintf(&b, "  do: %s\n", x.Advice)
		}
	}
	for i, note := range v.Diagnosis.Notes {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s %s\n", p.in(yellow, "note:"), note)
	}
	return b.String()
}
