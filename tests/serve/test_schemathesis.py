"""The OpenAPI document: what it says is so, and nothing that it allows, or forbids, is a 5xx."""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from conftest import Running
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from pronghorn.serve.app import create_app
from pronghorn.serve.pool import Pool


def document() -> dict:
    """Of an application that is never run; answers are kept short where the document lets them be long."""
    made = create_app(Pool({"pronghorn-tiny": "pronghorn-tiny"})).openapi()
    made = json.loads(json.dumps(made))
    for name in ("ChatBody", "CompletionBody"):
        fields = made["components"]["schemas"][name]["properties"]
        for field in ("max_tokens", "max_completion_tokens", "n"):
            for branch in fields.get(field, {}).get("anyOf", ()):
                if branch.get("type") == "integer":
                    branch["maximum"] = 4
    return made


schema = schemathesis.openapi.from_dict(document())
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def session(server: Running):
    with httpx.Client(timeout=30) as made:
        yield made


@schema.parametrize()
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_the_document_holds(case, server):
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=30)


def test_the_document_is_served_and_its_pages_are_not(client):
    served = client.get("/openapi.json").json()
    assert served["openapi"].startswith("3.1") and "422" not in json.dumps(served["paths"])
    assert client.get("/docs").status_code == 404 and client.get("/redoc").status_code == 404
