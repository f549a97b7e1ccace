"""The values that travel between the parts of the gateway. None has a row id: storage adds identity."""

from fnmatch import fnmatchcase
from functools import cached_property
from operator import add
from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec

from gateway.domain.errors import ErrorInfo

Role = Literal["system", "user", "assistant", "tool"]
Outcome = Literal["ok", "error", "unknown", "denied"]
Approval = Literal["never", "destructive", "always"]
Action = Literal["accept", "decline", "cancel", "expire"]
JsonObject = dict[str, Any]
NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises over what is no JSON, no UTF-8, or too deep."""


UserRole = Literal["admin", "user", "viewer"]
Area = Literal["chat", "history", "tools", "servers", "keys", "admin"]


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be used up in a day and in a month, in UTC. None: as much as one likes."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None


class KeyLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key's own, beside its owner's: `requests` in any `window_seconds`, in all classes of routes together, and
    `streams` that are open at once. None: as many as the owner may."""

    requests: int | None = None
    window_seconds: int = 60
    streams: int | None = None


class Principal(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is calling. `user` owns what the call makes; `key` names the credential, never its secret.

    Without a `key`, nobody has asked for one. `scopes` are the areas that the credential opens; `models`, `servers` and
    `tools` are globs over what it may use; None: all of them. `budget` and `limits` are the credential's own. `headers`
    are those of the request that MCP servers want passed on; they are kept nowhere.
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

    def may_enter(self, area: Area) -> bool:
        return self.scopes is None or area in self.scopes

    @property
    def may_use_all(self) -> bool:
        """Whether no tool is out of reach."""
        return self.servers is None and self.tools is None

    def may_ask(self, model: str) -> bool:
        return allowed(model, self.models)

    def may_reach(self, server: str) -> bool:
        return allowed(server, self.servers)

    def may_use(self, spec: "ToolSpec") -> bool:
        """Whether a tool is within the allow lists; one that the client runs itself always is."""
        return spec.client or (allowed(spec.server, self.servers) and allowed(spec.name, self.tools))


def allowed(name: str, globs: tuple[str, ...] | None) -> bool:
    """Whether an allow list, of globs, has a name; None has all."""
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)


LOCAL = Principal(user="local", role="admin")


class ToolCall(msgspec.Struct, frozen=True):
    """A call as the model wrote it: `arguments` is its text, usually but not surely a JSON object.

    `problem` says, in words for the model, why it cannot be made.
    """

    id: str
    name: str
    arguments: str
    problem: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message in OpenAI's shape. `content` is text, a list of content parts, or None beside tool calls."""

    role: Role
    content: str | list[JsonObject] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The readable text of the content; parts that are no text leave nothing."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return self.content or ""


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """A tool on offer. `name` is unique in the toolbox and fits Groq; `tool` is the server's own name for it.

    A `client` tool has no server: who sent the request runs it, and comes back with the result. A `helper` is the
    gateway's own way to a server's resources or prompts.
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

    @cached_property
    def function(self) -> msgspec.Raw:
        """The tool in OpenAI's shape, as JSON. It is written once: every step of every turn brings all of them."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return msgspec.Raw(msgspec.json.encode({"type": "function", "function": function}))

    @cached_property
    def chars(self) -> int:
        """How many characters of a prompt it takes."""
        return len(self.name) + len(self.description) + len(msgspec.json.encode(self.input_schema))


class ToolResult(msgspec.Struct, frozen=True):
    """What came of a call. `content` holds MCP content blocks as JSON; `structured` the tool's own JSON, if any.

    `refusal` is the JSON-RPC error with which the server refused the call: its code, message and data.
    """

    outcome: Outcome
    content: list[JsonObject]
    structured: Any = None
    refusal: JsonObject | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the model's server counted them; times in seconds as it reported them.

    `queue_time` is before the model began, `model_time` its reading and writing, `generation_time` the writing alone.
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
        """How fast the model wrote; None where its server does not say how long that took."""
        return round(self.completion_tokens / self.generation_time, 2) if self.generation_time else None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Spent(msgspec.Struct, frozen=True):
    """What has been used up so far today and this month, in UTC, by turns that run too; and what is set aside for the
    model calls that run now."""

    tokens_today: int = 0
    tokens_this_month: int = 0
    usd_today: float = 0.0
    usd_this_month: float = 0.0
    tokens_set_aside: int = 0
    usd_set_aside: float = 0.0


class Hold(msgspec.Struct, frozen=True):
    """What a turn that runs has used up, which is in no other sum yet, and what is set aside for its next step."""

    turn_id: UUID
    tokens: int
    usd: float
    step_tokens: int = 0
    step_usd: float = 0.0


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the model shall answer. None means: as the model's server has it."""

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

    def over(self, defaults: "Parameters") -> "Parameters":
        """These, with the defaults where they say nothing."""
        chosen = {f: getattr(self, f) for f in self.__struct_fields__ if getattr(self, f) is not None}
        return msgspec.structs.replace(defaults, **chosen)


ToolChoice = str | JsonObject
"""`auto`, `none`, `required`, or `{"type": "function", "function": {"name": …}}`."""


class TurnRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One user request, whatever wire format brought it. Without a `model`, the administrator's default answers it.

    `tools` lists the names that may be used (None: all), `client_tools` what the client runs itself. `conversation_id`
    is an id, "new", or None for a turn alone; `parent_turn_id` the turn that this one follows, where that is not the
    conversation's last. `approve` names tools whose calls a person must allow. `response_format` is OpenAI's. Without
    `store`, nothing that anybody said is kept; with `drop_unsupported`, parameters that the model does not take are
    left out with a warning. With `cache_ttl`, an answer to the same request that is no older than so many seconds may
    stand for a new one, and the new one is kept for as long. `echo` is what the wire format wants back when the turn is
    read again.
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

    @property
    def prompt(self) -> str:
        """The text of the last user message: what the turn is about."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")


class TurnRecord(msgspec.Struct, frozen=True):
    """A turn as it is known at its start. `model` is the one in use, which an alias may have put for the asked one.

    `caller` is who began it, where a credential was asked for: whoever goes on with the turn has no more rights.
    """

    id: UUID
    owner: str
    request: TurnRequest
    model: str
    conversation_id: UUID | None = None
    request_id: str | None = None
    caller: Principal | None = None


class TurnOutcome(msgspec.Struct, frozen=True):
    """What is kept of a turn at its end. `messages` are the request's own and all that the turn added."""

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


class KnownResponse(msgspec.Struct, frozen=True):
    """The answer of an earlier turn: the text of each step that said something, and the turn's finish reason."""

    texts: tuple[str, ...]
    finish_reason: str


class Question(msgspec.Struct, frozen=True):
    """What a call needs to know before it can go on. `schema` is the JSON schema of an accepting answer's content.

    `key` is the asker's own name for it; `url` a page to visit in place of an answer with content. `held`: the server
    holds its call open for the answer, so only the worker that made the call can pass it on. `login` is the MCP server
    that the gateway itself wants its user to sign in to.
    """

    key: str
    kind: Literal["question", "approval", "authorization"]
    message: str
    schema: JsonObject | None = None
    url: str | None = None
    held: bool = False
    login: str | None = None


class InputNeeded(msgspec.Struct, frozen=True):
    """A call's result when it has none yet: questions, and the server's state to send back with the answers."""

    questions: tuple[Question, ...]
    state: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What was decided, and by whom."""

    action: Action
    content: JsonObject | None = None
    by: str | None = None


class KeptInput(msgspec.Struct, frozen=True):
    """A question of a turn, and its answer once there is one."""

    id: UUID
    call_id: str
    question: Question
    state: str | None = None
    answer: Answer | None = None


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """With what a user, or the gateway for all of them, gets into a protected server (OAuth 2.1).

    `client` is the registration at the authorization server (RFC 7591); `expires_at` in seconds of the epoch.
    """

    client: JsonObject
    access_token: str | None = None
    refresh_token: str | None = None
    expires_at: float | None = None
    scope: str | None = None
    token_endpoint: str | None = None
    resource: str | None = None


class Login(msgspec.Struct, frozen=True):
    """A sign-in that was offered. `owner` "" is the gateway, for all of its users; `challenge`: the `WWW-Authenticate`
    with which the server has refused a request, if that is known."""

    server: str
    owner: str
    url: str
    by: str
    challenge: str | None = None


BusKind = Literal["cancel", "watch", "events", "orphan", "servers", "keys", "logins"]


class BusMessage(msgspec.Struct, frozen=True):
    """What workers tell each other of a turn.

    `cancel` it; `watch`: tell of its events; `events`: there are new ones; `orphan`: nobody runs it, or it is answered.
    Of no turn are `servers` and `keys`: the MCP servers, the stored keys have changed; and `logins`: a sign-in has its
    answer.
    """

    kind: BusKind
    turn_id: UUID

    NO_TURN: ClassVar[UUID] = UUID(int=0)


def text_block(text: str) -> JsonObject:
    """An MCP content block of plain text."""
    return {"type": "text", "text": text}
