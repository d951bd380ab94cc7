package scoreboard

import (
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
)

// The chart shows, for a few situations, what became of each strategy: one line a
// strategy, one column a question. It is for readers who have never seen the names.

// charted are the situations that it shows, and what they are called there.
var charted = []struct{ name, title, aside string }{
	{"saturated", "Always more work than the limit allows", "32 callers in 8 processes never stop"},
	{"burst", "Quiet, then half the limit at once", "every 75 seconds: a good client lets it through at once"},
	{"stranger", "Somebody else uses 30 % of the same key", "and nobody knows when"},
}

// called are the strategies in words.
var called = map[string]string{
	fleetsim.Fleetlimit.Name:          "Fleetlimit",
	fleetsim.Reactive.Name:            "wait after each 429, nothing else",
	fleetsim.ProcessBucket.Name:       "rate limiter in each process",
	fleetsim.StaticShare.Name:         "limit ÷ number of processes",
	fleetsim.RedisRateBurstLimit.Name: "redis_rate, burst = limit",
	fleetsim.RedisRateBurst1.Name:     "redis_rate, burst = 1",
	fleetsim.RedisRate90.Name:         "redis_rate at 90 %, burst 10 %",
	fleetsim.Oracle.Name:              "perfect knowledge (cannot be built)",
}

// A column is one question.
type column struct {
	title string
	x     int
	value func(Row) float64
	label func(float64) string
	full  float64 // value of a bar of full width; 0: the largest in its situation
	color string
}

var columns = []column{
	{"Requests refused (429)", 270, func(r Row) float64 { return float64(r.Own429) }, count, 0, "#d1495b"},
	{"Limit used, in all", 480, func(r Row) float64 { return 100 * r.TotalUtilization }, percent, 100, "#8d99ae"},
	{"Wait of the slowest 1 %", 690, func(r Row) float64 { return r.LateWaitP99 / 1000 }, wait, 0, "#e0a458"},
}

func count(x float64) string {
	if x > 0 && x < 1 {
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}
func percent(x float64) string { return fmt.Sprintf("%.0f %%", x) }
func wait(x float64) string {
	if x < 1 {
		return fmt.Sprintf("%.2f s", x)
	}
	return fmt.Sprintf("%.0f s", x)
}

// Measures of the chart in pixels.
const (
	chartWidth = 880
	barWidth   = 110
	barHeight  = 12
	lineHeight = 19
	ours       = "#1f6feb"
)

// Chart draws the rows as SVG. Each figure is the mean over the limits and windows
// that were played.
func Chart(rows []Row) string {
	var b strings.Builder
	y := 112
	for _, c := range charted {
		y = chartSituation(&b, rows, c.name, c.title, c.aside, y)
	}
	height := y + 58
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-labelledby="title desc" font-family="-apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif" font-size="12.5">`+"\n",
		chartWidth, height, chartWidth, height)
	out.WriteString(`<title id="title">One API key, eight processes: who is refused, who wastes the limit, who waits</title>` + "\n")
	out.WriteString(`<desc id="desc">Bars that compare ways of staying within the rate limit of one API key.</desc>` + "\n")
	fmt.Fprintf(&out, `<rect width="%d" height="%d" rx="8" fill="#ffffff" stroke="#d0d7de"/>`+"\n", chartWidth, height)
	text(&out, 24, 36, `font-size="19" font-weight="700" fill="#1f2328"`, "One API key, eight processes: who is refused, who wastes the limit, who waits")
	text(&out, 24, 58, `fill="#57606a"`, "429 is how an API refuses what is over the limit. Ten simulated minutes each; short bars are good, except for the limit used.")
	for _, c := range columns {
		text(&out, c.x, 92, `font-weight="600" fill="#1f2328"`, c.title)
	}
	out.WriteString(b.String())
	text(&out, 24, height-32, `font-size="11.5" fill="#57606a"`,
		"Means over "+played(rows)+". The bursts need only a part of the limit.")
	text(&out, 24, height-15, `font-size="11.5" fill="#57606a"`,
		"Waits are those from the third minute on: where there is more work than the limit allows, somebody must wait. All figures: make scoreboard.")
	out.WriteString("</svg>\n")
	return out.String()
}

// played says which limits and windows the rows are of.
func played(rows []Row) string {
	var limits, windows []string
	for _, r := range rows {
		if limit := strconv.Itoa(r.Limit); !slices.Contains(limits, limit) {
			limits = append(limits, limit)
		}
		if !slices.Contains(windows, r.Window) {
			windows = append(windows, r.Window)
		}
	}
	return "limits of " + strings.Join(limits, " and ") + " requests a minute, " + strings.Join(windows, " and ") + " windows"
}

// chartSituation draws one block and returns where the next begins.
func chartSituation(b *strings.Builder, rows []Row, name, title, aside string, y int) int {
	fmt.Fprintf(b, `<line x1="24" y1="%d" x2="%d" y2="%d" stroke="#d0d7de"/>`+"\n", y-8, chartWidth-24, y-8)
	fmt.Fprintf(b, `<text x="24" y="%d" fill="#1f2328"><tspan font-weight="700">%s</tspan><tspan fill="#57606a">%s</tspan></text>`+"\n",
		y+12, html.EscapeString(title), html.EscapeString(": "+aside))
	y += 24
	means := make(map[string][]float64)
	largest := make([]float64, len(columns))
	for _, s := range fleetsim.Strategies() {
		values, ok := mean(rows, name, s.Name)
		if !ok {
			continue
		}
		means[s.Name] = values
		for i, v := range values {
			largest[i] = math.Max(largest[i], v)
		}
	}
	for _, s := range fleetsim.Strategies() {
		values, ok := means[s.Name]
		if !ok {
			continue
		}
		style := `fill="#1f2328"`
		if s.Name == fleetsim.Fleetlimit.Name {
			style = `font-weight="700" fill="` + ours + `"`
		} else if s.Name == fleetsim.Oracle.Name {
			style = `font-style="italic" fill="#57606a"`
		}
		text(b, 24, y+barHeight-1, style, called[s.Name])
		for i, c := range columns {
			chartBar(b, c, values[i], largest[i], y, s.Name, style)
		}
		y += lineHeight
	}
	return y + 18
}

func chartBar(b *strings.Builder, c column, value, largest float64, y int, strategy, style string) {
	full := c.full
	if full == 0 {
		full = math.Max(largest, 1)
	}
	color := c.color
	switch strategy {
	case fleetsim.Fleetlimit.Name:
		color = ours
	case fleetsim.Oracle.Name:
		color = "#c9d1d9"
	}
	width := math.Min(1, value/full) * barWidth
	if c.full > 0 {
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="#f0f2f5"/>`+"\n", c.x, y, barWidth, barHeight)
	}
	if width > 0 {
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" rx="1.5" fill="%s"/>`+"\n", c.x, y, math.Max(1, width), barHeight, color)
	}
	at := float64(c.x) + width + 6
	if c.full > 0 {
		at = float64(c.x) + barWidth + 6
	}
	text(b, int(at), y+barHeight-1, style, c.label(value))
}

// mean of every column over the rows of a situation and a strategy.
func mean(rows []Row, scenario, strategy string) (values []float64, ok bool) {
	values = make([]float64, len(columns))
	n := 0.0
	for _, r := range rows {
		if r.Scenario != scenario || r.Strategy != strategy {
			continue
		}
		n++
		for i, c := range columns {
			values[i] += c.value(r)
		}
	}
	for i := range values {
		values[i] /= math.Max(1, n)
	}
	return values, n > 0
}

func text(b *strings.Builder, x, y int, style, s string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" %s>%s</text>`+"\n", x, y, style, html.EscapeString(s))
}

// WriteChartFile writes the chart to a file.
func WriteChartFile(path string, rows []Row) error {
	return os.WriteFile(path, []byte(Chart(rows)), 0o644)
}
