"""Runtime support that the gateway and the tool server share."""

from gateway_runtime.process.optional_imports import import_without

import_without("structlog", "rich")
