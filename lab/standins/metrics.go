package main

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

// processingBuckets are the upper bounds, in seconds, that the real llm-processor uses.
var processingBuckets = []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120}

// Registry keeps counters, gauges and histograms and writes them in the Prometheus text format.
type Registry struct {
	mutex    sync.Mutex
	families map[string]*family
}

type family struct {
	kind, help string
	buckets    []float64
	series     map[string]*series
}

type series struct {
	value  float64
	counts []uint64
	sum    float64
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{families: map[string]*family{}} }

// Add raises a counter.
func (registry *Registry) Add(name, help string, labels map[string]string, amount float64) {
	registry.change(name, "counter", help, nil, labels, func(_ *family, one *series) { one.value += amount })
}

// Gauge sets a gauge.
func (registry *Registry) Gauge(name, help string, labels map[string]string, value float64) {
	registry.change(name, "gauge", help, nil, labels, func(_ *family, one *series) { one.value = value })
}

// Observe adds one value to a histogram with processingBuckets.
func (registry *Registry) Observe(name, help string, labels map[string]string, value float64) {
	registry.change(name, "histogram", help, processingBuckets, labels, func(owner *family, one *series) {
		if one.counts == nil {
			one.counts = make([]uint64, len(owner.buckets)+1)
		}
		position := sort.SearchFloat64s(owner.buckets, value)
		one.counts[position]++
		one.sum += value
	})
}

func (registry *Registry) change(
	name, kind, help string, buckets []float64, labels map[string]string, apply func(*family, *series),
) {
	registry.mutex.Lock()
	defer registry.mutex.Unlock()
	owner := registry.families[name]
	if owner == nil {
		owner = &family{kind: kind, help: help, buckets: buckets, series: map[string]*series{}}
		registry.families[name] = owner
	}
	key := labelText(labels)
	if owner.series[key] == nil {
		owner.series[key] = &series{}
	}
	apply(owner, owner.series[key])
}

// Text returns every series in the Prometheus text format, in a fixed order.
func (registry *Registry) Text() string {
	registry.mutex.Lock()
	defer registry.mutex.Unlock()
	var text strings.Builder
	for _, name := range sortedKeys(registry.families) {
		owner := registry.families[name]
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", name, owner.help, name, owner.kind)
		for _, key := range sortedKeys(owner.series) {
			one := owner.series[key]
			if owner.kind != "histogram" {
				fmt.Fprintf(&text, "%s%s %g\n", name, braces(key), one.value)
				continue
			}
			total := uint64(0)
			for position, bound := range owner.buckets {
				total += one.counts[position]
				fmt.Fprintf(&text, "%s_bucket%s %d\n", name, braces(joined(key, fmt.Sprintf(`le="%g"`, bound))), total)
			}
			total += one.counts[len(owner.buckets)]
			fmt.Fprintf(&text, "%s_bucket%s %d\n", name, braces(joined(key, `le="+Inf"`)), total)
			fmt.Fprintf(&text, "%s_sum%s %g\n%s_count%s %d\n", name, braces(key), one.sum, name, braces(key), total)
		}
	}
	return text.String()
}

// Values returns counters and gauges, and of histograms the sum and count, as plain numbers.
func (registry *Registry) Values() map[string]float64 {
	registry.mutex.Lock()
	defer registry.mutex.Unlock()
	values := map[string]float64{}
	for name, owner := range registry.families {
		for key, one := range owner.series {
			if owner.kind != "histogram" {
				values[name+braces(key)] = one.value
				continue
			}
			count := uint64(0)
			for _, part := range one.counts {
				count += part
			}
			values[name+"_sum"+braces(key)] = one.sum
			values[name+"_count"+braces(key)] = float64(count)
		}
	}
	return values
}

func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, name := range sortedKeys(labels) {
		parts = append(parts, fmt.Sprintf("%s=%q", name, labels[name]))
	}
	return strings.Join(parts, ",")
}

func joined(key, more string) string {
	if key == "" {
		return more
	}
	return key + "," + more
}

func braces(key string) string {
	if key == "" {
		return ""
	}
	return "{" + key + "}"
}

func sortedKeys[Value any](values map[string]Value) []string {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
