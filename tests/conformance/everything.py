"""A server with everything that the official conformance suite asks of one."""

import asyncio
import json
from typing import Any

import mcp.types as t
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import Message, UserMessage
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ToolsListChanged
from starlette.types import ASGIApp

from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
PAUSE = 0.05
Result = t.CallToolResult


def text(value: str) -> t.TextContent:
    return t.TextContent(text=value)


def image() -> t.ImageContent:
    return t.ImageContent(data=PNG, mime_type="image/png")


def embedded(uri: str, kind: str, body: str) -> t.EmbeddedResource:
    return t.EmbeddedResource(resource=t.TextResourceContents(uri=uri, mime_type=kind, text=body))


def create() -> MCPServer[Any]:
    bus = InMemorySubscriptionBus()
    mcp: MCPServer[Any] = MCPServer("everything", log_level="ERROR", subscriptions=bus)
    _content(mcp)
    _talk(mcp)
    _elicit(mcp)
    _rounds(mcp)
    _changes(mcp, bus)
    _resources(mcp)
    _prompts(mcp)
    return mcp


def _content(mcp: MCPServer[Any]) -> None:
    @mcp.tool(structured_output=False)
    async def test_simple_text() -> Result:
        """A text."""
        return Result(content=[text("This is a simple text response for testing.")])

    @mcp.tool(structured_output=False)
    async def test_image_content() -> Result:
        """An image."""
        return Result(content=[image()])

    @mcp.tool(structured_output=False)
    async def test_audio_content() -> Result:
        """A sound."""
        return Result(content=[t.AudioContent(data=WAV, mime_type="audio/wav")])

    @mcp.tool(structured_output=False)
    async def test_embedded_resource() -> Result:
        """A resource."""
        body = "This is an embedded resource content."
        return Result(content=[embedded("test://embedded-resource", "text/plain", body)])

    @mcp.tool(structured_output=False)
    async def test_multiple_content_types() -> Result:
        """Three kinds at once."""
        body = json.dumps({"test": "data", "value": 123})
        resource = embedded("test://mixed-content-resource", "application/json", body)
        return Result(content=[text("Multiple content types test:"), image(), resource])

    @mcp.tool()
    async def test_error_handling() -> str:
        """Always fail."""
        raise ToolError("This tool intentionally returns an error for testing")


def _talk(mcp: MCPServer[Any]) -> None:
    @mcp.tool()
    async def test_tool_with_logging(ctx: Context[Any]) -> str:
        """Log three times."""
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(line)
            await asyncio.sleep(PAUSE)
        return "logged"

    @mcp.tool()
    async def test_tool_with_progress(ctx: Context[Any]) -> str:
        """Tell of progress three times."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await asyncio.sleep(PAUSE)
        return "done"

    @mcp.tool()
    async def test_sampling(prompt: str, ctx: Context[Any]) -> str:
        """Ask the client's model."""
        message = t.SamplingMessage(role="user", content=text(prompt))
        answer = await ctx.session.create_message(messages=[message], max_tokens=100)
        return f"LLM response: {answer.content.text}"  # type: ignore[union-attr]


def _elicit(mcp: MCPServer[Any]) -> None:
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
        many = [
            {"const": f"value{n}", "title": f"{word} Choice"} for n, word in enumerate(("First", "Second", "Third"), 1)
        ]
        old = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
        fields = {
            "untitledSingle": {"type": "string", "enum": plain},
            "titledSingle": {"type": "string", "oneOf": titled},
            "legacyEnum": {"type": "string", **old},
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
            "titledMulti": {"type": "array", "items": {"anyOf": many}},
        }
        answer = await ask(ctx, "Please choose", fields, [])
        return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


def _form(message: str, **fields: str) -> Any:
    schema = {"type": "object", "properties": {n: {"type": k} for n, k in fields.items()}, "required": list(fields)}
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def _sampling(prompt: str, most: int) -> Any:
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": most}}


ROOTS = {"method": "roots/list", "params": {}}


def needs(requests: dict[str, Any], state: str | None = None) -> Any:
    told = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    return t.InputRequiredResult.model_validate(told)


def _rounds(mcp: MCPServer[Any]) -> None:
    """Tools that ask before they answer, in the way of 2026-07-28."""

    def asks(name: str, requests: dict[str, Any], state: str | None = None) -> None:
        async def run(ctx: Context[Any]) -> Any:
            given = ctx.input_responses or {}
            if not all(key in given for key in requests) or (state is not None and ctx.request_state != state):
                return needs(requests, state)
            answers = {key: value.model_dump(mode="json", by_alias=True) for key, value in given.items()}
            name_given = (answers.get("user_name", {}).get("content") or {}).get("name", "")
            return Result(content=[text(f"Hello, {name_given}! state-ok {json.dumps(answers)}")])

        mcp.add_tool(run, name=name, description=f"Ask: {', '.join(requests)}.", structured_output=False)

    user = _form("What is your name?", name="string")
    asks("test_input_required_result_elicitation", {"user_name": user})
    asks("test_input_required_result_sampling", {"capital_question": _sampling("What is the capital of France?", 100)})
    asks("test_input_required_result_list_roots", {"client_roots": ROOTS})
    asks("test_input_required_result_request_state", {"confirm": _form("Please confirm", ok="boolean")}, "state")
    asks("test_input_required_result_tampered_state", {"confirm": _form("Please confirm", ok="boolean")}, "state")
    several = {"user_name": user, "greeting": _sampling("Generate a greeting", 50), "client_roots": ROOTS}
    asks("test_input_required_result_multiple_inputs", several, "state")

    @mcp.tool(structured_output=False)
    async def test_input_required_result_multi_round(ctx: Context[Any]) -> Any:
        """Ask twice."""
        given = ctx.input_responses or {}
        if ctx.request_state == "two" and "step2" in given:
            return Result(content=[text("both known")])
        if ctx.request_state == "one" and "step1" in given:
            return needs({"step2": _form("Step 2: What is your favorite color?", color="string")}, "two")
        return needs({"step1": _form("Step 1: What is your name?", name="string")}, "one")

    @mcp.tool(structured_output=False)
    async def test_input_required_result_capabilities(ctx: Context[Any]) -> Any:
        """Ask only what the client can answer."""
        meta: Any = ctx.request_context.meta or {}
        declared = meta.get("io.modelcontextprotocol/clientCapabilities") or {}
        requests = {"greeting": _sampling("Generate a greeting", 50)} if "sampling" in declared else {}
        if "elicitation" in declared:
            requests["user_name"] = user
        return needs(requests)

    @mcp.prompt()
    async def test_input_required_result_prompt(ctx: Context[Any]) -> Any:
        """A prompt that asks."""
        if "user_context" not in (ctx.input_responses or {}):
            return needs({"user_context": _form("What context should the prompt use?", context="string")})
        return "Prompt in its context."


def _changes(mcp: MCPServer[Any], bus: InMemorySubscriptionBus) -> None:
    @mcp.tool()
    async def test_trigger_tool_change() -> str:
        """Change the tools."""
        await bus.publish(ToolsListChanged())
        return "changed"

    @mcp.tool()
    async def test_trigger_prompt_change() -> str:
        """Change the prompts."""
        await bus.publish(PromptsListChanged())
        return "changed"

    @mcp.tool()
    async def test_missing_capability(ctx: Context[Any]) -> str:
        """Needs sampling."""
        meta: Any = ctx.request_context.meta or {}
        declared = meta.get("io.modelcontextprotocol/clientCapabilities") or {}
        if "sampling" not in declared:
            data = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(-32021, "The client must declare sampling", data)
        return "declared"


def _resources(mcp: MCPServer[Any]) -> None:
    @mcp.resource("test://static-text", mime_type="text/plain")
    async def static_text() -> str:
        """A text that never changes."""
        return "This is the content of the static text resource."

    @mcp.resource("test://static-binary", mime_type="image/png")
    async def static_binary() -> bytes:
        """An image that never changes."""
        import base64

        return base64.b64decode(PNG)

    @mcp.resource("test://template/{id}/data", mime_type="application/json")
    async def template(id: str) -> str:  # noqa: A002 - the template's own word
        """Data by id."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @mcp.resource("test://watched-resource", mime_type="text/plain")
    async def watched() -> str:
        """A resource to subscribe to."""
        return "watched"


def _prompts(mcp: MCPServer[Any]) -> None:
    @mcp.prompt()
    async def test_simple_prompt() -> str:
        """A prompt."""
        return "This is a simple prompt for testing."

    @mcp.prompt()
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @mcp.prompt()
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803 - the suite's name
        """A prompt with a resource."""
        resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @mcp.prompt()
    async def test_prompt_with_image() -> list[Message]:
        """A prompt with an image."""
        return [UserMessage(image()), UserMessage("Please analyze the image above.")]

    @mcp.completion()
    async def complete(
        ref: Any, argument: t.CompletionArgument, _context: t.CompletionContext | None
    ) -> t.Completion | None:
        return t.Completion(values=[value for value in ("paris", "park", "party") if value.startswith(argument.value)])


def app(*, modern: bool) -> ASGIApp:
    """Over HTTP; `modern=False`: as a server that knows only the legacy protocol."""
    served = create().streamable_http_app()
    return served if modern else hide_modern_protocol(served)
