"""Opens a session: transport, protocol era and the first tool list."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from mcp import Client
from mcp.client import IncomingMessage
from mcp.client.session import MessageHandlerFnT
from mcp.types import Implementation

from gateway import __version__
from gateway.common.concurrency import Deadline
from gateway.domain.messages import JsonObject
from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.connection.call_dispatcher import CallDispatcher
from gateway.mcp_client.connection.item_changes import ItemChanges
from gateway.mcp_client.connection.message_tap import MessageTap, SentRequest
from gateway.mcp_client.connection.negotiation import ConnectionMemory, NegotiatingClient, negotiate_protocol
from gateway.mcp_client.connection.ongoing_calls import OngoingCalls
from gateway.mcp_client.connection.output_check import replace_output_check
from gateway.mcp_client.connection.tool_list import ServerToolList
from gateway.mcp_client.definitions.limits import limit_header_search
from gateway.mcp_client.definitions.normalize import HANDSHAKES, ResultNormalizer
from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.mcp_client.stdio.process import INSTALL_SECONDS, is_package_runner
from gateway.mcp_client.stdio.transport import ProcessReport
from gateway.mcp_client.transports import RequestHook, open_transport
from gateway.ports.servers import ServerConfig

START_SECONDS = 60.0
"""Time limit of a start: process, handshake and first list of tools."""


@asynccontextmanager
async def open_session(
    config: ServerConfig,
    *,
    hooks: list[RequestHook],
    tokens: AccessTokenProvider,
    calls: OngoingCalls,
    tool_list: ServerToolList,
    item_changes: ItemChanges,
    problems: DefinitionProblems,
    on_end: Callable[[], None],
    identity: TokenIssuer,
    memory: ConnectionMemory,
    report: ProcessReport,
    max_message_bytes: int,
    capabilities: JsonObject,
) -> AsyncGenerator[Client]:
    """The SDK's client, connected, with its tools listed.

    Enter and exit in the same task. `on_end` is called when the only stream of a transport ends. From the yield on, a
    failed HTTP exchange fails its own request and no longer the session.

    Raises:
        Exception: whatever the transport, the SDK or the server raises, also in exception groups.
    """
    limit_header_search()
    transport_context = open_transport(
        config, memory.get_transport(config), hooks, on_end, tokens, identity, report, max_message_bytes
    )
    start_seconds = get_start_seconds(config)
    async with transport_context as transport:
        normalizer = ResultNormalizer(problems)

        async def normalize_result(request: SentRequest, result: JsonObject) -> None:
            version = None if request.method in HANDSHAKES else client.session.protocol_version
            await normalizer.normalize_result(request.method, request.params, result, version)

        tap = MessageTap(normalize_result, calls, capabilities)
        client = NegotiatingClient(
            tap.watch_streams(transport.streams),
            read_timeout_seconds=start_seconds,
            message_handler=_make_message_handler(tool_list, calls, item_changes),
            logging_callback=calls.on_log,
            elicitation_callback=calls.on_elicit,
            sampling_callback=calls.on_sample,
            list_roots_callback=calls.on_list_roots,
            log_level="info",
            client_info=Implementation(name="agent-gateway", version=__version__),
            cache=None,  # users share the connection, and answers may be private to one of them
        )
        client.negotiate = partial(negotiate_protocol, config=config, memory=memory)
        client.create_dispatcher = partial(CallDispatcher, tap=tap, transport=transport.direct_calls)
        deadline = Deadline.after(start_seconds)
        async with AsyncExitStack() as stack:
            async with deadline.limit():
                await stack.enter_async_context(client)
                replace_output_check(client, config.name, tool_list.find_tool)
                await tool_list.refresh_tools(client)
            memory.on_connected(is_legacy=client.session.initialize_result is not None)
            await transport.begin_calls()
            yield client


def get_start_seconds(config: ServerConfig) -> float:
    """Time limit of a server's start."""
    if config.start_timeout is not None:
        return config.start_timeout
    return INSTALL_SECONDS if is_package_runner(config.command, config.args) else START_SECONDS


def _make_message_handler(
    tool_list: ServerToolList, calls: OngoingCalls, item_changes: ItemChanges
) -> MessageHandlerFnT:
    """The SDK client's callback for notifications."""

    async def handle_message(message: IncomingMessage) -> None:
        await tool_list.on_message(message)
        await calls.on_message(message)
        item_changes.add(message)

    return handle_message
