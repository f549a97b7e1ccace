"""Limits and repositories of the runner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from uuid_utils.compat import uuid7

from gateway.agent.prompt import SystemPrompt
from gateway.agent.starting.images import ImagePolicy
from gateway.agent.tool_search import AddPrograms, ToolSelector
from gateway.agent.turn import DEFAULT_MAX_TURN_BYTES
from gateway.config import Settings
from gateway.domain.messages import Parameters, TurnRequest
from gateway.ports.journal import Journal
from gateway.ports.server_tasks import TaskWaitRepository
from gateway.ports.store import (
    Bus,
    ConversationRepository,
    QuestionRepository,
    ResponseCache,
    TurnRepository,
    WorkerRepository,
)
from gateway.ports.tokenizers import Tokenizer
from gateway.ports.tools import Toolbox
from gateway.settings.images import ImageSettings

_BUILT_IN_PROMPT = SystemPrompt()
_DEFAULT_IMAGES = ImagePolicy(ImageSettings())


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """Limits of the turns of one process.

    `max_turn_bytes` bounds the events of a turn. `turn_timeout`, `direct_call_timeout` and `storage_timeout` are
    seconds; `storage_timeout` bounds the wait for the database at a turn's end. `synchronous_journal` shows deltas only
    when they are durable.
    `default_parameters` complete those of a request, as far as its model takes them. `create_turn_id` reads this
    machine's clock, so the ids do not order the turns of a conversation. `get_trace_context` is called when a turn
    starts, see `TurnRecord`.
    """

    worker_id: UUID
    create_turn_id: Callable[[], UUID] = uuid7
    get_trace_context: Callable[[], dict[str, str] | None] | None = None
    system_prompt: SystemPrompt = _BUILT_IN_PROMPT
    turn_timeout: float = 120.0
    direct_call_timeout: float = 86_400.0
    storage_timeout: float = 30.0
    max_turns: int = 2_000
    synchronous_journal: bool = False
    max_tool_tokens: int = 24_000
    batch_tool: bool = False
    max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES
    default_parameters: Parameters = Parameters()  # noqa: RUF009 - frozen
    tokenizer: Tokenizer | None = None
    add_programs: AddPrograms | None = None
    images: ImagePolicy = _DEFAULT_IMAGES

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        worker_id: UUID,
        tokenizer: Tokenizer | None = None,
        add_programs: AddPrograms | None = None,
    ) -> Self:
        return cls(
            worker_id=worker_id,
            system_prompt=SystemPrompt(settings.agent_system_prompt, settings.system_prompt_policy),
            turn_timeout=settings.agent_timeout,
            direct_call_timeout=settings.tool_task_timeout,
            storage_timeout=3 * settings.storage_retry_seconds,
            max_turns=settings.max_running_turns,
            synchronous_journal=settings.synchronous_journal,
            max_tool_tokens=settings.tool_token_budget,
            batch_tool=settings.agent_batch_tool,
            max_turn_bytes=settings.turn_max_bytes,
            default_parameters=Parameters(
                temperature=settings.groq_temperature,
                top_p=settings.groq_top_p,
                max_tokens=settings.groq_max_tokens,
                reasoning_effort=settings.groq_reasoning_effort,
                reasoning_format=settings.groq_reasoning_format,
            ),
            tokenizer=tokenizer,
            add_programs=add_programs,
            images=ImagePolicy(settings),
        )

    def get_timeout(self, request: TurnRequest) -> float:
        """Return the time limit of a turn.

        That of a direct call is a backstop: the limits of tool calls come first.
        """
        return self.turn_timeout if request.direct_call is None else self.direct_call_timeout

    def create_tool_selector(self, toolbox: Toolbox) -> ToolSelector:
        """Create what chooses the tools of turns."""
        return ToolSelector(
            toolbox, max_tokens=self.max_tool_tokens, batches=self.batch_tool, add_programs=self.add_programs
        )


@dataclass(frozen=True, slots=True)
class RunnerStorage:
    """The repositories of turns.

    Turns that must not be stored use the `ephemeral_journal`.
    """

    journal: Journal
    ephemeral_journal: Journal
    conversations: ConversationRepository
    turns: TurnRepository
    workers: WorkerRepository
    questions: QuestionRepository
    tasks: TaskWaitRepository
    responses: ResponseCache
    bus: Bus
