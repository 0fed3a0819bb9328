package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

const (
	policyFinalizer = "intent.nephoran.com/a1-policy-cleanup"
	phaseDeployed   = "Deployed"
	phaseError      = "Error"
	phaseDeploying  = "Deploying"
)

// intentObject is what the operator reads of a NetworkIntent of either group.
type intentObject struct {
	Metadata struct {
		Name              string   `json:"name"`
		Namespace         string   `json:"namespace"`
		Generation        int64    `json:"generation"`
		ResourceVersion   string   `json:"resourceVersion"`
		DeletionTimestamp string   `json:"deletionTimestamp"`
		Finalizers        []string `json:"finalizers"`
	} `json:"metadata"`
	Spec   json.RawMessage `json:"spec"`
	Status struct {
		Phase              string `json:"phase"`
		ObservedGeneration int64  `json:"observedGeneration"`
	} `json:"status"`
}

// policyName is global on purpose: the real operator leaves the namespace out too, so equal names collide.
func (object intentObject) policyName() string { return "policy-" + object.Metadata.Name }

func (object intentObject) hasFinalizer() bool {
	return slices.Contains(object.Metadata.Finalizers, policyFinalizer)
}

func (object intentObject) otherFinalizers() []string {
	others := []string{}
	for _, finalizer := range object.Metadata.Finalizers {
		if finalizer != policyFinalizer {
			others = append(others, finalizer)
		}
	}
	return others
}

// flavour is one of the two API groups of NetworkIntent, with the phases its controller writes in turn.
type flavour struct {
	resource apiResource
	phases   []string
	invalid  func(spec json.RawMessage) string
}

var flavours = []flavour{
	{
		resource: apiResource{"nephoran.com", "v1", "networkintents"},
		phases:   []string{"Pending", "Processing", phaseDeploying, phaseDeployed},
		invalid:  invalidTextIntent,
	},
	{
		resource: apiResource{"intent.nephoran.com", "v1alpha1", "networkintents"},
		phases:   []string{"Pending", "Validating", "Validated", phaseDeploying, phaseDeployed},
		invalid:  invalidScalingIntent,
	},
}

// nextPhase returns the phase to write and its message; an empty phase means that there is nothing to do.
func (kind flavour) nextPhase(object intentObject) (phase, message string) {
	changed := object.Status.ObservedGeneration != object.Metadata.Generation
	current := object.Status.Phase
	if current == "" || (changed && (current == phaseDeployed || current == phaseError)) {
		return kind.phases[0], "accepted"
	}
	position := slices.Index(kind.phases, current)
	if position < 0 || position == len(kind.phases)-1 {
		return "", ""
	}
	if position == 1 {
		if reason := kind.invalid(object.Spec); reason != "" {
			return phaseError, reason
		}
	}
	return kind.phases[position+1], ""
}

func invalidTextIntent(content json.RawMessage) string {
	var spec struct {
		Intent string `json:"intent"`
	}
	if err := json.Unmarshal(content, &spec); err != nil {
		return "spec can't be read: " + err.Error()
	}
	if strings.TrimSpace(spec.Intent) == "" {
		return "Intent field cannot be empty"
	}
	return ""
}

func invalidScalingIntent(content json.RawMessage) string {
	var spec struct {
		Source     string `json:"source"`
		IntentType string `json:"intentType"`
		Target     string `json:"target"`
		Namespace  string `json:"namespace"`
		Replicas   int    `json:"replicas"`
	}
	if err := json.Unmarshal(content, &spec); err != nil {
		return "spec can't be read: " + err.Error()
	}
	switch {
	case spec.Source == "":
		return "Source field cannot be empty"
	case !slices.Contains([]string{"user", "planner", "test"}, spec.Source):
		return fmt.Sprintf("Source %q is none of user, planner, test", spec.Source)
	case spec.IntentType != "scaling":
		return fmt.Sprintf("IntentType %q is not scaling", spec.IntentType)
	case spec.Target == "" || spec.Namespace == "":
		return "Target and Namespace fields cannot be empty"
	case spec.Replicas < 0:
		return "Replicas cannot be negative"
	}
	return ""
}
