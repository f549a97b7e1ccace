"""The MCP client under the conformance suite: the gateway's toolbox."""

import asyncio
import json
import math
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx2
from pydantic import SecretStr

from gateway.config import Settings
from gateway.domain.caller_token import JWT_KEY, CallerToken
from gateway.domain.errors import GatewayError
from gateway.domain.grants import AuthorizationRequest, Grant
from gateway.domain.messages import Answer, PendingInput, Principal, Question, StoredQuestion, ToolSpec
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.grants import RefreshClaim
from gateway.ports.tools import ToolCallRequest

_NO_INPUT_ID = UUID(int=0)
ADA = Principal("ada", role="admin")


class InMemoryGrantStore:
    """Stores the grant and the sign-ins of one scenario in memory."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self._requests: dict[str, AuthorizationRequest] = {}
        self._states: dict[str, str] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._outcomes: dict[str, str] = {}
        self._challenge: str | None = None

    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        return self.grant

    @asynccontextmanager
    async def begin_transaction(self, server: str, owner: str, url: str) -> AsyncGenerator["InMemoryGrantStore"]:
        yield self

    async def claim_refresh(self, server: str, owner: str, url: str, *, seconds: float) -> RefreshClaim:
        return RefreshClaim(self.grant, b"")

    async def save_refreshed(
        self, server: str, owner: str, url: str, claim: RefreshClaim, grant: Grant | None
    ) -> Grant | None:
        self.grant = grant
        return grant

    async def delete_grant(self, server: str, owner: str, url: str, *, by: str) -> None:
        self.grant = None

    async def save_challenge(self, server: str, owner: str, url: str, challenge: str) -> None:
        self._challenge = challenge

    async def get_challenge(self, server: str, owner: str, url: str) -> str | None:
        return self._challenge

    async def save_request(self, ticket: str, request: AuthorizationRequest) -> None:
        self._requests[ticket] = request

    async def find_request(self, ticket: str) -> AuthorizationRequest | None:
        return self._requests.get(ticket)

    async def expect_callback(self, ticket: str, state: str) -> None:
        self._states[ticket] = state

    async def save_callback(self, ticket: str, state: str, answer: dict[str, Any]) -> bool:
        self._answers[ticket] = answer
        return self._states.get(ticket) == state

    async def get_callback(self, ticket: str, state: str) -> dict[str, Any] | None:
        return self._answers.get(ticket) if self._states.get(ticket) == state else None

    async def save_outcome(self, ticket: str, outcome: str) -> None:
        self._outcomes[ticket] = outcome

    async def get_outcome(self, ticket: str) -> str | None:
        return self._outcomes.get(ticket)


async def sign_in(toolbox: McpToolbox, url: str) -> None:
    """Sign in like a user's browser."""
    ticket = parse_qs(urlsplit(url).query)["ticket"][0]
    async with httpx2.AsyncClient(timeout=30) as browser:
        answer = await browser.get(await toolbox.sign_in.begin_sign_in(ticket))
    callback = parse_qs(urlsplit(answer.headers["Location"]).query)
    await toolbox.sign_in.finish_sign_in(ticket, {name: values[0] for name, values in callback.items()})


class AcceptingObserver:
    """Ignores notifications and accepts each question with its defaults."""

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        pass

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        pass

    def on_visit_ended(self, elicitation_id: str) -> None:
        pass

    async def ask_user(self, question: Question) -> Answer:
        return Answer("accept", make_value(question.schema or {}))


def make_value(schema: Any) -> Any:
    """Return a schema's default, first choice or a value of its type."""
    if "default" in schema:
        return schema["default"]
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            required = set(schema.get("required", ()))
            fields = schema.get("properties", {}).items()
            return {name: make_value(field) for name, field in fields if name in required or "default" in field}
        case "integer" | "number":
            return 5
        case "boolean":
            return True
        case "array":
            return []
        case _:
            return "text"


def make_arguments(spec: ToolSpec, toolbox: McpToolbox) -> dict[str, Any]:
    """Return arguments for a call.

    A `schema` argument is the schema of another tool.
    """
    if "schema" in spec.input_schema.get("properties", {}):
        return {"schema": next(other.input_schema for other in toolbox.list_specs() if other is not spec)}
    return make_value(spec.input_schema)


async def call_tool(toolbox: McpToolbox, spec: ToolSpec, arguments: dict[str, Any], caller: Principal) -> None:
    answers: list[StoredQuestion] = []
    for _ in range(5):
        result = await toolbox.call_tool(ToolCallRequest(spec, arguments, caller, AcceptingObserver(), answers))
        if not isinstance(result, PendingInput):
            return
        for question in result.questions:
            if question.login and question.url:
                await sign_in(toolbox, question.url)
        observer = AcceptingObserver()
        answers = [
            StoredQuestion(
                id=_NO_INPUT_ID, call_id="", question=q, state=result.state, answer=await observer.ask_user(q)
            )
            for q in result.questions
        ]


async def find_issuer(url: str) -> str:
    """Return the issuer of a server's tokens, which an administrator would know."""
    origin = url.removesuffix("/mcp")
    async with httpx2.AsyncClient(timeout=30) as client:
        for path in ("/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"):
            answer = await client.get(origin + path)
            if answer.is_success:
                return answer.json()["authorization_servers"][0]
    raise AssertionError("the server names no authorization server")


async def build_client_entry(url: str, context: dict[str, Any], scenario: str, directory: Path) -> dict[str, Any]:
    """Build the fields of a server's entry from a scenario's credentials."""
    oauth = {key: context[key] for key in ("client_id", "client_secret") if context.get(key)}
    if scenario.startswith("auth/client-credentials"):
        oauth |= {"grant_type": "client_credentials", "issuer": await find_issuer(url)}
        if key := context.get("private_key_pem"):
            oauth |= {"private_key": key, "signing_algorithm": context["signing_algorithm"]}
    if scenario == "auth/wif-jwt-bearer":
        file = directory / "assertion.jwt"
        file.write_text(context["valid_jwt"])
        oauth |= {"grant_type": "jwt_bearer", "issuer": await find_issuer(url), "assertion_file": str(file)}
    if scenario == "auth/enterprise-managed-authorization":
        provider = {"issuer": context["idp_issuer"], "client_id": context["idp_client_id"]}
        oauth |= {"grant_type": "identity_assertion", "issuer": await find_issuer(url), "identity_provider": provider}
        return {"oauth": oauth, "share": "user"}
    return {"oauth": oauth or None}


def build_caller(context: dict[str, Any]) -> Principal:
    """The scenario's user, with the user's own token if there is one."""
    if (token := context.get("idp_id_token")) is None:
        return ADA
    return Principal(
        "ada", role="admin", key=JWT_KEY, token=CallerToken(SecretStr(token), math.inf, context["idp_issuer"])
    )


async def run_scenario(url: str, context: dict[str, Any], scenario: str = "") -> None:
    """Run a scenario: connect, sign in if required, and call each tool."""
    settings, caller = Settings(_env_file=None), build_caller(context)  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory(prefix="agw-") as directory:
        entry = await build_client_entry(url, context, scenario, Path(directory))
        server = ServerConfig.model_validate({"name": "suite", "url": url, "prefix": "", **entry})
        toolbox = McpToolbox([server], settings, grants=InMemoryGrantStore())
        assert toolbox.sign_in_service is not None
        toolbox.sign_in_service.on_change = toolbox.on_grants_changed  # as the composition root does
        await toolbox.connect_servers()
        try:
            await use_server(toolbox, caller, context.get("toolCalls"))
        finally:
            await toolbox.disconnect_servers()


async def use_server(toolbox: McpToolbox, caller: Principal, tool_calls: list[dict[str, Any]] | None) -> None:
    await toolbox.wait_until_connected(10)
    await toolbox.connect_user(caller)
    if (sign_in_tool := toolbox.find_tool("sign_in")) is not None:
        await call_tool(toolbox, sign_in_tool, {}, caller)
        await toolbox.wait_until_connected(10)
    for spec in toolbox.list_specs(caller):
        arguments = [call["arguments"] for call in tool_calls or () if call["name"] == spec.tool]
        await asyncio.gather(
            *(
                call_tool(toolbox, spec, values, caller)
                for values in arguments or ([] if tool_calls else [make_arguments(spec, toolbox)])
            )
        )


@asynccontextmanager
async def serve_client_scenarios(path: str) -> AsyncGenerator[None]:
    """Serve a Unix socket to which `run_scenario.py` sends scenarios."""

    async def handle_scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scenario = json.loads(await reader.readline())
        try:
            await run_scenario(scenario["url"], scenario["context"], scenario["scenario"])
        except GatewayError:  # some scenarios expect a refused sign-in
            writer.write(b"1")
        else:
            writer.write(b"0")
        finally:
            writer.close()

    async with await asyncio.start_unix_server(handle_scenario, path):
        yield
