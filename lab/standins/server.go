package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

const drainPollInterval = 20 * time.Millisecond

// Server answers health, metrics and the routes of one component, misbehaves as the image says, and drains on SIGTERM.
type Server struct {
	Settings Settings
	Metrics  *Registry
	Mux      *http.ServeMux

	startedAt time.Time
	draining  atomic.Bool
	inWork    atomic.Int64
	answered  atomic.Uint64
}

// NewServer makes a server with /healthz, /readyz and /metrics; the component adds its own routes with Handle.
func NewServer(settings Settings) *Server {
	server := &Server{Settings: settings, Metrics: NewRegistry(), Mux: http.NewServeMux(), startedAt: time.Now()}
	server.Metrics.Gauge("nephoran_build_info", "Constant 1, labelled with the version that runs.",
		map[string]string{"component": settings.Component, "version": settings.Version}, 1)
	server.Mux.HandleFunc("GET /healthz", func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, map[string]string{"status": "ok", "version": settings.Version})
	})
	server.Mux.HandleFunc("GET /readyz", func(writer http.ResponseWriter, _ *http.Request) {
		if reason := server.notReadyBecause(); reason != "" {
			writeJSON(writer, http.StatusServiceUnavailable, map[string]string{"status": "not ready", "reason": reason})
			return
		}
		writeJSON(writer, http.StatusOK, map[string]string{"status": "ready", "version": settings.Version})
	})
	server.Mux.HandleFunc("GET /metrics", func(writer http.ResponseWriter, _ *http.Request) {
		// The real llm-processor answers JSON here, which Prometheus can't read.
		if environment("METRICS_FORMAT", "prometheus") == "json" {
			writeJSON(writer, http.StatusOK, server.Metrics.Values())
			return
		}
		writer.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = writer.Write([]byte(server.Metrics.Text()))
	})
	return server
}

func (server *Server) notReadyBecause() string {
	switch {
	case server.draining.Load():
		return "draining"
	case server.Settings.Behaviour == behaviourNeverReady:
		return "waiting for a dependency that does not exist"
	case server.Settings.Behaviour == behaviourSlowStart && time.Since(server.startedAt) < server.Settings.StartupDelay:
		return "loading"
	}
	return ""
}

// Handle adds a route of the component's work; every fifth answer of a build with errors is a 500.
func (server *Server) Handle(pattern string, handler http.HandlerFunc) {
	server.Mux.HandleFunc(pattern, func(writer http.ResponseWriter, request *http.Request) {
		if server.failsThisTime() {
			writeError(writer, http.StatusInternalServerError, "internal error: index out of range")
			return
		}
		handler(writer, request)
	})
}

func (server *Server) failsThisTime() bool {
	return server.Settings.Behaviour == behaviourErrors && server.answered.Add(1)%5 == 0
}

// Run serves until SIGTERM or SIGINT and returns once the requests in work are answered.
//
// A process that is told to stop says so on /readyz, goes on answering (old and new connections) while requests are in
// work, and only then closes its listener. It does not wait for the endpoints to follow: that is what preStop is for.
func (server *Server) Run(ctx context.Context) error {
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer cancel()
	listener, err := net.Listen("tcp", net.JoinHostPort(environment("HOST", ""), server.Settings.Port))
	if err != nil {
		return err
	}
	web := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			server.inWork.Add(1)
			defer server.inWork.Add(-1)
			server.Mux.ServeHTTP(writer, request)
		}),
	}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	logLine("listening", "address", listener.Addr().String())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	server.draining.Store(true)
	logLine("draining")
	limit, stop := context.WithTimeout(context.Background(), server.Settings.DrainLimit)
	defer stop()
	for server.inWork.Load() > 0 && limit.Err() == nil {
		time.Sleep(drainPollInterval)
	}
	if err := web.Shutdown(limit); err != nil {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func writeJSON(writer http.ResponseWriter, status int, value any) {
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(status)
	_ = json.NewEncoder(writer).Encode(value)
}

func writeError(writer http.ResponseWriter, status int, reason string) {
	writeJSON(writer, status, map[string]string{"error": reason})
}
