"""Gateways whose callers are whoever a header says: for tests of who may see what."""

import msgspec
import pytest
from fastapi import FastAPI, Request

from gateway.api.deps import get_principal
from gateway.app import create_app
from gateway.config import Settings
from gateway.messages import LOCAL, Principal


def caller(user: str, role: str = "user", key: str | None = None) -> dict[str, dict[str, str]]:
    """Options of a client's request that make it that caller's."""
    principal = {"user": user, "role": role, "key": key}
    return {"headers": {"X-Test-Caller": msgspec.json.encode(principal).decode()}}


def believe_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on gateways under test take that header's word; a caller without it stays `local`."""

    def create(settings: Settings) -> FastAPI:
        app = create_app(settings)
        app.dependency_overrides[get_principal] = _believed
        return app

    monkeypatch.setattr("tests.stack.create_app", create)


def _believed(request: Request) -> Principal:
    said = request.headers.get("x-test-caller")
    return msgspec.json.decode(said, type=Principal) if said else LOCAL
