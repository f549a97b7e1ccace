"""Values that the packages exchange; row ids exist only in the store."""

from fnmatch import fnmatchcase
from functools import cached_property
from operator import add
from typing import Any, Literal
from uuid import UUID

import msgspec

from gateway.domain.branches import FollowUp, TurnOrigin
from gateway.domain.caller_token import CallerToken
from gateway.domain.direct_calls import DirectCall
from gateway.domain.errors import ErrorInfo
from gateway.domain.server_tasks import ServerTask

Role = Literal["system", "user", "assistant", "tool"]
Outcome = Literal["ok", "error", "unknown", "denied"]
Approval = Literal["never", "destructive", "always"]
Action = Literal["accept", "decline", "cancel", "expire"]
JsonObject = dict[str, Any]
JSON_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of msgspec: not JSON, not UTF-8, or nested too deeply."""
UserRole = Literal["admin", "user", "viewer"]
Area = Literal["chat", "history", "tools", "servers", "keys", "metrics", "admin"]
GatewayTools = Literal["auto", "all", "none"]
"""Gateway tools by default; `auto`: none beside the client's own."""
CodeMode = Literal["off", "auto", "only"]
"""Whether a model may write programs that call the tools."""
RequestedCode = CodeMode | Literal["key"] | None
"""Mode of a request: its key's, else off (`key`) or CODE_MODE (None)."""


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits on usage per day and per month, in UTC. None: unlimited."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None


class KeyLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rate limits of a key, in addition to those of its owner.

    None: only the owner's limits apply. `requests` counts all classes of routes together, in any window of
    `window_seconds`. `streams` are open at once.
    """

    requests: int | None = None
    window_seconds: int = 60
    streams: int | None = None


class Principal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caller.

    `user` owns what the request creates; `key` names the credential, never its secret. `key` is None if authentication
    is off. `scopes` are the areas that the credential permits; `models`, `servers` and `tools` are globs of what it may
    use; None permits everything. `budget`, `limits`, `gateway_tools` and `code` belong to the credential. `headers` (to
    forward to MCP servers) and `token` (to exchange) are not stored. With a `toolset`, the caller sees that alone.
    """

    user: str
    role: UserRole = "user"
    key: str | None = None
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    scopes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    servers: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    budget: Budget | None = None
    limits: KeyLimits | None = None
    gateway_tools: GatewayTools | None = None
    code: CodeMode | None = None
    toolset: str | None = None
    token: CallerToken | None = None

    def has_scope(self, area: Area) -> bool:
        return self.scopes is None or area in self.scopes

    @property
    def can_use_all_tools(self) -> bool:
        """True if neither an allow list nor a toolset restricts the tools."""
        return self.servers is None and self.tools is None and self.toolset is None

    def can_use_model(self, model: str) -> bool:
        return matches_any_glob(model, self.models)

    def can_use_server(self, server: str) -> bool:
        return matches_any_glob(server, self.servers)

    def can_use_tool(self, spec: "ToolSpec") -> bool:
        """True if the allow lists permit a tool or it is client-side."""
        if spec.client or not matches_any_glob(spec.server, self.servers):
            return spec.client
        return any(matches_any_glob(name, self.tools) for name in (spec.identity, *spec.aliases))


def matches_any_glob(name: str, globs: tuple[str, ...] | None) -> bool:
    """True if a glob matches the name; None matches every name."""
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)


LOCAL_PRINCIPAL = Principal(user="local", role="admin")


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool call as the model wrote it.

    `arguments` is text that is usually, but not always, a JSON object. `problem` tells the model why the call cannot be
    made. The model's server gets `extra_content` back as it came, for example a signature of the model's thoughts, and
    `model_id`, the model's own id, in place of an `id` that the gateway chose.
    """

    id: str
    name: str
    arguments: str
    problem: str = ""
    extra_content: Any = None
    model_id: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chat message in OpenAI's shape.

    `content` is text, a list of content parts, or None with tool calls or a `refusal`, the model's words.
    """

    role: Role
    content: str | list[JsonObject] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """Text of the content, without parts of other types, or the refusal."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return self.content or self.refusal or ""


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """A tool that models can call.

    `name` is unique in the toolbox and valid for Groq; `tool` is the name at the server. A `client` tool has no server:
    the client runs it and sends the result in its next request. A `helper` is a tool that the gateway itself runs:
    `find_tools`, `batch`, the sign-in to a server, and reading a server's resources and prompts. `read_only`,
    `destructive`, `idempotent` and `open_world` are MCP's annotations, with its defaults. `title`, `description` and
    `input_schema` of a server's tool are sanitized and cut, for models and people; `definition` has the originals.
    A tool that is not `for_model` is for the pages of MCP Apps that a host shows.
    """

    name: str
    server: str
    tool: str
    description: str
    input_schema: JsonObject
    title: str | None = None
    output_schema: JsonObject | None = None
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True
    approval: Approval = "never"
    client: bool = False
    helper: bool = False
    for_model: bool = True
    deduplicates: bool = False
    """The tool takes effect once per idempotency key."""
    definition: JsonObject | None = None
    """The server's own definition without the name, in MCP's format."""
    former_names: tuple[str, ...] = ()
    """Names that the tool may have had in release 0.1.0."""
    aliases: tuple[str, ...] = ()
    """The former names that cannot be those of another server's tool."""
    original_name: str = ""
    """The name outside of a toolset that renames the tool."""
    runs_as_task: bool = False
    """Hosts may run calls of the tool as tasks."""

    @property
    def identity(self) -> str:
        """Name outside of toolsets, which allow and deny lists match."""
        return self.original_name or self.name

    @property
    def is_repeatable(self) -> bool:
        """Whether a call that was interrupted may run again."""
        return self.read_only or self.idempotent or self.deduplicates

    @cached_property
    def function_json(self) -> msgspec.Raw:
        """JSON of the tool in OpenAI's shape, cached for every step."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return msgspec.Raw(msgspec.json.encode({"type": "function", "function": function}))

    @cached_property
    def prompt_chars(self) -> int:
        """Number of characters that the tool takes in a prompt."""
        return len(self.name) + len(self.description) + len(msgspec.json.encode(self.input_schema))


class ToolResult(msgspec.Struct, frozen=True):
    """Result of a call.

    `content` holds MCP content blocks as JSON, `structured` the tool's own JSON, if any. `refusal` is the JSON-RPC
    error with which the server refused the call: its code, message and data. `meta` is the server's `_meta`, for hosts.
    """

    outcome: Outcome
    content: list[JsonObject]
    structured: Any = None
    refusal: JsonObject | None = None
    meta: JsonObject | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens and times (in seconds) as the model's server reported them.

    `queue_time` is the wait before the model started, `model_time` covers prompt and answer, `generation_time` only the
    answer.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_time: float = 0.0
    model_time: float = 0.0
    generation_time: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Generation speed; None if the server does not report the generation time."""
        return round(self.completion_tokens / self.generation_time, 2) if self.generation_time else None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters of a model call. None: the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    parallel_tool_calls: bool | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning_format: str | None = None
    include_reasoning: bool | None = None

    def with_defaults(self, defaults: "Parameters") -> "Parameters":
        """Return these parameters, completed by defaults."""
        set_fields = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(defaults, **set_fields)


ToolChoice = str | JsonObject
"""`auto`, `none`, `required`, `{"type": "function", "function": {"name": …}}`, or allowed tools.

The latter are `{"type": "allowed_tools", "mode": "auto" or "required", "names": […]}`.
"""


class TurnRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user request, the same for all wire formats.

    An empty `model` selects the administrator's default. `system` follows the gateway's own system prompt. `tools`
    lists the allowed names (None: all); the client runs `client_tools` itself. `conversation_id` is an id, "new", or
    None for a turn without a conversation. `parent_turn_id` is the turn to follow, if it is not the last of the
    conversation. `user_label` and `metadata` are the client's own notes. `on_disconnect`: what happens to the turn when
    its client disconnects. `warnings` of the wire format are shown when the turn starts. A request with the
    `idempotency_key` of an earlier turn gets that turn. `approval` is the strictness for all tools; `approve` names
    tools whose calls a person must approve. `response_format` is that of OpenAI's API. Without `store`, no texts are
    stored. With `drop_unsupported`, parameters that the model does not support are dropped with a warning. With
    `cache_ttl`, an answer to an equal request may be reused for that many seconds. `echo` is stored for the wire
    format, which returns it when the turn is read. `origin` and `follow_ups` belong to forks and replays. Equal
    requests of a caller have the same `request_hash`. `webhook_url` is told when the turn ends or asks. `message_paths`
    are the client's names of the messages in errors, if these are not its own list `messages`. `code` says whether the
    model may write programs (None: as the administrator set it). `toolset` is the one whose tools alone are offered.
    A turn with a `direct_call` consists of it, and asks no model.
    """

    messages: tuple[Message, ...]
    model: str = ""
    parameters: Parameters = Parameters()
    tools: tuple[str, ...] | None = None
    tool_choice: ToolChoice | None = None
    conversation_id: str | None = None
    system: str | None = None
    user_label: str | None = None
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    warnings: tuple[str, ...] = ()
    idempotency_key: str | None = None
    approval: Approval = "never"
    store: bool = True
    parent_turn_id: UUID | None = None
    client_tools: tuple[ToolSpec, ...] = ()
    response_format: JsonObject | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    approve: tuple[str, ...] = ()
    drop_unsupported: bool = False
    cache_ttl: int | None = None
    echo: JsonObject | None = None
    origin: TurnOrigin | None = None
    follow_ups: tuple[FollowUp, ...] = ()
    request_hash: str | None = None
    webhook_url: str | None = None
    message_paths: tuple[str, ...] = ()
    code: RequestedCode = "key"
    toolset: str | None = None
    direct_call: DirectCall | None = None

    @property
    def prompt(self) -> str:
        """Text of the last user message."""
        if self.follow_ups:
            return self.follow_ups[-1].text
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")


class TurnRecord(msgspec.Struct, frozen=True):
    """A turn at its start.

    `model` is the model in use, which may be the target of an alias. `caller` is the principal that started the turn,
    if authentication is on. A resumed turn keeps its rights. `epoch` is the number of claims by workers; `attempts`
    counts the workers that died or lost their lease since the last completed step. `trace_context` has the W3C headers
    of the request's trace and its wire format, if traces or metrics are on.
    """

    id: UUID
    owner: str
    request: TurnRequest
    model: str
    conversation_id: UUID | None = None
    request_id: str | None = None
    caller: Principal | None = None
    epoch: int = 0
    attempts: int = 0
    trace_context: dict[str, str] | None = None

    @property
    def principal(self) -> Principal:
        """The caller with its rights, also if no authentication asked for it."""
        principal = self.caller or (LOCAL_PRINCIPAL if self.owner == LOCAL_PRINCIPAL.user else Principal(self.owner))
        return msgspec.structs.replace(principal, toolset=self.request.toolset or principal.toolset)


MAX_ATTEMPTS = 3
"""Maximum number of attempts to complete a step, by as many workers."""


class TurnClaim(msgspec.Struct, frozen=True):
    """A turn that this worker has claimed. See `TurnRecord`."""

    turn_id: UUID
    epoch: int
    attempts: int

    @property
    def is_last_attempt(self) -> bool:
        """Whether the turn fails if this worker dies, too."""
        return self.attempts == MAX_ATTEMPTS - 1


class TurnOutcome(msgspec.Struct, frozen=True):
    """End of a turn as it is stored.

    `messages` are those of the request and those that the turn added. `prompt` is that of the request, if known.
    """

    status: Literal["completed", "failed", "cancelled"]
    messages: tuple[Message, ...]
    response: str
    steps: int
    usage: Usage
    duration_ms: float
    finish_reason: str | None = None
    error: ErrorInfo | None = None
    cost_usd: float | None = None
    first_token_ms: float | None = None
    cached: bool = False
    prompt: str | None = None


class Question(msgspec.Struct, frozen=True):
    """Question that a call must have answered before it continues.

    `schema` describes the content of an answer. `key` is the name that the MCP server gave the question; `url` is a
    page to visit instead of an answer with content: the gateway's own with kind `authorization`, a page that the
    server names with kind `url`. `held`: the server keeps its call open for the answer (inline
    elicitation), so only the worker that made the call can deliver it. `login` is the MCP server that the user must
    sign in to. Kind `host` is a `request` for sampling or roots to the host of the call, in MCP's format.
    `elicitation_id` is the server's id of a visit to a page, whose end it announces.
    """

    key: str
    kind: Literal["question", "approval", "authorization", "url", "host"]
    message: str
    schema: JsonObject | None = None
    url: str | None = None
    held: bool = False
    login: str | None = None
    request: JsonObject | None = None
    elicitation_id: str | None = None


class PendingInput(msgspec.Struct, frozen=True):
    """Questions that a call asked instead of returning a result.

    `state` is the server's, and goes back with the answers. Without questions, the call waits for its `task`.
    """

    questions: tuple[Question, ...]
    state: str | None = None
    task: ServerTask | None = None


class Answer(msgspec.Struct, frozen=True):
    """Decision of a person on a question. `by` names the person."""

    action: Action
    content: JsonObject | None = None
    by: str | None = None


class StoredQuestion(msgspec.Struct, frozen=True):
    """Stored question of a turn, with its answer if there is one."""

    id: UUID
    call_id: str
    question: Question
    state: str | None = None
    answer: Answer | None = None


def text_block(text: str) -> JsonObject:
    """Build an MCP content block of plain text."""
    return {"type": "text", "text": text}
