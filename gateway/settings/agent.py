"""Settings of MCP servers, tools and the agent loop."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from gateway.domain.hosts import Root
from gateway.domain.messages import GatewayTools
from gateway.domain.toolsets import ToolsetDefinition, ToolsetName
from gateway.settings.values import CommaSeparated, split_list

RootList = Annotated[tuple[Root, ...], NoDecode, BeforeValidator(split_list), Field(max_length=50)]


class AgentSettings(BaseSettings):
    """Settings of MCP servers, tools and the agent loop."""

    mcp_config: Path | None = None
    mcp_server_url: str | None = None
    mcp_server_identity: str | None = Field(default=None, pattern=r"^(none|gateway|header:[A-Za-z0-9-]{1,64})$")
    mcp_session_idle_seconds: float = Field(default=1_800.0, gt=0, le=86_400)
    mcp_max_sessions: int = Field(default=1_000, ge=1)
    mcp_max_user_sessions: int = Field(default=100, ge=1)
    mcp_task_ttl: float = Field(default=86_400.0, ge=60, le=30 * 86_400)
    mcp_max_user_tasks: int = Field(default=100, ge=1)
    mcp_max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=64 * 1024)
    mcp_instructions: bool = True
    mcp_oauth_strict_issuer: bool = False
    mcp_roots: RootList = ()
    mcp_sampling_max_calls: int = Field(default=5, ge=1, le=100)
    mcp_sampling_max_tokens: int = Field(default=4_096, ge=1, le=1_000_000)
    tools_server_names: CommaSeparated = ()
    tools_server_port: int = Field(default=8001, ge=0, le=65535)
    tools_server_secret: SecretStr | None = None
    tool_timeout: float = Field(default=60.0, gt=0)
    tool_progress_timeout: float = Field(default=600.0, gt=0)
    tool_task_timeout: float = Field(default=86_400.0, gt=0, le=30 * 86_400)
    tool_parallelism: int = Field(default=8, ge=1, le=128)
    tool_token_budget: int = Field(default=24_000, ge=500)
    tool_result_max_chars: int = Field(default=32_000, ge=1_000)
    tool_result_max_blocks: int = Field(default=200, ge=1)
    tool_result_max_data_bytes: int = Field(default=192 * 1024, ge=0)
    tools_deny: CommaSeparated = ()
    toolsets: dict[ToolsetName, ToolsetDefinition] = {}
    agent_timeout: float = Field(default=120.0, gt=0)
    agent_max_steps: int = Field(default=10, ge=1, le=100)
    agent_max_tokens: int = Field(default=200_000, ge=1)
    agent_batch_tool: bool = False
    gateway_tools: GatewayTools = "auto"
    code_mode: Literal["off", "auto"] = "auto"
    mcp_code_mode: bool = False
    code_timeout: float = Field(default=5.0, gt=0, le=60)
    code_max_memory_mb: int = Field(default=64, ge=16, le=4_096)
    code_max_calls: int = Field(default=200, ge=1, le=10_000)
    code_processes: int = Field(default=4, ge=1, le=64)
    code_stub_chars: int = Field(default=6_000, ge=0, le=1_000_000)
    agent_system_prompt: str | None = None
    system_prompt_policy: Literal["fallback", "always"] = "fallback"

    @field_validator("mcp_server_url")
    @classmethod
    def _normalize_mcp_server_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8001/mcp")
        return urlunsplit(parts._replace(path="/mcp")) if parts.path in ("", "/") else value
