"""Receive the gateway's webhooks, and verify their signatures (Standard Webhooks).

The gateway needs WEBHOOK_HOSTS=127.0.0.1, WEBHOOK_PRIVATE_TARGETS=127.0.0.1:8099 and a WEBHOOK_SECRETS; this program
needs the same secret. Then a request with "webhook_url": "http://127.0.0.1:8099/" is told of here.

WEBHOOK_SECRET=whsec_... python examples/webhook_receiver.py
"""

import base64
import hmac
import json
import os
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ.get("PORT", "8099"))
KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
MAX_AGE_SECONDS = 300
MAX_BODY_BYTES = 1_000_000


def is_genuine(headers: Message, body: bytes) -> bool:
    """Verify the signature of a message, and its time."""
    sent_at = headers.get("webhook-timestamp", "")
    if not sent_at.isdecimal() or abs(time.time() - int(sent_at)) > MAX_AGE_SECONDS:
        return False
    signed = f"{headers.get('webhook-id')}.{sent_at}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    signatures = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in signatures)


class Receiver(BaseHTTPRequestHandler):
    """Prints each genuine message, and refuses others."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length) if length <= MAX_BODY_BYTES else b""
        genuine = is_genuine(self.headers, body)
        if genuine:  # the same message may come twice: `webhook-id` tells
            message = json.loads(body)
            print(message["type"], message["data"]["turn_id"], flush=True)
        else:
            print("refused", flush=True)
        self.send_response(204 if genuine else 401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Print nothing for each request."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", PORT), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
