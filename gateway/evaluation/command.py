"""Runs a suite for each of its models and prompts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.common.concurrency import TaskRegistry
from gateway.composition.model_server import build_llm
from gateway.config import ConfigError, Settings, load_settings
from gateway.evaluation.agent import CaseRunner
from gateway.evaluation.cases import Case, Suite
from gateway.evaluation.checks import find_problems
from gateway.evaluation.results import CaseScore, SuiteScores
from gateway.simulator import SimulatorSettings, serve_simulator
from gateway_runtime.redaction.redactor import load_rules

_PARALLEL_RUNS = 4


async def run_suite(
    suite: Suite,
    *,
    models: list[str],
    runs: int,
    recordings: Path | None = None,
    simulated: bool = False,
    record: Path | None = None,
) -> SuiteScores:
    """Run each case `runs` times with each variant.

    Raises:
        ConfigError: no model server is configured.
    """
    async with (
        _open_settings(recordings, record, simulated=simulated) as settings,
        build_llm(settings, TaskRegistry(), load_rules(settings.redaction_rules), None) as llm,
    ):
        runner = CaseRunner(settings, suite, llm.model, llm.catalog)
        scores = SuiteScores(suite.name)
        for model in models or list(suite.models) or [settings.default_model]:
            for prompt_name, prompt in (suite.prompts or {"": None}).items():
                variant = f"{model}, {prompt_name}" if prompt_name else model
                scores.variants[variant] = await _run_variant(runner, suite, model, prompt, runs)
    return scores


@asynccontextmanager
async def _open_settings(recordings: Path | None, record: Path | None, *, simulated: bool) -> AsyncGenerator[Settings]:
    """Yield the settings, with the address of a simulator if one answers."""
    overrides: dict[str, object] = {} if record is None else {"model_record_dir": record}
    if not simulated and recordings is None:
        settings = load_settings(**overrides)
        if settings.groq_api_key is None and settings.openai_api_key is None:
            raise ConfigError("Set GROQ_API_KEY or OPENAI_API_KEY, or pass --recordings DIR or --simulated.")
        yield settings
        return
    simulator_settings = SimulatorSettings(0, 0, replay=recordings, replays_only=recordings is not None)
    async with serve_simulator(simulator_settings) as simulator:
        overrides |= {"groq_api_key": "simulated", "groq_base_url": simulator.base_url, "groq_simulated": True}
        yield load_settings(**overrides)


async def _run_variant(
    runner: CaseRunner, suite: Suite, model: str, prompt: str | None, runs: int
) -> dict[str, CaseScore]:
    scores = {case.name: CaseScore() for case in suite.cases}
    slots = asyncio.Semaphore(_PARALLEL_RUNS)

    async def run(case: Case) -> None:
        async with slots:
            result = await runner.run_case(case, model, prompt)
        scores[case.name].add(result, find_problems(result, case.expect))

    async with asyncio.TaskGroup() as group:
        for case in suite.cases:
            for _ in range(runs):
                group.create_task(run(case))
    return scores
