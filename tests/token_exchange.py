"""An authorization server that exchanges tokens, and an MCP server for them."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from gateway.simulator import Simulator
from tests.gateway.api.test_jwt import AUDIENCE, JwksProvider
from tests.stack import Gateway, serve_asgi, serve_gateway

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
CLIENT_SECRET = "the-secret-of-the-gateway"
INITIALIZED = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}, "prompts": {}},
    "serverInfo": {"name": "s", "version": "1"},
}
Answer = Callable[[dict[str, str]], Awaitable[Response]]


class ExchangeStack:
    """Both servers. `answer` replaces the answers of the token endpoint."""

    def __init__(self) -> None:
        self.url = ""
        self.keys = JwksProvider()
        self.keys.add_key("key")
        self.forms: list[dict[str, str]] = []
        self.received: list[str] = []
        """Tokens that the MCP server received."""
        self.revoked: set[str] = set()
        self.lifetime = 600
        self.answer: Answer | None = None

    @property
    def resource(self) -> str:
        return f"{self.url}/mcp"

    def create_app(self) -> Starlette:
        routes = [
            Route("/.well-known/oauth-authorization-server", self.describe),
            Route("/token", self.issue_token, methods=["POST"]),
            Route("/mcp", self.answer_mcp, methods=["GET", "POST", "DELETE"]),
            Mount("/jwks.json", self.keys),
        ]
        return Starlette(routes=routes)

    def sign_in(self, user: str, **claims: Any) -> dict[str, str]:
        """Return the headers with a token of the user, for the gateway."""
        return {"Authorization": f"Bearer {self.sign_user_token(user, **claims)}"}

    def sign_user_token(self, user: str, **claims: Any) -> str:
        return self.keys.sign_token("key", iss=self.url, aud=AUDIENCE, sub=user, jti=str(time.time_ns()), **claims)

    def sign_server_token(self, user: str, **claims: Any) -> str:
        return self.keys.sign_token(
            "key", **({"iss": self.url, "aud": self.resource, "sub": user, "jti": str(time.time_ns())} | claims)
        )

    async def describe(self, _request: Request) -> Response:
        return JSONResponse({"issuer": self.url, "token_endpoint": f"{self.url}/token"})

    async def issue_token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.forms.append(form)
        if self.answer is not None:
            return await self.answer(form)
        assert form["grant_type"] == EXCHANGE
        try:
            claims = self._verify(form["subject_token"], AUDIENCE)
        except jwt.PyJWTError:
            return JSONResponse({"error": "invalid_grant", "error_description": "a-secret"}, status_code=400)
        return self.make_answer(self.sign_server_token(claims["sub"], aud=form.get("resource", form.get("audience"))))

    def make_answer(self, token: str, **fields: Any) -> Response:
        answer = {"access_token": token, "token_type": "Bearer", "issued_token_type": ACCESS_TOKEN}
        return JSONResponse({**answer, "expires_in": self.lifetime, **fields})

    async def answer_mcp(self, request: Request) -> Response:
        """Offer a tool that bears the name of the token's user."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.received.append(token)
        try:
            if token in self.revoked:
                raise jwt.InvalidTokenError
            user = self._verify(token, self.resource)["sub"]
        except jwt.PyJWTError:
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        if request.method != "POST":
            return Response(status_code=405)
        message = await request.json()
        if "id" not in message:
            return Response(status_code=202)
        tool = {"name": f"open_{user}", "description": f"Opens the safe of {user}.", "inputSchema": {"type": "object"}}
        results: dict[str, Any] = {
            "initialize": INITIALIZED,
            "tools/list": {"tools": [tool]},
            "prompts/list": {"prompts": [{"name": f"greet_{user}"}]},
            "tools/call": {"content": [{"type": "text", "text": f"the safe of {user}"}]},
        }
        if message["method"] not in results:
            error = {"code": -32601, "message": "Method not found"}
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]})

    def _verify(self, token: str, audience: str) -> dict[str, Any]:
        public_key = self.keys.export_public_pem("key")
        return jwt.decode(token, public_key, algorithms=["RS256"], audience=audience, issuer=self.url)


@asynccontextmanager
async def serve_exchange() -> AsyncGenerator[ExchangeStack]:
    stack = ExchangeStack()
    async with serve_asgi(stack.create_app()) as url:
        stack.url = url
        yield stack


@asynccontextmanager
async def serve_exchanging_gateway(
    database_url: str, simulator: Simulator, stack: ExchangeStack, directory: Path, **values: Any
) -> AsyncGenerator[Gateway]:
    """A gateway that exchanges its callers' tokens."""
    oauth = {"grant_type": "token_exchange", "issuer": stack.url, "client_id": "gateway"}
    oauth |= {"client_secret": CLIENT_SECRET, **values.pop("oauth", {})}
    entry = {"url": stack.resource, "share": "user", "oauth": oauth, **values.pop("entry", {})}
    file = directory / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"s": entry}}))
    settings = {
        "mcp_config": file,
        "gateway_data_dir": directory,
        "jwt_jwks_url": f"{stack.url}/jwks.json",
        "jwt_issuer": stack.url,
        "jwt_audience": AUDIENCE,
        "tools_server_secret": None,
    }
    async with serve_gateway(database_url, simulator, None, **settings | values) as gateway:
        yield gateway
