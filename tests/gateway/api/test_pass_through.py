"""Embeddings and audio of the model's server, through the official SDKs."""

import asyncio
import io
import wave
from contextlib import nullcontext
from typing import Any

import asyncpg
import groq
import openai
import pytest

from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

EMBEDDER = "nomic-embed-text-v1_5"


def make_recording(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(8_000)
        audio.writeframes(b"\0\0" * int(seconds * 8_000))
    return file.getvalue()


def connect(gateway: Gateway, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0)


async def test_openai_sdk_gets_embeddings_speech_and_transcriptions(shared_gateway: Gateway) -> None:
    async with connect(shared_gateway) as client:
        vectors = await client.embeddings.create(model=EMBEDDER, input=["a", "b", "a"], dimensions=8)
        first, second, third = (item.embedding for item in vectors.data)
        assert (len(first), first == third, first == second) == (8, True, False)
        assert vectors.usage.total_tokens == 3
        floats = await client.embeddings.create(model=EMBEDDER, input=[1, 2, 3], encoding_format="float")
        assert len(floats.data[0].embedding) == 768
        spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input="hello " * 30)
        recording = await spoken.aread()
        with wave.open(io.BytesIO(recording)) as audio:
            assert audio.getnframes() > 10_000
        assert spoken.response.headers["content-type"] == "audio/wav"
        text = await client.audio.transcriptions.create(model="whisper-1", file=("tone.wav", recording))
        assert "transcription of tone.wav" in text.text
        parts = await client.audio.transcriptions.create(
            model="gpt-4o-mini-transcribe", file=("tone.wav", recording), stream=True
        )
        kinds = [part.type async for part in parts]
        assert kinds[-1] == "transcript.text.done"
        assert len(kinds) > 5
        async with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="hello " * 30
        ) as streamed:
            assert b"".join([piece async for piece in streamed.iter_bytes()]) == recording


async def test_groq_sdk_gets_embeddings_speech_and_translations(shared_gateway: Gateway) -> None:
    async with groq.AsyncGroq(base_url=shared_gateway.base_url, api_key="none", max_retries=0) as client:
        vectors = await client.embeddings.create(model=EMBEDDER, input="a")
        assert len(vectors.data[0].embedding) == 768
        spoken = await client.audio.speech.create(
            model="canopylabs/orpheus-v1-english", voice="autumn", input="hello", response_format="wav"
        )
        recording = await spoken.read()
        told = await client.audio.translations.create(model="whisper-large-v3", file=("tone.wav", recording))
        assert "translation of tone.wav" in told.text
        words = await client.audio.transcriptions.create(
            model="whisper-large-v3-turbo", file=("tone.wav", recording), response_format="verbose_json"
        )
        assert words.model_extra is not None
        assert words.model_extra["duration"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.faults
async def test_usage_counts_against_the_budget_and_is_audited(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=100) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada")
        await keyring.create_key("bob")
        async with connect(gateway, keyring.secrets["ada"]) as client:
            await client.embeddings.create(model=EMBEDDER, input="x" * 4 * 120)
            for call in (
                client.embeddings.create(model=EMBEDDER, input="x"),
                client.audio.speech.create(model="tts-1", voice="alloy", input="x"),
                client.audio.transcriptions.create(model="whisper-1", file=("a.wav", make_recording())),
            ):
                with pytest.raises(openai.APIStatusError) as refused:
                    await call
                assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")
        async with connect(gateway, keyring.secrets["bob"]) as client:
            await client.embeddings.create(model=EMBEDDER, input="x")
        assert (await keyring.chat("ada", "hello")).status == 402
        rows = await db.fetch("SELECT owner, endpoint, status, total_tokens FROM turn_usage ORDER BY at")
        assert [tuple(row) for row in rows] == [
            ("ada", "/v1/embeddings", "completed", 120),
            ("bob", "/v1/embeddings", "completed", 1),
        ]
        assert await db.fetchval("SELECT count(*) FROM request_holds") == 0
        entry = await db.fetchrow("SELECT action, subject, detail::text FROM audit_log WHERE actor = 'ada'")
        assert entry is not None
        assert (entry["action"], entry["subject"]) == ("upstream.embeddings", "/v1/embeddings")
        assert '"tokens": 120' in entry["detail"]
        usage = (await keyring.get("ada", "/api/v1/usage")).body
        assert (usage["total"]["turns"], usage["total"]["total_tokens"]) == (0, 120)


@pytest.mark.faults
async def test_concurrent_requests_do_not_spend_the_same_budget(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, budget_tokens_per_day=100) as gateway:
        simulator.faults.add_faults(Fault(kind="slow_first_token", match=EMBEDDER, seconds=3600))
        async with connect(gateway) as client:
            first = asyncio.create_task(client.embeddings.create(model=EMBEDDER, input="x" * 4 * 80))
            await simulator.wait_until(lambda s: s.open_streams == 1)
            with pytest.raises(openai.APIStatusError) as refused:
                await client.embeddings.create(model=EMBEDDER, input="x" * 4 * 80)
            assert refused.value.status_code == 402
            assert "does not leave enough" in refused.value.message
            first.cancel()
            await simulator.wait_until(lambda s: s.cancelled_streams == 1)


@pytest.mark.faults
async def test_cancelled_request_is_cancelled_at_the_server_and_counted(
    gateway: Gateway, db: asyncpg.Connection
) -> None:
    simulator = gateway.simulator
    simulator.faults.add_faults(Fault(kind="stall", match="tts-1", after_chunks=2))
    async with connect(gateway) as client:
        speech = client.audio.speech.with_streaming_response.create(model="tts-1", voice="a", input="hello " * 60)
        async with speech as streamed:
            assert await anext(streamed.iter_bytes())
        await simulator.wait_until(lambda s: s.cancelled_streams == 1)

    async def is_counted() -> bool:
        return bool(await db.fetchval("SELECT status = 'cancelled' FROM turn_usage WHERE total_tokens > 0"))

    await eventually(is_counted)


@pytest.mark.faults
async def test_answer_that_breaks_off_reaches_the_client_as_an_error(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="abort", match="tts-1", after_chunks=2))
    async with connect(gateway) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.audio.speech.create(model="tts-1", voice="a", input="hello " * 60)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "bad voice", "param": "voice"}}, (400, "model_request_refused", "voice")),
        (401, {"error": {"message": "Invalid key gsk_secret"}}, (502, "model_key_refused", None)),
        (404, {"error": {"message": "Unknown request URL"}}, (404, "not_found", None)),
        (404, {"detail": "Not Found"}, (404, "not_found", None)),
        (405, "", (404, "not_found", None)),
        (404, {"error": {"message": "The model `x` does not exist"}}, (404, "model_not_found", "model")),
        (413, {"error": {"message": "too large"}}, (400, "model_request_refused", None)),
        (429, {"error": {"message": "slow down"}}, (429, "rate_limit_exceeded", None)),
        (500, "<html>stack trace</html>", (503, "server_is_overloaded", None)),
    ],
)
async def test_refusal_of_the_server_is_told_in_its_class(
    shared_gateway: Gateway, status: int, body: Any, expected: tuple[int, str, str | None]
) -> None:
    shared_gateway.simulator.faults.add_faults(Fault(kind="status", status=status, body=body, match="tts-1"))
    async with connect(shared_gateway) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.audio.speech.create(model="tts-1", voice="a", input="x")
    error = refused.value
    assert (error.status_code, error.code, error.param) == expected
    assert "secret" not in error.message
    if expected[1] == "not_found":
        assert "GROQ_BASE_URL" in error.message


@pytest.mark.faults
async def test_key_limited_to_models_reaches_no_other(keyring: Keyring) -> None:
    await keyring.create_key("ada", models=("openai/*",))
    await keyring.create_key("bob", scopes=("history",))
    async with connect(keyring.gateway, keyring.secrets["ada"]) as client:
        for call in (
            client.embeddings.create(model=EMBEDDER, input="x"),
            client.audio.speech.create(model="tts-1", voice="a", input="x"),
            client.audio.transcriptions.create(model="whisper-1", file=("a.wav", make_recording())),
        ):
            with pytest.raises(openai.NotFoundError) as refused:
                await call
            assert refused.value.code == "model_not_found"
    async with connect(keyring.gateway, keyring.secrets["bob"]) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model=EMBEDDER, input="x")
    assert list(keyring.gateway.simulator.requests) == []


@pytest.mark.parametrize("model", ["a\0b", "x" * 201])
async def test_name_that_usage_cannot_be_stored_under_is_no_model(shared_gateway: Gateway, model: str) -> None:
    sent = len(shared_gateway.simulator.requests)
    async with connect(shared_gateway) as client:
        for call in (
            client.embeddings.create(model=model, input="x"),
            client.audio.transcriptions.create(model=model, file=("a.wav", make_recording())),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                await call
            assert refused.value.status_code in (400, 404)
    assert len(shared_gateway.simulator.requests) == sent


@pytest.mark.faults
async def test_field_sent_twice_reaches_the_server_as_it_was_checked(keyring: Keyring) -> None:
    await keyring.create_key("ada", models=(EMBEDDER,))
    body = b'{"model": "text-embedding-3-large", "input": "x", "model": "%s"}' % EMBEDDER.encode()
    headers = keyring.headers("ada") | {"Content-Type": "application/json"}
    session, url = keyring.gateway.session, f"{keyring.gateway.base_url}/v1/embeddings"
    async with session.post(url, data=body, headers=headers) as response:
        assert response.status == 200
    assert [request["model"] for request in keyring.gateway.simulator.requests] == [EMBEDDER]


def make_form(*parts: tuple[str, str, bytes]) -> bytes:
    form = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), rest.encode(), value)
        for name, rest, value in parts
    )
    return form + b"--x--\r\n"


FILE = ("file", '; filename="a.wav"', b"RIFF")
MODEL = ("model", "", b"whisper-1")


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        (make_form(MODEL), "file"),
        (make_form(FILE), "model"),
        (make_form(MODEL, MODEL, FILE), "model"),
        (make_form(MODEL, FILE, FILE), "form"),
        (make_form(MODEL, ("other", '; filename="a"', b"x")), "file"),
        (make_form(MODEL, FILE, ("url", "", b"http://169.254.169.254/")), "url"),
        (make_form(MODEL, FILE)[:-30], "form"),
        (make_form(*([("a", "", b"b")] * 100), MODEL, FILE), "form"),
        (make_form(MODEL, FILE, ("prompt", "", b"x" * 300_000)), "form"),
        (b"", "form"),
        (b"{}", "form"),
    ],
)
async def test_form_that_cannot_be_passed_on_is_refused(shared_gateway: Gateway, form: bytes, problem: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"{shared_gateway.base_url}/v1/audio/transcriptions"
    async with shared_gateway.session.post(url, data=form, headers=headers) as response:
        body = await response.json()
        assert response.status == 400, body
        assert problem in body["error"]["message"]


async def test_names_in_a_form_cannot_add_parts(shared_gateway: Gateway) -> None:
    name = 'a.wav"\r\nContent-Type: text/plain\r\n\r\nx\r\n--'
    async with connect(shared_gateway) as client:
        told = await client.audio.transcriptions.create(
            model="whisper-1", file=(name, make_recording()), prompt='x\r\n--y\r\nname="model"'
        )
    assert told.text.startswith("This is a simulated transcription")
    [*_, seen] = shared_gateway.simulator.requests
    assert (seen["model"], seen["bytes"]) == ("whisper-1", len(make_recording()))


@pytest.mark.faults
async def test_a_user_has_half_of_the_upload_slots(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, max_uploads=2) as gateway:
        keyring = Keyring(gateway)
        for name in ("ada", "bob"):
            await keyring.create_key(name)
        release = asyncio.Event()

        async def send_slowly() -> Any:
            yield make_form(MODEL)[:-7]
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            await release.wait()
            yield make_recording(1) + b"\r\n--x--\r\n"

        url, headers = f"{gateway.base_url}/v1/audio/transcriptions", {"X-API-Key": keyring.secrets["ada"]}
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        slow = asyncio.create_task(gateway.session.post(url, data=send_slowly(), headers=headers | form))
        await eventually(lambda: gateway.state.uploads._uploads["ada"] == 1)
        for name, problem in (("ada", openai.RateLimitError), ("bob", None)):
            sdk = openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=keyring.secrets[name], max_retries=0)
            async with sdk as client:
                with nullcontext() if problem is None else pytest.raises(problem):
                    await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", make_recording(1)))
        release.set()
        async with await slow as response:
            assert response.status == 200, await response.text()
        await eventually(lambda: not gateway.state.uploads._uploads)


@pytest.mark.faults
async def test_uploads_are_bounded_in_bytes_and_number(database_url: str, simulator: Simulator, tools_url: str) -> None:
    async with serve_gateway(database_url, simulator, tools_url, max_upload_bytes=100_000, max_uploads=1) as gateway:
        async with connect(gateway) as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", make_recording(10)))
            assert refused.value.status_code == 413
            assert "MAX_UPLOAD_BYTES" in refused.value.message

        async def send_endless() -> Any:
            yield make_form(MODEL)[:-7]
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            while True:
                yield b"x" * 10_000

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        url = f"{gateway.base_url}/v1/audio/transcriptions"
        async with gateway.session.post(url, data=send_endless(), headers=headers) as response:
            assert response.status == 413
        async with connect(gateway) as client:  # the slot is free again
            assert (await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", make_recording(1)))).text
