"""A WebSocket client that sends any frames and reads little."""

import base64
import os
import socket
from urllib.parse import urlsplit

TEXT, CLOSE, PING, CONTINUATION = 0x1, 0x8, 0x9, 0x0


def build_frame(opcode: int, payload: bytes = b"", *, is_final: bool = True) -> bytes:
    """Build a masked frame."""
    size = len(payload)
    if size > 0xFFFF:
        length = bytes([0x80 | 127]) + size.to_bytes(8)
    else:
        length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2)
    return bytes([(0x80 if is_final else 0) | opcode]) + length + bytes(4) + payload  # a mask of zeros changes nothing


def connect(url: str, headers: dict[str, str] | None = None, *, timeout: float = 30.0) -> socket.socket:
    """Open a WebSocket with a small receive buffer."""
    address = urlsplit(url)
    client = socket.socket()
    client.settimeout(timeout)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect((address.hostname, address.port))
    key = base64.b64encode(os.urandom(16)).decode()
    fields = {
        "Host": address.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **(headers or {}),
    }
    target = f"{address.path or '/'}?{address.query}" if address.query else address.path or "/"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    client.sendall(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(1)
    assert b" 101 " in answer, answer
    return client
