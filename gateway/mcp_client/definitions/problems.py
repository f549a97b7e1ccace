"""Odd definitions of one server, for the people who run it."""

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.ports.tools import DefinitionKind, DefinitionProblem

log = get_logger(__name__)

_MAX_PROBLEMS = 100
_MAX_NAME_LENGTH, _MAX_PROBLEM_LENGTH = 100, 300


class DefinitionProblems:
    """Odd definitions of each kind in the last list.

    At most 100 problems of a kind are kept. Each is logged once.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._by_kind: dict[DefinitionKind, list[DefinitionProblem]] = {}
        self._logged: dict[DefinitionKind, set[DefinitionProblem]] = {}

    def begin_list(self, kind: DefinitionKind) -> None:
        """Forget the problems of the last list of this kind."""
        self._logged[kind] = set(self._by_kind.get(kind, ()))
        self._by_kind[kind] = []

    def add(self, kind: DefinitionKind, name: object, problem: str, *, left_out: bool) -> None:
        """Record a problem of a definition."""
        problems = self._by_kind.setdefault(kind, [])
        if len(problems) >= _MAX_PROBLEMS:
            return
        entry = DefinitionProblem(
            kind, clean_text(str(name), _MAX_NAME_LENGTH), clean_text(problem, _MAX_PROBLEM_LENGTH), left_out
        )
        if entry not in problems:
            problems.append(entry)
            if entry not in self._logged.get(kind, ()):
                log.warning(
                    "mcp_definition_left_out" if left_out else "mcp_definition_repaired",
                    server=self._server,
                    kind=kind,
                    item=entry.name,
                    reason=entry.problem,
                )

    def list_all(self) -> tuple[DefinitionProblem, ...]:
        """All problems, the tools' first."""
        kinds = sorted(self._by_kind, key=lambda kind: kind != "tool")
        return tuple(problem for kind in kinds for problem in self._by_kind[kind])
