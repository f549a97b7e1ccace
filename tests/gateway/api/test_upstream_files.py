"""Files and batches of the model's server, each with an owner."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import groq
import msgspec
import openai
import pytest

from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

MODEL = "openai/gpt-oss-120b"
pytestmark = pytest.mark.faults


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, upstream_files=True) as running:
        yield running


def connect(keyring: Keyring, owner: str) -> openai.AsyncOpenAI:
    key = keyring.secrets[owner]
    return openai.AsyncOpenAI(base_url=f"{keyring.gateway.base_url}/v1", api_key=key, max_retries=0)


def write_requests(*prompts: str, model: str = MODEL, **body: Any) -> bytes:
    requests = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": prompt}], **body},
        }
        for number, prompt in enumerate(prompts)
    ]
    return b"\n".join(json.dumps(request).encode() for request in requests)


async def test_openai_sdk_runs_a_batch(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("ada")
    async with connect(keyring, "ada") as client:
        file = await client.files.create(file=("in.jsonl", write_requests("hello", "hi")), purpose="batch")
        assert (await client.files.retrieve(file.id)).filename == "in.jsonl"
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
        )
        assert (batch.status, batch.metadata) == ("validating", {"a": "b"})
        done = await client.batches.retrieve(batch.id)
        assert (done.status, done.request_counts and done.request_counts.completed) == ("completed", 2)
        assert done.output_file_id
        lines = (await client.files.content(done.output_file_id)).text.splitlines()
        assert [json.loads(line)["response"]["status_code"] for line in lines] == [200, 200]
        assert {item.id for item in (await client.files.list()).data} == {file.id, done.output_file_id}
        assert [item.id for item in (await client.files.list(purpose="batch")).data] == [file.id]
        assert [item.id async for item in client.batches.list(limit=1)] == [batch.id]
        await client.files.delete(done.output_file_id)
        await client.batches.retrieve(batch.id)
        assert [item.id for item in (await client.files.list()).data] == [file.id]
        used = await db.fetchrow("SELECT owner, total_tokens, cost_usd FROM turn_usage WHERE endpoint = '/v1/batches'")
        assert used is not None
        assert (used["owner"], used["total_tokens"]) == ("ada", done.usage and done.usage.total_tokens)
        assert used["cost_usd"] > 0
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
    actions = await db.fetch("SELECT action FROM audit_log WHERE actor = 'ada' ORDER BY id")
    assert [row["action"].removeprefix("upstream.") for row in actions] == [
        "file.create",
        "batch.create",
        "file.read",
        "file.delete",
        "file.delete",
    ]


async def test_groq_sdk_runs_and_cancels_a_batch(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    keyring.gateway.simulator.pause_streams()
    async with groq.AsyncGroq(base_url=keyring.gateway.base_url, api_key=keyring.secrets["ada"]) as client:
        file = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        assert file.id
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        assert (await client.batches.cancel(batch.id)).status == "cancelled"


async def test_objects_of_another_user_are_not_found(keyring: Keyring) -> None:
    for name in ("ada", "bob"):
        await keyring.create_key(name)
    async with connect(keyring, "ada") as ada, connect(keyring, "bob") as bob:
        file = await ada.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        batch = await ada.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        done = await ada.batches.retrieve(batch.id)
        assert done.output_file_id
        sent = len(keyring.gateway.simulator.requests)
        for call in (
            bob.files.retrieve(file.id),
            bob.files.content(done.output_file_id),
            bob.files.delete(file.id),
            bob.batches.retrieve(batch.id),
            bob.batches.cancel(batch.id),
            bob.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"),
            bob.files.retrieve("file-unknown"),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        assert len(keyring.gateway.simulator.requests) == sent
        assert (await bob.files.list()).data == []
        assert (await bob.batches.list()).data == []
        for path in ("/v1/files?after=%00", "/v1/batches?after=%00"):
            reply = await keyring.get("ada", path)
            assert (reply.status, reply.body["error"]["param"]) == (400, "after"), path
        for path in ("/v1/files/..%2Fbatches", "/v1/files/a%00", "/v1/files/%2e%2e/content", "/v1/batches/x%0ay"):
            reply = await keyring.get("ada", path)
            assert reply.status == 404, path


async def test_batch_is_reserved_before_it_is_sent_and_settled_at_its_end(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    settings: dict[str, Any] = {"upstream_files": True, "budget_tokens_per_day": 3_000}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        async with connect(keyring, "ada") as client:
            large = await client.files.create(
                file=("in.jsonl", write_requests("hello", max_tokens=4_000)), purpose="batch"
            )
            with pytest.raises(openai.APIStatusError) as refused:
                await client.batches.create(
                    input_file_id=large.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
            assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")
            assert not [request for request in simulator.requests if request.get("path") == "batches"]
            file = await client.files.create(
                file=("in.jsonl", write_requests("hello", max_tokens=2_000)), purpose="batch"
            )
            options: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch = await client.batches.create(**options)
            assert await db.fetchval("SELECT expires_at IS NULL FROM request_holds WHERE tokens > 2000") is True
            with pytest.raises(openai.APIStatusError):
                await client.batches.create(**options)
            await gateway.state.files.check_batch(
                (await gateway.state.files._objects.list_objects("ada", "batch", limit=1))[0]
            )  # as the background task does
            assert await db.fetchval("SELECT count(*) FROM request_holds") == 0
            assert await db.fetchval("SELECT sum(total_tokens) < 200 FROM turn_usage") is True
            await client.batches.retrieve(batch.id)
            assert await db.fetchval("SELECT count(*) FROM turn_usage WHERE endpoint = '/v1/batches'") == 1


async def test_late_reply_does_not_reopen_a_settled_batch(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    objects = keyring.gateway.state.files._objects
    async with connect(keyring, "ada") as client:
        file = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        before = await objects.get("ada", "batch", batch.id)
        assert (await client.batches.retrieve(batch.id)).status == "completed"
        await objects.update(before)
        assert [item.status async for item in client.batches.list()] == ["completed"]


async def test_refused_batch_keeps_no_reservation(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    settings: dict[str, Any] = {"upstream_files": True, "budget_tokens_per_day": 30_000}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0)
        async with client:
            file = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
            simulator.uploads.files.clear()  # the server has lost it
            with pytest.raises(openai.BadRequestError):
                await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
    assert await db.fetchval("SELECT count(*) FROM request_holds") == 0


_REFUSE_IDS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'no space'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON upstream_objects FOR EACH ROW
WHEN (NOT starts_with(NEW.id, 'pending-') AND NEW.kind = '{kind}') EXECUTE FUNCTION refuse()"""


@pytest.mark.parametrize("kind", ["file", "batch"])
async def test_object_whose_owner_cannot_be_stored_is_undone_at_the_server(
    keyring: Keyring, db: asyncpg.Connection, kind: str
) -> None:
    await keyring.create_key("ada")
    uploads = keyring.gateway.simulator.uploads
    keyring.gateway.simulator.pause_streams()
    await db.execute(_REFUSE_IDS.format(kind=kind))
    options: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    async with connect(keyring, "ada") as client:
        create_file = client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        if kind == "file":
            with pytest.raises(openai.APIStatusError):
                await create_file
        else:
            file = await create_file
            with pytest.raises(openai.APIStatusError):
                await client.batches.create(input_file_id=file.id, **options)
    assert len(uploads.files) == (kind == "batch")
    assert [batch["status"] for batch in uploads.batches.values()] == ["cancelled"] * (kind == "batch")


async def test_batch_whose_creation_was_interrupted_finds_its_owner(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    """The server has made it, and its answer was lost."""
    settings: dict[str, Any] = {"upstream_files": True, "budget_tokens_per_day": 30_000}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        objects = gateway.state.files._objects
        async with connect(keyring, "ada") as client:
            file = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
            options: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            simulator.faults.add_faults(Fault(kind="status", status=500, match="batches"))
            with pytest.raises(openai.InternalServerError):
                await client.batches.create(**options)
            assert (await client.batches.list()).data == []
            assert await db.fetchval("SELECT count(*) FROM request_holds") == 1
            for item in await objects.claim_open_batches(limit=5, older_than_seconds=0):
                await gateway.state.files.check_batch(item)  # as the background task does
            [found] = (await client.batches.list()).data
            assert found.id in simulator.uploads.batches
            assert await db.fetchval("SELECT count(*) FROM turn_usage WHERE endpoint = '/v1/batches'") == 1
            # One that the server never made: the batch of the same file is known, and nothing stays reserved.
            simulator.uploads.batches[found.id]["status"] = "completed"
            lost = msgspec.structs.replace(
                await objects.get("ada", "batch", found.id), id="pending-1", is_settled=False
            )
            await objects.add(lost)
            await gateway.state.files.check_batch(lost)
        rows = await db.fetch("SELECT id FROM upstream_objects WHERE kind = 'batch'")
        assert [row["id"] for row in rows] == [found.id]
        assert await db.fetchval("SELECT count(*) FROM request_holds") == 0


async def test_file_of_a_client_that_left_has_its_owner(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    simulator = keyring.gateway.simulator
    simulator.faults.add_faults(Fault(kind="slow_first_token", seconds=0.2, match="files"))
    async with connect(keyring, "ada") as client:
        creation = asyncio.create_task(client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch"))
        await eventually(lambda: len(simulator.uploads.files) == 1)
        creation.cancel()

        async def is_listed() -> bool:
            return len((await client.files.list()).data) == 1

        await eventually(is_listed)


async def test_batch_with_a_model_that_the_key_may_not_use_is_refused(keyring: Keyring) -> None:
    await keyring.create_key("ada", models=("openai/gpt-oss-20b",))
    async with connect(keyring, "ada") as client:
        twice = write_requests("hello", model="openai/gpt-oss-20b").replace(
            b'"model":', b'"model": "openai/gpt-oss-120b", "model":'
        )
        file = await client.files.create(file=("in.jsonl", twice), purpose="batch")
        content = (await client.files.content(file.id)).text
        assert "gpt-oss-120b" not in content  # the line was written anew
        other = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(
                input_file_id=other.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        plain = await client.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(
                input_file_id=plain.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert refused.value.param == "input_file_id"
        with pytest.raises(openai.BadRequestError):
            await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"{",
        b"[]",
        b"null",
        b'{"custom_id": "a"}',
        write_requests("x").replace(b"/v1/chat/completions", b"/v1/admin"),
        write_requests("x").replace(b'"POST"', b'"DELETE"'),
        write_requests("x").replace(b'"model"', b'"other"'),
        write_requests("x", model="a\0b"),
        write_requests("x", "y").replace(b"/v1/chat/completions", b"/v1/responses", 1),
        b"[" * 100_000,
        write_requests("x" * 1_100_000),
        b'{"custom_id": "\xff"}',
    ],
)
async def test_file_that_is_no_list_of_requests_is_refused(gateway: Gateway, content: bytes) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=("in.jsonl", content), purpose="batch")
    assert refused.value.param == "file"


async def test_erasure_deletes_files_at_the_server(keyring: Keyring, db: asyncpg.Connection) -> None:
    await keyring.create_key("ada")
    simulator = keyring.gateway.simulator
    simulator.pause_streams()
    async with connect(keyring, "ada") as client:
        file = await client.files.create(file=("in.jsonl", write_requests("hello")), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert await keyring.request_status("DELETE", "root", "/api/v1/admin/user-data?user=ada") == 200
    assert len(simulator.uploads.files) == 0
    assert simulator.uploads.batches[batch.id]["status"] == "cancelled"
    assert await db.fetchval("SELECT count(*) FROM upstream_objects") == 0


async def test_files_that_are_off_name_their_setting(shared_gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{shared_gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        for call in (
            client.files.list(),
            client.files.create(file=("a", b"x"), purpose="batch"),
            client.batches.list(),
            client.batches.retrieve("batch_1"),
            client.files.content("file-1"),
        ):
            with pytest.raises(openai.NotFoundError) as refused:
                await call
            assert "UPSTREAM_FILES" in refused.value.message


async def test_server_without_files_names_its_setting(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=404, match="files"))
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as refused:
            await client.files.create(file=("a", b"x"), purpose="user_data")
    assert "GROQ_BASE_URL" in refused.value.message
