"""`/api/v1/keys`: keys for the API. Admins have them all before them, everyone else their own."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
from fastapi import APIRouter, Response

from gateway.api.deps import ApiKeysDep, PrincipalDep
from gateway.api.http.errors import ErrorBody
from gateway.api.security.permissions import role_at_most
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.domain.messages import Area, Budget, JsonObject, KeyLimits, Principal, UserRole
from gateway.store.api_keys import KEY_PREFIX, NewKey
from gateway.store.models import ApiKey
from gateway.wire.api_keys import CreatedKey, KeyList, KeyView, NewKeyBody

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_NOT_FOUND: dict[int | str, JsonObject] = {404: {"model": ErrorBody, "description": "You have no such key"}}
_WILD = frozenset("*?[")


@router.get("", summary="Your keys")
async def list_keys(principal: PrincipalDep, keys: ApiKeysDep) -> KeyList:
    """The newest first, revoked ones too; an admin sees everyone's. No secret is shown."""
    rows = await keys.list_keys(_owner_filter(principal))
    return KeyList(keys=[KeyView.model_validate(row, from_attributes=True) for row in rows])


@router.post("", summary="Make a key", status_code=201)
async def create_key(body: NewKeyBody, principal: PrincipalDep, keys: ApiKeysDep, response: Response) -> CreatedKey:
    """The answer is the only place where the key stands. It may do no more than the one that makes it.

    The first key that is made switches authentication on, at every replica.
    """
    response.headers["Cache-Control"] = "no-store"
    new = _build_new_key(body, principal)
    if principal.key is not None and principal.key.startswith(KEY_PREFIX):
        most = (await keys.get_by_prefix(principal.key)).expires_at
        if most is not None and (new.expires_at is None or new.expires_at > most):
            new = msgspec.structs.replace(new, expires_at=most)
    row, secret = await keys.create(new, by=principal.user)
    return CreatedKey.model_validate(KeyView.model_validate(row, from_attributes=True).model_dump() | {"key": secret})


@router.delete("/{key_id}", summary="Revoke a key", status_code=204, responses=_NOT_FOUND)
async def revoke_key(key_id: UUID, principal: PrincipalDep, keys: ApiKeysDep) -> None:
    """It opens nothing from now on, at any replica. Its row stays, for the record."""
    key: ApiKey = await keys.get(key_id, _owner_filter(principal))
    await keys.revoke(key, by=principal.user)


def _owner_filter(principal: Principal) -> str | None:
    return None if principal.role == "admin" else principal.user


def _build_new_key(body: NewKeyBody, maker: Principal) -> NewKey:
    """Raises:
    Forbidden: the key would be able to do more than its maker.
    InvalidRequest: it would have expired already.
    """
    owner = body.owner or maker.user
    if owner != maker.user and maker.role != "admin":
        raise Forbidden("Only admins may make keys for others.")
    if maker.budget is not None or maker.limits is not None:
        raise Forbidden("A key with a budget or limits of its own may not make keys.")
    role: UserRole = body.role or ("user" if role_at_most("user", maker.role) else maker.role)
    if not role_at_most(role, maker.role):
        raise Forbidden(f"Your role is {maker.role}: you may not make a key for {role}.")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidRequest("expires_at: lies in the past.", param="expires_at")
    return NewKey(
        owner=owner,
        name=body.name,
        role=role,
        scopes=_restrict_to_own("scopes", body.scopes, maker.scopes),
        models=_restrict_to_own("models", body.models, maker.models),
        servers=_restrict_to_own("servers", body.servers, maker.servers),
        tools=_restrict_to_own("tools", body.tools, maker.tools),
        budget=None if body.budget is None else msgspec.convert(body.budget.model_dump(), Budget),
        limits=None if body.limits is None else msgspec.convert(body.limits.model_dump(), KeyLimits),
        expires_at=body.expires_at,
    )


def _restrict_to_own(
    what: str, wanted: list[str] | list[Area] | None, own: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """The wanted list, as far as it is within the maker's own; a glob of the maker's may be taken as it stands."""
    if wanted is None:
        return own
    for each in wanted:
        known = own is None or each in own
        if not known and (_WILD & set(each) or not Principal("", models=own).can_use_model(each)):
            raise Forbidden(f"Your key does not allow {each!r}, so you may not pass it on.", param=what)
    return tuple(wanted)
