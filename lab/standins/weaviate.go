package main

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

const (
	weaviateBinary     = "/bin/weaviate"
	weaviateHiddenPort = "18080"
)

// runWeaviate is the entry point of the bad Weaviate images; the good ones start the real binary themselves.
func runWeaviate(settings Settings) error {
	switch settings.Behaviour {
	case behaviourNeverReady:
		return neverReadyWeaviate(settings)
	case behaviourErrors:
		return failingWeaviate(settings)
	case behaviourSlowStart:
		stopped, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
		defer cancel()
		select {
		case <-time.After(settings.StartupDelay):
		case <-stopped.Done():
			return nil
		}
		cancel()
	}
	return syscall.Exec(weaviateBinary, weaviateArguments(settings.Port), os.Environ())
}

func weaviateArguments(port string) []string {
	return []string{weaviateBinary, "--host", "0.0.0.0", "--port", port, "--scheme", "http"}
}

// neverReadyWeaviate answers as a node that lives and never finishes to load: it joins nothing.
func neverReadyWeaviate(settings Settings) error {
	server := NewServer(settings)
	server.Mux.HandleFunc("GET /v1/.well-known/live", func(writer http.ResponseWriter, _ *http.Request) {
		writer.WriteHeader(http.StatusOK)
	})
	server.Mux.HandleFunc("/", func(writer http.ResponseWriter, _ *http.Request) {
		writer.WriteHeader(http.StatusServiceUnavailable)
	})
	return server.Run(context.Background())
}

// failingWeaviate runs the real Weaviate behind a proxy that answers every fifth request about objects with 500.
func failingWeaviate(settings Settings) error {
	arguments := weaviateArguments(weaviateHiddenPort)
	child := exec.Command(arguments[0], arguments[1:]...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	server := NewServer(settings)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "127.0.0.1:" + weaviateHiddenPort})
	server.Mux.Handle("/", proxy)
	server.Handle("/v1/objects/", proxy.ServeHTTP)
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case err := <-served:
		_ = child.Process.Signal(syscall.SIGTERM)
		if childErr := <-ended; childErr != nil {
			return childErr
		}
		return err
	}
}
