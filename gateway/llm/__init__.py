"""Model clients: streaming, retries, rate limits and repair of malformed output."""

from gateway_runtime.process.optional_imports import import_without

import_without("httpx", "pygments", "rich")  # for its command line
