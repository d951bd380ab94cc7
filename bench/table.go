package main

import (
	"fmt"
	"strings"
)

// table writes the rows as Markdown.
func table(rows []row) string {
	var b strings.Builder
	var last load
	for _, r := range rows {
		if r.Size > 0 || r.PerSecond == 0 {
			continue
		}
		if this := (load{r.Case, r.Callers, r.Processes}); this != last {
			last = this
			fmt.Fprintf(&b, "\n%s\n\n", this.title())
			b.WriteString("| | admissions/s | p50 µs | p99 µs | Redis CPU µs | process CPU µs | commands | allocations |\n")
			b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|\n")
		}
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.2f | %.2f | %.3f | %.1f |\n",
			r.Impl, r.PerSecond, r.P50, r.P99, r.RedisCPU, r.ProcessCPU, r.Commands, r.Allocs)
	}
	b.WriteString("\n| ours alone | size | Redis CPU µs | process CPU µs | commands | p50 µs | bytes per account | bytes per lease |\n")
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, r := range rows {
		if r.Size > 0 || r.PerSecond == 0 {
			fmt.Fprintf(&b, "| %s | %d | %.2f | %.2f | %.2f | %.0f | %.0f | %.0f |\n",
				r.Case, r.Size, r.RedisCPU, r.ProcessCPU, r.Commands, r.P50, r.AccountBytes, r.LeaseBytes)
		}
	}
	return b.String()
}
