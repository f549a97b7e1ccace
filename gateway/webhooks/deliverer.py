"""Delivery of webhook messages: at least once, by any worker, with retries."""

import asyncio
import random
import time

import aiohttp
from yarl import URL

from gateway.common.concurrency import SupervisedTask, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import StorageUnavailable
from gateway.ports.webhooks import WebhookMessage, WebhookQueue
from gateway.settings.webhooks import WebhookSettings
from gateway.webhooks.signatures import sign_message
from gateway_runtime.outgoing.guarded_http import create_guarded_session, describe_transport_error
from gateway_runtime.outgoing.private_targets import TargetPolicy
from gateway_runtime.public_addresses import Address

log = get_logger(__name__)

RETRY_SECONDS = (5.0, 60.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
"""Waits between the attempts; about 28 hours in all."""
POLL_SECONDS = 2.0
_JITTER = 0.2
_MAX_DELIVERIES = 16
_REQUEST_SECONDS = 15.0
_CLAIM_SECONDS = 60.0
"""Longer than a request: two workers must not send at once."""
_RETENTION_DAYS = 30.0
_PRUNE_SECONDS = 3_600.0
_GONE = 410


def create_deliverer(settings: WebhookSettings, queue: WebhookQueue) -> "WebhookDeliverer":
    """Create the deliverer of a process.

    Its task, once started, sends the messages.
    """
    return WebhookDeliverer(queue, TargetPolicy(settings.webhook_private_targets), settings.list_webhook_keys())


class WebhookDeliverer:
    """Claims messages that are due, sends them, and records the results."""

    def __init__(
        self,
        queue: WebhookQueue,
        policy: TargetPolicy,
        keys: tuple[bytes, ...],
        *,
        retry_seconds: tuple[float, ...] = RETRY_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.task = SupervisedTask("webhooks", self._run_forever)
        self._deliveries = TaskSet("webhook")
        self._queue = queue
        self._policy = policy
        self._keys = keys
        self._retry_seconds = retry_seconds
        self._poll_seconds = poll_seconds
        self._pruned_at = time.monotonic()

    async def deliver_due(self) -> int:
        """Send the messages that are due now; return their number."""
        count = await self._start_deliveries()
        await self._deliveries.wait()
        return count

    async def _start_deliveries(self) -> int:
        """Claim as many messages as there is room for, and send them.

        A slow receiver holds its own place alone.
        """
        if not (room := _MAX_DELIVERIES - len(self._deliveries)):
            return 0
        messages = await self._queue.claim(room, seconds=_CLAIM_SECONDS)
        for message in messages:
            self._deliveries.spawn(self._deliver(message))
        return len(messages)

    async def _run_forever(self) -> None:
        try:
            while True:
                try:
                    count = await self._start_deliveries()
                    if time.monotonic() - self._pruned_at > _PRUNE_SECONDS:
                        self._pruned_at = time.monotonic()
                        await self._queue.delete_old(_RETENTION_DAYS)
                except StorageUnavailable:
                    log.warning("webhook_queue_unavailable")
                    count = 0
                if not count or len(self._deliveries) == _MAX_DELIVERIES:
                    await asyncio.sleep(self._poll_seconds)
        finally:
            await self._deliveries.stop()

    async def _deliver(self, message: WebhookMessage) -> None:
        try:
            await self._send_and_record(message)
        except StorageUnavailable:  # its claim ends, and it is sent again
            log.warning("webhook_result_not_stored", message_id=str(message.id))

    async def _send_and_record(self, message: WebhookMessage) -> None:
        error, is_final = await self._send(message)
        if error is None:
            await self._queue.mark_delivered(message)
            return
        delay = None
        if not is_final and message.attempts <= len(self._retry_seconds):
            delay = self._retry_seconds[message.attempts - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        log.info("webhook_not_delivered", message_id=str(message.id), attempt=message.attempts, is_last=delay is None)
        await self._queue.mark_failed(message, error, retry_seconds=delay)

    async def _send(self, message: WebhookMessage) -> tuple[str | None, bool]:
        """Send a message once; return the error, and whether it is permanent.

        The answer's body is not read, and redirects are not followed.
        """
        url, message_id, now = URL(message.url, encoded=True), f"msg_{message.id.hex}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "mcp-agent-gateway",
            "Webhook-Id": message_id,
            "Webhook-Timestamp": str(now),
            "Webhook-Signature": sign_message(message_id, now, message.payload, self._keys),
            **message.headers,
        }

        def is_allowed(address: Address, port: int) -> bool:
            return self._policy.allows(url.raw_host or "", address, port)

        session = create_guarded_session(
            is_allowed,
            aiohttp.ThreadedResolver(),
            total_seconds=_REQUEST_SECONDS,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            async with asyncio.timeout(_REQUEST_SECONDS), session:
                post = session.post(url, data=message.payload.encode(), headers=headers, allow_redirects=False)
                async with post as response:
                    if 200 <= response.status < 300:
                        return None, False
                    return f"The receiver answered {response.status}.", response.status == _GONE
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return f"The request failed: {describe_transport_error(error)}.", False
