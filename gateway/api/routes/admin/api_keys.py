"""`/api/v1/keys`: API keys. Admins manage all keys, other users their own."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from fastapi import APIRouter, Response

from gateway.api.deps import ApiKeysDep, PrincipalDep
from gateway.api.http.errors import ErrorBody
from gateway.api.http.json_lists import build_list_response
from gateway.api.security.key_power import require_power_over
from gateway.api.security.permissions import role_at_most
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.domain.messages import Area, Budget, JsonObject, KeyLimits, Principal
from gateway.store.api_keys import KEY_PREFIX, NewKey
from gateway.store.models import ApiKey
from gateway.wire.api_keys import CreatedKey, KeyList, KeyView, NewKeyBody, RotationBody

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "The key was not found"}}
_GLOB_CHARACTERS = frozenset("*?[")


@router.get("", summary="List your keys", response_model=KeyList)
async def list_keys(principal: PrincipalDep, keys: ApiKeysDep) -> Response:
    """Your keys, or all keys for an admin, newest first.

    The list includes revoked keys. It does not show secrets.
    """
    rows = keys.iterate_keys(_owner_filter(principal))
    return await build_list_response(
        {"keys": (KeyView.model_validate(row, from_attributes=True) async for row in rows)}
    )


@router.post("", summary="Create a key", status_code=201)
async def create_key(body: NewKeyBody, principal: PrincipalDep, keys: ApiKeysDep, response: Response) -> CreatedKey:
    """Create a key with at most your own rights.

    Only this response shows the secret. The first key enables authentication on every worker; its role is admin unless
    the request names another, so that it locks nobody out.
    """
    response.headers["Cache-Control"] = "no-store"
    new = _build_new_key(body, principal)
    if principal.key is not None and principal.key.startswith(KEY_PREFIX):
        max_expires_at = (await keys.get_by_prefix(principal.key)).expires_at
        if max_expires_at is not None and (new.expires_at is None or new.expires_at > max_expires_at):
            new = msgspec.structs.replace(new, expires_at=max_expires_at)
    row, secret = await keys.create_key(new, by=principal.user, made_with=principal.key)
    return _view_created_key(row, secret)


@router.delete("/{key_id}", summary="Revoke a key", status_code=204, responses=_NOT_FOUND)
async def revoke_key(key_id: UUID, principal: PrincipalDep, keys: ApiKeysDep) -> None:
    """Revoke a key, and all keys made with it, on every worker.

    The keys stay in the list. A key may revoke itself. A key with scopes, allow lists, a budget or limits may revoke no
    other; others may revoke keys of their owner whose role is not higher.
    """
    key: ApiKey = await keys.get_key(key_id, _owner_filter(principal))
    require_power_over(key, principal)
    await keys.revoke_key(key, by=principal.user)


@router.post(
    "/{key_id}/rotate",
    summary="Rotate a key",
    status_code=201,
    responses={**_NOT_FOUND, 409: {"model": ErrorBody, "description": "The key has been revoked or has expired"}},
)
async def rotate_key(
    key_id: UUID, body: RotationBody, principal: PrincipalDep, keys: ApiKeysDep, response: Response
) -> CreatedKey:
    """Create a successor, and let the old key expire.

    The properties are the same. Both keys are valid for `overlap_seconds` (a day). Only this response shows the new
    secret. The same keys may be rotated as revoked, except that a key with its own budget or limits may not rotate
    itself.
    """
    response.headers["Cache-Control"] = "no-store"
    key = await keys.get_key(key_id, _owner_filter(principal))
    require_power_over(key, principal)
    _reject_allowance(principal)
    overlap = timedelta(seconds=body.overlap_seconds)
    row, secret = await keys.rotate_key(key, overlap, by=principal.user, made_with=principal.key)
    return _view_created_key(row, secret)


def _reject_allowance(creator: Principal) -> None:
    if creator.budget is not None or creator.limits is not None:
        raise Forbidden("A key with its own budget or limits may not create keys.")


def _view_created_key(row: ApiKey, secret: str) -> CreatedKey:
    return CreatedKey.model_validate(KeyView.model_validate(row, from_attributes=True).model_dump() | {"key": secret})


def _owner_filter(principal: Principal) -> str | None:
    return None if principal.role == "admin" else principal.user


def _build_new_key(body: NewKeyBody, creator: Principal) -> NewKey:
    """Build the key from a request.

    Raises:
        Forbidden: the key would have more rights than its creator.
        InvalidRequest: the key would have expired already.
    """
    owner = body.owner or creator.user
    if owner != creator.user and creator.role != "admin":
        raise Forbidden("Only admins may create keys for other users.")
    _reject_allowance(creator)
    role = body.role
    if role is None and creator.key is not None:
        role = "user" if role_at_most("user", creator.role) else creator.role
    if role is not None and not role_at_most(role, creator.role):
        raise Forbidden(f"The role {creator.role} may not create a key for the role {role}.")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidRequest("expires_at: must be in the future.", param="expires_at")
    return NewKey(
        owner=owner,
        name=body.name,
        role=role,
        scopes=_check_allowed("scopes", body.scopes, creator.scopes),
        models=_check_allowed("models", body.models, creator.models),
        servers=_check_allowed("servers", body.servers, creator.servers),
        tools=_check_allowed("tools", body.tools, creator.tools),
        budget=None if body.budget is None else msgspec.convert(body.budget.model_dump(), Budget),
        limits=None if body.limits is None else msgspec.convert(body.limits.model_dump(), KeyLimits),
        gateway_tools=body.gateway_tools,
        code=body.code,
        expires_at=body.expires_at,
    )


def _check_allowed(
    field: str, requested: list[str] | list[Area] | None, allowed: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Return the requested allow list, or the creator's own.

    A glob must be in the creator's list literally: whether one glob covers another is not decided here.

    Raises:
        Forbidden: the creator's list does not allow an entry.
    """
    if requested is None:
        return allowed
    for entry in requested:
        listed = allowed is None or entry in allowed
        if not listed and (_GLOB_CHARACTERS & set(entry) or not Principal("", models=allowed).can_use_model(entry)):
            raise Forbidden(f"Your key does not allow {entry!r}, so a new key may not either.", param=field)
    return tuple(requested)
