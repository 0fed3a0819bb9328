from __future__ import annotations

from lab.pod_discovery import target_of


def test_names_labels_as_the_kubernetes_discovery_does() -> None:
    pod = {
        "metadata": {
            "namespace": "nephoran-system",
            "name": "rag-api-1",
            "labels": {"app.kubernetes.io/name": "rag-api"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"},
        },
        "status": {"podIP": "10.201.0.12", "phase": "Running"},
    }
    assert target_of(pod) == {
        "targets": ["10.201.0.12"],
        "labels": {
            "__meta_kubernetes_namespace": "nephoran-system",
            "__meta_kubernetes_pod_name": "rag-api-1",
            "__meta_kubernetes_pod_ip": "10.201.0.12",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": "rag-api",
            "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
            "__meta_kubernetes_pod_annotation_prometheus_io_port": "8000",
        },
    }


def test_leaves_out_a_pod_without_an_address() -> None:
    assert target_of({"metadata": {"namespace": "a", "name": "b"}, "status": {"phase": "Pending"}}) is None
