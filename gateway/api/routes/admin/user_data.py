"""`/api/v1/admin/user-data`: all that is one user's, for admins."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gateway.api.deps import ApiKeysDep, FilesDep, PrincipalDep, TurnServiceDep, UserDataDep
from gateway.api.security.key_power import require_power_over
from gateway.domain.messages import Principal

router = APIRouter(prefix="/api/v1/admin/user-data", tags=["users"])

UserQuery = Annotated[
    str, Query(min_length=1, max_length=256, pattern=r"^[^\x00]*$", description="Name of the user, the owner of a key.")
]


class ErasureView(BaseModel):
    """Erased rows by table."""

    rows: dict[str, int]


@router.get(
    "",
    summary="Export a user's data",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}}},
)
async def export_user_data(principal: PrincipalDep, user_data: UserDataDep, user: UserQuery) -> StreamingResponse:
    """All stored data of a user, as JSON lines.

    Each line has the name of a table and a row. Secrets and hashes are left out.
    """
    return StreamingResponse(user_data.export_lines(user, by=principal.user), media_type="application/x-ndjson")


@router.delete("", summary="Erase a user's data")
async def erase_user_data(
    principal: PrincipalDep,
    keys: ApiKeysDep,
    user_data: UserDataDep,
    service: TurnServiceDep,
    files: FilesDep,
    user: UserQuery,
) -> ErasureView:
    """Revoke a user's keys, cancel the turns, and erase all data.

    All keys made with the user's keys are revoked, too, so the caller must be allowed to revoke them. Usage stays
    without the name, for statistics, and the audit log stays. Files at the model's server are deleted.
    """
    async for key in keys.iterate_keys(user):
        if key.revoked_at is None:
            require_power_over(key, principal)
    await user_data.revoke_keys(user, by=principal.user)
    for turn_id in await user_data.list_open_turns(user):
        await service.cancel_turn(await service.get_turn(turn_id, Principal(user)))
    if files is not None:
        await files.forget_user(user)
    rows = await user_data.erase(user, by=principal.user)
    return ErasureView(rows=rows)
