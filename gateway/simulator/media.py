"""Simulated embeddings and audio, with Groq's and OpenAI's formats."""

import base64
import hashlib
import io
import math
import struct
import wave
from typing import Any

import msgspec

from gateway.domain.messages import JsonObject
from gateway.simulator.request import ApiError

EMBEDDING_MODELS = ("nomic-embed-text-v1_5", "text-embedding-3-small", "text-embedding-3-large")
SPEECH_MODELS = ("canopylabs/orpheus-v1-english", "playai-tts", "gpt-4o-mini-tts", "tts-1")
TRANSCRIPTION_MODELS = ("whisper-large-v3", "whisper-large-v3-turbo", "whisper-1", "gpt-4o-mini-transcribe")
_DEFAULT_DIMENSIONS = 768
_MAX_DIMENSIONS = 3_072
_MAX_INPUTS = 2_048
_SAMPLE_RATE = 8_000
_SECONDS_PER_CHARACTER = 0.06
_MAX_SPEECH_SECONDS = 10.0


class _EmbeddingsBody(msgspec.Struct):
    model: str
    input: str | list[Any]
    dimensions: int | None = None
    encoding_format: str | None = None


class _SpeechBody(msgspec.Struct):
    model: str
    input: str
    voice: str | JsonObject | None = None
    response_format: str | None = None
    stream_format: str | None = None


def decode_body(body: bytes, kind: type[Any]) -> Any:
    """Raises:
    ApiError: the body does not fit.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(400, str(error)) from None


def check_listed(model: str, models: tuple[str, ...]) -> None:
    if model not in models:
        raise ApiError(404, f"The model `{model}` does not exist or you do not have access to it.", "model_not_found")


def make_embeddings(content: bytes) -> JsonObject:
    """Return a unit vector for each input; equal inputs have equal vectors."""
    body: _EmbeddingsBody = decode_body(content, _EmbeddingsBody)
    check_listed(body.model, EMBEDDING_MODELS)
    inputs: list[Any] = [body.input] if isinstance(body.input, str) else body.input
    if inputs and all(isinstance(item, int) for item in inputs):
        inputs = [inputs]
    if not 1 <= len(inputs) <= _MAX_INPUTS:
        raise ApiError(400, f"'input' : from 1 to {_MAX_INPUTS} items are allowed", param="input")
    size = _DEFAULT_DIMENSIONS if body.dimensions is None else body.dimensions
    if not 1 <= size <= _MAX_DIMENSIONS:
        raise ApiError(400, f"'dimensions' : value must be from 1 to {_MAX_DIMENSIONS}", param="dimensions")
    data = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(item, size, body.encoding_format)}
        for index, item in enumerate(inputs)
    ]
    tokens = sum(max(1, len(item) // (4 if isinstance(item, str) else 1)) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def make_speech(content: bytes) -> tuple[bytes, str, str]:
    """Return a tone as long as the text, with its type."""
    body: _SpeechBody = decode_body(content, _SpeechBody)
    check_listed(body.model, SPEECH_MODELS)
    if not body.voice:
        raise ApiError(400, "'voice' : property is required", param="voice")
    if body.response_format not in (None, "wav", "mp3"):
        raise ApiError(400, "'response_format' : the simulator speaks wav only", param="response_format")
    seconds = min(_MAX_SPEECH_SECONDS, len(body.input) * _SECONDS_PER_CHARACTER)
    samples = [int(8_000 * math.sin(n * 2 * math.pi * 440 / _SAMPLE_RATE)) for n in range(int(seconds * _SAMPLE_RATE))]
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(_SAMPLE_RATE)
        audio.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue(), "audio/wav", body.model


def make_transcription(audio: bytes, fields: dict[str, str], filename: str, *, task: str) -> tuple[bytes, str]:
    """Return the text of a recording, and its media type.

    Raises:
        ApiError: the recording is empty, or a field does not fit.
    """
    check_listed(fields.get("model", ""), TRANSCRIPTION_MODELS)
    if not audio:
        raise ApiError(400, "file is empty", param="file")
    seconds = _measure_seconds(audio)
    text = f"This is a simulated {task} of {filename}, {seconds:.1f} seconds long."
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    match fields.get("response_format", "json"):
        case "text":
            return f"{text}\n".encode(), "text/plain; charset=utf-8"
        case "json" if fields.get("stream") == "true":
            frames = [{"type": "transcript.text.delta", "delta": f"{word} "} for word in text.split()]
            frames.append({"type": "transcript.text.done", "text": text, "usage": usage})  # type: ignore[dict-item]
            return b"".join(b"data: %s\n\n" % msgspec.json.encode(frame) for frame in frames), "text/event-stream"
        case "json":
            body: JsonObject = {"text": text, "usage": usage, "x_groq": {"id": "req_simulated"}}
        case "verbose_json":
            segment = {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text}
            body = {"task": task, "language": "english", "duration": seconds, "text": text, "segments": [segment]}
        case other:
            raise ApiError(400, f"'response_format' : '{other}' is not allowed", param="response_format")
    return msgspec.json.encode(body), "application/json"


def _measure_seconds(audio: bytes) -> float:
    try:
        with wave.open(io.BytesIO(audio)) as recording:
            return recording.getnframes() / recording.getframerate()
    except (wave.Error, EOFError, ZeroDivisionError):
        return len(audio) / 16_000  # of a compressed format


def _encode_vector(item: object, size: int, encoding: str | None) -> list[float] | str:
    seed = hashlib.shake_256(msgspec.json.encode(item)).digest(size)
    raw = [byte - 127.5 for byte in seed]
    norm = math.sqrt(sum(value * value for value in raw))
    vector = [value / norm for value in raw]
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
    return vector
