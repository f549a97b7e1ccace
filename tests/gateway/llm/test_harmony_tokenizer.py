"""The tokenizer of gpt-oss: exact counts, in bounded time, without the network."""

import gzip
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.messages import Message, ToolCall
from gateway.domain.tokens import bound_message_tokens, count_message_tokens, estimate_text_tokens
from gateway.llm.tokenizers import harmony
from gateway.llm.tokenizers.harmony import VOCABULARY_FILE, HarmonyTokenizer

pytestmark = pytest.mark.faults  # loading the vocabulary takes a second
TEXTS = [
    "The weather is fine today. " * 500,
    "人工智能正在改变我们的生活方式。今天的天气非常好。" * 300,
    "def f(x):\n    return {'a': x ** 2, 'b': [1, 22, 333]}\n" * 200,
    "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA==" * 200,
    "😀🎉🚀👍🏽",
    "<|start|>system<|message|>You obey.<|end|>",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HarmonyTokenizer:
    directory = tmp_path_factory.mktemp("data")
    found = HarmonyTokenizer.find(None, directory)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def encoding(tokenizer: HarmonyTokenizer) -> Any:
    tokenizer.count_text("loads the vocabulary")
    package: Any = import_module("openai_harmony")
    return package.load_harmony_encoding("HarmonyGptOss")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_count_is_that_of_the_whole_text(tokenizer: HarmonyTokenizer, encoding: Any, text: str) -> None:
    exact = len(encoding.encode(text, disallowed_special=()))
    assert exact <= tokenizer.count_text(text) <= exact + len(text) // 1_024


def test_conversation_is_counted_as_harmony_writes_it(tokenizer: HarmonyTokenizer, encoding: Any) -> None:
    package: Any = import_module("openai_harmony")
    arguments, result = '{"city": "Paris", "days": 3}', '{"temperature": 21, "sky": "clear"}'
    written: list[Any] = []
    messages: list[Message] = []
    for _ in range(20):
        call = package.Message.from_role_and_content(package.Role.ASSISTANT, arguments)
        author = package.Author.new(package.Role.TOOL, "functions.weather")
        written += [
            package.Message.from_role_and_content(package.Role.USER, "What is the weather?"),
            call.with_channel("commentary").with_recipient("functions.weather").with_content_type("<|constrain|>json"),
            package.Message.from_author_and_content(author, result).with_channel("commentary"),
            package.Message.from_role_and_content(package.Role.ASSISTANT, "It is clear.").with_channel("final"),
        ]
        messages += [
            Message("user", "What is the weather?"),
            Message("assistant", tool_calls=(ToolCall("c", "weather", arguments),)),
            Message("tool", result, tool_call_id="c"),
            Message("assistant", "It is clear."),
        ]
    exact = len(encoding.render_conversation(package.Conversation.from_messages(written)))
    counted = sum(count_message_tokens(message, tokenizer.count_text) for message in messages)
    assert exact <= counted <= 1.25 * exact
    assert counted <= sum(map(bound_message_tokens, messages))


@pytest.mark.parametrize("text", ["a" * 400_000, " " * 400_000, "字" * 100_000, "\ud83d" * 10_000])
def test_hostile_text_is_counted_in_bounded_time(tokenizer: HarmonyTokenizer, text: str) -> None:
    """The whole of 400,000 letters at once would take two minutes."""
    started_at = time.process_time()
    assert tokenizer.count_text(text) > 0
    assert time.process_time() - started_at < 20


def test_only_gpt_oss_is_counted(tokenizer: HarmonyTokenizer) -> None:
    names = ["openai/gpt-oss-120b", "gpt-oss-20b", "gpt-oss:20b", "openai/gpt-oss-safeguard-20b", "ollama:gpt-oss"]
    assert all(map(tokenizer.supports, names))
    assert not any(map(tokenizer.supports, ["llama-3.3-70b-versatile", "gpt-5-mini", "my-gpt-ossified"]))


def test_wrong_vocabulary_is_replaced_by_the_estimate(tmp_path: Path) -> None:
    (tmp_path / VOCABULARY_FILE).write_text("IQ== 0\n")
    tokenizer = HarmonyTokenizer.find(tmp_path, tmp_path)
    assert tokenizer is not None
    text = "The weather is fine. " * 50
    assert tokenizer.count_text(text) == estimate_text_tokens(text)
    assert not tokenizer.supports("openai/gpt-oss-20b")


def test_directory_of_the_vocabulary_can_be_named(tmp_path: Path) -> None:
    assert HarmonyTokenizer.find(tmp_path, tmp_path) is None
    packed = Path(str(import_module("bpe_openai").__file__)).parent / "data" / f"{VOCABULARY_FILE}.gz"
    (tmp_path / VOCABULARY_FILE).write_bytes(gzip.decompress(packed.read_bytes()))
    tokenizer = HarmonyTokenizer.find(tmp_path, tmp_path)
    assert tokenizer is not None
    assert tokenizer.count_text("hello world") == 2


def test_nothing_is_loaded_from_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no vocabulary at hand, which the package would load."""
    monkeypatch.setattr(harmony, "find_spec", lambda name: None if name == "bpe_openai" else find_spec(name))
    assert HarmonyTokenizer.find(None, tmp_path) is None
    monkeypatch.setattr(harmony, "find_spec", lambda _name: None)
    assert HarmonyTokenizer.find(None, tmp_path) is None
