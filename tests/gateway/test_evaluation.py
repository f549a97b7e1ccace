"""`agent-gateway eval`: the project's set against its recordings, and what goes wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app

ROOT = Path(__file__).parent.parent.parent
SUITE = ROOT / "evaluations" / "agent.yaml"
RECORDINGS = ROOT / "evaluations" / "recordings"
CASES: dict[str, Any] = {
    "name": "small",
    "tools": {
        "calculator": {
            "description": "Evaluate an expression.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
            "results": [{"arguments": {"expression": "1+1"}, "text": "1+1 = 2"}],
            "result": "0",
        }
    },
    "cases": [
        {
            "name": "sum",
            "prompt": "What is 1+1?",
            "expect": {"calls": [{"tool": "calculator", "arguments": {"expression": "1+1"}}], "contains": ["2"]},
        }
    ],
}


@pytest.fixture(autouse=True)
def work_in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run_eval(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def write_cases(path: Path, **expect: Any) -> Path:
    case = CASES["cases"][0]
    path.write_text(json.dumps(CASES | {"cases": [case | {"expect": case["expect"] | expect}]}))
    return path


def test_evaluation_of_the_project_passes_against_its_recordings(tmp_path: Path) -> None:
    """After a change of prompts or tools: make eval-record."""
    result = run_eval(SUITE, "--recordings", RECORDINGS, "--results", tmp_path / "last.json")
    assert result.exit_code == 0, result.output
    assert "14/14" in result.output


def test_models_and_prompts_stand_side_by_side_with_the_differences_to_the_last_run(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    prompts = {"own": None, "short": "Be short."}
    options = ("--simulated", "--model", "openai/gpt-oss-120b", "--model", "openai/gpt-oss-20b", "--runs", 2)
    file.write_text(json.dumps(CASES | {"prompts": prompts}))
    first = run_eval(file, *options)
    assert first.exit_code == 0, first.output
    header = first.output.splitlines()[0]
    for variant in ("openai/gpt-oss-120b, own", "openai/gpt-oss-20b, short"):
        assert variant in header
    assert first.output.splitlines()[1].split() == ["sum", *["2/2"] * 4]
    write_cases(file, excludes=["simulated"])
    second = run_eval(file, *options[:3], "--results", tmp_path / "none.json")
    assert (second.exit_code, "the answer has 'simulated'" in second.output) == (1, True)
    file.write_text(json.dumps(CASES | {"prompts": prompts}))
    write_cases(tmp_path / "other.json", no_calls=["calc*"])
    run_eval(tmp_path / "other.json", "--simulated", "--results", tmp_path / "last.json")
    changed = run_eval(write_cases(tmp_path / "other.json"), "--simulated", "--results", tmp_path / "last.json")
    assert "1/1 (+, was 0/1)" in changed.output


def test_request_without_a_recording_fails_its_case(tmp_path: Path) -> None:
    file = write_cases(tmp_path / "cases.json")
    result = run_eval(file, "--recordings", RECORDINGS)
    assert result.exit_code == 1
    assert "no recording" in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cases.json"),
        ('{"name": "x", "cases": []}', "1 to 1,000 cases"),
        ('{"name": "x", "cases": [{"name": "a", "prompt": "p", "expects": {}}]}', "expects"),
        ('{"name": "x", "cases": [{"name": "a", "prompt": "p", "expect": {}, "tools": ["none"]}]}', "'none'"),
    ],
)
def test_file_that_is_not_valid_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "cases.json"
    file.write_text(text)
    result = run_eval(file, "--simulated")
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_missing_file_recordings_and_key_are_one_line(tmp_path: Path) -> None:
    assert "cannot be read" in run_eval(tmp_path / "none.yaml").output
    file = write_cases(tmp_path / "cases.json")
    assert "no recordings" in run_eval(file, "--recordings", tmp_path / "none").output
