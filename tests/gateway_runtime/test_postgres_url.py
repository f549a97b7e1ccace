"""Tests of the addresses of PostgreSQL."""

import pytest

from gateway_runtime.postgres_url import list_hosts, mask_password, plain_dsn


@pytest.mark.parametrize(
    ("url", "dsn", "hosts"),
    [
        ("postgresql+asyncpg://u@h/d", "postgresql://u@h/d", [("h", None)]),
        ("postgres://u:p%40@h:5433/d", "postgresql://u:p%40@h:5433/d", [("h", 5433)]),
        ("postgresql://u@[::1]:5433/d", "postgresql://u@[::1]:5433/d", [("::1", 5433)]),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg", [("/run/pg", None)]),
        ("postgresql://u@a:1,b:2/d", "postgresql://u@a:1,b:2/d", [("a", 1), ("b", 2)]),
        ("postgresql://u@a,b:2/d", "postgresql://u@a,b:2/d", [("a", None), ("b", 2)]),
        ("postgresql+asyncpg://u@/d?host=a:1&host=b:2", "postgresql://u@/d?host=a:1,b:2", [("a", 1), ("b", 2)]),
        ("postgresql://u@/d?host=a,b&port=1,2", "postgresql://u@/d?host=a,b&port=1,2", [("a", 1), ("b", 2)]),
        ("postgresql://u@/d?host=a,b&port=7", "postgresql://u@/d?host=a,b&port=7", [("a", 7), ("b", 7)]),
        ("postgresql+asyncpg://u@h/d?ssl=require", "postgresql://u@h/d?sslmode=require", [("h", None)]),
    ],
)
def test_address_is_read(url: str, dsn: str, hosts: list[tuple[str, int | None]]) -> None:
    assert plain_dsn(url) == dsn
    assert list_hosts(url) == hosts


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u@h/d",
        "h:5432",
        "",
        "postgresql://u@h:five/d",
        "postgresql://u@a:1,b:x/d",
        "postgresql://u@a,b/d?port=1,2,3",
    ],
)
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"PostgreSQL|shorter|longer"):
        list_hosts(url)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql+asyncpg://me:secret@h/d", "postgresql+asyncpg://me:***@h/d"),
        ("postgresql://me:secret@a:1,b:2/d", "postgresql://me:***@a:1,b:2/d"),
        ("postgresql://me@h/d?password=secret&sslmode=require", "postgresql://me@h/d?password=***&sslmode=require"),
        ("postgresql://me@h:5432/d", "postgresql://me@h:5432/d"),
    ],
)
def test_password_is_masked(url: str, masked: str) -> None:
    assert mask_password(url) == masked
