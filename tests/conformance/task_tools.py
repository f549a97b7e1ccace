"""A server with the tools that the conformance suite calls as tasks."""

import asyncio

from starlette.requests import Request

from tests.gateway.mcp_client.raw_server import (
    JsonObject,
    RawError,
    RawServer,
    make_raw_tool,
    wait_unless_disconnected,
)

SYNCHRONOUS = "greet"
TASKS = ("slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input", "test_tool_with_task")
SCENARIOS = (
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-status-notifications",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
)
_JOB_SECONDS = 0.2


class TaskToolServer(RawServer):
    """Answers the calls of the suite; the gateway makes tasks of them."""

    def __init__(self) -> None:
        super().__init__(*(make_raw_tool(name) for name in (SYNCHRONOUS, *TASKS)), modern=True)
        self.answers["tools/call"] = self._call

    async def _call(self, params: JsonObject, request: Request) -> JsonObject:
        name, arguments = params["name"], params.get("arguments") or {}
        answers = params.get("inputResponses") or {}
        match name:
            case "greet":
                return _make_text(f"Hello, {arguments['name']}!")
            case "slow_compute":
                await wait_unless_disconnected(asyncio.Event(), request, arguments.get("seconds", 0))
                return _make_text(f"computed {arguments.get('label')}")
            case "failing_job":
                await asyncio.sleep(_JOB_SECONDS)
                return {**_make_text("the job failed"), "isError": True}
            case "protocol_error_job":
                await asyncio.sleep(_JOB_SECONDS)
                raise RawError(-32603, "the job broke")
            case "test_tool_with_task":
                if not answers:
                    return _ask(user_name={"name": {"type": "string"}})
                return _make_text(f"done for {answers['user_name']['content']['name']}")
            case _:
                if not answers:
                    keys = ("confirm",) if name == "confirm_delete" else ("first", "second")
                    return _ask(**{key: {"confirm": {"type": "boolean"}} for key in keys})
                return _make_text("done")


def _make_text(text: str) -> JsonObject:
    return {"content": [{"type": "text", "text": text}], "isError": False}


def _ask(**properties: JsonObject) -> JsonObject:
    requests = {
        key: {
            "method": "elicitation/create",
            "params": {"mode": "form", "message": key, "requestedSchema": {"type": "object", "properties": fields}},
        }
        for key, fields in properties.items()
    }
    return {"resultType": "input_required", "inputRequests": requests}
