"""The MCP servers, connected and behind the policy."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from gateway.agent.code.offer import CodeOffer
from gateway.agent.server_registry import ServerRegistry
from gateway.agent.toolsets.registry import ToolsetRegistry
from gateway.common.concurrency import TaskRegistry
from gateway.composition.observed import observe_calls, observe_programs, observe_servers
from gateway.composition.storage import Store
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.domain.bus import BusKind
from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.policy.build import apply_policy
from gateway.mcp_client.server_config import ServerConfigFile
from gateway.mcp_client.tool_server.definitions import DefinitionClient
from gateway.mcp_client.toolbox import McpToolbox
from gateway.mcp_client.toolsets.view import ToolsetToolbox
from gateway.ports.code import Sandbox
from gateway.ports.observer import Observer
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import Toolbox
from gateway.sandbox.program import MontySandbox, SandboxLimits
from gateway.store.admin.toolsets import ToolsetStore


@dataclass(frozen=True)
class Tools:
    """The MCP servers: `toolbox` connects to them, `policy_toolbox` applies the administrator's policy.

    `host_toolbox` applies it, too, and leaves the servers' content unchanged.
    """

    toolbox: McpToolbox
    policy_toolbox: Toolbox
    host_toolbox: Toolbox
    registry: ServerRegistry
    toolsets: ToolsetRegistry
    definitions: DefinitionClient
    code: CodeOffer


@asynccontextmanager
async def build_tools(
    settings: Settings,
    servers: list[ServerConfig],
    store: Store,
    tasks: TaskRegistry,
    observer: Observer | None = None,
) -> AsyncGenerator[Tools]:
    """Connect to the MCP servers.

    Changes of their configuration open and close connections.
    """
    toolbox = McpToolbox(servers, settings, store.servers, store.grants, identity_keys=store.identity_keys)
    store.identity_keys.write_jwks_file(settings.gateway_data_dir)
    apply_rules = partial(
        apply_policy,
        observe_servers(toolbox, observer),
        deny=settings.tools_deny,
        redactor=store.redactor,
        max_result_chars=settings.tool_result_max_chars,
    )
    observe = partial(observe_calls, observer=observer, redactor=store.redactor)
    toolsets = ToolsetRegistry(settings.toolsets, ToolsetStore(store.database), toolbox.announce_other_lists)
    store.bus.subscribe(BusKind.TOOLSETS_CHANGED, toolsets.on_toolsets_changed)
    policy_toolbox = ToolsetToolbox(observe(apply_rules()), toolsets)
    host_toolbox = ToolsetToolbox(observe(apply_rules(sanitizes=False)), toolsets)
    registry = ServerRegistry(ServerConfigFile(settings), toolbox, store.servers, store.bus)
    store.bus.subscribe(BusKind.SERVERS_CHANGED, registry.on_servers_changed)
    store.bus.subscribe(BusKind.GRANTS_CHANGED, lambda _: toolbox.on_grants_changed())
    async with AsyncExitStack() as stack:
        await toolbox.connect_servers()
        stack.push_async_callback(toolbox.disconnect_servers)
        supervise(registry.task, tasks, stack)
        supervise(toolsets.task, tasks, stack)
        secret = settings.tools_server_secret
        issuer = TokenIssuer(store.identity_keys, secret.get_secret_value() if secret else None)
        code = _create_code_offer(
            settings, stack, partial(observe_programs, observer=observer, redactor=store.redactor)
        )
        definitions = DefinitionClient(registry.get_config, issuer)
        yield Tools(toolbox, policy_toolbox, host_toolbox, registry, toolsets, definitions, code)


def _create_code_offer(settings: Settings, stack: AsyncExitStack, observe: Callable[[Sandbox], Sandbox]) -> CodeOffer:
    limits = SandboxLimits(
        seconds=settings.code_timeout,
        memory_bytes=settings.code_max_memory_mb * 1024 * 1024,
        calls=settings.code_max_calls,
        processes=settings.code_processes,
    )
    sandbox = MontySandbox(limits)
    stack.push_async_callback(sandbox.close)
    return CodeOffer(observe(sandbox), settings.code_mode, settings.code_stub_chars)
