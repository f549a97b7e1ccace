"""Export of the audit log as JSON lines, chained by hash.

A trigger numbers the entries, and stores with each the SHA-256 of the previous hash and of the entry's own text. A line
has this text unchanged, so that a changed, missing or added entry shows.
"""

import hashlib
from collections.abc import AsyncGenerator, Iterable

import msgspec

from gateway.common.pages import split_bytes
from gateway.store.database import Database
from gateway.store.lists.byte_pages import build_page_query

NO_HASH = "0" * 64
"""The hash before the first entry."""
_PAGE = build_page_query(
    "audit_log",
    listed="SELECT ctid FROM audit_log WHERE seq > :after AND seq <= :until ORDER BY seq",
    size="octet_length(t.detail::text)",
    columns="t.seq, t.hash, audit_log_entry(t)",
)


class ChainBroken(Exception):
    """Error of lines that do not follow from each other.

    `str()` names the first such line.
    """


class ChainHead(msgspec.Struct, frozen=True):
    """First and last verified entry, and the last hash."""

    first: int
    last: int
    hash: str


class _Line(msgspec.Struct, frozen=True):
    previous: str
    hash: str
    entry: msgspec.Raw


class _Entry(msgspec.Struct, frozen=True):
    seq: int


class AuditChain:
    """Reads the chained audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def export_lines(self, after: int = 0) -> AsyncGenerator[bytes]:
        """Yield the lines of the entries after number `after`, in pieces."""
        async for line in self.iterate_lines(after):
            for piece in split_bytes(line + b"\n"):
                yield piece

    async def iterate_lines(self, after: int = 0) -> AsyncGenerator[bytes]:
        """Yield the line of each entry after number `after`, without its end.

        Entries that are written meanwhile are left out.
        """
        [(until,)] = await self._database.fetch_rows("SELECT coalesce(max(seq), 0) FROM audit_log")
        previous = NO_HASH
        if after > 0:
            rows = await self._database.fetch_rows("SELECT hash FROM audit_log WHERE seq = :after", after=after)
            previous = str(rows[0][0]) if rows else NO_HASH
        while rows := await self._database.fetch_rows(_PAGE, after=after, until=until):
            for _, seq, entry_hash, entry in rows:
                yield _build_line(previous, entry_hash, str(entry).encode())
                after, previous = seq, entry_hash


class ChainVerifier:
    """Verifies lines one by one; `head` is the state after the last.

    The first line must be that of the entry after number `after`.
    """

    def __init__(self, after: int = 0) -> None:
        self.head: ChainHead | None = None
        self._after = after

    def add_lines(self, lines: Iterable[bytes]) -> None:
        """Verify the next lines.

        Raises:
            ChainBroken: a line was changed, or does not follow the one before it.
        """
        for line in lines:
            if line.strip():
                self._add_line(line)

    def _add_line(self, text: bytes) -> None:
        position = "the first line" if self.head is None else f"the line after entry {self.head.last}"
        try:
            line = msgspec.json.decode(text, type=_Line)
            seq = msgspec.json.decode(line.entry, type=_Entry).seq
        except msgspec.DecodeError:
            raise ChainBroken(f"{position} is not an entry of an export") from None
        if text.strip() != _build_line(line.previous, line.hash, bytes(line.entry)):
            raise ChainBroken(f"{position}, entry {seq}, has more than an entry of an export")
        if hashlib.sha256(line.previous.encode() + bytes(line.entry)).hexdigest() != line.hash:
            raise ChainBroken(f"{position}, entry {seq}, was changed")
        if self.head is None:
            if seq != self._after + 1:
                raise ChainBroken(f"{position} is entry {seq}, not {self._after + 1}: entries are missing before it")
            if seq == 1 and line.previous != NO_HASH:
                raise ChainBroken(f"{position}, entry {seq}, was changed")
            self.head = ChainHead(seq, seq, line.hash)
            return
        if seq != self.head.last + 1 or line.previous != self.head.hash:
            raise ChainBroken(f"{position} is entry {seq}: entries are missing, or were added or changed")
        self.head = ChainHead(self.head.first, seq, line.hash)


def _build_line(previous: str, entry_hash: str, entry: bytes) -> bytes:
    """Return the line of an entry, without its end."""
    return b'{"previous":"%b","hash":"%b","entry":%b}' % (previous.encode(), entry_hash.encode(), entry)
