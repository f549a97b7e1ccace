"""The resource that traces, metrics and logs of this process belong to."""

import os

from opentelemetry.sdk.resources import Resource


def create_resource(service: str, version: str, instance: str | None = None) -> Resource:
    """Return the resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = {"service.name": service, "service.version": version, "service.instance.id": instance or f"{os.getpid()}"}
    named = Resource.create().attributes
    return Resource(own).merge(
        Resource({name: value for name, value in named.items() if not _is_default(name, str(value))})
    )


def _is_default(name: str, value: str) -> bool:
    """Return whether the SDK made the value up."""
    return name == "service.name" and value.startswith("unknown_service")
