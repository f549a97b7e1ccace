"""A server with the features that the official conformance suite tests."""

import asyncio
import json
from typing import Annotated, Any

import mcp.types as t
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import Message, UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ToolsListChanged
from pydantic import Field
from starlette.types import ASGIApp

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
STEP_SECONDS = 0.05
Result = t.CallToolResult


def make_text(value: str) -> t.TextContent:
    return t.TextContent(text=value)


def make_image() -> t.ImageContent:
    return t.ImageContent(data=PNG, mime_type="image/png")


def make_embedded_resource(uri: str, kind: str, body: str) -> t.EmbeddedResource:
    return t.EmbeddedResource(resource=t.TextResourceContents(uri=uri, mime_type=kind, text=body))


class MemoryEventStore(EventStore):
    """Events of all streams, for hosts that resume one."""

    def __init__(self) -> None:
        self._events: list[tuple[str, t.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: t.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        stream, _ = self._events[int(last_event_id) - 1]
        for number, (other, message) in enumerate(self._events, start=1):
            if number > int(last_event_id) and other == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def create_server() -> MCPServer[Any]:
    bus = InMemorySubscriptionBus()
    mcp: MCPServer[Any] = MCPServer("everything", log_level="ERROR", subscriptions=bus)
    _register_content_tools(mcp)
    _register_messaging_tools(mcp)
    _register_diagnostic_tools(mcp)
    _register_task_tools(mcp)
    _register_elicitation_tools(mcp)
    _register_input_required_tools(mcp)
    _register_change_tools(mcp, bus)
    _register_schema_tools(mcp)
    _register_resources(mcp)
    _register_prompts(mcp)
    _register_handlers(mcp)
    return mcp


def _register_content_tools(mcp: MCPServer[Any]) -> None:
    @mcp.tool(structured_output=False)
    async def test_simple_text() -> Result:
        """Return text."""
        return Result(content=[make_text("This is a simple text response for testing.")])

    @mcp.tool(structured_output=False)
    async def test_image_content() -> Result:
        """Return an image."""
        return Result(content=[make_image()])

    @mcp.tool(structured_output=False)
    async def test_audio_content() -> Result:
        """Return audio."""
        return Result(content=[t.AudioContent(data=WAV, mime_type="audio/wav")])

    @mcp.tool(structured_output=False)
    async def test_embedded_resource() -> Result:
        """Return an embedded resource."""
        body = "This is an embedded resource content."
        return Result(content=[make_embedded_resource("test://embedded-resource", "text/plain", body)])

    @mcp.tool(structured_output=False)
    async def test_multiple_content_types() -> Result:
        """Return text, an image and a resource."""
        body = json.dumps({"test": "data", "value": 123})
        resource = make_embedded_resource("test://mixed-content-resource", "application/json", body)
        return Result(content=[make_text("Multiple content types test:"), make_image(), resource])

    @mcp.tool()
    async def test_error_handling() -> str:
        """Always fail."""
        raise ToolError("This tool intentionally returns an error for testing")


def _register_messaging_tools(mcp: MCPServer[Any]) -> None:
    @mcp.tool()
    async def test_tool_with_logging(ctx: Context[Any]) -> str:
        """Log three times."""
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(line)
            await asyncio.sleep(STEP_SECONDS)
        return "logged"

    @mcp.tool()
    async def test_tool_with_progress(ctx: Context[Any]) -> str:
        """Report progress three times."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await asyncio.sleep(STEP_SECONDS)
        return "done"

    @mcp.tool()
    async def test_sampling(prompt: str, ctx: Context[Any]) -> str:
        """Ask the client's model."""
        message = t.SamplingMessage(role="user", content=make_text(prompt))
        answer = await ctx.session.create_message(messages=[message], max_tokens=100)
        return f"LLM response: {answer.content.text}"  # type: ignore[union-attr]


def _register_diagnostic_tools(mcp: MCPServer[Any]) -> None:
    """Register tools that the checks of stateless servers call."""

    @mcp.tool()
    async def test_streaming_elicitation(ctx: Context[Any]) -> str:
        """Report progress, and ask nothing on the stream."""
        await ctx.report_progress(1, 1)
        return "streamed"

    @mcp.tool()
    async def test_logging_tool(ctx: Context[Any]) -> str:
        """Log once."""
        await ctx.info("a line")
        return "logged"


def _register_task_tools(mcp: MCPServer[Any]) -> None:
    """Register immediate tools that the checks of task extensions call."""

    @mcp.tool()
    async def greet(name: str) -> str:
        """Greet."""
        return f"Hello, {name}!"

    @mcp.tool()
    async def slow_compute(seconds: float = 0, label: str = "") -> str:
        """Compute."""
        await asyncio.sleep(min(seconds, STEP_SECONDS))
        return f"computed {label}"

    @mcp.tool()
    async def confirm_delete(filename: str = "") -> str:
        """Delete without a question."""
        return f"deleted {filename}"


def _register_handlers(mcp: MCPServer[Any]) -> None:
    """Register the handlers of the legacy protocol that the SDK's server lacks."""

    async def accept(_ctx: Any, _params: Any) -> t.EmptyResult:
        return t.EmptyResult()

    server = mcp._lowlevel_server
    server.add_request_handler("logging/setLevel", t.SetLevelRequestParams, accept)
    server.add_request_handler("resources/subscribe", t.SubscribeRequestParams, accept)
    server.add_request_handler("resources/unsubscribe", t.UnsubscribeRequestParams, accept)


def _register_elicitation_tools(mcp: MCPServer[Any]) -> None:
    async def ask(ctx: Context[Any], message: str, properties: dict[str, Any], required: list[str]) -> t.ElicitResult:
        schema = {"type": "object", "properties": properties, "required": required}
        return await ctx.session.elicit_form(message, schema, ctx.request_context.request_id)

    @mcp.tool()
    async def test_elicitation(message: str, ctx: Context[Any]) -> str:
        """Ask the user."""
        fields = {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        }
        answer = await ask(ctx, message, fields, ["username", "email"])
        return f"User response: action={answer.action}, content={json.dumps(answer.content)}"

    @mcp.tool()
    async def test_elicitation_sep1034_defaults(ctx: Context[Any]) -> str:
        """Ask with defaults."""
        fields = {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": True},
        }
        answer = await ask(ctx, "Please check", fields, [])
        return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"

    @mcp.tool()
    async def test_elicitation_sep1330_enums(ctx: Context[Any]) -> str:
        """Ask with choices of every kind."""
        plain = ["option1", "option2", "option3"]
        titled = [
            {"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)
        ]
        choices = [
            {"const": f"value{n}", "title": f"{word} Choice"} for n, word in enumerate(("First", "Second", "Third"), 1)
        ]
        legacy_enum = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
        fields = {
            "untitledSingle": {"type": "string", "enum": plain},
            "titledSingle": {"type": "string", "oneOf": titled},
            "legacyEnum": {"type": "string", **legacy_enum},
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
            "titledMulti": {"type": "array", "items": {"anyOf": choices}},
        }
        answer = await ask(ctx, "Please choose", fields, [])
        return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


def _make_form_request(message: str, **fields: str) -> Any:
    schema = {"type": "object", "properties": {n: {"type": k} for n, k in fields.items()}, "required": list(fields)}
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def _make_sampling_request(prompt: str, max_tokens: int) -> Any:
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": max_tokens}}


ROOTS = {"method": "roots/list", "params": {}}


def require_input(requests: dict[str, Any], state: str | None = None) -> Any:
    result = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    return t.InputRequiredResult.model_validate(result)


def _register_input_required_tools(mcp: MCPServer[Any]) -> None:
    """Register tools that ask before they answer, as in protocol 2026-07-28."""

    def add_asking_tool(name: str, requests: dict[str, Any], state: str | None = None) -> None:
        async def run_tool(ctx: Context[Any]) -> Any:
            responses = ctx.input_responses or {}
            if not all(key in responses for key in requests) or (state is not None and ctx.request_state != state):
                return require_input(requests, state)
            answers = {key: value.model_dump(mode="json", by_alias=True) for key, value in responses.items()}
            user_name = (answers.get("user_name", {}).get("content") or {}).get("name", "")
            return Result(content=[make_text(f"Hello, {user_name}! state-ok {json.dumps(answers)}")])

        mcp.add_tool(run_tool, name=name, description=f"Ask: {', '.join(requests)}.", structured_output=False)

    user = _make_form_request("What is your name?", name="string")
    add_asking_tool("test_input_required_result_elicitation", {"user_name": user})
    add_asking_tool(
        "test_input_required_result_sampling",
        {"capital_question": _make_sampling_request("What is the capital of France?", 100)},
    )
    add_asking_tool("test_input_required_result_list_roots", {"client_roots": ROOTS})
    add_asking_tool(
        "test_input_required_result_request_state",
        {"confirm": _make_form_request("Please confirm", ok="boolean")},
        "state",
    )
    add_asking_tool(
        "test_input_required_result_tampered_state",
        {"confirm": _make_form_request("Please confirm", ok="boolean")},
        "state",
    )
    requests = {"user_name": user, "greeting": _make_sampling_request("Generate a greeting", 50), "client_roots": ROOTS}
    add_asking_tool("test_input_required_result_multiple_inputs", requests, "state")

    @mcp.tool(structured_output=False)
    async def test_input_required_result_multi_round(ctx: Context[Any]) -> Any:
        """Ask twice."""
        responses = ctx.input_responses or {}
        if ctx.request_state == "two" and "step2" in responses:
            return Result(content=[make_text("both known")])
        if ctx.request_state == "one" and "step1" in responses:
            return require_input(
                {"step2": _make_form_request("Step 2: What is your favorite color?", color="string")}, "two"
            )
        return require_input({"step1": _make_form_request("Step 1: What is your name?", name="string")}, "one")

    @mcp.tool(structured_output=False)
    async def test_input_required_result_capabilities(ctx: Context[Any]) -> Any:
        """Ask only for input that the client supports."""
        meta: Any = ctx.request_context.meta or {}
        declared = meta.get("io.modelcontextprotocol/clientCapabilities") or {}
        requests = {"greeting": _make_sampling_request("Generate a greeting", 50)} if "sampling" in declared else {}
        if "elicitation" in declared:
            requests["user_name"] = user
        return require_input(requests)

    @mcp.prompt()
    async def test_input_required_result_prompt(ctx: Context[Any]) -> Any:
        """Ask for context."""
        if "user_context" not in (ctx.input_responses or {}):
            return require_input(
                {"user_context": _make_form_request("What context should the prompt use?", context="string")}
            )
        return "Prompt in its context."


def _register_change_tools(mcp: MCPServer[Any], bus: InMemorySubscriptionBus) -> None:
    async def extra() -> str:
        """Come and go."""
        return "extra"

    @mcp.tool()
    async def test_trigger_tool_change() -> str:
        """Add or remove a tool."""
        if "extra" in mcp._tool_manager._tools:
            mcp.remove_tool("extra")
        else:
            mcp.add_tool(extra)
        await bus.publish(ToolsListChanged())
        return "changed"

    @mcp.tool()
    async def test_trigger_prompt_change() -> str:
        """Change the prompts."""
        await bus.publish(PromptsListChanged())
        return "changed"

    @mcp.tool()
    async def test_missing_capability(ctx: Context[Any]) -> str:
        """Fail if the client does not support sampling."""
        meta: Any = ctx.request_context.meta or {}
        declared = meta.get("io.modelcontextprotocol/clientCapabilities") or {}
        if "sampling" not in declared:
            data = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(-32021, "The client must declare sampling", data)
        return "declared"


_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def _register_schema_tools(mcp: MCPServer[Any]) -> None:
    @mcp.tool()
    async def json_schema_2020_12_tool() -> str:
        """Have a schema with keywords of every kind."""
        return "called"

    mcp._tool_manager._tools["json_schema_2020_12_tool"].parameters = _SCHEMA

    @mcp.tool()
    async def test_x_mcp_header(
        region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "none",
    ) -> str:
        """Have an argument that is also a header."""
        return f"region={region}"

    @mcp.tool()
    async def test_reconnection(ctx: Context[Any]) -> str:
        """Close the stream of the call before it ends."""
        await ctx.info("Before disconnect")
        await ctx.close_sse_stream()
        await asyncio.sleep(4 * STEP_SECONDS)
        await ctx.info("After reconnect")
        return "reconnected"


def _register_resources(mcp: MCPServer[Any]) -> None:
    @mcp.resource("test://static-text", mime_type="text/plain")
    async def static_text() -> str:
        """A static text."""
        return "This is the content of the static text resource."

    @mcp.resource("test://static-binary", mime_type="image/png")
    async def static_binary() -> bytes:
        """A static image."""
        import base64

        return base64.b64decode(PNG)

    @mcp.resource("test://template/{id}/data", mime_type="application/json")
    async def template(id: str) -> str:  # noqa: A002 - the name in the template
        """Data by id."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @mcp.resource("test://watched-resource", mime_type="text/plain")
    async def watched() -> str:
        """A resource to subscribe to."""
        return "watched"


def _register_prompts(mcp: MCPServer[Any]) -> None:
    @mcp.prompt()
    async def test_simple_prompt() -> str:
        """A simple prompt."""
        return "This is a simple prompt for testing."

    @mcp.prompt()
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @mcp.prompt()
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803 - the suite's name
        """A prompt with a resource."""
        resource = make_embedded_resource(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @mcp.prompt()
    async def test_prompt_with_image() -> list[Message]:
        """A prompt with an image."""
        return [UserMessage(make_image()), UserMessage("Please analyze the image above.")]

    @mcp.completion()
    async def complete(
        ref: Any, argument: t.CompletionArgument, _context: t.CompletionContext | None
    ) -> t.Completion | None:
        return t.Completion(values=[value for value in ("paris", "park", "party") if value.startswith(argument.value)])


def create_app() -> ASGIApp:
    """Create the HTTP app, which speaks both protocols."""
    return create_server().streamable_http_app(event_store=MemoryEventStore(), retry_interval=100)
