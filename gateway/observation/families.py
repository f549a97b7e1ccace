"""The metrics of the gateway. docs/operations.md explains what to watch."""

from gateway.observation import names as n
from gateway_runtime.telemetry import mcp_messages
from gateway_runtime.telemetry.families import (
    AGENT_SECONDS,
    LONG_SECONDS,
    MCP_SECONDS,
    SHORT_SECONDS,
    TOKEN_COUNTS,
    MetricFamily,
)

TURNS = "gateway.turns"
TURN_DURATION = "gen_ai.invoke_agent.duration"
FIRST_TOKEN = "gateway.turn.time_to_first_token"  # noqa: S105
TOKENS = "gateway.tokens"
COST = "gateway.cost"
TAKEOVERS = "gateway.takeovers"
MODEL_DURATION = "gen_ai.client.operation.duration"
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
OUTPUT_TOKEN_TIME = "gen_ai.client.operation.time_per_output_chunk"  # noqa: S105
TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105
MODEL_RETRIES = "gateway.model.retries"
MODEL_FALLBACKS = "gateway.model.fallbacks"
MODEL_CIRCUITS = "gateway.model.circuit_open"
TOOL_CALLS = "gateway.tool.calls"
TOOL_DURATION = "gen_ai.execute_tool.duration"
MCP_DURATION = "mcp.client.operation.duration"
MCP_SERVERS = "gateway.mcp.servers"
WAITS = "gateway.wait.duration"
MODEL_QUEUE = "gateway.model.queue.waiting"
COMMITS = "gateway.journal.commit.duration"
BATCHES = "gateway.journal.batch.writes"
COMMIT_FAILURES = "gateway.journal.failures"
JOURNAL_WRITES = "gateway.journal.waiting"
JOURNAL_LAG = "gateway.journal.lag"
CONNECTIONS = "gateway.database.connections"
CONNECTION_LIMIT = "gateway.database.connection_limit"
HTTP_DURATION = "http.server.request.duration"
STREAMS = "gateway.streams.open"
REFUSALS = "gateway.refusals"
RUNNING_TURNS = "gateway.turns.running"
WAITING_TURNS = "gateway.turns.waiting"
MCP_SESSIONS = "gateway.mcp.sessions"
LOOP_LAG = "gateway.loop.lag"
MEMORY = "gateway.process.memory"
SHEDDING = "gateway.shedding"
WORKERS = "gateway.workers"
TASKS_DOWN = "gateway.tasks.down"
TASK_RESTARTS = "gateway.task.restarts"
BUILD = "gateway.build_info"

_MODEL_CALL = (n.OPERATION, n.PROVIDER, n.MODEL, n.RESPONSE_MODEL)
FAMILIES = (
    MetricFamily(TURNS, "counter", "Turns that ended.", ("outcome", "model", "format", "stop_reason")),
    MetricFamily(
        TURN_DURATION, "histogram", "Whole turns.", (n.AGENT, n.MODEL, "outcome", n.ERROR_TYPE), "s", AGENT_SECONDS
    ),
    MetricFamily(
        FIRST_TOKEN, "histogram", "Time from a turn's start to its first output.", ("model",), "s", LONG_SECONDS
    ),
    MetricFamily(TOKENS, "counter", "Tokens of ended turns, with failed attempts.", ("model", "type")),
    MetricFamily(COST, "counter", "Cost of ended turns whose model has a known price.", ("model",), "USD"),
    MetricFamily(TAKEOVERS, "counter", "Turns that this worker went on with, by reason.", ("reason",)),
    MetricFamily(MODEL_DURATION, "histogram", "Model calls.", (*_MODEL_CALL, n.ERROR_TYPE), "s", LONG_SECONDS),
    MetricFamily(FIRST_CHUNK, "histogram", "Time to the first chunk of a model call.", _MODEL_CALL, "s", LONG_SECONDS),
    MetricFamily(
        OUTPUT_TOKEN_TIME,
        "histogram",
        "Mean time between the tokens of a model call.",
        _MODEL_CALL,
        "s",
        (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    ),
    MetricFamily(
        TOKEN_USAGE, "histogram", "Tokens of a model call.", (*_MODEL_CALL, n.TOKEN_TYPE), "{token}", TOKEN_COUNTS
    ),
    MetricFamily(MODEL_RETRIES, "counter", "Repeated model calls.", ("model", "reason")),
    MetricFamily(MODEL_FALLBACKS, "counter", "Model calls that went on with another model.", ("model", "fallback")),
    MetricFamily(MODEL_CIRCUITS, "gauge", "Workers whose circuit breaker is open.", ("model",)),
    MetricFamily(TOOL_CALLS, "counter", "Tool calls.", ("server", "tool", "outcome")),
    MetricFamily(TOOL_DURATION, "histogram", "Tool calls.", ("server", n.TOOL, n.ERROR_TYPE), "s", LONG_SECONDS),
    MetricFamily(
        MCP_DURATION,
        "histogram",
        "Requests to MCP servers.",
        ("server", n.MCP_METHOD, n.TOOL, n.ERROR_TYPE),
        "s",
        MCP_SECONDS,
    ),
    mcp_messages.FAMILY,
    MetricFamily(MCP_SERVERS, "gauge", "Workers in which an MCP server has a state.", ("server", "state")),
    MetricFamily(WAITS, "histogram", "Waits of turns.", ("kind",), "s", (*SHORT_SECONDS, 30.0, 60.0, 300.0, 3600.0)),
    MetricFamily(MODEL_QUEUE, "gauge", "Model calls that wait for a rate limit."),
    MetricFamily(COMMITS, "histogram", "Commits of the journal.", (), "s", SHORT_SECONDS),
    MetricFamily(
        BATCHES, "histogram", "Writes in a commit of the journal.", (), "", (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ),
    MetricFamily(COMMIT_FAILURES, "counter", "Commits of the journal that failed."),
    MetricFamily(JOURNAL_WRITES, "gauge", "Writes that wait for a commit."),
    MetricFamily(JOURNAL_LAG, "gauge", "Age of the oldest write that waits.", (), "s", combine="max"),
    MetricFamily(CONNECTIONS, "gauge", "Connections of the pool.", ("state",)),
    MetricFamily(CONNECTION_LIMIT, "gauge", "Connections that the pool may open."),
    MetricFamily(
        HTTP_DURATION,
        "histogram",
        "HTTP requests, until the end of their response.",
        (n.HTTP_METHOD, n.HTTP_SCHEME, n.HTTP_ROUTE, n.HTTP_STATUS),
        "s",
        LONG_SECONDS,
    ),
    MetricFamily(STREAMS, "gauge", "Open requests that start or follow turns, or are of MCP hosts.", ("kind",)),
    MetricFamily(REFUSALS, "counter", "Requests that were answered with an error.", ("code", "status")),
    MetricFamily(RUNNING_TURNS, "gauge", "Turns that run."),
    MetricFamily(WAITING_TURNS, "gauge", "Turns that wait for a person, in the database.", combine="max"),
    MetricFamily(MCP_SESSIONS, "gauge", "Open sessions of MCP hosts with the legacy protocol."),
    MetricFamily(LOOP_LAG, "gauge", "Lag of the event loop, the largest of the last seconds.", (), "s", combine="max"),
    MetricFamily(MEMORY, "gauge", "Resident memory of the workers.", (), "By"),
    MetricFamily(SHEDDING, "gauge", "Workers that refuse new turns because of their load."),
    MetricFamily(WORKERS, "gauge", "Workers that run."),
    MetricFamily(TASKS_DOWN, "gauge", "Workers in which a background task is down.", ("task",)),
    MetricFamily(TASK_RESTARTS, "counter", "Restarts of background tasks after an error.", ("task",)),
    MetricFamily(BUILD, "gauge", "Workers of a version.", ("version", "python")),
)
