"""Run a real single-node Kubernetes with the whole Nephoran system in it, without Docker and without pulling images."""
