"""Fields that every native and legacy request for a turn takes."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    WrapValidator,
    model_validator,
)

from gateway.domain.conversation_ids import is_new_conversation
from gateway.domain.messages import CodeMode, JsonObject, Message, Parameters, ToolChoice, TurnRequest
from gateway.wire.client_tools import ToolBody, build_client_tool
from gateway.wire.request_fields import FieldReader, make_unsupported
from gateway.wire.request_model import ConversationId, ToolsetChoice
from gateway_runtime.requests.model import ItemList, RequestModel

SystemText = Annotated[
    str | None,
    StringConstraints(max_length=1_000_000),
    Field(description="A system prompt. It follows that of the administrator, and replaces the gateway's own."),
]


class ToolFunctionName(BaseModel):
    """Name of a tool."""

    name: str


class NamedToolChoice(BaseModel):
    """Choice of a tool that the model must call."""

    type: Literal["function"]
    function: ToolFunctionName


class AllowedToolNames(BaseModel):
    """Tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: ItemList[NamedToolChoice] = Field(max_length=128)


class AllowedToolChoice(BaseModel):
    """Choice of several tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolNames

    def to_tool_choice(self) -> ToolChoice:
        names = [tool.function.name for tool in self.allowed_tools.tools]
        return {"type": self.type, "mode": self.allowed_tools.mode, "names": names}


class CacheOptions(RequestModel):
    """Options of the response cache.

    The stored answer to an equal request is returned if it is at most `ttl` seconds old.
    """

    ttl: int = Field(ge=1, le=30 * 24 * 3600, description="Maximum age in seconds.")


def _validate_tool(value: Any, validate: Any) -> Any:
    return value if isinstance(value, str) else validate(value)


if TYPE_CHECKING:
    ToolItem = str | ToolBody
else:  # one validator instead of a union, whose errors would name its members
    ToolItem = Annotated[ToolBody, WrapValidator(_validate_tool, json_schema_input_type=str | ToolBody)]


class TurnFields(RequestModel):
    """Options of a turn.

    `FieldReader` translates other names of fields, and reports or refuses further ones.
    """

    model_config = ConfigDict(extra="ignore")  # the reader reports further fields
    streams: ClassVar[bool | None] = None
    """Whether the route streams its answer; None: as the request says."""
    returns_client_calls: ClassVar[bool] = False
    """Whether the route returns calls of tools that the client runs."""

    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: GROQ_DEFAULT_MODEL.")
    stream: bool | None = Field(default=None, description="Stream the events, or return one answer.")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, description="Maximum tokens that the model generates in one step.")
    stop: str | ItemList[str] | None = Field(default=None, description="Up to four texts at which generation stops.")
    seed: int | None = None
    response_format: JsonObject | None = Field(
        default=None,
        description="`json_object` or `json_schema`, as in OpenAI's API. Works with tools and with streaming.",
    )
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    drop_unsupported: bool = Field(
        default=False,
        description="Drop parameters that the model does not support, with a warning, instead of answering 422.",
    )
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice | None = None
    tools: ItemList[ToolItem] | None = Field(
        default=None,
        max_length=128,
        description="The allowed tools: names, or tools in OpenAI's format. A tool that is not the gateway's is the "
        "client's own: its calls are returned. Default: all tools of the gateway.",
    )
    conversation_id: ConversationId = Field(
        default=None,
        description='An id of the gateway, an id of your own (which names one of your conversations), or "new". '
        "Default: no conversation.",
    )
    parent_turn_id: UUID | None = Field(
        default=None,
        description="Turn of the same conversation that this turn follows, which creates a branch. Default: the last.",
    )
    if_busy: Literal["wait", "reject"] = Field(
        default="wait",
        description="While another turn of the conversation is active: wait for at most two minutes, or answer 409. "
        "Waiting requests run in the order of their arrival.",
    )
    user: str | None = Field(default=None, max_length=256, description="Label to find the turn by; not an identity.")
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    approval: Literal["never", "destructive", "always"] = Field(
        default="never",
        description="Tool calls that a person must approve. The policy of each MCP server applies as well.",
    )
    store: bool = Field(
        default=True, description="If false, only usage figures are stored: no prompt, no text and no events."
    )
    webhook_url: str | None = Field(
        default=None, max_length=2_000, description="URL that is told of the turn's end and of its questions."
    )
    cache: CacheOptions | None = Field(
        default=None, description="Reuse the answer to an equal request of the same user. Default: call the model."
    )
    toolset: ToolsetChoice = None
    code: CodeMode | None = Field(
        default=None,
        description="Programs of the model that call tools: `auto` where not all tools fit into its request, `only` in "
        "place of all tools of the gateway, or `off`. Default: that of the key, else CODE_MODE.",
    )
    _warnings: tuple[str, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _read_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        reader = FieldReader()
        try:
            request = handler(cls._read_body(data, reader))
        except ValidationError as error:
            raise reader.name_source(error) from None
        request._warnings = reader.warnings
        return request

    @classmethod
    def _read_body(cls, data: Any, reader: FieldReader) -> Any:
        return reader.read_request(data, cls.__pydantic_fields__)

    @model_validator(mode="after")
    def _validate_options(self) -> Self:
        if not self.store and is_new_conversation(self.conversation_id):
            raise ValueError("store: a turn that is not stored cannot start a conversation")
        if not self.store and self.cache is not None:
            raise ValueError("cache: the answer of a turn that is not stored cannot be cached")
        if self.streams is not None and self.stream is not None and self.stream != self.streams:
            kind = "always streams" if self.streams else "does not stream"
            route = "/api/v1/chat" if self.streams else "/api/v1/chat/stream"
            raise make_unsupported("stream", f"leave it out, or use {route}", f"this route {kind}")
        return self

    @property
    def defines_tools(self) -> bool:
        """Whether `tools` has more than names."""
        return any(isinstance(tool, ToolBody) for tool in self.tools or ())

    def build_turn_request(
        self, messages: tuple[Message, ...], *, system: str | None, gateway_tools: Collection[str]
    ) -> TurnRequest:
        """Convert to the request that all wire formats share.

        `gateway_tools` are the names that the caller may use, if `defines_tools`.
        """
        definitions = self._list_definitions(gateway_tools)
        names = [tool.function.name if isinstance(tool, ToolBody) else tool for tool in self.tools or ()]
        return TurnRequest(
            messages=messages,
            model=self.model or "",
            parameters=self.build_parameters(),
            tools=None if self.tools is None else tuple(dict.fromkeys(names)),
            client_tools=tuple(
                build_client_tool(tool.function.name, tool.function.description, tool.function.parameters)
                for tool in definitions
            ),
            tool_choice=self.parse_tool_choice(),
            conversation_id=self.conversation_id,
            system=system,
            user_label=self.user,
            on_disconnect=self.on_disconnect,
            warnings=self._warnings,
            approval=self.approval,
            store=self.store,
            drop_unsupported=self.drop_unsupported,
            webhook_url=self.webhook_url,
            cache_ttl=self.cache.ttl if self.cache else None,
            parent_turn_id=self.parent_turn_id,
            code=self.code,
            toolset=self.toolset,
            response_format=None if (self.response_format or {}).get("type") == "text" else self.response_format,
        )

    def parse_tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if isinstance(choice, AllowedToolChoice):
            return choice.to_tool_choice()
        return choice.model_dump() if isinstance(choice, NamedToolChoice) else choice

    def build_parameters(self) -> Parameters:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        names = set(Parameters.__struct_fields__) - {"stop"}
        values = {name: getattr(self, name) for name in names}
        return Parameters(**values, stop=stop or None)

    def _list_definitions(self, gateway_tools: Collection[str]) -> list[ToolBody]:
        """Return the tools that the client runs.

        Raises:
            UnsupportedParameter: the route cannot return their calls.
        """
        definitions: list[ToolBody] = []
        for index, tool in enumerate(self.tools or ()):
            if not isinstance(tool, ToolBody) or tool.function.name in gateway_tools:
                continue
            if not self.returns_client_calls:
                problem = f"{tool.function.name!r} is no tool of the gateway, and this route cannot return its calls"
                raise make_unsupported(f"tools.{index}", "use /api/v1/chat", problem)
            definitions.append(tool)
        return definitions
