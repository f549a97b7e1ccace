"""Protected MCP servers with odd authorization servers.

The first part of a path names the kind of oddity: `/{kind}/mcp` is the server, `/{kind}/as` its authorization server.
"""

import base64
import json
import secrets
import time
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

Document = dict[str, Any]
CLIENTS = {
    "special": ("c:id/ü", "p%40s+s w/:ü"),
    "plus": ("cid", "ab+cd/ef=="),
    "post_only": ("cid", "s3cret"),
    "post_only_special": ("c&id", "s=3&cr+et ü"),
    "basic_by_entry": ("cid", "s3cret"),
}
"""Clients registered by hand, of servers that register no others."""
_METADATA: dict[str, Document] = {
    "special": {"token_endpoint_auth_methods_supported": ["client_secret_basic"]},
    "plus": {"token_endpoint_auth_methods_supported": ["client_secret_basic"]},
    "post_only": {"token_endpoint_auth_methods_supported": ["client_secret_post"]},
    "post_only_special": {"token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_post"]},
    "basic_by_entry": {"token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"]},
    "secret_post_only": {"token_endpoint_auth_methods_supported": ["client_secret_post"]},
    "no_methods": {"token_endpoint_auth_methods_supported": None},
    "empty_methods": {"token_endpoint_auth_methods_supported": []},
    "null_metadata": {
        "service_documentation": None,
        "op_policy_uri": "",
        "op_tos_uri": "not a url",
        "ui_locales_supported": "en",
        "scopes_supported": None,
        "response_types_supported": None,
        "response_modes_supported": [],
        "grant_types_supported": [None],
        "revocation_endpoint": "",
        "introspection_endpoint": "/relative",
        "client_id_metadata_document_supported": "maybe",
    },
}
_TOKENS: dict[str, Document] = {
    "expires_text": {"expires_in": "3600"},
    "expires_fraction": {"expires_in": 3600.5},
    "expires_null": {"expires_in": None},
    "expires_never": {"expires_in": -1},
    "expires_huge": {"expires_in": 10**13},
    "expires_word": {"expires_in": "soon"},
    "type_lower": {"token_type": "bearer"},
    "type_null": {"token_type": None},
    "scope_list": {"scope": ["read", "write"]},
    "scope_commas": {"scope": "read,write"},
    "scope_empty": {"scope": ""},
    "refresh_empty": {"refresh_token": ""},
    "refresh_null": {"refresh_token": None},
    "error_null": {"error": None, "ok": True},
    "unknown_type": {"token_type": "mac"},
}
_REGISTRATIONS: dict[str, Document] = {
    "secret_basic": {"client_secret": "sec+ret/%2B=", "token_endpoint_auth_method": "client_secret_basic"},
    "secret_no_method": {"client_secret": "sec/ret+", "token_endpoint_auth_method": None},
    "secret_post_only": {"client_secret": "sec/ret+", "token_endpoint_auth_method": None},
    "secret_empty_method": {"client_secret": "sec", "token_endpoint_auth_method": ""},
    "null_registration": {"client_uri": None, "logo_uri": "", "contacts": "ada", "tos_uri": "no url", "jwks_uri": None},
}


class OddOAuthServer:
    """Servers, and their requests for tokens by kind."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.token_requests: dict[str, list[tuple[dict[str, str], str, str]]] = defaultdict(list)
        self.authorize_requests: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.step_up: dict[str, str] = {}
        """Scope that tool calls of a kind need."""
        self.refused_calls: set[str] = set()
        """Kinds that accept a token for everything but tool calls."""
        self._tokens: dict[str, tuple[str, str]] = {}
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh_tokens: dict[str, tuple[str, str]] = {}
        self._clients: dict[str, Document] = {}

    def create_app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/.well-known/oauth-protected-resource/{kind}/mcp", self._describe_resource),
                Route("/.well-known/oauth-authorization-server/{kind}/as", self._describe_issuer),
                Route("/.well-known/oauth-authorization-server/{kind}/as/", self._describe_issuer),
                Route("/{kind}/as/register", self._register, methods=["POST"]),
                Route("/{kind}/as/authorize", self._authorize),
                Route("/{kind}/as/token", self._exchange, methods=["POST"]),
                Route("/{kind}/mcp", self._serve_mcp, methods=["GET", "POST", "DELETE"]),
            ]
        )

    def revoke_access(self, kind: str) -> None:
        """Revoke all access tokens of a kind; refresh tokens stay valid."""
        self._tokens = {token: value for token, value in self._tokens.items() if value[0] != kind}

    async def _describe_resource(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        issuer = f"{self.origin}/{kind}/as"
        document: Document = {"resource": f"{self.origin}/{kind}/mcp", "authorization_servers": [issuer]}
        if kind == "slash_in_resource":
            document["authorization_servers"] = [f"{issuer}/"]
        if kind == "null_metadata":
            document |= {"scopes_supported": None, "jwks_uri": "", "resource_documentation": "no url"}
            document |= {"bearer_methods_supported": "header", "resource_name": None}
        return JSONResponse(document)

    async def _describe_issuer(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        base = f"{self.origin}/{kind}/as"
        document: Document = {
            "issuer": base,
            "authorization_endpoint": f"{base}/authorize",
            "token_endpoint": f"{base}/token",
            "registration_endpoint": f"{base}/register",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_post", "client_secret_basic"],
            **_METADATA.get(kind, {}),
        }
        if kind in CLIENTS:
            del document["registration_endpoint"]
        if kind in ("slash_in_issuer", "slash_in_answer"):
            document["issuer"] += "/"
        if kind == "other_issuer":
            document["issuer"] += "/other"
        if kind == "query":
            document["authorization_endpoint"] += "?tenant=x&state=y"
            document["token_endpoint"] += "?tenant=x"
        return JSONResponse(document)

    async def _register(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        client = {**await request.json(), "client_id": f"client-{secrets.token_hex(4)}", **_REGISTRATIONS.get(kind, {})}
        self._clients[client["client_id"]] = client
        return JSONResponse(client, 201)

    async def _authorize(self, request: Request) -> Response:
        kind, pairs = request.path_params["kind"], request.query_params.multi_items()
        fields = dict(pairs)
        if kind == "query" and ("tenant", "x") not in pairs:
            return Response("tenant lost", 400)
        self.authorize_requests[kind].append(fields)
        code = secrets.token_hex(8)
        self._codes[code] = fields
        answer = {"code": code, "state": fields["state"]}
        if kind == "slash_in_answer":
            answer["iss"] = f"{self.origin}/{kind}/as/"
        if kind == "wrong_answer":
            answer["iss"] = f"{self.origin}/other/as"
        return RedirectResponse(f"{fields['redirect_uri']}?{urlencode(answer)}", 302)

    async def _exchange(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        authorization, accept = request.headers.get("authorization", ""), request.headers.get("accept", "")
        self.token_requests[kind].append((form, authorization, accept))
        if kind == "query" and request.query_params.get("tenant") != "x":
            return Response("tenant lost", 400)
        if not self._authenticates(kind, form, authorization):
            return JSONResponse({"error": "invalid_client"}, 401)
        if form["grant_type"] == "refresh_token":
            known = self._refresh_tokens.get(form["refresh_token"])
            if kind != "not_rotated":
                self._refresh_tokens.pop(form["refresh_token"], None)
            if known is None or kind == "error_200":
                return JSONResponse({"error": "bad_refresh_token"}, 200 if kind == "error_200" else 400)
            scope = known[1]
        else:
            scope = self._codes.pop(form["code"]).get("scope", "read")
        return self._answer(kind, self._issue(kind, scope, is_first=form["grant_type"] != "refresh_token"), accept)

    def _authenticates(self, kind: str, form: dict[str, str], authorization: str) -> bool:
        """Whether the client's id and secret are right."""
        given = form.get("client_id", ""), form.get("client_secret")
        if authorization.startswith("Basic "):
            if "post_only" in kind or given[1] is not None:
                return False
            name, _, secret = base64.b64decode(authorization[6:]).decode().partition(":")
            given = unquote_plus(name), unquote_plus(secret)
        expected = CLIENTS.get(kind)
        if expected is None:
            expected = ("cid", None)  # registered by hand, for a test of its own
        if kind not in CLIENTS and (client := self._clients.get(given[0])) is not None:
            expected = client["client_id"], client.get("client_secret")
        if kind in ("special", "plus", "secret_no_method", "secret_empty_method", "basic_by_entry"):
            return authorization.startswith("Basic ") and given == expected
        return given == expected

    def _issue(self, kind: str, scope: str, *, is_first: bool) -> Document:
        access, refresh = f"access-{secrets.token_hex(8)}", f"refresh-{secrets.token_hex(8)}"
        self._tokens[access], self._refresh_tokens[refresh] = (kind, scope), (kind, scope)
        token = {"access_token": access, "token_type": "Bearer", "expires_in": 3600, "scope": scope}
        token |= {} if kind == "not_rotated" and not is_first else {"refresh_token": refresh}
        return {**token, **_TOKENS.get(kind, {})}

    def _answer(self, kind: str, token: Document, accept: str) -> Response:
        is_form = kind == "always_form" or (kind == "form_unless_json" and "application/json" not in accept)
        if not is_form:
            return JSONResponse(token)
        return Response(urlencode(token), media_type="application/x-www-form-urlencoded")

    async def _serve_mcp(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        _, scope = self._tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "), (None, ""))
        metadata = f'resource_metadata="{self.origin}/.well-known/oauth-protected-resource/{kind}/mcp"'
        if not scope:
            return Response(status_code=401, headers={"WWW-Authenticate": f"Bearer {metadata}"})
        if request.method != "POST":
            return Response(status_code=405 if request.method == "GET" else 200)
        message = json.loads(await request.body())
        if "id" not in message:
            return Response(status_code=202)
        is_call = message["method"] == "tools/call"
        if is_call and kind in self.refused_calls:
            return Response(status_code=401, headers={"WWW-Authenticate": f"Bearer {metadata}"})
        needed = self.step_up.get(kind, "") if is_call else ""
        if not set(needed.split()) <= set(scope.split()):
            challenge = f'Bearer error="insufficient_scope", scope="{needed}", {metadata}'
            return Response(status_code=403, headers={"WWW-Authenticate": challenge})
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], **_handle(message["method"], kind)})


def _handle(method: str, kind: str) -> Document:
    now = int(time.time())
    info = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": kind, "version": "1"},
    }
    tool = {"name": "open", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
    results: dict[str, Document] = {
        "initialize": info,
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [{"type": "text", "text": f"the vault of {kind} at {now}"}]},
    }
    if method not in results:
        return {"error": {"code": -32601, "message": "Method not found"}}
    return {"result": results[method]}
