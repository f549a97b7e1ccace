"""The definition of an HTTP tool: fields and limits.

The gateway documents and forwards these bodies; the tool server validates them again, and stores them.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ToolNameText = Annotated[str, Field(pattern=NAME_PATTERN, description="Unique name, also among the built-in tools.")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]
SecretValue = Annotated[str, Field(min_length=4, max_length=8_192)]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
BodyFormat = Literal["json", "text", "base64"]
FormType = Literal["urlencoded", "multipart"]
Style = Literal["form", "spaceDelimited", "pipeDelimited", "deepObject", "json"]


def _make_empty_schema() -> dict[str, Any]:
    return {"type": "object", "properties": {}}


JsonSchema = Annotated[
    dict[str, Any],
    Field(
        default_factory=_make_empty_schema,
        description="JSON schema of the arguments: an object, whose `$ref`s stay inside of it.",
    ),
]


_Headers = Annotated[dict[str, str], limit_entries(50)]


class WireField(RequestModel):
    """Field of a query or a form: an argument, or a text.

    `value` is a text with placeholders, such as `{secret.key}`. A field whose argument is absent is left out. Style and
    explode are OpenAPI's; `json` sends the argument as JSON text. Multipart forms alone have the last three: the media
    type of the part, the template of a file's name, and whether the argument is base64 of the bytes that are sent.
    """

    name: str = Field(min_length=1, max_length=200)
    argument: str | None = Field(default=None, max_length=64)
    value: str | None = Field(default=None, max_length=4_000)
    style: Style = "form"
    explode: bool = True
    media_type: str | None = Field(default=None, max_length=200)
    file_name: str | None = Field(default=None, max_length=200)
    base64: bool = False


class ResultRule(RequestModel):
    """The part of an answer that is shown.

    `select` is a JSON pointer, or an object of names and pointers. `*` in a pointer stands for each item of a list.
    """

    select: str | Annotated[dict[str, str], limit_entries(100)] | None = Field(default=None)
    max_bytes: int = Field(default=20_000, ge=200, le=200_000)


class HintsOfTool(RequestModel):
    """Hints for hosts.

    The defaults depend on the method: only GET and HEAD read only.
    """

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class DefinitionFields(RequestModel):
    """Fields of a definition that may be changed."""

    title: str | None = Field(default=None, max_length=200)
    description: str = Field(min_length=1, max_length=4_000, description="Tells the model what the tool does.")
    input_schema: JsonSchema
    method: Method = "GET"
    url: str = Field(
        min_length=8,
        max_length=2_000,
        description="RFC 6570 template such as `https://api.example.com/v1/users/{id}{?fields}`. The host is fixed.",
    )
    query: ItemList[WireField] = Field(default_factory=list[WireField], max_length=100)
    headers: _Headers = Field(
        default_factory=dict,
        max_length=50,
        description="Names and templates, such as `Bearer {secret.token}`. `{base64.login}` is a secret in base64. A "
        "header, or a pair of `Cookie`, whose argument is absent is left out.",
    )
    body: Any = Field(
        default=None,
        description='JSON template: `"{name}"` becomes the argument with its type; in a longer text, its text.',
    )
    body_format: BodyFormat = Field(
        default="json",
        description="`text` and `base64` send the text of the body, or the bytes that it encodes, without JSON.",
    )
    form: ItemList[WireField] | None = Field(
        default=None, max_length=200, description="Fields of a form, instead of a body."
    )
    form_type: FormType = "urlencoded"
    result: ResultRule = Field(default_factory=ResultRule)
    annotations: HintsOfTool = Field(default_factory=HintsOfTool)
    timeout_seconds: float = Field(default=30.0, ge=0.1, le=120.0)


class DefinedTool(DefinitionFields):
    """A tool that is an HTTP request."""

    name: ToolNameText


class _WithSecrets(RequestModel):
    secrets: Annotated[dict[SecretName, SecretValue], limit_entries(20)] = Field(
        default_factory=dict,
        max_length=20,
        repr=False,
        description="Secrets by name. They are encrypted, never shown again, and used for this URL's origin alone.",
    )


class DefinitionCreate(DefinedTool, _WithSecrets):
    """A new definition, with its secrets."""


class DefinitionPatch(_WithSecrets):
    """Changed fields of a definition.

    `revision` is the one that the change is based on; another one is refused.
    """

    title: str | None = Field(default=None, max_length=200)
    description: str | None = Field(default=None, min_length=1, max_length=4_000)
    input_schema: dict[str, Any] | None = None
    method: Method | None = None
    url: str | None = Field(default=None, min_length=8, max_length=2_000)
    query: ItemList[WireField] | None = Field(default=None, max_length=100)
    headers: _Headers | None = Field(default=None, max_length=50)
    body: Any = None
    body_format: BodyFormat | None = None
    form: ItemList[WireField] | None = Field(default=None, max_length=200)
    form_type: FormType | None = None
    result: ResultRule | None = None
    annotations: HintsOfTool | None = None
    timeout_seconds: float | None = Field(default=None, ge=0.1, le=120.0)
    revision: int | None = Field(default=None, ge=1)


class DefinitionTest(RequestModel):
    """Arguments of a test call of the unpublished definition."""

    arguments: dict[str, Any] = Field(default_factory=dict)


class DefinitionPublish(RequestModel):
    """Revision to publish; by default the newest."""

    revision: int | None = Field(default=None, ge=1)


class DefinitionImport(_WithSecrets):
    """An OpenAPI 3 document, by its text or its URL.

    Without `apply` nothing changes: the answer is what would. `operations` are globs over operation ids, or over
    `METHOD /path`. Without `secrets`, those of an earlier import stay.
    """

    document: str | dict[str, Any] | None = Field(
        default=None, description="The document, or its text in JSON or YAML."
    )
    url: str | None = Field(default=None, max_length=2_000)
    operations: ItemList[str] = Field(default_factory=lambda: ["*"], max_length=500)
    prefix: str = Field(default="", max_length=32, pattern=r"^([A-Za-z][A-Za-z0-9_-]*)?$")
    server_url: str | None = Field(default=None, max_length=2_000, description="Instead of the document's server.")
    remove_missing: bool = Field(default=False, description="Delete definitions whose operation the document lost.")
    publish: bool = Field(default=False, description="Publish what is added or changed.")
    apply: bool = False
