"""The connections to all servers, shared and per user."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

import msgspec
from mcp.types import ErrorData, ListRootsResult, Tool
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from gateway.common.concurrency import Deadline, LruDict, TaskSet
from gateway.domain.caller_token import JWT_KEY
from gateway.domain.hosts import HostProfile
from gateway.domain.messages import JsonObject, Principal
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.roots import read_host_roots
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import CallObserver

_MAX_PERSONAL_CONNECTIONS = 200
_MAX_REMEMBERED_OFFERS = 1_000
_MAX_HOST_CONNECTIONS = 200
_HOST_CONNECT_SECONDS = 15.0
_USER_CONNECT_SECONDS = 5.0

_SESSION_CAPABILITIES = ("elicitation", "sampling")
"""Capabilities with which hosts may share a session."""
_ROOTS = "roots"
"""Capability of sessions for one host.

Servers remember the roots of a session.
"""

_HostKey = tuple[str, str, str, str, bytes]
"""Server, session, user, key and capabilities.

Only hosts with roots have a session and a key, and only personal servers another user.
"""
Connect = Callable[[ServerConfig, Principal | None, JsonObject | None], ServerConnection]


class ServerOffer(msgspec.Struct, frozen=True):
    """A server's tools, and its instructions for models, now."""

    config: ServerConfig
    tools: tuple[Tool, ...]
    instructions: str | None = None
    """Instructions of a shared connection.

    Those of a personal one may concern its user only.
    """


class ConnectionPool:
    """Opens, finds and closes connections.

    `connect(config, principal, capabilities)` makes one; without a principal it is shared by all users, and with
    capabilities it serves legacy hosts that declare these.

    A connection that is no longer needed is closed once its calls have ended, at most `drain_seconds` later.
    """

    def __init__(
        self,
        servers: Sequence[ServerConfig],
        connect: Connect,
        *,
        drain_seconds: float,
    ) -> None:
        self._connect = connect
        self._drain_seconds = drain_seconds
        self._open: set[ServerConnection] = set()
        self._draining = TaskSet("mcp drain")
        self._shared = {server.name: self._make_connection(server, None) for server in servers}
        self._personal: LruDict[tuple[str, str], ServerConnection] = LruDict(
            _MAX_PERSONAL_CONNECTIONS, on_evict=lambda _, connection: self._drain_connection(connection)
        )
        self._for_hosts: LruDict[_HostKey, ServerConnection] = LruDict(
            _MAX_HOST_CONNECTIONS, on_evict=lambda _, connection: self._drain_connection(connection)
        )
        self._union_offers: dict[str, ServerOffer] = {}
        self._last_offers: LruDict[tuple[str, str], ServerOffer] = LruDict(_MAX_REMEMBERED_OFFERS)
        """Offers of personal connections, also of closed ones, by server and user."""

    def __iter__(self) -> Iterator[ServerConnection]:
        """The shared connections, in the order of the configuration."""
        return iter(self._shared.values())

    def open_connections(self) -> None:
        """Begin to connect. Returns at once, with every server still unavailable."""
        for connection in self._shared.values():
            connection.start_connection()

    async def close_connections(self) -> None:
        """Close all connections, also those that still drain."""
        await self._draining.stop()
        await asyncio.gather(*(connection.stop_connection() for connection in self._open))
        self._open.clear()

    async def wait_until_attempted(self, seconds: float) -> None:
        """Wait until every server was tried once, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with Deadline.after(seconds).limit():
                for connection in list(self._shared.values()):
                    await connection.wait_until_attempted()

    def replace_servers(self, servers: Sequence[ServerConfig]) -> None:
        """Connect to exactly these servers. Unchanged ones keep their connections."""
        configs = {server.name: server for server in servers}
        for name, connection in list(self._shared.items()):
            if configs.get(name) != connection.config:
                self._drain_connection(self._shared.pop(name))
                self._union_offers.pop(name, None)
                for key in [key for key in self._last_offers if key[0] == name]:
                    self._last_offers.pop(key)
                for key in [key for key in self._personal if key[0] == name]:
                    self._drain_connection(self._personal.pop(key))
                for host_key in [key for key in self._for_hosts if key[0] == name]:
                    self._drain_connection(self._for_hosts.pop(host_key))
        new_names = configs.keys() - self._shared.keys()
        self._shared = {
            name: self._shared.get(name) or self._make_connection(config, None) for name, config in configs.items()
        }
        for name in new_names:
            self._shared[name].start_connection()

    def get_shared(self, server: str) -> ServerConnection | None:
        """The shared connection; None if there is no such server."""
        return self._shared.get(server)

    def get_connection(self, server: str, principal: Principal) -> ServerConnection | None:
        """The connection for a user's request.

        The shared one, or the user's own, which is opened when first needed.
        """
        shared_connection = self._shared.get(server)
        if shared_connection is None or shared_connection.config.share == "all":
            return shared_connection
        if shared_connection.config.exchanges_tokens and principal.key != JWT_KEY:
            return shared_connection  # which refuses callers without a token of their own
        key = (server, principal.user)
        connection = self._personal.get(key)
        if connection is None:
            connection = self._make_connection(shared_connection.config, principal)
            connection.admit_caller(principal)
            connection.start_connection()
            self._personal[key] = connection
        else:
            connection.admit_caller(principal)
        return connection

    def find_open(self, shared_connection: ServerConnection, principal: Principal) -> ServerConnection:
        """Return the user's own connection to a server, if it is available."""
        config = shared_connection.config
        own = self._personal.get((config.name, principal.user)) if config.share == "user" else None
        return own if own is not None and own.is_available else shared_connection

    async def connect_user(self, principal: Principal) -> None:
        """Connect a user to the servers that take the user's own token.

        Returns when each was tried, or after a moment.
        """
        if principal.key != JWT_KEY:
            return
        servers = [name for name, shared in self._shared.items() if shared.config.exchanges_tokens]
        connections = [self.get_connection(name, principal) for name in servers if principal.can_use_server(name)]
        waiting = [connection for connection in connections if connection is not None and not connection.was_attempted]
        if not waiting:
            return
        with contextlib.suppress(TimeoutError):
            async with Deadline.after(_USER_CONNECT_SECONDS).limit():
                for connection in waiting:
                    await connection.wait_until_attempted()

    async def get_host_connection(
        self,
        server: str,
        principal: Principal,
        host: HostProfile | None,
        observer: CallObserver | None = None,
    ) -> ServerConnection | None:
        """The connection for a request of an MCP host.

        Servers ask a host what it declares. In the current protocol each request declares it, in the legacy one a
        session does, so a host whose capabilities differ gets one of its own. Commands are not started again for that.
        A host with roots shares its session with nobody, or, of the current protocol, with the same key's hosts that
        have the same roots. The `observer` forwards requests of the server to the host.
        """
        connection = self.get_connection(server, principal)
        if connection is None or host is None or not needs_own_session(connection, host):
            return connection
        names = (*_SESSION_CAPABILITIES, _ROOTS)
        capabilities = {name: host.capabilities[name] for name in names if host.declares(name)}
        owner = "" if connection.config.share == "all" else principal.user
        encoded = msgspec.json.encode(capabilities, order="sorted")
        key: _HostKey = (server, "", owner, "", encoded)
        if host.declares(_ROOTS):
            key = (server, host.session, principal.user, principal.key or "", encoded)
        own, owner_principal = self._for_hosts.get(key), principal if owner else None
        roots = None
        if own is not None and own.host_roots is not None and own.host_roots.are_fixed and own.host_roots.answer:
            if observer is not None:
                own.host_roots.set_observer(observer)
            roots = await read_host_roots(own.host_roots.wait_for_observer(), server)
            if roots != own.host_roots.answer:
                key = (server, "", principal.user, principal.key or "", encoded + roots.model_dump_json().encode())
                own = self._for_hosts.get(key)
        if own is None:
            own = self._connect(connection.config, owner_principal, capabilities)
            self._open.add(own)
            self._for_hosts[key] = own
            _set_host(own, host, observer, roots)
            own.start_connection()
        _set_host(own, host, observer, roots)
        with contextlib.suppress(TimeoutError):
            async with Deadline.after(_HOST_CONNECT_SECONDS).limit():
                await own.wait_until_attempted()
        return own if own.is_available else connection

    async def announce_roots_change(self, host_session: str) -> None:
        """Tell the servers of a host that its roots have changed."""
        own = [self._for_hosts[key] for key in list(self._for_hosts) if key[1] == host_session]
        await asyncio.gather(*(connection.announce_roots_change() for connection in own))

    def close_host(self, host_session: str) -> None:
        """Close the sessions of a host that has left."""
        for key in [key for key in self._for_hosts if key[1] == host_session]:
            self._drain_connection(self._for_hosts.pop(key))

    @property
    def has_personal_servers(self) -> bool:
        """Whether any server has a connection per user."""
        return any(connection.config.share == "user" for connection in self._shared.values())

    def open_for_listing(self, principal: Principal) -> None:
        """Connect a user to the servers that need no sign-in.

        That user's tools can be listed then. It closes no connection of another user.
        """
        for name, shared in self._shared.items():
            has_room = len(self._personal) < _MAX_PERSONAL_CONNECTIONS
            is_open_to_all = shared.is_available or not shared.config.allows_sign_in
            if shared.config.share == "user" and has_room and is_open_to_all:
                self.get_connection(name, principal)

    def find_offer(self, server: str) -> ServerOffer | None:
        """The offer of a server to all its users; None without one."""
        connection = self._shared.get(server)
        return None if connection is None else self.get_offer(connection)

    def get_user_offer(self, shared_connection: ServerConnection, user: str) -> ServerOffer | None:
        """The offer of a server to one user; None without one now."""
        config = shared_connection.config
        key = (config.name, user)
        connection = self._personal.get(key) if config.share == "user" else None
        if connection is not None and connection.knows_tools:
            self._last_offers[key] = ServerOffer(config, connection.tools)
        is_own_available = connection is not None and connection.is_available
        is_usable = is_own_available or shared_connection.is_available or shared_connection.needs_sign_in
        if is_usable and (offer := self._last_offers.get(key)) is not None:
            return offer
        return self._make_offer(shared_connection) if shared_connection.is_available else None

    def get_offer(self, shared_connection: ServerConnection) -> ServerOffer | None:
        """Offer of a server to all its users.

        Where each user has a connection, it has the tools of all of them: no user may see it.
        """
        config = shared_connection.config
        is_available = shared_connection.is_available
        if config.share == "all":
            return self._make_offer(shared_connection) if is_available else None
        connections = [
            connection
            for connection in self._open
            if connection.config is config
            and connection.knows_tools
            and (connection is not shared_connection or is_available)
        ]
        if connections:
            tools = {tool.name: tool for connection in connections for tool in connection.tools}
            instructions = shared_connection.instructions if is_available else None
            self._union_offers[config.name] = ServerOffer(config, tuple(tools.values()), instructions)
        elif not shared_connection.needs_sign_in:
            return None
        return self._union_offers.get(config.name)

    def _make_offer(self, connection: ServerConnection) -> ServerOffer:
        return ServerOffer(connection.config, connection.tools, connection.instructions)

    def discard_tokens(self) -> None:
        """Read the stored grants again before the next requests."""
        for connection in self._open:
            connection.discard_token()

    def _make_connection(self, config: ServerConfig, principal: Principal | None) -> ServerConnection:
        connection = self._connect(config, principal, None)
        self._open.add(connection)
        return connection

    def _drain_connection(self, connection: ServerConnection) -> None:
        self._draining.spawn(self._drain_and_stop(connection))

    async def _drain_and_stop(self, connection: ServerConnection) -> None:
        await connection.drain_and_stop(self._drain_seconds)
        self._open.discard(connection)


def _set_host(
    connection: ServerConnection,
    host: HostProfile,
    observer: CallObserver | None,
    roots: ListRootsResult | ErrorData | None,
) -> None:
    """Tell a connection whom to ask for roots, or the roots."""
    own = connection.host_roots
    if own is None:
        return
    if observer is not None:
        own.set_observer(observer)
    if roots is not None:
        own.fix(roots)
    own.are_fixed = not host.is_legacy


def needs_own_session(connection: ServerConnection, host: HostProfile) -> bool:
    """Whether a host needs another session than all callers share.

    A server of the current protocol may ask legacy hosts only in a legacy session.
    """
    if connection.config.transport == "stdio" or not connection.is_available:
        return False
    if connection.is_legacy:
        own = connection.capabilities
        return host.declares(_ROOTS) or any(
            host.capabilities.get(name) != own.get(name) for name in _SESSION_CAPABILITIES
        )
    is_pinned = connection.config.protocol in MODERN_PROTOCOL_VERSIONS
    return host.is_legacy and not is_pinned and any(map(host.declares, _SESSION_CAPABILITIES))
