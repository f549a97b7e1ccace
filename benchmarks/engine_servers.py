"""The gateway and dbos, each on a Postgres of the benchmark."""

from importlib.metadata import version
from pathlib import Path

from benchmarks.subjects import BENCH_DIRECTORY, Gateway, SharedServers, Subject, build_post_request, install_packages
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from gateway_runtime.postgres.url import plain_dsn

DBOS_DATABASE = "bench_dbos"


class GatewayOnDatabase(Gateway):
    """The gateway on a Postgres that the benchmark runs."""

    def __init__(self, shared: SharedServers, postgres: EmbeddedPostgres, name: str = "gateway") -> None:
        super().__init__(shared)
        self.name = name
        self.worker_count = 1
        self.database_url = plain_dsn(postgres.build_url())

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / self.name

    def get_command(self) -> list[str]:
        return [*super().get_command(), *(("--workers", str(self.worker_count)) if self.worker_count > 1 else ())]

    def get_environment(self) -> dict[str, str]:
        return {**super().get_environment(), "DATABASE_URL": self.database_url, "LOG_LEVEL": "WARNING"}


class DbosWorker(Subject):
    """A process with dbos, see `dbos_worker`. Its executor id is its name."""

    python = BENCH_DIRECTORY / "dbos" / "bin" / "python"

    def __init__(self, shared: SharedServers, postgres: EmbeddedPostgres, name: str = "dbos") -> None:
        super().__init__(shared)
        self.name = name
        self.mode = "flush"
        self.database_url = plain_dsn(postgres.build_url(DBOS_DATABASE))

    def get_command(self) -> list[str]:
        return [
            *(str(self.python), "-m", "benchmarks.dbos_worker", "--port", str(self.port)),
            *("--upstream", self.shared.upstream_url, "--tools", self.shared.tools_url),
            *("--database", self.database_url, "--executor", self.name),
        ]

    def build_request(self, prompt: str, *, stream: bool = True, tools: bool = False) -> bytes:
        return build_post_request(f"/{self.mode}", {"prompt": prompt, "tools": tools}, {})

    @classmethod
    def install_package(cls) -> str | None:
        """Create the environment of dbos if it is missing.

        Return the reason of a failure, or None.
        """
        packages = ["dbos", *(f"{name}=={version(name)}" for name in ("aiohttp", "mcp", "uvloop"))]
        return install_packages(cls.python, packages)
