package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const largestAnswerBytes = 4 << 20

// Upstream calls another component. Every call opens its own connection and is made once.
//
// A kept connection would outlive the pod at its other end and fail without any fault of the system (and Go repeats
// requests on kept connections by itself); a retry would hide one.
type Upstream struct {
	client  *http.Client
	baseURL string
	header  http.Header
}

// NewUpstream calls baseURL; each call may take as long as timeout.
func NewUpstream(baseURL string, timeout time.Duration) *Upstream {
	dialer := &net.Dialer{Timeout: timeout}
	transport := &http.Transport{
		DisableKeepAlives: true,
		// Pods have IPv4 only: asking for AAAA records too would double the load on CoreDNS.
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp4", address)
		},
	}
	return &Upstream{
		client:  &http.Client{Transport: transport, Timeout: timeout},
		baseURL: baseURL,
		header:  http.Header{},
	}
}

// UpstreamError says what another component answered.
type UpstreamError struct {
	Status int
	Body   string
}

func (failure *UpstreamError) Error() string {
	return fmt.Sprintf("status %d: %s", failure.Status, failure.Body)
}

// Call sends body as JSON (nothing when nil), decodes the answer into result (unless nil) and returns the status.
func (upstream *Upstream) Call(ctx context.Context, method, path string, body, result any) (int, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, upstream.baseURL+path, content)
	if err != nil {
		return 0, err
	}
	for name, values := range upstream.header {
		request.Header[name] = values
	}
	if body != nil && request.Header.Get("Content-Type") == "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := upstream.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, largestAnswerBytes))
	if err != nil {
		return response.StatusCode, err
	}
	if response.StatusCode >= 300 {
		return response.StatusCode, &UpstreamError{Status: response.StatusCode, Body: string(answer[:min(len(answer), 500)])}
	}
	if result == nil || len(answer) == 0 {
		return response.StatusCode, nil
	}
	return response.StatusCode, json.Unmarshal(answer, result)
}
