"""An MCP server whose tool runs as a task."""

from datetime import UTC, datetime
from typing import Any

from tests.gateway.mcp_client.raw_server import JsonObject, RawError, RawServer, make_raw_tool

TASKS_EXTENSION = "io.modelcontextprotocol/tasks"
_CLIENT_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
_UNITS = {True: ("ttlMs", "pollIntervalMs"), False: ("ttl", "pollInterval")}
FORM = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}


def make_text_result(text: str) -> JsonObject:
    return {"content": [{"type": "text", "text": text}], "isError": False}


class TaskServer(RawServer):
    """Runs each call of `build` as a task.

    The test ends it, or lets it ask. `ttl` is the time that tasks are kept, in milliseconds.
    """

    def __init__(self, *, modern: bool, ttl: int | None = None, poll_ms: int = 50) -> None:
        execution: JsonObject = {} if modern else {"execution": {"taskSupport": "required"}}
        super().__init__(make_raw_tool("build", **execution), modern=modern)
        self.tasks: list[JsonObject] = []
        self.oddities: JsonObject = {}
        """Members of every new task that replace those of the protocol."""
        self.answers_of_tasks: list[JsonObject] = []
        """Answers that arrived for questions of tasks."""
        self._ttl, self._poll_ms = ttl, poll_ms
        self._results: dict[str, JsonObject] = {}
        self.capabilities = {"tools": {}} | (
            {"extensions": {TASKS_EXTENSION: {}}}
            if modern
            else {"tasks": {"cancel": {}, "list": {}, "requests": {"tools": {"call": {}}}}}
        )
        self.answers |= {
            "tools/call": self._create_task,
            "tasks/get": lambda params, _request: dict(self._find(params)),
            "tasks/cancel": self._cancel,
        }
        self.answers |= {"tasks/update": self._update} if modern else {"tasks/result": self._fetch}

    def finish(self, text: str) -> None:
        """Complete all tasks with this text."""
        for task in self.tasks:
            task["status"] = "completed"
            if self.modern:
                task["result"] = make_text_result(text)
            else:
                self._results[task["taskId"]] = make_text_result(text)

    def fail(self, code: int, message: str) -> None:
        """Fail all tasks with a JSON-RPC error."""
        for task in self.tasks:
            task["status"] = "failed"
            error = {"code": code, "message": message}
            if self.modern:
                task["error"] = error
            else:
                self._results[task["taskId"]] = error

    def ask(self, message: str) -> None:
        """Let all tasks ask for a color."""
        params = {"mode": "form", "message": message, "requestedSchema": FORM}
        for task in self.tasks:
            task["status"] = "input_required"
            task["inputRequests"] = {"color": {"method": "elicitation/create", "params": params}}

    def _create_task(self, params: JsonObject, _request: Any) -> JsonObject:
        meta = params.get("_meta") or {}
        declares = TASKS_EXTENSION in ((meta.get(_CLIENT_CAPABILITIES) or {}).get("extensions") or {})
        if not (declares if self.modern else params.get("task")):
            raise RawError(-32021 if self.modern else -32601, "Task augmentation is required")
        now = datetime.now(UTC).isoformat()
        ttl, interval = _UNITS[self.modern]
        task: JsonObject = {
            "taskId": f"task-{len(self.tasks) + 1}",
            "status": "working",
            "statusMessage": "building",
            "createdAt": now,
            "lastUpdatedAt": now,
            ttl: self._ttl,
            interval: self._poll_ms,
        }
        self.tasks.append(task)
        task |= {name: value for name, value in self.oddities.items() if name in task}
        return {**task, "resultType": "task"} if self.modern else {"task": dict(task)}

    def _find(self, params: JsonObject) -> JsonObject:
        task = next((task for task in self.tasks if task["taskId"] == params["taskId"]), None)
        if task is None:
            raise RawError(-32602, "Task not found")
        return task

    def _cancel(self, params: JsonObject, _request: Any) -> JsonObject:
        task = self._find(params)
        task["status"] = "cancelled"
        return {} if self.modern else dict(task)

    def _update(self, params: JsonObject, _request: Any) -> JsonObject:
        task = self._find(params)
        self.answers_of_tasks.append(params["inputResponses"])
        task["status"] = "working"
        task.pop("inputRequests", None)
        return {}

    def _fetch(self, params: JsonObject, _request: Any) -> JsonObject:
        result = self._results[self._find(params)["taskId"]]
        if "code" in result:
            raise RawError(result["code"], result["message"])
        return result
