package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMixIsReadOrRefused(t *testing.T) {
	tests := []struct {
		text string
		want mix
		err  string // part of the error; empty: none
	}{
		{text: "POST /responses=6", want: mix{{"POST /responses", 6}}},
		{text: " POST  /a = 1 ,GET /b=2", want: mix{{"POST /a", 1}, {"GET /b", 2}}},
		{text: "POST /a=0,POST /b=1", want: mix{{"POST /a", 0}, {"POST /b", 1}}},
		{text: "", err: "no weight"},
		{text: "POST /a", err: "no weight"},
		{text: "/a=1", err: "no method"},
		{text: "post /a=1", err: "no method"},
		{text: "POST a=1", err: "no plain path"},
		{text: "GET /a/{id}=1", err: "no plain path"},
		{text: "POST /a=x", err: "whole number"},
		{text: "POST /a=-1", err: "whole number"},
		{text: "POST /a=1.5", err: "whole number"},
		{text: "POST /a=1,POST /a=2", err: "twice"},
		{text: "POST /a=0", err: "above 0"},
		{text: "POST /a=1,", err: "no weight"},
	}
	for _, test := range tests {
		got, err := parseMix(test.text)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: error %v, want one about %q", test.text, err, test.err)
			}
			continue
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(share{})); err != nil || diff != "" {
			t.Errorf("%q: error %v, mix %s", test.text, err, diff)
		}
	}
}

func TestMixSplitsEveryRequestByWeight(t *testing.T) {
	tests := []struct {
		mix  string
		n    int
		want []portion
	}{
		{defaultMix, 120, []portion{{"POST /responses", 72}, {"POST /mave/chat", 36}, {"POST /video-analyses", 12}}},
		{"POST /a=1", 1000, []portion{{"POST /a", 1000}}},
		{"POST /a=1,POST /b=1,POST /c=1", 4, []portion{{"POST /a", 2}, {"POST /b", 1}, {"POST /c", 1}}},
		{"POST /a=9,POST /b=1", 1, []portion{{"POST /a", 1}}},
		{"POST /a=0,POST /b=1", 3, []portion{{"POST /b", 3}}},
		{"POST /a=2,POST /b=3", 9, []portion{{"POST /a", 4}, {"POST /b", 5}}},
	}
	for _, test := range tests {
		m, err := parseMix(test.mix)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, m.split(test.n), cmp.AllowUnexported(portion{})); diff != "" {
			t.Errorf("%s, %d requests: %s", test.mix, test.n, diff)
		}
	}
}
