package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	serviceAccountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"
	apiTimeout           = 10 * time.Second
)

// apiResource names a kind of custom resource as the API server's paths do.
type apiResource struct{ group, version, plural string }

func (resource apiResource) path(namespace, name string) string {
	path := "/apis/" + resource.group + "/" + resource.version
	if namespace != "" {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	path += "/" + resource.plural
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	return path
}

// APIServer talks to Kubernetes with the pod's own ServiceAccount.
type APIServer struct {
	client *http.Client
	folder string
	url    string
}

// NewAPIServer reads the certificate authority and the address that every pod is given.
func NewAPIServer() (*APIServer, error) {
	folder := environment("SERVICE_ACCOUNT_FOLDER", serviceAccountFolder)
	authority, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("no certificate in %s/ca.crt", folder)
	}
	return &APIServer{
		client: &http.Client{
			Timeout:   apiTimeout,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
		},
		folder: folder,
		url: "https://" + net.JoinHostPort(
			os.Getenv("KUBERNETES_SERVICE_HOST"), environment("KUBERNETES_SERVICE_PORT", "443")),
	}, nil
}

var errNotFound = errors.New("not found")

// list returns all objects of all namespaces, errNotFound when the kind is not served.
func (api *APIServer) list(ctx context.Context, resource apiResource) ([]intentObject, error) {
	var answer struct {
		Items []intentObject `json:"items"`
	}
	err := api.call(ctx, http.MethodGet, resource.path("", ""), "", nil, &answer)
	return answer.Items, err
}

// mergePatch changes one object, or its status when subresource says so.
func (api *APIServer) mergePatch(ctx context.Context, resource apiResource, object intentObject, subresource string, patch any) error {
	path := resource.path(object.Metadata.Namespace, object.Metadata.Name) + subresource
	return api.call(ctx, http.MethodPatch, path, "application/merge-patch+json", patch, nil)
}

func (api *APIServer) call(ctx context.Context, method, path, contentType string, body, result any) error {
	// Read each time: the kubelet renews the token.
	token, err := os.ReadFile(filepath.Join(api.folder, "token"))
	if err != nil {
		return err
	}
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, api.url+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := api.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode == http.StatusNotFound:
		return errNotFound
	case response.StatusCode >= 300:
		return fmt.Errorf("%s %s: status %d: %s", method, path, response.StatusCode, answer[:min(len(answer), 300)])
	case result == nil:
		return nil
	}
	return json.Unmarshal(answer, result)
}
