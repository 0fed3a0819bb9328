// Command standin plays one component of the Nephoran system in the lab: `standin COMPONENT`. More arguments are those of
// the program that it stands in for and mean nothing to it.
//
// The stand-ins have the ports, routes, probes and metric names of the real components and do a little real work.
// None of them retries, answers a query from a cache or hides an error: what goes wrong under them is seen by the caller.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
)

var components = map[string]func(Settings) error{
	"job":           runJob,
	"llm-processor": runLLMProcessor,
	"nephio-bridge": runNephioBridge,
	"operator":      runOperator,
	"oran-adaptor":  runOranAdaptor,
	"rag-api":       runRagAPI,
	"sidecar":       runSidecar,
	"weaviate":      runWeaviate,
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "fetch" {
		os.Exit(fetch(os.Args[2]))
	}
	if len(os.Args) < 2 || components[os.Args[1]] == nil {
		names := make([]string, 0, len(components))
		for name := range components {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: standin %s\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	settings := settingsFromEnvironment(os.Args[1])
	logLine("start", "component", settings.Component, "version", settings.Version, "behaviour", settings.Behaviour)
	if settings.Behaviour == behaviourCrash {
		logLine("fatal", "reason", "configuration schema 7 is not supported by this build")
		os.Exit(1)
	}
	if err := components[os.Args[1]](settings); err != nil {
		logLine("fatal", "reason", err.Error())
		os.Exit(1)
	}
	logLine("stopped", "component", settings.Component)
}
