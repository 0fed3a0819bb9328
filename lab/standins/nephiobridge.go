package main

import (
	"context"
	"net/http"
)

// runNephioBridge lists the packages that it would have handed to Nephio.
func runNephioBridge(settings Settings) error {
	server := NewServer(settings)
	packages := []map[string]string{
		{"name": "amf-deployment", "revision": "v1", "lifecycle": "Published"},
		{"name": "smf-deployment", "revision": "v1", "lifecycle": "Published"},
		{"name": "upf-deployment", "revision": "v2", "lifecycle": "Draft"},
	}
	server.Handle("GET /packages", func(writer http.ResponseWriter, _ *http.Request) {
		server.Metrics.Add("nephoran_bridge_requests_total", "Listings.", map[string]string{"status": "success"}, 1)
		writeJSON(writer, http.StatusOK, map[string]any{"packages": packages, "version": settings.Version})
	})
	return server.Run(context.Background())
}

// runSidecar does nothing but live: some layouts have another container before the component's own.
func runSidecar(settings Settings) error { return NewServer(settings).Run(context.Background()) }

// runJob is a task that ends by itself.
func runJob(settings Settings) error {
	logLine("counted", "packages", "3", "version", settings.Version)
	return nil
}
