package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A row is one line of bench.json.
type row struct {
	Impl       string  `json:"impl"`
	Case       string  `json:"case"`
	Callers    int     `json:"callers"` // in each process
	Processes  int     `json:"processes"`
	PerSecond  float64 `json:"admissions_per_second"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
	RedisCPU   float64 `json:"redis_cpu_us_per_admission"` // of the commands, from INFO commandstats
	Commands   float64 `json:"commands_per_admission"`
	ProcessCPU float64 `json:"redis_process_cpu_us_per_admission"` // of the server process, reading and writing included
	Allocs     float64 `json:"allocations_per_admission"`
	Repeats    int     `json:"repeats"`

	Size         int     `json:"size,omitempty"`              // of what grows
	AccountBytes float64 `json:"bytes_per_account,omitempty"` // in Redis
	LeaseBytes   float64 `json:"bytes_per_lease,omitempty"`
}

// measure runs an implementation once in so many processes with so many callers each.
func measure(ctx context.Context, rdb *redis.Client, i impl, t task, processes int) (row, error) {
	children := make([]*child, 0, processes)
	defer func() {
		for _, c := range children {
			c.end()
		}
	}()
	for n := range processes {
		t.Worker = fmt.Sprintf("process-%d", n)
		c, err := startChild(ctx, t)
		if err != nil {
			return row{}, err
		}
		children = append(children, c)
	}
	for _, c := range children {
		if err := c.ready(); err != nil {
			return row{}, err
		}
	}
	before, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	for _, c := range children {
		c.start()
	}
	var all tally
	perSecond := 0.0
	for _, c := range children {
		result, err := c.result()
		if err != nil {
			return row{}, err
		}
		all.Admissions += result.Admissions
		all.Mallocs += result.Mallocs
		all.Latencies.merge(&result.Latencies)
		perSecond += float64(result.Admissions) / result.Elapsed.Seconds()
	}
	after, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	used := after.since(before)
	count, cpu := used.sum(i.commands)
	n := float64(all.Admissions)
	return row{
		Impl: i.name, Callers: t.Callers, Processes: processes, Repeats: 1,
		PerSecond: perSecond,
		P50:       micros(all.Latencies.quantile(0.50)),
		P99:       micros(all.Latencies.quantile(0.99)),
		RedisCPU:  cpu / n, Commands: count / n, ProcessCPU: used.process / n,
		Allocs: float64(all.Mallocs) / n,
	}, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// A child is a measuring process.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(ctx context.Context, t task) (*child, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, self, "-child", string(text))}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.cmd.Start()
}

func (c *child) ready() error {
	line, err := c.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		return fmt.Errorf("a measuring process said %q instead of ready: %w", line, err)
	}
	return nil
}

func (c *child) start() { fmt.Fprintln(c.in, "go") }

func (c *child) result() (t tally, err error) {
	err = json.NewDecoder(c.out).Decode(&t)
	return t, err
}

func (c *child) end() {
	c.in.Close()
	_ = c.cmd.Wait() // its result has been read, or its failure been told
}

// stats are what INFO says of the work of the server.
type stats struct {
	calls, micros map[string]float64 // by command
	process       float64            // CPU of the process, µs
}

func readStats(ctx context.Context, rdb *redis.Client) (stats, error) {
	s := stats{calls: map[string]float64{}, micros: map[string]float64{}}
	text, err := rdb.Info(ctx, "commandstats", "cpu").Result()
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch command, ok := strings.CutPrefix(name, "cmdstat_"); {
		case ok:
			for part := range strings.SplitSeq(value, ",") {
				field, number, _ := strings.Cut(part, "=")
				n, _ := strconv.ParseFloat(number, 64)
				switch field {
				case "calls":
					s.calls[command] = n
				case "usec":
					s.micros[command] = n
				}
			}
		case name == "used_cpu_user" || name == "used_cpu_sys":
			seconds, _ := strconv.ParseFloat(value, 64)
			s.process += 1e6 * seconds
		}
	}
	return s, nil
}

func (s stats) since(before stats) stats {
	d := stats{calls: map[string]float64{}, micros: map[string]float64{}, process: s.process - before.process}
	for name := range s.calls {
		d.calls[name] = s.calls[name] - before.calls[name]
		d.micros[name] = s.micros[name] - before.micros[name]
	}
	return d
}

// sum adds up some commands.
func (s stats) sum(commands []string) (count, micros float64) {
	for _, name := range commands {
		count += s.calls[name]
		micros += s.micros[name]
	}
	return count, micros
}
