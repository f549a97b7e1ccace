"""The specs of all servers' tools, with unique names."""

from collections.abc import Iterable

from mcp.types import Tool

from gateway.common.logging import get_logger
from gateway.domain.messages import ToolSpec
from gateway.mcp_client.builtin_tools import list_builtin_tools, make_sign_in_tool
from gateway.mcp_client.connection_pool import ConnectionPool
from gateway.mcp_client.definition_check import DefinitionChecker
from gateway.mcp_client.tool_names import make_exposed_name
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import IDEMPOTENT_META

log = get_logger(__name__)

_MAX_TOOLS = 5_000
MAX_DESCRIPTION_LENGTH = 4_000


def build_specs(pool: ConnectionPool, checker: DefinitionChecker) -> tuple[ToolSpec, ...]:
    """The tools on offer now.

    The order is stable, since the model's prompt cache needs equal prompts.
    """
    specs: dict[str, ToolSpec] = {}
    for connection in pool:
        tools = pool.get_tools(connection)
        if tools is None:
            if connection.needs_sign_in:
                sign_in = make_sign_in_tool(connection.config)
                specs.setdefault(sign_in.name, sign_in)
            continue
        withheld_tools = checker.get_withheld_tools(connection)
        _add_server_tools(specs, connection.config, (tool for tool in tools if tool.name not in withheld_tools))
    if len(specs) > _MAX_TOOLS:
        log.warning("too_many_tools", tools=len(specs), offered=_MAX_TOOLS)
    return tuple(specs.values())[:_MAX_TOOLS]


def _add_server_tools(specs: dict[str, ToolSpec], config: ServerConfig, tools: Iterable[Tool]) -> None:
    for tool in sorted(tools, key=lambda tool: tool.name):
        if config.permits_tool(tool.name):
            spec = make_spec(config, tool)
            if spec.name in specs:
                spec = make_spec(config, tool, distinct=True)
            specs[spec.name] = spec
    for builtin in list_builtin_tools(config):
        specs.setdefault(builtin.name, builtin)


def make_spec(server: ServerConfig, tool: Tool, *, distinct: bool = False) -> ToolSpec:
    """A server's tool as the gateway offers it.

    Missing annotations get the protocol's cautious defaults.
    """
    hints = tool.annotations
    prefix = server.name if server.prefix is None else server.prefix
    return ToolSpec(
        name=make_exposed_name(prefix, server.name, tool.name, distinct),
        server=server.name,
        tool=tool.name,
        description=(tool.description or tool.title or tool.name)[:MAX_DESCRIPTION_LENGTH],
        input_schema=tool.input_schema,
        title=tool.title,
        output_schema=tool.output_schema,
        read_only=bool(hints and hints.read_only_hint),
        destructive=not (hints and hints.destructive_hint is False),
        idempotent=bool(hints and hints.idempotent_hint),
        open_world=not (hints and hints.open_world_hint is False),
        approval=server.approval,
        deduplicates=server.idempotency or (tool.meta or {}).get(IDEMPOTENT_META) is True,
    )
