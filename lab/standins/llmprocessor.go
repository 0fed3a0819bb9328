package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

const modelName = "stand-in"

// processRequest is what travels through the chain: a question and the object that must answer it.
type processRequest struct {
	Query    string `json:"query"`
	ObjectID string `json:"object_id"`
}

type processAnswer struct {
	ObjectID         string `json:"object_id"`
	Title            string `json:"title"`
	ProcessorVersion string `json:"processor_version,omitempty"`
	RagVersion       string `json:"rag_version"`
}

// runLLMProcessor passes each query on to rag-api and adds its own version to the answer.
func runLLMProcessor(settings Settings) error {
	server := NewServer(settings)
	rag := NewUpstream(environment("RAG_API_URL", "http://rag-api:8000"), settings.UpstreamTimeout)
	// The series exist from the start, so that a rate over them is 0 and not absent.
	server.Metrics.Add(requestsTotal, requestsHelp, statusLabels("success"), 0)
	server.Metrics.Add(requestsTotal, requestsHelp, statusLabels("error"), 0)
	process := func(writer http.ResponseWriter, request *http.Request) {
		startedAt := time.Now()
		status, answer := forwardQuery(request, rag)
		outcome := "success"
		if status != http.StatusOK {
			outcome = "error"
			server.Metrics.Add("nephoran_llm_errors_total", "Failed queries by kind.",
				map[string]string{"model": modelName, "error_type": http.StatusText(status)}, 1)
		}
		server.Metrics.Add(requestsTotal, requestsHelp, statusLabels(outcome), 1)
		server.Metrics.Observe("nephoran_llm_processing_duration_seconds", "Time to answer a query.",
			statusLabels(outcome), time.Since(startedAt).Seconds())
		if status != http.StatusOK {
			logLine("query failed", "object_id", answer.ObjectID, "reason", answer.Title)
			writeError(writer, status, answer.Title)
			return
		}
		answer.ProcessorVersion = settings.Version
		writeJSON(writer, status, answer)
	}
	// Failures that this build makes itself must be in its own figures too.
	server.Mux.HandleFunc("POST /process", func(writer http.ResponseWriter, request *http.Request) {
		if server.failsThisTime() {
			server.Metrics.Add(requestsTotal, requestsHelp, statusLabels("error"), 1)
			server.Metrics.Add("nephoran_llm_errors_total", "Failed queries by kind.",
				map[string]string{"model": modelName, "error_type": "internal"}, 1)
			writeError(writer, http.StatusInternalServerError, "internal error: index out of range")
			return
		}
		process(writer, request)
	})
	server.Handle("GET /status", func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, map[string]string{"service": "llm-processor", "version": settings.Version})
	})
	return server.Run(context.Background())
}

const (
	requestsTotal = "nephoran_llm_requests_total"
	requestsHelp  = "Queries by outcome."
)

func statusLabels(outcome string) map[string]string {
	return map[string]string{"model": modelName, "status": outcome}
}

// forwardQuery returns the status for the caller and the answer; on failure the title is the reason.
func forwardQuery(request *http.Request, rag *Upstream) (int, processAnswer) {
	var query processRequest
	if err := json.NewDecoder(http.MaxBytesReader(nil, request.Body, 1<<20)).Decode(&query); err != nil {
		return http.StatusBadRequest, processAnswer{Title: "the body is not JSON: " + err.Error()}
	}
	if query.ObjectID == "" {
		return http.StatusBadRequest, processAnswer{Title: "object_id is missing"}
	}
	var answer processAnswer
	if _, err := rag.Call(request.Context(), http.MethodPost, "/process", query, &answer); err != nil {
		return http.StatusBadGateway, processAnswer{ObjectID: query.ObjectID, Title: "rag-api: " + err.Error()}
	}
	return http.StatusOK, answer
}
