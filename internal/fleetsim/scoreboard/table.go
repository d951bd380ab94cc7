package scoreboard

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// WriteTable writes the rows for people.
func WriteTable(w io.Writer, rows []Row) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "scenario\tlimit\twindow\tstrategy\town 429s\tused %\tin all %\twait p50\twait p99\tlate p50\tlate p99\tcmds\tJain\tover cap\t")
	var last Row
	for _, r := range rows {
		if last.Scenario != "" && (r.Scenario != last.Scenario || r.Limit != last.Limit || r.Window != last.Window) {
			fmt.Fprintln(out, "\t\t\t\t\t\t\t\t\t\t\t\t\t\t")
		}
		last = r
		fmt.Fprintf(out, "%s\t%d\t%s\t%s\t%d\t%.1f\t%.1f\t%s\t%s\t%s\t%s\t%.2f\t%.4f\t%d\t\n",
			r.Scenario, r.Limit, r.Window, r.Strategy, r.Own429, 100*r.Utilization, 100*r.TotalUtilization,
			seconds(r.WaitP50), seconds(r.WaitP99), seconds(r.LateWaitP50), seconds(r.LateWaitP99),
			r.Commands, r.Jain, r.SlotViolations)
	}
	return out.Flush()
}

// seconds shows a time in milliseconds.
func seconds(ms float64) string { return fmt.Sprintf("%.2fs", ms/1000) }
