from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from lab.llm_provider import Provider
from tests.unit.lab.conftest import ServeInThread


@pytest.mark.parametrize(
    ("method", "path", "authorization", "status"),
    [
        pytest.param("GET", "/v1/models", "Bearer right", 200, id="right key"),
        pytest.param("GET", "/v1/models?limit=1", "Bearer right", 200, id="with a query"),
        pytest.param("GET", "/v1/models", "Bearer wrong", 401, id="wrong key"),
        pytest.param("GET", "/v1/models", None, 401, id="no key"),
        pytest.param("GET", "/v1/else", "Bearer right", 404, id="another path"),
        pytest.param("POST", "/v1/models", "Bearer right", 404, id="another method"),
    ],
)
def test_answers_like_a_provider(
    serve: ServeInThread, method: str, path: str, authorization: str | None, status: int
) -> None:
    connection = http.client.HTTPConnection(urlsplit(serve(Provider(("127.0.0.1", 0), "right"))).netloc, timeout=10)
    connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    assert response.status == status
    assert ("data" in body) == (status == 200)
