"""Changes of stored API keys.

Who may make them, what stays, and when they count.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.domain.messages import Budget, KeyLimits
from gateway.store.api_keys import KeyStore
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, Reply


async def change(keyring: Keyring, caller: str, key_id: object, body: dict[str, Any]) -> Reply:
    url = f"{keyring.gateway.base_url}/api/v1/keys/{key_id}"
    async with keyring.gateway.session.patch(url, json=body, headers=keyring.headers(caller)) as response:
        return Reply(response.status, response.headers, body=await response.json())


async def test_changed_limits_count_at_once_and_are_in_the_audit_log(keyring: Keyring) -> None:
    await keyring.create_key("ada", name="laptop", tools=("calc*",))
    key_id = keyring.rows["ada"].id
    body = {"budget": {"tokens_per_day": 0}, "limits": {"streams": 2}, "models": ["openai/*"]}
    changed = await change(keyring, "root", key_id, body)
    assert changed.status == 200, changed.body
    assert (changed.body["name"], changed.body["tools"]) == ("laptop", ["calc*"])  # not in the request
    assert changed.body["limits"] == {"requests": None, "window_seconds": 60, "streams": 2}

    async def is_refused() -> bool:
        return (await keyring.chat("ada", "hello")).body.get("error", {}).get("code") == "budget_exceeded"

    await eventually(is_refused)
    removed = await change(keyring, "root", key_id, {"budget": None, "limits": None, "models": None})
    assert [removed.body[name] for name in ("budget", "limits", "models")] == [None, None, None]

    async def is_accepted() -> bool:
        return (await keyring.chat("ada", "hello")).status == 200

    await eventually(is_accepted)
    entries = (await keyring.get("root", "/api/v1/audit?action=key.change")).body["items"]
    assert [entry["subject"] for entry in entries] == [f"key {changed.body['prefix']}"] * 2
    assert entries[1]["detail"]["budget"]["tokens_per_day"] == 0
    assert entries[0]["detail"] == {"owner": "ada", "budget": None, "limits": None, "models": None}


async def test_request_without_changes_changes_nothing(keyring: Keyring) -> None:
    await keyring.create_key("ada", name="laptop", limits=KeyLimits(streams=3))
    changed = await change(keyring, "root", keyring.rows["ada"].id, {})
    assert (changed.status, changed.body["limits"]["streams"]) == (200, 3)
    assert (await keyring.get("root", "/api/v1/audit?action=key.change")).body["items"] == []


@pytest.mark.parametrize(
    ("options", "body", "status"),
    [
        ({"budget": Budget(tokens_per_day=10)}, {"budget": None}, 403),
        ({"limits": KeyLimits(requests=100)}, {"limits": None}, 403),
        ({"limits": KeyLimits(requests=100)}, {"name": "mine"}, 403),
        ({"scopes": ("chat", "keys")}, {"scopes": ["chat", "keys", "admin"]}, 403),
        ({"scopes": ("chat",)}, {"name": "mine"}, 403),
        ({"tools": ("calc*",)}, {"tools": ["*"]}, 403),
        ({"tools": ("calc*",)}, {"tools": ["calculator"]}, 200),
        ({"tools": ("calc*",)}, {"tools": None, "name": "mine"}, 200),
    ],
    ids=str,
)
async def test_narrow_key_gives_itself_no_more_rights(
    keyring: Keyring, options: dict[str, Any], body: dict[str, Any], status: int
) -> None:
    await keyring.create_key("ada", **options)
    changed = await change(keyring, "ada", keyring.rows["ada"].id, body)
    assert changed.status == status, changed.body
    if status == 200:
        assert changed.body["tools"] == (body["tools"] or ["calc*"])


async def test_narrow_key_changes_no_other_key(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    wide = keyring.rows["ada"]
    await keyring.create_key("ada", tools=("calc*",))
    assert (await change(keyring, "ada", wide.id, {"name": "mine"})).status == 403


async def test_key_does_not_extend_its_own_life(keyring: Keyring) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    await keyring.create_key("ada", expires_at=end)
    for expires_at in (None, (end + timedelta(days=9)).isoformat()):
        changed = await change(keyring, "ada", keyring.rows["ada"].id, {"expires_at": expires_at})
        assert datetime.fromisoformat(changed.body["expires_at"]) <= end
    assert (await change(keyring, "root", keyring.rows["ada"].id, {"expires_at": None})).body["expires_at"] is None


async def test_keys_of_others_and_higher_roles_are_not_changed(keyring: Keyring) -> None:
    await keyring.create_key("bob")
    await keyring.create_key("eve", role="viewer")
    body = {"name": "mine"}
    assert (await change(keyring, "bob", keyring.rows["root"].id, body)).status == 404
    assert (await change(keyring, "eve", keyring.rows["eve"].id, body)).status == 403
    user_key = await keyring.post("root", "/api/v1/keys", {"role": "user"})
    keyring.secrets["clerk"] = user_key.body["key"]  # of the admin, with the role of a user
    assert (await change(keyring, "clerk", keyring.rows["root"].id, body)).status == 403


@pytest.mark.parametrize(
    "body",
    [{"role": "admin"}, {"owner": "bob"}, {"name": None}, {"expires_at": "2020-01-01"}, {"limits": {"streams": 0}}],
    ids=str,
)
async def test_invalid_change_is_rejected(keyring: Keyring, body: dict[str, Any]) -> None:
    assert (await change(keyring, "root", keyring.rows["root"].id, body)).status == 422


async def test_revoked_key_is_not_changed(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    key_id = keyring.rows["ada"].id
    assert await keyring.request_status("DELETE", "root", f"/api/v1/keys/{key_id}") == 204
    assert (await change(keyring, "root", key_id, {"expires_at": None})).status == 409


async def test_first_key_counts_at_once_although_a_count_was_under_way(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_counted, may_return = asyncio.Event(), asyncio.Event()
    has_keys = KeyStore.has_keys

    async def count_slowly(keys: KeyStore) -> bool:
        found = await has_keys(keys)
        has_counted.set()
        await may_return.wait()
        return found

    monkeypatch.setattr(KeyStore, "has_keys", count_slowly)
    early = asyncio.create_task(gateway.get("/v1/models"))
    await has_counted.wait()
    cache = gateway.state.auth._key_cache
    generation = cache._generation
    await Keyring(gateway).create_key("ada")
    await eventually(lambda: cache._generation == generation + 2)  # the bus has told of it, too
    may_return.set()
    assert (await early).status == 200
    assert (await gateway.get("/v1/models")).status == 401
