"""Which route needs what: the area that a credential must open, the least role, and the class it is counted in.

The one place where that is said. A route that is not here is not served; a test fails for each route of the OpenAPI
document that nobody has put here.
"""

import re
from typing import Literal, NamedTuple

from gateway.domain.errors import Forbidden
from gateway.domain.messages import Area, Principal, UserRole

RouteClass = Literal["chat", "tools", "mcp", "api"]


class Access(NamedTuple):
    """`area` None: any credential opens it. `public`: nobody is asked for one. `begins`: it may begin a turn."""

    area: Area | None
    role: UserRole = "viewer"
    kind: RouteClass = "api"
    public: bool = False
    counted: bool = True
    begins: bool = False


_ROLES: dict[UserRole, int] = {"viewer": 0, "user": 1, "admin": 2}
_OPEN = Access(None, public=True)
_UNCOUNTED = Access(None, public=True, counted=False)
ANYONE = Access(None)
_BEGIN = Access("chat", "user", "chat", begins=True)
_STEER = Access("chat", "user")
_FOLLOW = Access("history", kind="chat")
_READ = Access("history")
_CHANGE = Access("history", "user")
_TOOLS = Access("tools")
_CALL = Access("tools", "user", "tools")
_SERVERS = Access("servers")
_ADMIN_SERVERS = Access("servers", "admin")
_ADMIN = Access("admin", "admin")

ROUTES: dict[tuple[str, str], Access] = {
    ("GET", "/health"): _UNCOUNTED,
    ("GET", "/ready"): _UNCOUNTED,
    ("GET", "/docs"): _OPEN,
    ("GET", "/docs/oauth2-redirect"): _OPEN,
    ("GET", "/redoc"): _OPEN,
    ("GET", "/openapi.json"): _OPEN,
    ("POST", "/api/v1/chat/stream"): _BEGIN,
    ("POST", "/api/v1/chat"): _BEGIN,
    ("GET", "/api/v1/turns/{turn_id}"): _READ,
    ("GET", "/api/v1/turns/{turn_id}/events"): _FOLLOW,
    ("POST", "/api/v1/turns/{turn_id}/input"): _STEER,
    ("POST", "/api/v1/turns/{turn_id}/cancel"): _STEER,
    ("GET", "/api/v1/conversations"): _READ,
    ("GET", "/api/v1/conversations/{conversation_id}"): _READ,
    ("GET", "/api/v1/conversations/{conversation_id}/export"): _READ,
    ("PATCH", "/api/v1/conversations/{conversation_id}"): _CHANGE,
    ("DELETE", "/api/v1/conversations/{conversation_id}"): _CHANGE,
    ("GET", "/api/v1/history"): _READ,
    ("GET", "/api/v1/search"): _READ,
    ("GET", "/api/v1/tools"): _TOOLS,
    ("POST", "/api/v1/tools/{name}"): _CALL,
    ("GET", "/api/v1/mcp/servers"): _SERVERS,
    ("POST", "/api/v1/mcp/servers"): _ADMIN_SERVERS,
    ("PATCH", "/api/v1/mcp/servers/{name}"): _ADMIN_SERVERS,
    ("DELETE", "/api/v1/mcp/servers/{name}"): _ADMIN_SERVERS,
    ("POST", "/api/v1/mcp/servers/{name}/tools/{tool}/approve"): _ADMIN_SERVERS,
    ("POST", "/api/v1/mcp/servers/{name}/sign-in"): Access("servers", "user"),
    ("DELETE", "/api/v1/mcp/servers/{name}/sign-in"): Access("servers", "user"),
    ("GET", "/api/v1/mcp/oauth/client.json"): _OPEN,
    ("GET", "/api/v1/mcp/oauth/start"): _OPEN,  # whoever has the ticket, which no one can guess
    ("POST", "/api/v1/mcp/oauth/start"): _OPEN,
    ("GET", "/api/v1/mcp/oauth/callback"): _OPEN,
    ("GET", "/api/v1/mcp/resources"): _TOOLS,
    ("GET", "/api/v1/mcp/resources/read"): _TOOLS,
    ("GET", "/api/v1/mcp/prompts"): _TOOLS,
    ("POST", "/api/v1/mcp/prompts/{name}"): _TOOLS,
    ("GET", "/api/v1/models"): ANYONE,
    ("POST", "/api/v1/turns/{turn_id}/feedback"): _CHANGE,
    ("GET", "/api/v1/usage"): _READ,
    ("GET", "/api/v1/budget"): _READ,
    ("GET", "/api/v1/admin/stats"): _ADMIN,
    ("GET", "/api/v1/audit"): _ADMIN,
    ("GET", "/api/v1/keys"): Access("keys"),
    ("POST", "/api/v1/keys"): Access("keys", "user"),
    ("DELETE", "/api/v1/keys/{key_id}"): Access("keys", "user"),
    ("POST", "/v1/chat/completions"): _BEGIN,
    ("GET", "/v1/models"): ANYONE,
    ("GET", "/v1/models/{model}"): ANYONE,
    ("POST", "/openai/v1/chat/completions"): _BEGIN,
    ("GET", "/openai/v1/models"): ANYONE,
    ("GET", "/openai/v1/models/{model}"): ANYONE,
    ("POST", "/v1/responses"): _BEGIN,
    ("GET", "/v1/responses/{response_id}"): _FOLLOW,
    ("GET", "/v1/responses/{response_id}/input_items"): _READ,
    ("POST", "/v1/responses/{response_id}/cancel"): _STEER,
    ("DELETE", "/v1/responses/{response_id}"): _CHANGE,
    ("POST", "/stream"): _BEGIN,
    ("POST", "/api/chat/stream"): _BEGIN,
    ("GET", "/api/conversations/{conversation_id}"): _READ,
    ("DELETE", "/api/conversations/{conversation_id}"): _CHANGE,
    ("POST", "/api/{user_id}/chat"): _BEGIN,
    ("GET", "/history"): _READ,
    ("GET", "/history/{turn_id}"): _READ,
    ("GET", "/search"): _READ,
    ("GET", "/mcp"): Access("tools", kind="mcp"),
    ("POST", "/mcp"): Access("tools", kind="mcp"),  # what changes anything is refused to viewers behind it
    ("DELETE", "/mcp"): Access("tools", kind="mcp"),
}
_WITH_SLASHES = {"model"}


def access_of(method: str, path: str) -> Access | None:
    """What a request needs; None: no route takes it. The application, which may see one there, must not be asked."""
    method = "GET" if method == "HEAD" else method
    if (known := ROUTES.get((method, path))) is not None:
        return known
    for pattern, access in _PATTERNS.get(method, ()):
        if pattern.fullmatch(path):
            return access
    return None


def methods_of(path: str) -> list[str]:
    """What may be done with a path."""
    known = {method for method, exact in ROUTES if exact == path}
    known |= {method for method, patterns in _PATTERNS.items() if any(p.fullmatch(path) for p, _ in patterns)}
    return sorted(known)


def check(principal: Principal, access: Access) -> None:
    """Raises:
    Forbidden: the principal's role or scopes do not open this.
    """
    if access.area is not None and not principal.may_enter(access.area):
        raise Forbidden(f"Your key does not open {access.area!r}: it has the scopes {list(principal.scopes or ())}.")
    if _ROLES[principal.role] < _ROLES[access.role]:
        needed = "an admin" if access.role == "admin" else "a user"
        raise Forbidden(f"This needs the role of {needed}; yours is {principal.role}.")


def within(role: UserRole, most: UserRole) -> bool:
    return _ROLES[role] <= _ROLES[most]


def _pattern(path: str) -> re.Pattern[str]:
    def piece(match: re.Match[str]) -> str:
        return ".+" if match[1] in _WITH_SLASHES else "[^/]+"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", piece, re.escape(path)))


_PATTERNS: dict[str, list[tuple[re.Pattern[str], Access]]] = {}
for (_method, _path), _access in ROUTES.items():
    if "{" in _path:
        _PATTERNS.setdefault(_method, []).append((_pattern(_path), _access))
