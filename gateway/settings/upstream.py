"""Settings of requests that are passed on to the model's server."""

from pydantic import Field
from pydantic_settings import BaseSettings


class UpstreamSettings(BaseSettings):
    """Settings of requests that are passed on to the model's server.

    `upstream_files` serves `/v1/files` and `/v1/batches`. A request ends after `upstream_timeout_seconds`. A worker
    reads at most `max_uploads` uploads at a time, each of at most `max_upload_bytes`, into temporary files.
    """

    upstream_files: bool = False
    upstream_timeout_seconds: float = Field(default=300.0, gt=0, le=3_600)
    max_upload_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    max_uploads: int = Field(default=8, ge=1)
