"""Models that are built at their first use."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter

from gateway_runtime.process.deferred_models import defer_models

_THREADS = 8
_PROGRAM = """
from pydantic import BaseModel
from gateway.cli.serve import load_application
load_application()
from gateway.wire.openai_chat import ChatCompletionRequest

def list_models(parent):
    for model in parent.__subclasses__():
        yield model
        yield from list_models(model)

built = {model for model in list_models(BaseModel) if model.__pydantic_complete__}
print(*{model.__name__ for model in built if model.__module__.startswith(("gateway.api", "mcp_types._v"))})
print(ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).model)
"""


def test_only_models_of_the_block_are_deferred_also_if_it_fails() -> None:
    def fail() -> type[BaseModel]:
        with defer_models():

            class Deferred(BaseModel):
                number: int

            assert not Deferred.__pydantic_complete__
            models.append(Deferred)
            raise LookupError

    models: list[type[BaseModel]] = []
    with pytest.raises(LookupError):
        fail()

    class Later(BaseModel):
        number: int

    assert Later.__pydantic_complete__
    (deferred,) = models
    assert deferred.model_validate({"number": "1"}).model_dump() == {"number": 1}
    assert deferred.__pydantic_complete__


def test_threads_that_use_a_model_first_at_the_same_time_all_succeed() -> None:
    with defer_models():

        class Inner(BaseModel):
            number: int

        class Whole(BaseModel):
            inner: Inner
            more: dict[str, Inner] = {}

        adapter = TypeAdapter(Whole)
    barrier = Barrier(_THREADS)

    def use_first(thread: int) -> object:
        barrier.wait(30)
        body = {"inner": {"number": thread}}
        whole = adapter.validate_python(body) if thread % 2 else Whole.model_validate(body)
        return whole.inner.number

    with ThreadPoolExecutor(_THREADS) as pool:
        assert list(pool.map(use_first, range(_THREADS))) == list(range(_THREADS))


def test_first_request_of_a_route_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with defer_models():

            class Body(BaseModel):
                number: int

            app = FastAPI()

            @app.post("/")
            async def echo(body: Body) -> int:
                return body.number

        assert not Body.__pydantic_complete__
        assert TestClient(app).post("/", json={"number": "1"}).json() == 1
    assert [str(warning.message) for warning in caught if "Field()" in str(warning.message)] == []


@pytest.mark.faults
def test_served_gateway_builds_models_of_requests_at_their_first_use() -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["", "m"]
