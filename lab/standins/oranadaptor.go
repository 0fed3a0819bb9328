package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	policiesPath     = "/a1-p/policytypes/100/policies"
	copiedHeader     = "X-Copied-From-Peer"
	peerTimeout      = 2 * time.Second
	largestPolicy    = 1 << 20
	policiesMetric   = "nephoran_a1_policies"
	policiesHelp     = "Policies that this pod knows."
	policiesRequests = "nephoran_a1_requests_total"
)

// runOranAdaptor keeps A1 policies in memory. Its pods copy each change to one another, as they have no near-RT RIC behind them.
func runOranAdaptor(settings Settings) error {
	server := NewServer(settings)
	store := &policyStore{policies: map[string]json.RawMessage{}}
	peers := peerGroup{host: environment("PEERS_HOST", ""), self: environment("POD_IP", ""), port: settings.Port}
	peers.adopt(store)
	count := func(method string) {
		server.Metrics.Add(policiesRequests, "Calls by method.", map[string]string{"method": method}, 1)
		server.Metrics.Gauge(policiesMetric, policiesHelp, nil, float64(len(store.all())))
	}
	server.Handle("GET "+policiesPath, func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, sortedKeys(store.all()))
	})
	server.Handle("GET "+policiesPath+"/{id}", func(writer http.ResponseWriter, request *http.Request) {
		policy, known := store.all()[request.PathValue("id")]
		if !known {
			writeError(writer, http.StatusNotFound, "no such policy")
			return
		}
		writeJSON(writer, http.StatusOK, policy)
	})
	server.Handle("PUT "+policiesPath+"/{id}", func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, largestPolicy))
		if err != nil || !json.Valid(body) {
			writeError(writer, http.StatusBadRequest, "the policy is not JSON")
			return
		}
		created := store.put(request.PathValue("id"), body)
		peers.copy(request, request.PathValue("id"), json.RawMessage(body))
		count("PUT")
		if created {
			writer.WriteHeader(http.StatusCreated)
			return
		}
		writer.WriteHeader(http.StatusOK)
	})
	server.Handle("DELETE "+policiesPath+"/{id}", func(writer http.ResponseWriter, request *http.Request) {
		known := store.remove(request.PathValue("id"))
		peers.copy(request, request.PathValue("id"), nil)
		count("DELETE")
		if !known {
			writeError(writer, http.StatusNotFound, "no such policy")
			return
		}
		writer.WriteHeader(http.StatusNoContent)
	})
	// Not in A1: how a pod that starts learns what the others know.
	server.Mux.HandleFunc("GET /peers/policies", func(writer http.ResponseWriter, _ *http.Request) {
		writeJSON(writer, http.StatusOK, store.all())
	})
	return server.Run(context.Background())
}

type policyStore struct {
	mutex    sync.Mutex
	policies map[string]json.RawMessage
}

func (store *policyStore) all() map[string]json.RawMessage {
	store.mutex.Lock()
	defer store.mutex.Unlock()
	policies := make(map[string]json.RawMessage, len(store.policies))
	for id, policy := range store.policies {
		policies[id] = policy
	}
	return policies
}

func (store *policyStore) put(id string, policy json.RawMessage) bool {
	store.mutex.Lock()
	defer store.mutex.Unlock()
	_, known := store.policies[id]
	store.policies[id] = policy
	return !known
}

func (store *policyStore) remove(id string) bool {
	store.mutex.Lock()
	defer store.mutex.Unlock()
	_, known := store.policies[id]
	delete(store.policies, id)
	return known
}

type peerGroup struct{ host, self, port string }

func (peers peerGroup) addresses() []string {
	if peers.host == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), peerTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupIP(ctx, "ip4", peers.host)
	if err != nil {
		return nil // alone: the headless Service has no ready pod yet
	}
	var addresses []string
	for _, address := range found {
		if address.String() != peers.self {
			addresses = append(addresses, "http://"+net.JoinHostPort(address.String(), peers.port))
		}
	}
	return addresses
}

func (peers peerGroup) adopt(store *policyStore) {
	for _, address := range peers.addresses() {
		var known map[string]json.RawMessage
		if _, err := NewUpstream(address, peerTimeout).Call(
			context.Background(), http.MethodGet, "/peers/policies", nil, &known); err != nil {
			logLine("peer not copied", "peer", address, "reason", err.Error())
			continue
		}
		for id, policy := range known {
			store.put(id, policy)
		}
		return
	}
}

// copy passes a change on to the other pods (a nil policy removes it), unless a peer sent it.
func (peers peerGroup) copy(request *http.Request, id string, policy json.RawMessage) {
	if request.Header.Get(copiedHeader) != "" {
		return
	}
	method, body := http.MethodDelete, any(nil)
	if policy != nil {
		method, body = http.MethodPut, policy
	}
	for _, address := range peers.addresses() {
		peer := NewUpstream(address, peerTimeout)
		peer.header.Set(copiedHeader, peers.self)
		status, err := peer.Call(request.Context(), method, policiesPath+"/"+url.PathEscape(id), body, nil)
		if err != nil && status != http.StatusNotFound {
			logLine("peer not told", "peer", address, "reason", err.Error())
		}
	}
}
