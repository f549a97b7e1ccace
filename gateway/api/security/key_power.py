"""Power of a credential over keys."""

from typing import cast

from gateway.api.security.permissions import MANAGE_KEYS, require_permission, role_at_most
from gateway.domain.errors import Forbidden
from gateway.domain.messages import Principal, UserRole
from gateway.store.api_keys import KEY_PREFIX
from gateway.store.models import ApiKey


def require_power_over(key: ApiKey, principal: Principal) -> None:
    """Check that the caller may revoke or rotate a key.

    Raises:
        Forbidden: the caller's credential is narrower than the key, or does not permit the management of keys.
    """
    if principal.key == key.prefix:
        return
    require_permission(principal, MANAGE_KEYS)
    lists = (
        principal.models,
        principal.servers,
        principal.tools,
        principal.budget,
        principal.limits,
        principal.toolset,
    )
    is_stored = principal.key is not None and principal.key.startswith(KEY_PREFIX)
    is_narrow = any(value is not None for value in lists) or (is_stored and principal.scopes is not None)
    if principal.scopes is not None and (key.scopes is None or not set(key.scopes) <= set(principal.scopes)):
        is_narrow = True
    if is_narrow or not role_at_most(cast(UserRole, key.role), principal.role):
        raise Forbidden("Your key is restricted, so it may revoke or rotate only itself.")
