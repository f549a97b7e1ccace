"""Sessions of the people who use the console, in memory."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["viewer", "user", "admin"]


@dataclass
class Session:
    """A browser that is signed in.

    `credential` is a key or token; None where the gateway asks for none. It never leaves this process, except to the
    gateway.
    """

    credential: str | None = field(repr=False)
    role: Role
    expires_at: float
    is_closed: bool = False
    preferences: dict[str, object] = field(default_factory=dict[str, object])


class SessionStore:
    """Sessions by the random id in the browser's cookie.

    The oldest session ends when there would be more than `max_sessions`.
    """

    def __init__(self, max_age_seconds: float, max_sessions: int, now: Callable[[], float] = time.monotonic) -> None:
        self._max_age_seconds = max_age_seconds
        self._max_sessions = max_sessions
        self._now = now
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def create(self, credential: str | None, role: Role) -> tuple[str, Session]:
        self._remove_expired()
        while len(self._sessions) >= self._max_sessions:
            self._sessions.popitem(last=False)[1].is_closed = True
        identifier = secrets.token_urlsafe(32)
        session = Session(credential, role, self._now() + self._max_age_seconds)
        self._sessions[identifier] = session
        return identifier, session

    def find(self, identifier: str | None) -> Session | None:
        session = self._sessions.get(identifier or "")
        if session is None or not self.is_open(session):
            return None
        return session

    def is_open(self, session: Session) -> bool:
        return not session.is_closed and self._now() < session.expires_at

    def close(self, identifier: str | None) -> None:
        session = self._sessions.pop(identifier or "", None)
        if session is not None:
            session.is_closed, session.credential = True, None

    def __len__(self) -> int:
        return len(self._sessions)

    def _remove_expired(self) -> None:
        for identifier in [name for name, session in self._sessions.items() if not self.is_open(session)]:
            self.close(identifier)


class RequestLimiter:
    """Limits requests without a session, by source address and minute.

    It remembers `max_sources` addresses at most; more of them share what is left of the minute.
    """

    def __init__(
        self,
        limit: int,
        *,
        max_sources: int = 10_000,
        window_seconds: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._max_sources = max_sources
        self._window_seconds = window_seconds
        self._now = now
        self._window_end = 0.0
        self._counts: dict[str, int] = {}

    def allow(self, source: str) -> bool:
        if (now := self._now()) >= self._window_end:
            self._window_end = now + self._window_seconds
            self._counts.clear()
        if source not in self._counts and len(self._counts) >= self._max_sources:
            source = ""
        self._counts[source] = count = self._counts.get(source, 0) + 1
        return count <= self._limit
