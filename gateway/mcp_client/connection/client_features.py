"""Sampling and roots, which the gateway offers to servers."""

from collections.abc import Sequence

import msgspec
from mcp.types import CreateMessageRequest, CreateMessageRequestParams, ListRootsRequest

from gateway.common.sanitize import clean_text, sanitize_value
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import JsonObject, Question
from gateway.mcp_client.connection.client_capabilities import DIRECT_CALL, GATEWAY_CAPABILITIES
from gateway.mcp_client.elicitation import make_host_request
from gateway.ports.servers import ServerConfig

_MAX_EXCERPT_LENGTH = 3_000
_NO_CONTENT: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}


def declare_features(config: ServerConfig, host_capabilities: JsonObject | None) -> JsonObject:
    """Return the capabilities of sessions with a server.

    `host_capabilities`: those of a session for hosts. None: the session is the gateway's own.
    """
    sampling: JsonObject = {} if config.sampling == "off" else {"sampling": {"tools": {}}}
    own = GATEWAY_CAPABILITIES | sampling if host_capabilities is None else host_capabilities
    return _add_roots(config, own)


def declare_to_modern_server(config: ServerConfig, host: HostProfile | None) -> HostProfile:
    """Return the profile for a modern server, outside of turns.

    The gateway answers with the entry's roots for callers that have none.
    """
    caller = host or DIRECT_CALL
    return msgspec.structs.replace(caller, capabilities=_add_roots(config, caller.capabilities))


def _add_roots(config: ServerConfig, capabilities: JsonObject) -> JsonObject:
    roots: JsonObject = {"roots": {}} if config.roots else {}
    return roots | capabilities


def parse_request_for_turn(
    config: ServerConfig | None, key: str, request: CreateMessageRequest | ListRootsRequest
) -> Question | None:
    """Make the question that a request is to a turn.

    None if the entry does not allow the request; `config`: None outside of turns. With sampling `ask`, a person
    approves the request first.

    Raises:
        UnsupportedElicitation: its key is too long.
    """
    if config is None:
        return None
    if isinstance(request, ListRootsRequest):
        return make_host_request(key, request) if config.roots else None
    if config.sampling == "off":
        return None
    question = make_host_request(key, request)
    question = msgspec.structs.replace(question, request=sanitize_value(question.request))
    return require_approval(question, config.name) if config.sampling == "ask" else question


def require_approval(question: Question, server: str) -> Question:
    """Return a server's request as a question whether it may be answered."""
    assert question.request is not None
    if question.request["method"] == "roots/list":
        message = f"May the MCP server {server} read the list of directories in its configuration?"
    else:
        message = _describe_sampling(CreateMessageRequestParams.model_validate(question.request["params"]), server)
    return msgspec.structs.replace(question, kind="approval", message=message, schema=_NO_CONTENT)


def _describe_sampling(params: CreateMessageRequestParams, server: str) -> str:
    """Describe a request for a person, with the begin of its text."""
    texts = [f"system: {params.system_prompt}"] if params.system_prompt else []
    for message in params.messages:
        texts += [f"{message.role}: {_describe_block(block)}" for block in message.content_as_list]
    text = "\n".join(texts)
    cut = f" [… {len(text) - _MAX_EXCERPT_LENGTH:,} more characters]" if len(text) > _MAX_EXCERPT_LENGTH else ""
    tools = f" with {len(params.tools)} tools of its own" if params.tools else ""
    head = f"May the MCP server {server} use the model{tools}, for an answer of up to {params.max_tokens:,} tokens?"
    return f"{head} It sends: {clean_text(text, _MAX_EXCERPT_LENGTH)}{cut}"


def _describe_block(block: object) -> str:
    text = getattr(block, "text", None)
    return text if isinstance(text, str) else f"[{getattr(block, 'type', 'content')}]"


def require_approval_beside_people(questions: Sequence[Question], server: str) -> tuple[Question, ...]:
    """Require approvals beside other questions to a person.

    The call goes on when all have answers.
    """
    if all(question.kind == "host" for question in questions):
        return tuple(questions)
    return tuple(require_approval(question, server) if question.kind == "host" else question for question in questions)
