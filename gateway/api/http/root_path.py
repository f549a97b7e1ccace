"""The prefix of all paths where a proxy publishes the gateway."""

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.security.permissions import list_methods


class RootPathMiddleware:
    """Removes the prefix from paths, for proxies that pass it on.

    A path that is a route as it stands is left alone: a proxy has removed the prefix, which may be the beginning of a
    route, such as `/api`.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            has_prefix = path == self._root_path or path.startswith(f"{self._root_path}/")
            if has_prefix and not list_methods(path):
                raw_path: bytes = scope.get("raw_path") or path.encode()
                length = len(self._root_path)
                scope = {**scope, "path": path[length:] or "/", "raw_path": raw_path[length:] or b"/"}
        await self._app(scope, receive, send)
