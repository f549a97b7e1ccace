"""Tests of server configuration, exposed tool names and truncated results."""

import json
from pathlib import Path
from typing import Any

import pytest
from mcp.types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
    Tool,
)

from gateway.config import ConfigError, Settings
from gateway.mcp_client.results.dump import ResultLimits, truncate_result
from gateway.mcp_client.server_config import ServerConfig, load_servers
from gateway.mcp_client.tool_names import make_exposed_name
from gateway.mcp_client.tool_specs import make_spec


def load_config(directory: Path, document: Any, environment: dict[str, str] | None = None) -> Any:
    file = directory / "servers.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_servers(Settings(_env_file=None, mcp_config=file), environment or {})  # type: ignore[call-arg]


def test_claude_desktop_and_vs_code_formats_are_read(tmp_path: Path) -> None:
    entry = {"url": "https://h/mcp", "headers": {"X-Key": "k"}, "prefix": "p", "timeout": 5, "deny": ["rm*"]}
    for key in ("mcpServers", "servers"):
        (server,) = load_config(tmp_path, {key: {"one": entry}})
        assert (server.name, server.url, server.prefix, server.timeout) == ("one", "https://h/mcp", "p", 5)
        assert server.permits_tool("list")
        assert not server.permits_tool("rm_all")


def test_environment_variables_are_expanded_with_defaults(tmp_path: Path) -> None:
    entry = {"url": "http://${HOST:-localhost}:${PORT}/mcp", "headers": {"Authorization": "Bearer ${TOKEN:-}"}}
    (server,) = load_config(tmp_path, {"mcpServers": {"one": entry}}, {"PORT": "81"})
    assert server.url == "http://localhost:81/mcp"
    assert server.headers == {"Authorization": "Bearer "}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"url": "http://${NOT_SET}/mcp"}, "the environment variable NOT_SET is not set"),
        ({}, "the entry has neither a url nor a command"),
        ({"url": "http://h/mcp", "command": "npx"}, "the entry has both a url and a command"),
        ({"url": "http://h/mcp", "type": "carrier pigeon"}, "type: Input should be"),
        ({"url": "http://h/mcp", "share": "nobody"}, "share: Input should be"),
        ([], "the entry must be an object"),
        ({"url": "ftp://h"}, "url: must be the http:// or https:// address"),
        ({"url": "http://[::1/mcp"}, "url: is not a valid address"),
        ({"url": "http://h/mcp", "timeout": -1}, "timeout: Input should be greater than 0"),
        ({"url": "http://h/mcp", "identity": "me"}, "identity: String should match pattern"),
        ({"url": "http://h/mcp", "approval": "maybe"}, "approval: Input should be"),
    ],
)
def test_invalid_entry_is_disabled_and_others_are_used(tmp_path: Path, entry: Any, message: str) -> None:
    invalid, valid = load_config(tmp_path, {"mcpServers": {"invalid": entry, "valid": {"url": "http://h/mcp"}}})
    assert invalid.fault.startswith(message)
    assert valid.fault is None


COMMENTED = """// servers of the team
{ /* a block
  of lines */
  "mcpServers": {
    "one": {
      "url": "http://h//mcp/*no comment*/", // the address
      "headers": {"X-A": "a,}", "X-B": "\\"// no comment"},
    }, // the last
  },
}
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_comments_trailing_commas_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "servers.json"
    file.write_bytes(COMMENTED.encode(encoding))
    (server,) = load_servers(Settings(_env_file=None, mcp_config=file), {})  # type: ignore[call-arg]
    assert server.url == "http://h//mcp/*no comment*/"
    assert server.headers == {"X-A": "a,}", "X-B": '"// no comment'}


def test_error_in_a_commented_file_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 4 "):
        load_config(tmp_path, '{ // a\n /* b\n c */ "mcpServers": {}\n oops }')


def test_variables_paths_and_files_of_vs_code_are_used(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('\ufeff# a comment\nexport A="from file"\nB=from file\nC=a#b ${X}\n')
    entry = {
        "command": "server",
        "args": ["${env:X}", "${env:Y:-y}", "${1}"],
        "cwd": "sub",
        "envFile": ".env",
        "env": {"B": "${env:X}"},
    }
    (server,) = load_config(tmp_path, {"servers": {"one": entry}}, {"X": "x"})
    assert server.args == ("x", "y", "${1}")
    assert server.cwd == str(tmp_path / "sub")
    assert server.env == {"A": "from file", "B": "x", "C": "a#b ${X}"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"envFile": "none.env"}, "envFile: cannot read "),
        ({"envFile": 5}, "envFile: must be"),
        ({"args": ["${env:NOT_SET}"]}, "the environment variable NOT_SET is not set"),
        ({"env": {"TOKEN": "${input:token}"}}, "the variable ${input:token} is not supported"),
        ({"cwd": 5}, "cwd: Input should be"),
        ({"protocol": "2019-01-01"}, "protocol: Input should be"),
    ],
)
def test_unusable_field_of_a_command_is_refused_by_name(tmp_path: Path, fields: Any, message: str) -> None:
    (server,) = load_config(tmp_path, {"mcpServers": {"one": {"command": "server", **fields}}})
    assert server.fault.startswith(message)


@pytest.mark.parametrize("document", ["{", "[]", "{}", '{"mcpServers": []}'])
def test_invalid_file_is_a_config_error(tmp_path: Path, document: str) -> None:
    with pytest.raises(ConfigError, match=r"MCP_CONFIG: .*servers\.json"):
        load_config(tmp_path, document)


def test_servers_come_from_url_setting_or_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_servers(Settings(_env_file=None)) == []  # type: ignore[call-arg]
    (server,) = load_servers(Settings(_env_file=None, mcp_server_url="http://h:1"))  # type: ignore[call-arg]
    assert (server.url, server.prefix, server.identity) == ("http://h:1/mcp", "", "none")
    (tmp_path / "mcp.json").write_text('{"mcpServers": {"one": {"url": "http://h/mcp"}}}')
    assert load_servers(Settings(_env_file=None))[0].name == "one"  # type: ignore[call-arg]


def test_identity_at_the_only_server_follows_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "a secret of the tests, which is deprecated"
    for settings, expected in (
        ({"mcp_server_identity": "gateway"}, ("gateway", "http://h/mcp")),
        ({"tools_server_secret": secret}, ("gateway", "tools-server")),  # as in release 0.1.0
        ({"tools_server_secret": secret, "mcp_server_identity": "none"}, ("none", "http://h/mcp")),
    ):
        settings |= {"mcp_server_url": "http://user:pw@h?x=1"}
        (server,) = load_servers(Settings(_env_file=None, **settings))  # type: ignore[call-arg,arg-type]
        assert (server.identity, server.token_audience) == expected


@pytest.mark.parametrize(
    ("prefix", "tool", "expected"),
    [
        ("", "calculator", "calculator"),
        ("git", "log", "git_log"),
        ("git.hub", "list", "git_hub_list_"),
        ("", "tool.with.dots", "tool_with_dots_"),
        ("", "ünïcode", "_n_code_"),
        ("p", "x" * 200, "p_" + "x" * 55 + "_"),
    ],
)
def test_exposed_name_fits_groq_and_changed_names_get_a_suffix(prefix: str, tool: str, expected: str) -> None:
    exposed = make_exposed_name(prefix, "server", tool)
    assert exposed == expected or (exposed.startswith(expected) and len(exposed) == len(expected) + 6)
    assert len(exposed) <= 64
    assert exposed == make_exposed_name(prefix, "server", tool)


def test_exposed_names_do_not_collide() -> None:
    names = {make_exposed_name("", "s", tool) for tool in ("a.b", "a_b", "a b", "a/b")} | {
        make_exposed_name("", "t", "a.b")
    }
    assert len(names) == 5


def test_missing_annotations_get_conservative_defaults() -> None:
    server = ServerConfig(name="s", url="http://h/mcp")
    spec = make_spec(server, Tool(name="t", input_schema={"type": "object"}), name="t")
    assert (spec.read_only, spec.destructive, spec.idempotent, spec.open_world) == (False, True, False, True)


def make_result(*content: Any, **fields: Any) -> CallToolResult:
    return CallToolResult(content=list(content), **fields)


def test_text_is_truncated_across_all_blocks() -> None:
    truncated = truncate_result(make_result(TextContent(text="a" * 80), TextContent(text="b" * 80)), ResultLimits(100))
    assert truncated.content[0]["text"] == "a" * 80
    assert truncated.content[1]["text"].startswith("b" * 20 + "\n[cut: 80 characters, the first 20 are shown]")


def test_text_of_embedded_resources_is_truncated() -> None:
    resource = EmbeddedResource(resource=TextResourceContents(uri="file:///a", text="a" * 80))
    truncated = truncate_result(make_result(resource, resource, TextContent(text="b" * 80)), ResultLimits(100))
    assert truncated.content[0]["resource"]["text"] == "a" * 80
    assert truncated.content[1]["resource"]["text"].startswith("a" * 20 + "\n[cut: 80 characters, the first 20")
    assert truncated.content[2]["text"].startswith("\n[cut: 80 characters, the first 0")


def test_control_characters_are_removed_except_line_breaks() -> None:
    truncated = truncate_result(make_result(TextContent(text="a\x1b[31mred\x00\n\tb\x7f")), ResultLimits(100))
    assert truncated.content[0]["text"] == "ared\n\tb"


def test_large_binary_content_is_replaced_by_a_note() -> None:
    image = ImageContent(data="A" * 400_000, mime_type="image/png")
    audio = AudioContent(data="AAAA", mime_type="audio/wav")
    truncated = truncate_result(make_result(image, audio), ResultLimits(100))
    assert truncated.content[0] == {"type": "text", "text": "[image of 300,000 bytes left out: too large]"}
    assert truncated.content[1]["mimeType"] == "audio/wav"


def test_structured_result_over_the_limit_is_omitted() -> None:
    assert truncate_result(make_result(structured_content={"a": 1}), ResultLimits(100)).structured == {"a": 1}
    truncated = truncate_result(make_result(structured_content={"a": "x" * 200}), ResultLimits(100))
    assert truncated.structured is None
    shown = '{"a":"' + "x" * 94
    assert truncated.content[0]["text"] == f"{shown}\n[cut: 208 characters, the first 100 are shown]"


@pytest.mark.parametrize(
    ("text", "structured", "shown"),
    [
        ("Done.", {"rows": [1, 2]}, '{"rows":[1,2]}'),
        ("5*9 = 45", {"expression": "5*9", "result": 45}, None),
        ("Found 2: Ada, Bob", [{"name": "Ada"}, {"name": "Bob"}], None),
        ("It took 12 ms.", {"id": 2}, '{"id":2}'),
        ("The page.", {"text": "The page.", "truncated": False}, '{"truncated":false}'),
        ('{"a": "line\\nend"}', {"a": "line\nend"}, None),
        ("x", {"big": 10**30, "none": None}, f'{{"big":{10**30}}}'),
        ("", [], "[]"),
    ],
)
def test_model_reads_what_only_the_structure_says(text: str, structured: Any, shown: str | None) -> None:
    content = [TextContent(text=text)] if text else []
    blocks = truncate_result(make_result(*content, structured_content=structured), ResultLimits(100)).content
    assert [block["text"] for block in blocks] == [part for part in (text, shown) if part]


def test_error_flag_becomes_the_error_outcome() -> None:
    assert truncate_result(make_result(TextContent(text="x"), is_error=True), ResultLimits(100)).outcome == "error"
