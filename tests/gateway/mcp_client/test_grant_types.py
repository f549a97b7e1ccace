"""Grants without a page: assertions of workloads and of identity providers."""

import math
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr, ValidationError
from starlette.responses import JSONResponse, Response

from gateway.domain.caller_token import JWT_KEY, CallerToken
from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import acting_for
from gateway.mcp_client.connection.errors import TokenUnavailable
from gateway.mcp_client.oauth.grants import renewed_token
from gateway.mcp_client.oauth.grants.caller_tokens import CallerTokenProvider
from gateway.mcp_client.oauth.grants.gateway_tokens import GatewayTokenProvider
from gateway.ports.servers import ServerConfig
from tests.token_exchange import EXCHANGE, ExchangeStack, serve_exchange

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ID_JAG = "urn:ietf:params:oauth:token-type:id-jag"
FIELDS: dict[str, Any] = {"client_id": "gateway", "issuer": "https://login.example"}
PROVIDER = {"client_id": "gateway", "issuer": "https://idp.example"}


@pytest.fixture
async def stack() -> AsyncGenerator[ExchangeStack]:
    async with serve_exchange() as stack:
        yield stack


def configure(stack: ExchangeStack, grant: str, **oauth: Any) -> ServerConfig:
    fields = {"grant_type": grant, "client_id": "gateway", "issuer": stack.url, **oauth}
    share = "user" if grant in ("token_exchange", "identity_assertion") else "all"
    return ServerConfig.model_validate({"name": "s", "url": stack.resource, "share": share, "oauth": fields})


def accept_all(stack: ExchangeStack, **fields: Any) -> None:
    """Let the token endpoint give a token for everything."""

    async def answer(form: dict[str, str]) -> Response:
        return stack.make_answer(f"token-{len(stack.forms)}", **fields)

    stack.answer = answer


async def test_assertion_of_the_workload_is_read_again_for_each_token(stack: ExchangeStack, tmp_path: Path) -> None:
    accept_all(stack)
    file = tmp_path / "assertion"
    tokens = GatewayTokenProvider(configure(stack, "jwt_bearer", assertion_file=str(file), scope="read"))
    for number, assertion in enumerate(("first.assertion", "second.assertion"), start=1):
        file.write_text(f"{assertion}\n")
        token = await tokens.replace_token(await tokens.get_token()) if number > 1 else await tokens.get_token()
        assert token == f"token-{number}"
        form = stack.forms[-1]
        assert (form["grant_type"], form["assertion"], form["scope"]) == (JWT_BEARER, assertion, "read")
        assert form["resource"] == stack.resource


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "huge", "empty", "text"])
async def test_odd_assertion_file_is_sent_nowhere(stack: ExchangeStack, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "assertion"
    contents = {"huge": "x" * 100_000, "empty": "", "text": "two words"}
    if kind in contents:
        file.write_text(contents[kind])
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    tokens = GatewayTokenProvider(configure(stack, "jwt_bearer", assertion_file=str(file)))
    with pytest.raises(httpx2.ConnectError):
        await tokens.get_token()
    assert stack.forms == []


async def test_refused_assertion_is_not_repeated_at_once(
    stack: ExchangeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewed_token, "_MIN_BACKOFF_SECONDS", 30.0)  # on a stalled machine half a second is over

    async def refuse(_form: dict[str, str]) -> Response:
        return JSONResponse({"error": "invalid_grant"}, status_code=400)

    stack.answer = refuse
    file = tmp_path / "assertion"
    file.write_text("of.the.platform")
    tokens = GatewayTokenProvider(configure(stack, "jwt_bearer", assertion_file=str(file)))
    for _ in range(5):
        with pytest.raises(TokenUnavailable, match="refuses the gateway's credentials"):
            await tokens.get_token()
    assert len(stack.forms) == 1


def make_caller(user: str = "ada", **fields: Any) -> Principal:
    token = CallerToken(SecretStr(f"id-token-of-{user}"), math.inf, "https://idp.example")
    return Principal(user, **{"key": JWT_KEY, "token": token, **fields})


async def test_identity_assertion_goes_from_the_provider_to_the_issuer(stack: ExchangeStack) -> None:
    async with AsyncExitStack() as exits:
        idp = await exits.enter_async_context(serve_exchange())
        accept_all(idp, issued_token_type=ID_JAG, token_type="N_A")
        accept_all(stack)
        provider = {"issuer": idp.url, "client_id": "at-idp", "client_secret": "s"}
        tokens = CallerTokenProvider(configure(stack, "identity_assertion", identity_provider=provider), "ada")
        with acting_for(make_caller()):
            assert await tokens.get_token() == "token-1"
        assert idp.forms[0]["grant_type"] == EXCHANGE
        assert idp.forms[0]["subject_token"] == "id-token-of-ada"
        assert (idp.forms[0]["audience"], idp.forms[0]["resource"]) == (stack.url, stack.resource)
        assert (stack.forms[0]["grant_type"], stack.forms[0]["assertion"]) == (JWT_BEARER, "token-1")


async def test_provider_without_an_identity_assertion_leads_to_no_token(stack: ExchangeStack) -> None:
    async with AsyncExitStack() as exits:
        idp = await exits.enter_async_context(serve_exchange())
        accept_all(idp)
        accept_all(stack)
        provider = {"issuer": idp.url, "client_id": "at-idp"}
        tokens = CallerTokenProvider(configure(stack, "identity_assertion", identity_provider=provider), "ada")
        with acting_for(make_caller()), pytest.raises(TokenUnavailable):
            await tokens.get_token()
        assert (len(idp.forms), stack.forms) == (1, [])


async def test_metadata_of_another_issuer_are_refused(stack: ExchangeStack) -> None:
    accept_all(stack)
    config = configure(stack, "token_exchange", issuer=stack.url.replace("127.0.0.1", "localhost"))
    with acting_for(make_caller()), pytest.raises(TokenUnavailable):
        await CallerTokenProvider(config, "ada").get_token()
    assert stack.forms == []


@pytest.mark.parametrize(
    "caller", [make_caller("bob"), make_caller(key="agw_1234"), make_caller(key=None), make_caller(token=None)]
)
async def test_other_callers_get_no_token_of_a_user(stack: ExchangeStack, caller: Principal) -> None:
    accept_all(stack)
    tokens = CallerTokenProvider(configure(stack, "token_exchange"), "ada")
    with acting_for(make_caller(role="admin")):
        assert await tokens.get_token() == "token-1"
    for request in (tokens.get_token(), tokens.replace_token("token-1")):
        with acting_for(caller), pytest.raises(TokenUnavailable):
            await request
    with pytest.raises(TokenUnavailable):  # for nobody
        await tokens.get_token()
    assert len(stack.forms) == 1


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"oauth": {**FIELDS, "grant_type": "token_exchange"}}, '"share": "user"'),
        ({"share": "user", "oauth": {"client_id": "g", "grant_type": "token_exchange"}}, "needs the `issuer`"),
        ({"share": "user", "identity": "gateway", "oauth": {**FIELDS, "grant_type": "token_exchange"}}, "`identity`"),
        ({"oauth": {**FIELDS, "grant_type": "jwt_bearer"}}, "needs the field `assertion_file`"),
        ({"oauth": {**FIELDS, "audience": "x"}}, "`audience` is for token_exchange and identity_assertion"),
        ({"share": "user", "oauth": {**FIELDS, "grant_type": "identity_assertion"}}, "needs the field `identity_prov"),
        ({"oauth": {**FIELDS, "identity_provider": PROVIDER}}, "`identity_provider` is for identity_assertion"),
        ({"oauth": {**FIELDS, "identity_provider": {"client_id": "g"}}}, "needs the `issuer` of the callers' tokens"),
        ({"oauth": {**FIELDS, "client_secret": "s", "private_key": "p"}}, "not both"),
    ],
)
def test_entry_that_cannot_work_names_the_problem(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as error:
        ServerConfig.model_validate({"name": "s", "url": "https://mcp.example/mcp", **entry})
    assert problem in str(error.value)
