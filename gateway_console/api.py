"""The console's one client of the gateway's public HTTP API."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from gateway_console.sessions import Role, Session, SessionStore
from gateway_runtime.tls import TlsFiles, build_client_context

JsonObject = dict[str, Any]
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_STREAM_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_LIMITS = httpx.Limits(max_connections=500, max_keepalive_connections=50)
_NO_TURN = "00000000-0000-7000-8000-000000000000"


class ApiError(Exception):
    """The gateway refused a request, or did not answer.

    `status` is 0 if the gateway did not answer.
    """

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class TurnEvent:
    """An event of a turn; `number` is None for `stream.closing`."""

    number: int | None
    data: JsonObject


def quote_path(*parts: str) -> str:
    """Join parts to a path; each part stays one segment."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


class GatewayClient:
    """Connections to the gateway.

    Pages use an `Api` with the credential of their session.
    """

    def __init__(self, url: str, certificate: Path | None = None) -> None:
        tls_files = None if certificate is None else TlsFiles(certificate, certificate, None, "CONSOLE_GATEWAY")
        context = build_client_context(tls_files) or True
        self.http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, verify=context)

    async def close(self) -> None:
        await self.http.aclose()

    async def find_role(self, credential: str | None) -> Role | None:
        """Return the role that a credential gives.

        Return None if the gateway does not accept it.

        Raises:
            ApiError: the gateway does not answer.
        """
        if await self._get_status("GET", "/api/v1/models", credential) == 401:
            return None
        if await self._get_status("GET", "/api/v1/admin/stats?days=1", credential) == 200:
            return "admin"
        # The route needs the role of a user; no turn has this id.
        status = await self._get_status("POST", f"/api/v1/turns/{_NO_TURN}/cancel", credential)
        return "viewer" if status == 403 else "user"

    async def _get_status(self, method: str, path: str, credential: str | None) -> int:
        try:
            response = await self.http.request(method, path, headers=build_headers(credential))
        except httpx.HTTPError as error:
            raise _describe_failure(error) from None
        if response.status_code == 429 or response.status_code >= 500:
            raise _read_error(response)
        return response.status_code


def build_headers(credential: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"} if credential else {}


class Api:
    """Requests of one session."""

    def __init__(self, client: GatewayClient, session: Session, sessions: SessionStore) -> None:
        self._client = client
        self._sessions = sessions
        self.session = session

    async def get(self, path: str, **query: object) -> Any:
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: object = None) -> Any:
        return await self._request("POST", path, body={} if body is None else body)

    async def patch(self, path: str, body: object) -> Any:
        return await self._request("PATCH", path, body=body)

    async def put(self, path: str, body: object) -> Any:
        return await self._request("PUT", path, body=body)

    async def delete(self, path: str) -> Any:
        return await self._request("DELETE", path)

    async def send_json(self, method: str, path: str, body: object = None) -> Any:
        return await self._request(method, path, body=body)

    async def get_text(self, path: str, **query: object) -> str:
        return (await self._send("GET", path, query=query)).text

    @asynccontextmanager
    async def open_stream(
        self, method: str, path: str, body: JsonObject | None = None
    ) -> AsyncGenerator[tuple[str | None, AsyncGenerator[TurnEvent]]]:
        """Open a stream of a turn's events.

        Yield the turn's id and the events.

        Raises:
            ApiError: the gateway refused the request, or the connection broke.
        """
        self._require_open()
        headers = {**build_headers(self.session.credential), "Accept": "text/event-stream"}
        try:
            async with self._client.http.stream(
                method, path, json=body, headers=headers, timeout=_STREAM_TIMEOUT
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _read_error(response)
                yield response.headers.get("X-Turn-Id"), _iterate_events(response)
        except httpx.HTTPError as error:
            raise _describe_failure(error) from None

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: object = None
    ) -> Any:
        response = await self._send(method, path, query=query, body=body)
        return response.json() if response.content else None

    async def _send(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: object = None
    ) -> httpx.Response:
        self._require_open()
        params = {name: str(value) for name, value in (query or {}).items() if value not in (None, "")}
        try:
            response = await self._client.http.request(
                method, path, params=params or None, json=body, headers=build_headers(self.session.credential)
            )
        except httpx.HTTPError as error:
            raise _describe_failure(error) from None
        if response.is_success:
            return response
        raise _read_error(response)

    def _require_open(self) -> None:
        if not self._sessions.is_open(self.session):
            raise ApiError(401, "Your session has ended. Sign in again.", "session_ended")


async def _iterate_events(response: httpx.Response) -> AsyncGenerator[TurnEvent]:
    async for event in EventSource(response).aiter_sse():
        if event.data == "[DONE]":
            return
        yield TurnEvent(int(event.id) if event.id and event.event != "stream.closing" else None, json.loads(event.data))


def _read_error(response: httpx.Response) -> ApiError:
    try:
        error = response.json()["error"]
        return ApiError(response.status_code, str(error["message"]), str(error.get("code", "")))
    except (ValueError, KeyError, TypeError):
        return ApiError(response.status_code, f"The gateway answered with status {response.status_code}.")


def _describe_failure(error: httpx.HTTPError) -> ApiError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ApiError(0, "The gateway does not answer.", "unreachable")
    return ApiError(0, "The connection to the gateway broke.", "connection_lost")
