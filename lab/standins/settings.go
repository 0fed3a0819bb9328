package main

import (
	"encoding/json"
	"os"
	"strconv"
	"time"
)

// How an image behaves is a variable baked into its config, so that the tag alone decides.
const (
	behaviourCrash      = "crash"
	behaviourErrors     = "errors"
	behaviourGood       = "good"
	behaviourNeverReady = "never-ready"
	behaviourSlowStart  = "slow-start"
)

// Settings holds what every component reads from its environment.
type Settings struct {
	Component string
	Version   string
	Behaviour string
	Port      string
	// StartupDelay is how long a slow start is alive but not ready.
	StartupDelay time.Duration
	// DrainLimit bounds how long a stopping process waits for the requests in work.
	DrainLimit time.Duration
	// UpstreamTimeout bounds one request to another component.
	UpstreamTimeout time.Duration
}

var defaultPorts = map[string]string{
	"llm-processor": "8080",
	"nephio-bridge": "8081",
	"operator":      "8081",
	"oran-adaptor":  "8082",
	"rag-api":       "8000",
	"sidecar":       "9091",
	"weaviate":      "8080",
}

func settingsFromEnvironment(component string) Settings {
	return Settings{
		Component:       component,
		Version:         environment("VERSION", "development"),
		Behaviour:       environment("BEHAVIOUR", behaviourGood),
		Port:            environment("PORT", defaultPorts[component]),
		StartupDelay:    seconds("STARTUP_SECONDS", 20),
		DrainLimit:      seconds("DRAIN_LIMIT_SECONDS", 30),
		UpstreamTimeout: seconds("UPSTREAM_TIMEOUT_SECONDS", 10),
	}
}

func environment(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func seconds(name string, fallback float64) time.Duration {
	value, err := strconv.ParseFloat(environment(name, ""), 64)
	if err != nil {
		value = fallback
	}
	return time.Duration(value * float64(time.Second))
}

// logLine writes one JSON line: the message, then key and value in turn.
func logLine(message string, pairs ...string) {
	line := map[string]string{"time": time.Now().UTC().Format(time.RFC3339Nano), "message": message}
	for index := 0; index+1 < len(pairs); index += 2 {
		line[pairs[index]] = pairs[index+1]
	}
	_ = json.NewEncoder(os.Stdout).Encode(line)
}
