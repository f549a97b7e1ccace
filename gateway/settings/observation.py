"""Settings of metrics. OpenTelemetry's own variables are read by its SDK."""

from pydantic import Field
from pydantic_settings import BaseSettings


class ObservationSettings(BaseSettings):
    """Settings of metrics."""

    metrics: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
