"""Turns of others that admins see, watch and cancel."""

import json

import pytest

from tests.auth_helpers import Keyring
from tests.stack import Gateway, Stream

SECRET = "a-secret-of-ada"


@pytest.fixture
async def keyring(gateway: Gateway) -> Keyring:
    keyring = Keyring(gateway)
    await keyring.create_key("ada")
    await keyring.create_key("boss", "admin")
    return keyring


async def test_admin_sees_which_approvals_wait_without_their_texts(keyring: Keyring) -> None:
    waiting = (await keyring.chat("ada", f"Add a task to {SECRET}", approval="always")).body
    await keyring.chat("ada", "What is 2*3?")
    found = (await keyring.get("boss", "/api/v1/admin/turns/active")).body
    [turn] = found["items"]
    assert (turn["id"], turn["owner"], turn["status"]) == (waiting["turn_id"], "ada", "waiting")
    [question] = turn["questions"]
    assert (question["id"], question["kind"]) == (waiting["inputs"][0]["input_id"], "approval")
    assert (question["server"], question["tool"]) == ("tools", "add_task")
    assert SECRET not in json.dumps(found)
    next_page = f"/api/v1/admin/turns/active?limit=1&before={turn['id']}"
    assert (await keyring.get("boss", next_page)).body == {"items": [], "next": None}


async def test_admin_cancels_a_turn_of_another_user(keyring: Keyring) -> None:
    turn = (await keyring.chat("ada", "Add a task to wait", approval="always")).body["turn_id"]
    reply = await keyring.post("boss", f"/api/v1/admin/turns/{turn}/cancel")
    assert reply.body == {"id": turn, "owner": "ada"}
    assert (await keyring.get("ada", f"/api/v1/turns/{turn}")).body["status"] == "cancelled"
    [entry] = (await keyring.get("boss", "/api/v1/audit?action=turn.cancel")).body["items"]
    assert (entry["actor"], entry["subject"], entry["detail"]) == ("boss", f"turn {turn}", {"owner": "ada"})


async def test_watching_a_turn_of_another_user_is_in_the_audit_log(keyring: Keyring) -> None:
    turn = (await keyring.chat("ada", "What is 23*19?")).body["turn_id"]
    url = f"{keyring.gateway.base_url}/api/v1/admin/turns/{turn}/events"
    async with keyring.gateway.session.get(url, headers=keyring.headers("boss")) as response:
        events = [event async for event in Stream(response).read_events()]
    assert events[-2].type == "turn.completed"
    [entry] = (await keyring.get("boss", "/api/v1/audit?action=turn.watch")).body["items"]
    assert (entry["actor"], entry["subject"], entry["detail"]) == ("boss", f"turn {turn}", {"owner": "ada"})


@pytest.mark.parametrize(("method", "path"), [("GET", "events"), ("POST", "cancel")])
async def test_turn_that_does_not_exist_is_not_found(keyring: Keyring, method: str, path: str) -> None:
    missing = f"/api/v1/admin/turns/01a21cdc-241d-77e4-8d50-5768b3c2944b/{path}"
    assert await keyring.request_status(method, "boss", missing) == 404
    assert await keyring.request_status(method, "ada", missing) == 403
    assert (await keyring.get("boss", "/api/v1/audit?action=turn.watch")).body["items"] == []


async def test_worker_and_its_models_are_listed(keyring: Keyring) -> None:
    turn = (await keyring.chat("ada", "What is 23*19?")).body
    found = (await keyring.get("boss", "/api/v1/admin/workers")).body
    [worker] = found["workers"]
    assert (worker["has_lease"], worker["running_turns"]) == (True, 0)
    assert found["models"] == [
        {"model": turn["model"], "failures": 0, "is_open": False, "retry_after_seconds": 0.0},
    ]
