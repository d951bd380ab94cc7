package scoreboard

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"os"
)

// Row is a run as scoreboard.json tells it. Times are in milliseconds.
type Row struct {
	Scenario string `json:"scenario"`
	Strategy string `json:"strategy"`
	Limit    int    `json:"limit"`  // requests a minute
	Window   string `json:"window"` // sliding or resetting
	// Own429 is how many requests of the fleet were answered 429.
	Own429 int `json:"own_429"`
	// Utilization is the share of what is scarce that the fleet used: of the
	// limit, or, where calls are limited by slots, of the slots.
	Utilization float64 `json:"utilization"`
	// TotalUtilization is the share that fleet and strangers used together.
	TotalUtilization float64 `json:"total_utilization"`
	// Wait is the time between a call and the departure of the request that
	// got through; late waits are those of calls from the third minute on.
	WaitP50     float64 `json:"wait_p50_ms"`
	WaitP99     float64 `json:"wait_p99_ms"`
	LateWaitP50 float64 `json:"late_wait_p50_ms"`
	LateWaitP99 float64 `json:"late_wait_p99_ms"`
	// Commands counts what the workers send to Redis.
	Commands float64 `json:"redis_commands_per_admission"`
	// Jain is Jain's index of fairness between processes: 1 is equal shares.
	Jain           float64 `json:"jain"`
	SlotViolations int     `json:"slot_violations"`
}

// row sums a run up.
func (r Run) row() Row {
	x := r.Result
	row := Row{
		Scenario: r.Situation.Name, Strategy: r.Strategy.Name, Limit: r.Limit, Window: r.Window,
		Own429: x.Own429, Utilization: round(x.Utilization), TotalUtilization: round(x.TotalUtilization),
		WaitP50: round(ms(x.WaitP50)), WaitP99: round(ms(x.WaitP99)),
		LateWaitP50: round(ms(x.LateWaitP50)), LateWaitP99: round(ms(x.LateWaitP99)),
		Commands: round(x.CommandsPerAdmission), Jain: round(x.Jain),
		SlotViolations: int(x.Stats.SlotViolations),
	}
	if x.SlotUse > 0 && len(r.Scenario().Fleet.Loads) == 1 {
		row.Utilization, row.TotalUtilization = round(x.SlotUse), round(x.SlotUse)
	}
	return row
}

// round keeps what is measured, and not what is computed.
func round(x float64) float64 { return math.Round(x*1e5) / 1e5 }

// WriteJSON writes the rows as an array, one object a line.
func WriteJSON(w io.Writer, rows []Row) error {
	for i, row := range rows {
		separator := ",\n"
		if i == 0 {
			separator = "[\n"
		}
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, separator+string(text)); err != nil {
			return err
		}
	}
	if len(rows) == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	_, err := io.WriteString(w, "\n]\n")
	return err
}

// WriteJSONFile writes the rows to a file.
func WriteJSONFile(path string, rows []Row) error {
	var text bytes.Buffer
	if err := WriteJSON(&text, rows); err != nil {
		return err
	}
	return os.WriteFile(path, text.Bytes(), 0o644)
}
