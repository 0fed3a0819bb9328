"""Text from outside is cut and masked."""

from __future__ import annotations

import time

import pytest

from nephoran_maintenance.hooks.outside_text import excerpt, mask, tail


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abcdef.ghijkl-mnop", "abcdef.ghijkl-mnop"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
        ("connecting to postgres://airflow:s3cret-word@db:5432/airflow", "s3cret-word"),
        ("OPENAI_API_KEY=sk-1234567890", "sk-1234567890"),
        ('{"password": "hunter2hunter2", "user": "x"}', "hunter2hunter2"),
        ("client_secret: 'abcde12345'", "abcde12345"),
        ("token=eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl rest", "eyJpc3MiOiJrdWJl"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("X-Amz-Security-Token=FwoGZXIvYXdz&x=1", "FwoGZXIvYXdz"),
    ],
    ids=["bearer", "basic", "url", "environment", "json", "yaml", "jwt", "private-key", "query"],
)
def test_masks_what_looks_like_a_secret(text: str, secret: str) -> None:
    assert secret not in mask(text)


def test_masks_known_secrets_and_leaves_short_ones() -> None:
    assert mask("abcdefg and abc", ["abcdefg", "abc", None]) == "*** and abc"


@pytest.mark.parametrize(
    "text",
    ["the token is expired", "image r/rag-api:v2 not found", "probe failed: 10.200.0.5:8080 refused", "key: a"],
)
def test_leaves_ordinary_text_alone(text: str) -> None:
    assert mask(text) == text


def test_an_excerpt_is_one_line_within_its_limit() -> None:
    found = excerpt(b"line one\n\tline two \xff " + b"x" * 1000, 100)
    assert found.startswith("line one line two \ufffd xxx")
    assert len(found) <= 100
    assert found.endswith("[…]")


def test_the_tail_of_a_log_is_masked_and_cut() -> None:
    log = "\n".join(f"line {number}" for number in range(50)) + "\napi_key=abcdefghij\n" + "y" * 500 + "\n\n"
    lines = tail(log, 3, 100)
    assert lines[0] == "line 49"
    assert "abcdefghij" not in lines[1]
    assert len(lines[2]) <= 100


@pytest.mark.parametrize("unit", ["x", "a.", "password", "eyJ", "-----BEGIN PRIVATE KEY-----", "token:"])
def test_a_body_of_megabytes_costs_no_time(unit: str) -> None:
    started = time.process_time()
    assert len(excerpt(unit * 1_000_000, 200)) <= 200
    tail(unit * 1_000_000)
    assert time.process_time() - started < 1.0
