"""Permissions of each route.

A permission has the area in the key's scopes, the lowest role, and the rate-limit class. A route without an entry is
not served, and a test fails for each route of the OpenAPI document without one.
"""

import re
from typing import Literal, NamedTuple

from gateway.domain.errors import Forbidden, ScopeMissing
from gateway.domain.messages import Area, Principal, UserRole

PERMISSION_SCOPE_KEY = "gateway.permission"
"""Scope key of the `RoutePermission` of a request."""
RouteClass = Literal["chat", "tools", "mcp", "api"]


class RoutePermission(NamedTuple):
    """Requirements of a route.

    `area` None: any credential is sufficient. `public`: no credential is required. `counted`: requests count against
    rate limits. `starts_turn`: requests pass the admission gate, as those that start turns. `detailed`: an uncounted
    route that shows more to admins; requests with a credential count. `long_body`: bodies may be as long as those that
    start turns. `upload`: the route reads the body itself, within limits of its own.
    """

    area: Area | None
    role: UserRole = "viewer"
    route_class: RouteClass = "api"
    public: bool = False
    counted: bool = True
    starts_turn: bool = False
    detailed: bool = False
    long_body: bool = False
    upload: bool = False


_ROLE_RANKS: dict[UserRole, int] = {"viewer": 0, "user": 1, "admin": 2}
_PUBLIC = RoutePermission(None, public=True)
_UNCOUNTED = RoutePermission(None, public=True, counted=False)
ANYONE = RoutePermission(None)
_START_TURN = RoutePermission("chat", "user", "chat", starts_turn=True)
_CONTROL_TURN = RoutePermission("chat", "user")
_ADD_TO_CONVERSATION = RoutePermission("chat", "user", "chat", long_body=True)
_PASS_ON = RoutePermission("chat", "user", "chat", starts_turn=True)
_UPLOAD = _PASS_ON._replace(upload=True)
_FOLLOW = RoutePermission("history", route_class="chat")
_READ = RoutePermission("history")
_CHANGE = RoutePermission("history", "user")
_TOOLS = RoutePermission("tools")
_CALL = RoutePermission("tools", "user", "tools")
_SERVERS = RoutePermission("servers")
_ADMIN_SERVERS = RoutePermission("servers", "admin")
_ADMIN = RoutePermission("admin", "admin")
_DEFINE = _ADMIN._replace(long_body=True)
MANAGE_KEYS = RoutePermission("keys", "user")

ROUTES: dict[tuple[str, str], RoutePermission] = {
    ("GET", "/health"): _UNCOUNTED,
    ("GET", "/ready"): _UNCOUNTED._replace(detailed=True),
    ("GET", "/metrics"): RoutePermission("metrics"),
    ("GET", "/docs"): _PUBLIC,
    ("GET", "/docs/oauth2-redirect"): _PUBLIC,
    ("GET", "/redoc"): _PUBLIC,
    ("GET", "/openapi.json"): _PUBLIC,
    ("POST", "/api/v1/chat/stream"): _START_TURN,
    ("POST", "/api/v1/chat"): _START_TURN,
    ("POST", "/api/v1/ag-ui"): _START_TURN,
    ("POST", "/api/v1/ui-messages"): _START_TURN,
    ("GET", "/api/v1/ui-messages/{id}/stream"): _FOLLOW,
    ("GET", "/api/v1/turns/{turn_id}"): _READ,
    ("GET", "/api/v1/turns/{turn_id}/events"): _FOLLOW,
    ("POST", "/api/v1/turns/{turn_id}/input"): _CONTROL_TURN,
    ("POST", "/api/v1/turns/{turn_id}/cancel"): _CONTROL_TURN,
    ("POST", "/api/v1/turns/{turn_id}/fork"): _START_TURN,
    ("POST", "/api/v1/turns/{turn_id}/replay"): _START_TURN,
    ("GET", "/api/v1/turns/{turn_id}/compare/{other_id}"): _READ,
    ("GET", "/api/v1/conversations"): _READ,
    ("GET", "/api/v1/conversations/{conversation_id}"): _READ,
    ("GET", "/api/v1/conversations/{conversation_id}/export"): _READ,
    ("PATCH", "/api/v1/conversations/{conversation_id}"): _CHANGE,
    ("DELETE", "/api/v1/conversations/{conversation_id}"): _CHANGE,
    ("GET", "/api/v1/history"): _READ,
    ("GET", "/api/v1/search"): _READ,
    ("GET", "/api/v1/tools"): _TOOLS,
    ("GET", "/api/v1/tools/definitions"): _ADMIN,
    ("POST", "/api/v1/tools/definitions"): _DEFINE,
    ("POST", "/api/v1/tools/definitions/import"): _DEFINE,
    ("GET", "/api/v1/tools/definitions/{name}"): _ADMIN,
    ("PATCH", "/api/v1/tools/definitions/{name}"): _DEFINE,
    ("DELETE", "/api/v1/tools/definitions/{name}"): _ADMIN,
    ("POST", "/api/v1/tools/definitions/{name}/test"): _ADMIN,
    ("POST", "/api/v1/tools/definitions/{name}/publish"): _ADMIN,
    ("POST", "/api/v1/tools/{name}"): _CALL,
    ("GET", "/api/v1/mcp/servers"): _SERVERS,
    ("POST", "/api/v1/mcp/servers"): _ADMIN_SERVERS,
    ("PATCH", "/api/v1/mcp/servers/{name}"): _ADMIN_SERVERS,
    ("PUT", "/api/v1/mcp/servers/{name}"): _ADMIN_SERVERS,
    ("DELETE", "/api/v1/mcp/servers/{name}"): _ADMIN_SERVERS,
    ("POST", "/api/v1/mcp/servers/{name}/tools/{tool}/approve"): _ADMIN_SERVERS,
    ("POST", "/api/v1/mcp/servers/{name}/instructions/approve"): _ADMIN_SERVERS,
    ("POST", "/api/v1/mcp/servers/{name}/sign-in"): RoutePermission("servers", "user"),
    ("DELETE", "/api/v1/mcp/servers/{name}/sign-in"): RoutePermission("servers", "user"),
    ("GET", "/api/v1/mcp/oauth/client.json"): _PUBLIC,
    ("GET", "/api/v1/mcp/oauth/start"): _PUBLIC,  # the ticket in the URL is the credential
    ("POST", "/api/v1/mcp/oauth/start"): _PUBLIC,
    ("GET", "/api/v1/mcp/oauth/callback"): _PUBLIC,
    ("GET", "/api/v1/toolsets"): _TOOLS,
    ("POST", "/api/v1/toolsets"): _ADMIN_SERVERS,
    ("GET", "/api/v1/toolsets/{name}"): _TOOLS,
    ("PUT", "/api/v1/toolsets/{name}"): _ADMIN_SERVERS,
    ("DELETE", "/api/v1/toolsets/{name}"): _ADMIN_SERVERS,
    ("GET", "/api/v1/mcp/resources"): _TOOLS,
    ("GET", "/api/v1/mcp/resources/read"): _TOOLS,
    ("GET", "/api/v1/mcp/prompts"): _TOOLS,
    ("POST", "/api/v1/mcp/prompts/{name}"): _TOOLS,
    ("GET", "/api/v1/models"): ANYONE,
    ("GET", "/api/v1/webhooks/failures"): _READ,
    ("POST", "/api/v1/turns/{turn_id}/feedback"): _CHANGE,
    ("GET", "/api/v1/usage"): _READ,
    ("GET", "/api/v1/budget"): _READ,
    ("GET", "/api/v1/admin/stats"): _ADMIN,
    ("GET", "/api/v1/admin/turns"): _ADMIN,
    ("GET", "/api/v1/admin/turns/active"): _ADMIN,
    ("GET", "/api/v1/admin/turns/{turn_id}/events"): _ADMIN._replace(route_class="chat"),
    ("POST", "/api/v1/admin/turns/{turn_id}/cancel"): _ADMIN,
    ("GET", "/api/v1/admin/workers"): _ADMIN,
    ("GET", "/api/v1/admin/user-data"): _ADMIN,
    ("DELETE", "/api/v1/admin/user-data"): _ADMIN,
    ("GET", "/api/v1/audit"): _ADMIN,
    ("GET", "/api/v1/audit/export"): _ADMIN,
    ("GET", "/api/v1/keys"): RoutePermission("keys"),
    ("POST", "/api/v1/keys"): MANAGE_KEYS,
    ("PATCH", "/api/v1/keys/{key_id}"): MANAGE_KEYS,
    # The routes check `MANAGE_KEYS` for other keys: a key may revoke or rotate itself without this scope.
    ("DELETE", "/api/v1/keys/{key_id}"): RoutePermission(None, "user"),
    ("POST", "/api/v1/keys/{key_id}/rotate"): RoutePermission(None, "user"),
    ("POST", "/v1/chat/completions"): _START_TURN,
    ("POST", "/v1/completions"): _START_TURN,
    ("GET", "/v1/models"): ANYONE,
    ("GET", "/v1/models/{model}"): ANYONE,
    ("POST", "/openai/v1/chat/completions"): _START_TURN,
    ("POST", "/openai/v1/completions"): _START_TURN,
    ("GET", "/openai/v1/models"): ANYONE,
    ("GET", "/openai/v1/models/{model}"): ANYONE,
    ("POST", "/v1/messages"): _START_TURN,
    ("POST", "/v1/messages/count_tokens"): RoutePermission("chat", "user", "chat"),
    ("POST", "/v1/responses"): _START_TURN,
    ("POST", "/v1/responses/input_tokens"): _ADD_TO_CONVERSATION,
    ("GET", "/v1/responses/{response_id}"): _FOLLOW,
    ("GET", "/v1/responses/{response_id}/input_items"): _READ,
    ("POST", "/v1/responses/{response_id}/cancel"): _CONTROL_TURN,
    ("DELETE", "/v1/responses/{response_id}"): _CHANGE,
    ("POST", "/v1/conversations"): _ADD_TO_CONVERSATION,
    ("GET", "/v1/conversations/{conversation_id}"): _READ,
    ("POST", "/v1/conversations/{conversation_id}"): _CHANGE,
    ("DELETE", "/v1/conversations/{conversation_id}"): _CHANGE,
    ("POST", "/v1/conversations/{conversation_id}/items"): _ADD_TO_CONVERSATION,
    ("GET", "/v1/conversations/{conversation_id}/items"): _READ,
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): _READ,
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): _CHANGE,
    ("POST", "/openai/v1/responses"): _START_TURN,
    ("POST", "/openai/v1/responses/input_tokens"): _ADD_TO_CONVERSATION,
    ("GET", "/openai/v1/responses/{response_id}"): _FOLLOW,
    ("GET", "/openai/v1/responses/{response_id}/input_items"): _READ,
    ("POST", "/openai/v1/responses/{response_id}/cancel"): _CONTROL_TURN,
    ("DELETE", "/openai/v1/responses/{response_id}"): _CHANGE,
    ("POST", "/openai/v1/conversations"): _ADD_TO_CONVERSATION,
    ("GET", "/openai/v1/conversations/{conversation_id}"): _READ,
    ("POST", "/openai/v1/conversations/{conversation_id}"): _CHANGE,
    ("DELETE", "/openai/v1/conversations/{conversation_id}"): _CHANGE,
    ("POST", "/openai/v1/conversations/{conversation_id}/items"): _ADD_TO_CONVERSATION,
    ("GET", "/openai/v1/conversations/{conversation_id}/items"): _READ,
    ("GET", "/openai/v1/conversations/{conversation_id}/items/{item_id}"): _READ,
    ("DELETE", "/openai/v1/conversations/{conversation_id}/items/{item_id}"): _CHANGE,
    ("POST", "/v1/embeddings"): _PASS_ON,
    ("POST", "/v1/audio/speech"): _PASS_ON,
    ("POST", "/v1/audio/transcriptions"): _UPLOAD,
    ("POST", "/v1/audio/translations"): _UPLOAD,
    ("POST", "/openai/v1/embeddings"): _PASS_ON,
    ("POST", "/openai/v1/audio/speech"): _PASS_ON,
    ("POST", "/openai/v1/audio/transcriptions"): _UPLOAD,
    ("POST", "/openai/v1/audio/translations"): _UPLOAD,
    # Each method of JSON-RPC needs the permission of its REST route, too.
    ("POST", "/a2a"): RoutePermission(None, route_class="chat", starts_turn=True),
    ("POST", "/a2a/v1/message:send"): _START_TURN,
    ("POST", "/a2a/v1/message:stream"): _START_TURN,
    ("GET", "/a2a/v1/tasks"): _READ,
    ("GET", "/a2a/v1/tasks/{task_id}:subscribe"): _FOLLOW,
    ("POST", "/a2a/v1/tasks/{task_id}:subscribe"): _FOLLOW._replace(role="user"),
    ("POST", "/a2a/v1/tasks/{task_id}:cancel"): _CONTROL_TURN,
    ("GET", "/a2a/v1/tasks/{task_id}"): _READ,
    ("POST", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs"): _CONTROL_TURN,
    ("GET", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs"): _READ,
    ("GET", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs/{push_id}"): _READ,
    ("DELETE", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs/{push_id}"): _CONTROL_TURN,
    ("GET", "/a2a/v1/extendedAgentCard"): _TOOLS,
    ("POST", "/v1/files"): _UPLOAD,
    ("GET", "/v1/files"): _READ,
    ("GET", "/v1/files/{file_id}"): _READ,
    ("GET", "/v1/files/{file_id}/content"): _FOLLOW,
    ("DELETE", "/v1/files/{file_id}"): _CHANGE,
    ("POST", "/v1/batches"): _PASS_ON,
    ("GET", "/v1/batches"): _READ,
    ("GET", "/v1/batches/{batch_id}"): _READ,
    ("POST", "/v1/batches/{batch_id}/cancel"): _CHANGE,
    ("POST", "/openai/v1/files"): _UPLOAD,
    ("GET", "/openai/v1/files"): _READ,
    ("GET", "/openai/v1/files/{file_id}"): _READ,
    ("GET", "/openai/v1/files/{file_id}/content"): _FOLLOW,
    ("DELETE", "/openai/v1/files/{file_id}"): _CHANGE,
    ("POST", "/openai/v1/batches"): _PASS_ON,
    ("GET", "/openai/v1/batches"): _READ,
    ("GET", "/openai/v1/batches/{batch_id}"): _READ,
    ("POST", "/openai/v1/batches/{batch_id}/cancel"): _CHANGE,
    # Each type of request needs a permission of its own, too.
    ("POST", "/chatkit"): RoutePermission(None, route_class="chat", starts_turn=True),
    ("POST", "/stream"): _START_TURN,
    ("POST", "/api/chat/stream"): _START_TURN,
    ("GET", "/api/conversations/{conversation_id}"): _READ,
    ("DELETE", "/api/conversations/{conversation_id}"): _CHANGE,
    ("POST", "/api/{user_id}/chat"): _START_TURN,
    ("GET", "/history"): _READ,
    ("GET", "/history/{turn_id}"): _READ,
    ("GET", "/search"): _READ,
    ("GET", "/mcp"): RoutePermission("tools", route_class="mcp"),
    # The MCP endpoint itself rejects calls of viewers that change something.
    ("POST", "/mcp"): RoutePermission("tools", route_class="mcp"),
    ("DELETE", "/mcp"): RoutePermission("tools", route_class="mcp"),
    ("GET", "/mcp/{toolset}"): RoutePermission("tools", route_class="mcp"),
    ("POST", "/mcp/{toolset}"): RoutePermission("tools", route_class="mcp"),
    ("DELETE", "/mcp/{toolset}"): RoutePermission("tools", route_class="mcp"),
}
PUBLIC_DOCUMENTS: dict[tuple[str, str], RoutePermission] = {
    ("GET", "/"): _UNCOUNTED._replace(detailed=True),
    ("GET", "/docs/assets/{name}"): _PUBLIC,
    # MCP servers fetch it, under any name of the gateway.
    ("GET", "/.well-known/jwks.json"): _UNCOUNTED,
    ("GET", "/.well-known/oauth-protected-resource"): _PUBLIC,
    ("GET", "/.well-known/oauth-protected-resource/{resource_path}"): _PUBLIC,
    ("GET", "/.well-known/agent-card.json"): _PUBLIC,
    ("GET", "/.well-known/mcp/catalog.json"): _PUBLIC,
    ("GET", "/.well-known/mcp/server-card.json"): _PUBLIC,
    ("GET", "/mcp/server-card"): _PUBLIC,
}
"""Documents outside the API, which need no credential."""
_PARAMETERS_WITH_SLASHES = {"model", "resource_path"}


def find_permission(method: str, path: str) -> RoutePermission | None:
    """Return the permission that a request needs.

    Return None if no route matches: then the application must not run.
    """
    method = "GET" if method == "HEAD" else method
    if (permission := ROUTES.get((method, path)) or PUBLIC_DOCUMENTS.get((method, path))) is not None:
        return permission
    for pattern, permission in _PATTERNS.get(method, ()):
        if pattern.fullmatch(path):
            return permission
    return None


def list_methods(path: str) -> list[str]:
    """List the HTTP methods of a path, sorted."""
    methods = {method for method, route_path in (*ROUTES, *PUBLIC_DOCUMENTS) if route_path == path}
    methods |= {method for method, patterns in _PATTERNS.items() if any(p.fullmatch(path) for p, _ in patterns)}
    return sorted(methods)


MCP_SCOPES = ("tools",)
"""Scopes that a token needs at `/mcp`."""


def require_permission(principal: Principal, permission: RoutePermission) -> None:
    """Check a principal's role and scopes.

    Raises:
        ScopeMissing: the principal lacks the scope.
        Forbidden: the principal lacks the role.
    """
    area = permission.area
    if area is not None and not principal.has_scope(area):
        scopes = principal.scopes or ()
        message = f"Your key does not permit {area!r}: its scopes: {', '.join(scopes) or 'none'}."
        raise ScopeMissing(message, (*scopes, area))
    if _ROLE_RANKS[principal.role] < _ROLE_RANKS[permission.role]:
        required_role = "an admin" if permission.role == "admin" else "a user"
        raise Forbidden(f"This needs the role of {required_role}; yours is {principal.role}.")


def role_at_most(role: UserRole, limit: UserRole) -> bool:
    """Return whether a role has no more rights than `limit`."""
    return _ROLE_RANKS[role] <= _ROLE_RANKS[limit]


def _compile_pattern(path: str) -> re.Pattern[str]:
    def replace_parameter(match: re.Match[str]) -> str:
        return ".+" if match[1] in _PARAMETERS_WITH_SLASHES else "[^/]+"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", replace_parameter, re.escape(path)))


_PATTERNS: dict[str, list[tuple[re.Pattern[str], RoutePermission]]] = {}
for (_method, _path), _permission in (ROUTES | PUBLIC_DOCUMENTS).items():
    if "{" in _path:
        _PATTERNS.setdefault(_method, []).append((_compile_pattern(_path), _permission))
