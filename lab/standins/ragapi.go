package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const knowledgeClass = "TelecomKnowledge"

type knowledgeObject struct {
	ID         string `json:"id"`
	Properties struct {
		Title string `json:"title"`
	} `json:"properties"`
}

// runRagAPI looks the asked object up in Weaviate, once per query, and keeps the query's embedding beside the path.
func runRagAPI(settings Settings) error {
	server := NewServer(settings)
	weaviate := NewUpstream(environment("WEAVIATE_URL", "http://weaviate:8080"), settings.UpstreamTimeout)
	keyFile := environment("WEAVIATE_API_KEY_FILE", "/secrets/weaviate/api-key")
	embeddings := NewEmbeddingCache()
	seen := make(chan string, 1024)
	go func() {
		for query := range seen {
			embeddings.Remember(query, time.Now())
		}
	}()

	process := func(writer http.ResponseWriter, request *http.Request) {
		startedAt := time.Now()
		status, answer := lookUp(request, weaviate, keyFile, seen)
		labels := map[string]string{"endpoint": "process", "status": strconv.Itoa(status)}
		server.Metrics.Add("nephoran_rag_requests_total", "Queries by status.", labels, 1)
		server.Metrics.Observe("nephoran_rag_request_duration_seconds", "Time to answer a query.", labels,
			time.Since(startedAt).Seconds())
		if status != http.StatusOK {
			logLine("query failed", "object_id", answer.ObjectID, "reason", answer.Title)
			writeError(writer, status, answer.Title)
			return
		}
		answer.RagVersion = settings.Version
		writeJSON(writer, status, answer)
	}
	// Failures that this build makes itself must be in its own figures too.
	work := func(writer http.ResponseWriter, request *http.Request) {
		if server.failsThisTime() {
			server.Metrics.Add("nephoran_rag_requests_total", "Queries by status.",
				map[string]string{"endpoint": "process", "status": "500"}, 1)
			writeError(writer, http.StatusInternalServerError, "internal error: index out of range")
			return
		}
		process(writer, request)
	}
	server.Mux.HandleFunc("POST /process", work)
	server.Mux.HandleFunc("POST /process_intent", work)
	server.Mux.HandleFunc("GET /health", func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, map[string]string{"status": "healthy"})
	})
	server.Handle("GET /stats", func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, map[string]any{"cache_entries": embeddings.Size(), "version": settings.Version})
	})
	// The real rag-api has no such route; the maintenance procedures need something that can be cleaned.
	server.Handle("POST /cache/cleanup", func(writer http.ResponseWriter, request *http.Request) {
		age, err := strconv.ParseFloat(request.URL.Query().Get("older_than_seconds"), 64)
		if err != nil || age < 0 {
			writeError(writer, http.StatusBadRequest, "older_than_seconds must be a number of at least 0")
			return
		}
		removed := embeddings.Clean(time.Now().Add(-time.Duration(age * float64(time.Second))))
		writeJSON(writer, http.StatusOK, map[string]any{
			"older_than_seconds": age, "removed": removed, "remaining": embeddings.Size(),
		})
	})
	return server.Run(context.Background())
}

// lookUp returns the status for the caller and the answer; on failure the title is the reason.
func lookUp(request *http.Request, weaviate *Upstream, keyFile string, seen chan<- string) (int, processAnswer) {
	var query processRequest
	if err := json.NewDecoder(http.MaxBytesReader(nil, request.Body, 1<<20)).Decode(&query); err != nil {
		return http.StatusBadRequest, processAnswer{Title: "the body is not JSON: " + err.Error()}
	}
	if query.ObjectID == "" {
		return http.StatusBadRequest, processAnswer{Title: "object_id is missing"}
	}
	select {
	case seen <- query.Query:
	default: // statistics may be dropped, a query may not wait for them
	}
	// Read for every query: a rotated Secret counts from the moment the kubelet has written it.
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return http.StatusBadGateway, processAnswer{ObjectID: query.ObjectID, Title: "weaviate API key: " + err.Error()}
	}
	call := *weaviate
	call.header = http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(key))}}
	var object knowledgeObject
	// One replica, as Weaviate's searches read by default: a node that answers before it has its data is not covered up
	// by the others.
	path := "/v1/objects/" + knowledgeClass + "/" + url.PathEscape(query.ObjectID) + "?consistency_level=ONE"
	if _, err := call.Call(request.Context(), http.MethodGet, path, nil, &object); err != nil {
		return http.StatusBadGateway, processAnswer{ObjectID: query.ObjectID, Title: "weaviate: " + err.Error()}
	}
	return http.StatusOK, processAnswer{ObjectID: object.ID, Title: object.Properties.Title}
}

// EmbeddingCache keeps the embedding of each query text with the moment it was made. No answer comes from it.
type EmbeddingCache struct {
	mutex   sync.Mutex
	entries map[string]embedding
}

type embedding struct {
	vector [sha256.Size]byte
	madeAt time.Time
}

const largestCache = 50_000

// NewEmbeddingCache returns an empty cache.
func NewEmbeddingCache() *EmbeddingCache { return &EmbeddingCache{entries: map[string]embedding{}} }

// Remember keeps a text's embedding unless the cache is full.
func (cache *EmbeddingCache) Remember(text string, now time.Time) {
	cache.mutex.Lock()
	defer cache.mutex.Unlock()
	if _, known := cache.entries[text]; !known && len(cache.entries) < largestCache {
		cache.entries[text] = embedding{vector: sha256.Sum256([]byte(text)), madeAt: now}
	}
}

// Clean removes what was made before the moment and returns how many entries that were.
func (cache *EmbeddingCache) Clean(before time.Time) int {
	cache.mutex.Lock()
	defer cache.mutex.Unlock()
	removed := 0
	for text, entry := range cache.entries {
		if entry.madeAt.Before(before) {
			delete(cache.entries, text)
			removed++
		}
	}
	return removed
}

// Size returns the number of entries.
func (cache *EmbeddingCache) Size() int {
	cache.mutex.Lock()
	defer cache.mutex.Unlock()
	return len(cache.entries)
}
