"""Builds the requests of forks and replays."""

from collections.abc import Iterable
from uuid import UUID

from msgspec.structs import replace

from gateway.domain.branches import FollowUp, TurnBranch, TurnOrigin
from gateway.domain.messages import Message, TurnRequest


def build_branch_request(turn_id: UUID, request: TurnRequest, branch: TurnBranch) -> TurnRequest:
    """Build the request of a turn that comes from the turn `turn_id`.

    It has the same parent, so it is another branch after that. Another model may lack parameters of the first one,
    which are dropped with a warning.
    """
    taken = request.origin.after_step if request.origin is not None else 0
    after_step = taken if branch.after_step is None else branch.after_step
    is_replay = branch.on_new_call is not None
    follow_ups = tuple(_select_follow_ups(request, after_step, is_replay=is_replay))
    messages = request.messages
    if branch.message is not None:
        if after_step:
            follow_ups = (
                *(up for up in follow_ups if up.after_step < after_step),
                FollowUp(after_step, branch.message),
            )
        else:
            messages = replace_prompt(messages, branch.message)
    return replace(
        request,
        messages=messages,
        follow_ups=follow_ups,
        direct_call=None,
        origin=TurnOrigin(turn_id, after_step, branch.on_new_call, branch.results),
        model=branch.model or request.model,
        system=request.system if branch.system is None else branch.system,
        drop_unsupported=request.drop_unsupported or branch.model is not None,
        on_disconnect=branch.on_disconnect,
        idempotency_key=branch.idempotency_key,
        warnings=(),
        cache_ttl=None,
        echo=None,
        webhook_url=None,
        message_paths=(),
        metadata={},
    )


def _select_follow_ups(request: TurnRequest, after_step: int, *, is_replay: bool) -> Iterable[FollowUp]:
    """Select the messages that stay.

    A fork begins directly after its step; a replay begins with what the model was asked then.
    """
    return (
        up for up in request.follow_ups if up.after_step < after_step or (is_replay and up.after_step == after_step)
    )


def replace_prompt(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Replace the last message of the user, or add one."""
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=len(messages))
    return (*messages[:last], Message("user", text), *messages[last + 1 :])
