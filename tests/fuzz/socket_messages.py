"""Generator of random WebSocket messages in the console's protocol."""

import json
import random
from collections.abc import Iterator
from typing import Any

from tests.web_socket_client import CONTINUATION, PING, TEXT, build_frame

_EVENTS = ("handshake", "event", "javascript_response", "ack", "log", "connect", "disconnect", "no_event", "")
_FIELDS = (
    "client_id",
    "tab_id",
    "document_id",
    "old_tab_id",
    "next_message_id",
    "id",
    "listener_id",
    "args",
    "request_id",
    "result",
    "level",
)
_TEXTS = ("", "0", "-1", "__class__", "\x00", "\U0001f600" * 50, "a" * 20_000, "../../etc/passwd", "<script>1")


def generate_frames(seed: int, count: int, client_id: str) -> Iterator[bytes]:
    """Generate a handshake, messages, and frames that a server refuses.

    A seed always generates the same.
    """
    generator = random.Random(seed)
    handshake = {"client_id": client_id, "tab_id": "a", "document_id": "b"}
    yield build_frame(TEXT, f'42["handshake",{json.dumps(handshake)}]'.encode())
    for number in range(count):
        if generator.random() < 0.8 or number < count // 2:
            yield build_frame(TEXT, _mutate(generator, _build_packet(generator, client_id).encode()))
        else:
            yield _build_frames(generator)


def _build_frames(generator: random.Random) -> bytes:
    match generator.randrange(4):
        case 0:
            return generator.randbytes(generator.randrange(1, 400))
        case 1:
            return build_frame(PING, generator.randbytes(generator.randrange(126)))
        case 2:
            return build_frame(generator.randrange(16), generator.randbytes(generator.randrange(300)))
        case _:
            parts = [build_frame(CONTINUATION, b"a", is_final=False) for _ in range(generator.randrange(40))]
            return build_frame(TEXT, b'42["event",', is_final=False) + b"".join(parts)


def _build_packet(generator: random.Random, client_id: str) -> str:
    if generator.random() < 0.2:
        return generator.choice(("2", "3", "1", "40", "41", "43[]", "451-", "99", "40/other,", "42", '42"a"', "4"))
    fields = {name: _make_value(generator, 0) for name in generator.sample(_FIELDS, generator.randrange(8))}
    if generator.random() < 0.8:
        fields["client_id"] = client_id
    arguments = [fields] if generator.random() < 0.8 else [_make_value(generator, 0)]
    return "42" + json.dumps([generator.choice(_EVENTS), *arguments])


def _make_value(generator: random.Random, depth: int) -> Any:
    kind = generator.randrange(8 if depth < 4 else 6)
    if kind < 3:
        return generator.choice(_TEXTS)
    if kind < 6:
        return generator.choice((None, True, 0, -1, 1.5, 2**63, 10**30))
    values = [_make_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    return values if kind == 6 else {generator.choice(_FIELDS): value for value in values}


def _mutate(generator: random.Random, packet: bytes) -> bytes:
    if generator.random() < 0.6 or not packet:
        return packet
    changed = bytearray(packet)
    for _ in range(generator.randrange(1, 6)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)
