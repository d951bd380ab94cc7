// Command bench measures the cost of an admission, side by side with what people
// use instead, on one Redis and in one run. It writes bench.json and prints the
// tables of docs/performance.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

func main() {
	child := flag.String("child", "", "be a measuring process (internal)")
	o := options{extent: full}
	flag.StringVar(&o.redis, "redis", "", "URL of an otherwise idle Redis; default: redis-server from the PATH, started for the run")
	flag.StringVar(&o.out, "o", "bench.json", "file for the results; empty: none")
	flag.StringVar(&o.only, "only", "", "only implementations in whose name this stands")
	flag.StringVar(&o.cases, "cases", "", "only cases in whose name, as printed, this stands")
	flag.DurationVar(&o.duration, "duration", 500*time.Millisecond, "length of one measurement")
	flag.IntVar(&o.repeats, "repeats", 3, "measurements of each row, in turns; the median counts")
	flag.Parse()

	if *child != "" {
		if err := runChild(*child); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
