"""Tools, models and health over HTTP."""

import asyncpg

from gateway import __version__
from tests.stack import Gateway


async def test_tools_are_listed_with_server_schema_annotations_and_state(gateway: Gateway) -> None:
    body = (await gateway.get("/api/v1/tools")).body
    names = [tool["name"] for tool in body["tools"]]
    assert names == sorted(names)
    assert {"calculator", "web_search", "fetch_page", "add_task", "list_tasks", "complete_task", "delete_task"} <= set(
        names
    )
    calculator = next(tool for tool in body["tools"] if tool["name"] == "calculator")
    assert calculator["server"] == "tools"
    assert calculator["server_state"] == "up"
    assert "expression" in calculator["input_schema"]["properties"]
    assert calculator["annotations"]["read_only"] is True
    assert body["servers"][0]["protocol_version"] == "2026-07-28"


async def test_tool_is_called_directly(gateway: Gateway, db: asyncpg.Connection) -> None:
    reply = await gateway.post("/api/v1/tools/calculator", {"expression": "5*9"})
    assert reply.body["outcome"] == "ok"
    assert reply.body["content"][0]["text"] == "5*9 = 45"
    await gateway.post("/api/v1/tools/add_task", {"title": "buy milk"})
    assert await db.fetchval("SELECT title FROM tools.tasks WHERE user_id = 'local'") == "buy milk"


async def test_tool_error_is_a_result_and_an_unknown_tool_is_a_404(gateway: Gateway) -> None:
    failed = await gateway.post("/api/v1/tools/calculator", {"expression": "1/0"})
    assert (failed.status, failed.body["outcome"]) == (200, "error")
    assert "division by zero" in failed.body["content"][0]["text"]
    unknown = await gateway.post("/api/v1/tools/frobnicate", {})
    assert (unknown.status, unknown.body["error"]["code"]) == (404, "tool_not_found")


async def test_models_are_listed_with_the_default(gateway: Gateway) -> None:
    body = (await gateway.get("/api/v1/models")).body
    assert body["default"] == "openai/gpt-oss-120b"
    assert body["simulated"] is True
    model = next(model for model in body["models"] if model["id"] == body["default"])
    assert (model["context_window"], model["max_output_tokens"], model["price_in"]) == (131_072, 65_536, 0.15)


async def test_health_and_ready_report_their_status(gateway: Gateway) -> None:
    health = (await gateway.get("/health")).body
    assert (health["status"], health["version"]) == ("healthy", __version__)
    ready = await gateway.get("/ready")
    assert (ready.status, ready.body["status"]) == (200, "ready")


async def test_unknown_path_and_method_return_the_error_format(gateway: Gateway) -> None:
    unknown_path = await gateway.get("/no/such/path")
    assert (unknown_path.status, unknown_path.body["error"]["code"]) == (404, "not_found")
    wrong_method = await gateway.get("/api/v1/chat")
    assert (wrong_method.status, wrong_method.body["error"]["code"]) == (405, "method_not_allowed")
