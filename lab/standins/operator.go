package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const policyDeletionAttempts = 3

// Operator moves NetworkIntents of both groups through their phases, one phase per round.
type Operator struct {
	api      *APIServer
	adaptor  *Upstream
	server   *Server
	attempts map[string]int
}

func runOperator(settings Settings) error {
	server := NewServer(settings)
	api, err := NewAPIServer()
	if err != nil {
		return err
	}
	operator := &Operator{
		api:      api,
		adaptor:  NewUpstream(environment("ORAN_ADAPTOR_URL", "http://oran-adaptor:8082"), settings.UpstreamTimeout),
		server:   server,
		attempts: map[string]int{},
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go operator.loop(ctx, seconds("POLL_INTERVAL_SECONDS", 1))
	return server.Run(context.Background())
}

// loop lists and reconciles every interval. An operator that is not ready reconciles nothing, as one without its lease.
func (operator *Operator) loop(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if operator.server.notReadyBecause() == "" {
			for _, kind := range flavours {
				operator.round(ctx, kind)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (operator *Operator) round(ctx context.Context, kind flavour) {
	objects, err := operator.api.list(ctx, kind.resource)
	if errors.Is(err, errNotFound) {
		return // this group is not installed
	}
	if err != nil {
		operator.failed(kind, "list", err)
		return
	}
	for _, object := range objects {
		startedAt := time.Now()
		worked, err := operator.reconcile(ctx, kind, object)
		labels := map[string]string{"group": kind.resource.group}
		if worked {
			operator.server.Metrics.Add("networkintent_reconciles_total", "Reconciles that had work.", labels, 1)
			operator.server.Metrics.Observe("networkintent_processing_duration_seconds", "Time of one reconcile.", labels,
				time.Since(startedAt).Seconds())
		}
		if err != nil {
			operator.failed(kind, object.Metadata.Namespace+"/"+object.Metadata.Name, err)
		}
	}
	operator.server.Metrics.Gauge("nephoran_intents", "NetworkIntents that the operator sees.",
		map[string]string{"group": kind.resource.group}, float64(len(objects)))
}

func (operator *Operator) failed(kind flavour, what string, err error) {
	operator.server.Metrics.Add("networkintent_reconcile_errors_total", "Reconciles that failed.",
		map[string]string{"group": kind.resource.group}, 1)
	logLine("reconcile failed", "group", kind.resource.group, "object", what, "reason", err.Error())
}

// reconcile takes one step with one object and says whether there was one to take. A failed step is taken again in the
// next round, as controllers do.
func (operator *Operator) reconcile(ctx context.Context, kind flavour, object intentObject) (bool, error) {
	if object.Metadata.DeletionTimestamp != "" {
		if !object.hasFinalizer() {
			return false, nil
		}
		return true, operator.finish(ctx, kind, object)
	}
	if !object.hasFinalizer() {
		return true, operator.setFinalizers(ctx, kind, object, append(object.otherFinalizers(), policyFinalizer))
	}
	phase, message := kind.nextPhase(object)
	if phase == "" {
		return false, nil
	}
	if operator.server.failsThisTime() {
		return true, errors.New("internal error: index out of range")
	}
	if phase == phaseDeployed {
		if err := operator.putPolicy(ctx, object); err != nil {
			return true, err
		}
	}
	logLine("phase", "group", kind.resource.group, "object", object.Metadata.Namespace+"/"+object.Metadata.Name, "phase", phase)
	return true, operator.api.mergePatch(ctx, kind.resource, object, "/status", map[string]any{
		"metadata": map[string]any{"resourceVersion": object.Metadata.ResourceVersion},
		"status": map[string]any{
			"phase":              phase,
			"message":            message,
			"observedGeneration": object.Metadata.Generation,
			"lastUpdateTime":     time.Now().UTC().Format(time.RFC3339),
		},
	})
}

func (operator *Operator) putPolicy(ctx context.Context, object intentObject) error {
	policy := map[string]any{
		"scope":     map[string]string{"intent": object.Metadata.Name, "namespace": object.Metadata.Namespace},
		"statement": object.Spec,
	}
	_, err := operator.adaptor.Call(ctx, http.MethodPut, policiesPath+"/"+object.policyName(), policy, nil)
	return err
}

// finish deletes the intent's policy and lets the object go; after three failed tries it lets go anyway, as the real one.
func (operator *Operator) finish(ctx context.Context, kind flavour, object intentObject) error {
	key := fmt.Sprintf("%s/%s/%s", kind.resource.group, object.Metadata.Namespace, object.Metadata.Name)
	status, err := operator.adaptor.Call(ctx, http.MethodDelete, policiesPath+"/"+object.policyName(), nil, nil)
	if err != nil && status != http.StatusNotFound {
		operator.attempts[key]++
		if operator.attempts[key] < policyDeletionAttempts {
			return err
		}
		logLine("policy left behind", "policy", object.policyName(), "reason", err.Error())
	}
	delete(operator.attempts, key)
	return operator.setFinalizers(ctx, kind, object, object.otherFinalizers())
}

func (operator *Operator) setFinalizers(ctx context.Context, kind flavour, object intentObject, finalizers []string) error {
	return operator.api.mergePatch(ctx, kind.resource, object, "", map[string]any{
		"metadata": map[string]any{"resourceVersion": object.Metadata.ResourceVersion, "finalizers": finalizers},
	})
}
