"""Bodies of requests: JSON, text, bytes, and forms of two kinds."""

import base64
import binascii
import json
import re
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from gateway_runtime.http_tools.definitions import DefinedTool, WireField
from tools_server.http_tools.errors import CallFailed, DefinitionInvalid
from tools_server.http_tools.templates import (
    ABSENT,
    BodyTemplate,
    CallValues,
    Placeholder,
    TemplateInvalid,
    TextTemplate,
    to_text,
)
from tools_server.http_tools.wire_fields import CompiledField, render_fields

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:; ?[A-Za-z0-9_.-]+=[A-Za-z0-9_.-]+)*")
_NAME_ESCAPES = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}


@dataclass(frozen=True)
class BuiltBody:
    """A body and its media type."""

    content: bytes
    content_type: str


class BodyBuilder(Protocol):
    """Builds the bodies of a definition's calls."""

    @property
    @abstractmethod
    def placeholders(self) -> list[Placeholder]: ...

    @abstractmethod
    def build(self, values: CallValues) -> BuiltBody | None:
        """Build the body; None if all of its arguments are absent.

        Raises:
            CallFailed: an argument does not fit.
        """
        ...


def compile_body(definition: DefinedTool) -> BodyBuilder | None:
    """Check the body or the form of a definition.

    Raises:
        DefinitionInvalid: a part of it is not valid.
    """
    if definition.form is None:
        if definition.form_type != "urlencoded":
            raise DefinitionInvalid("form_type", "there is no form")
        if definition.body is None:
            return None
        try:
            return _TemplateBody(definition)
        except TemplateInvalid as error:
            raise DefinitionInvalid("body", str(error)) from None
    if definition.body is not None:
        raise DefinitionInvalid("form", "there is a body, too")
    if definition.form_type == "multipart":
        parts = [_compile_part(index, field) for index, field in enumerate(definition.form)]
        return _MultipartForm(parts)
    return _UrlencodedForm([compile_field("form", index, field) for index, field in enumerate(definition.form)])


def compile_field(place: str, index: int, field: WireField) -> CompiledField:
    """Check a field of a query or a form that is urlencoded."""
    if field.media_type is not None or field.file_name is not None or field.base64:
        raise DefinitionInvalid(f"{place}.{index}", "only a multipart form has files and media types")
    try:
        return CompiledField(field)
    except TemplateInvalid as error:
        raise DefinitionInvalid(f"{place}.{index}", str(error)) from None


class _TemplateBody(BodyBuilder):
    """A JSON template, sent as JSON, as text, or as bytes."""

    def __init__(self, definition: DefinedTool) -> None:
        self._format = definition.body_format
        if self._format != "json" and not isinstance(definition.body, str):
            raise TemplateInvalid("must be a text, as body_format is not json")
        self._template = BodyTemplate(definition.body)

    @property
    def placeholders(self) -> list[Placeholder]:
        return self._template.placeholders

    def build(self, values: CallValues) -> BuiltBody | None:
        value = self._template.render(values)
        if value is ABSENT:
            return None
        if self._format == "text":
            return BuiltBody(_to_bytes(to_text(value)), "text/plain; charset=utf-8")
        if self._format == "base64":
            return BuiltBody(_decode(to_text(value)), "application/octet-stream")
        return BuiltBody(_to_bytes(json.dumps(value, ensure_ascii=False)), "application/json")


class _UrlencodedForm(BodyBuilder):
    def __init__(self, fields: Sequence[CompiledField]) -> None:
        self._fields = fields

    @property
    def placeholders(self) -> list[Placeholder]:
        return [placeholder for field in self._fields for placeholder in field.placeholders]

    def build(self, values: CallValues) -> BuiltBody:
        return BuiltBody(render_fields(self._fields, values).encode(), "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class _Part:
    """A field of a multipart form, with its file name."""

    compiled: CompiledField
    file_name: TextTemplate | None

    @property
    def placeholders(self) -> list[Placeholder]:
        return [*self.compiled.placeholders, *(self.file_name.placeholders if self.file_name else ())]

    def list_contents(self, values: CallValues) -> list[bytes]:
        """List the contents: one for each item of an exploded list."""
        value, field = self.compiled.get_value(values), self.compiled.field
        if value is ABSENT:
            return []
        if field.style == "json":
            return [_to_bytes(json.dumps(value, ensure_ascii=False))]
        if not isinstance(value, list):
            return [self._encode(value)]
        items = cast("list[Any]", value)
        return [self._encode(item) for item in items] if field.explode or field.base64 else [_to_bytes(to_text(items))]

    def _encode(self, value: Any) -> bytes:
        if self.compiled.field.base64:
            return _decode(to_text(value))
        return _to_bytes(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else to_text(value))

    def build_header(self, values: CallValues) -> bytes:
        field = self.compiled.field
        header = f'Content-Disposition: form-data; name="{_escape(field.name)}"'
        media_type = field.media_type
        if self.file_name is not None or field.base64:
            file_name = self.file_name.render(values) if self.file_name else None
            header += f'; filename="{_escape(file_name or field.name)}"'
            media_type = media_type or "application/octet-stream"
        if media_type := media_type or ("application/json" if field.style == "json" else None):
            header += f"\r\nContent-Type: {media_type}"
        return _to_bytes(header)


class _MultipartForm(BodyBuilder):
    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts

    @property
    def placeholders(self) -> list[Placeholder]:
        return [placeholder for part in self._parts for placeholder in part.placeholders]

    def build(self, values: CallValues) -> BuiltBody:
        boundary = uuid.uuid4().hex  # no argument can contain it
        lines: list[bytes] = []
        for part in self._parts:
            for content in part.list_contents(values):
                lines += [f"--{boundary}".encode(), part.build_header(values), b"", content]
        lines += [f"--{boundary}--".encode(), b""]
        return BuiltBody(b"\r\n".join(lines), f"multipart/form-data; boundary={boundary}")


def _compile_part(index: int, field: WireField) -> _Part:
    place = f"form.{index}"
    if field.style not in ("form", "json"):
        raise DefinitionInvalid(place, f"the style {field.style} is not one of multipart forms")
    if field.media_type is not None and not _MEDIA_TYPE.fullmatch(field.media_type):
        raise DefinitionInvalid(place, f"{field.media_type[:80]!r} is not a media type")
    if field.base64 and field.style == "json":
        raise DefinitionInvalid(place, "JSON is not in base64")
    try:
        return _Part(CompiledField(field), None if field.file_name is None else TextTemplate(field.file_name))
    except TemplateInvalid as error:
        raise DefinitionInvalid(place, str(error)) from None


def _escape(name: str) -> str:
    """Escape a name for the header of a part, as browsers do."""
    return name.translate(_NAME_ESCAPES)


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CallFailed("An argument has characters that are not valid Unicode.") from None


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise CallFailed("An argument is not base64, which bytes must be given in.") from None
