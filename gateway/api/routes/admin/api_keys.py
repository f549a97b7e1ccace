"""`/api/v1/keys`: API keys. Admins manage all keys, other users their own."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from fastapi import APIRouter, Response

from gateway.api.deps import ApiKeysDep, PrincipalDep, ToolsetsDep
from gateway.api.http.errors import ErrorBody
from gateway.api.http.json_lists import build_list_response
from gateway.api.security.key_power import require_power_over
from gateway.api.security.permissions import role_at_most
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.domain.messages import Area, JsonObject, Principal
from gateway.domain.toolsets import bind_toolset
from gateway.store.api_keys import KEY_PREFIX, KeyStore, NewKey
from gateway.store.models import ApiKey
from gateway.wire.api_keys import CreatedKey, KeyChangeBody, KeyList, KeyView, NewKeyBody, RotationBody

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "The key was not found"}}
_INACTIVE: dict[int | str, JsonObject] = {
    409: {"model": ErrorBody, "description": "The key has been revoked or has expired"}
}
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
async def create_key(
    body: NewKeyBody, principal: PrincipalDep, keys: ApiKeysDep, toolsets: ToolsetsDep, response: Response
) -> CreatedKey:
    """Create a key with at most your own rights.

    Only this response shows the secret. The first key enables authentication on every worker; its role is admin unless
    the request names another, so that it locks nobody out.
    """
    response.headers["Cache-Control"] = "no-store"
    new = _build_new_key(body, principal)
    if body.toolset is not None:
        toolsets.get_toolset(body.toolset)
    new = msgspec.structs.replace(new, expires_at=await _limit_expiry(new.expires_at, principal, keys))
    row, secret = await keys.create_key(new, by=principal.user, made_with=principal.key)
    return _view_created_key(row, secret)


@router.patch("/{key_id}", summary="Change a key", responses={**_NOT_FOUND, **_INACTIVE})
async def change_key(
    key_id: UUID, body: KeyChangeBody, principal: PrincipalDep, keys: ApiKeysDep, toolsets: ToolsetsDep
) -> KeyView:
    """Change properties of a key, on every worker.

    They are the name, areas, allow lists, toolset, budget, limits and expiry; omitted fields stay. The rules
    are those of creating keys: the key gets at most your own rights, and a key with its own budget or limits changes
    none. The same keys may be changed as revoked. Turns that run keep the rights that they began with, and so do keys
    that were made with this key.
    """
    key = await keys.get_key(key_id, _owner_filter(principal))
    require_power_over(key, principal)
    rights = _build_rights(body, principal)
    if body.toolset is not None:
        toolsets.get_toolset(body.toolset)
    if "expires_at" in body.model_fields_set:
        rights["expires_at"] = await _limit_expiry(body.expires_at, principal, keys)
    changes = {name: value for name, value in rights.items() if name in body.model_fields_set}
    row = await keys.change_key(key, changes, by=principal.user)
    return KeyView.model_validate(row, from_attributes=True)


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
    responses={**_NOT_FOUND, **_INACTIVE},
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
        raise Forbidden("A key with its own budget or limits may not create or change keys.")


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
    rights = _build_rights(body, creator)
    role = body.role
    if role is None and creator.key is not None:
        role = "user" if role_at_most("user", creator.role) else creator.role
    if role is not None and not role_at_most(role, creator.role):
        raise Forbidden(f"The role {creator.role} may not create a key for the role {role}.")
    return msgspec.convert({"owner": owner, "role": role, **rights}, NewKey)


def _build_rights(body: NewKeyBody | KeyChangeBody, creator: Principal) -> JsonObject:
    """Build the properties of a key that a body may set.

    Raises:
        Forbidden: the key would have more rights than the caller.
        InvalidRequest: the key would have expired already.
    """
    _reject_allowance(creator)
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidRequest("expires_at: must be in the future.", param="expires_at")
    return {
        "name": body.name,
        "scopes": _check_allowed("scopes", body.scopes, creator.scopes),
        "models": _check_allowed("models", body.models, creator.models),
        "servers": _check_allowed("servers", body.servers, creator.servers),
        "tools": _check_allowed("tools", body.tools, creator.tools),
        "budget": None if body.budget is None else body.budget.model_dump(),
        "limits": None if body.limits is None else body.limits.model_dump(),
        "gateway_tools": body.gateway_tools,
        "code": body.code,
        "toolset": bind_toolset(creator, body.toolset).toolset,
        "expires_at": body.expires_at,
    }


async def _limit_expiry(expires_at: datetime | None, caller: Principal, keys: KeyStore) -> datetime | None:
    """Return the expiry of a key.

    It is not after that of the caller's.
    """
    if caller.key is None or not caller.key.startswith(KEY_PREFIX):
        return expires_at
    latest = (await keys.get_by_prefix(caller.key)).expires_at
    return latest if latest is not None and (expires_at is None or expires_at > latest) else expires_at


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
