"""Tests of the addresses of PostgreSQL."""

import pytest

from gateway_runtime.postgres.url import (
    list_hosts,
    list_parameters,
    mask_password,
    normalize_url,
    parse_address,
    plain_dsn,
)


@pytest.mark.parametrize(
    ("url", "dsn", "hosts"),
    [
        ("postgresql+asyncpg://u@h/d", "postgresql://u@h/d", [("h", None)]),
        ("postgres://u:p%40@h:5433/d", "postgresql://u:p%40@h:5433/d", [("h", 5433)]),
        ("postgresql://u@[::1]:5433/d", "postgresql://u@[::1]:5433/d", [("::1", 5433)]),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg", [("/run/pg", None)]),
        ("postgresql://u@a:1,b:2/d", "postgresql://u@a:1,b:2/d", [("a", 1), ("b", 2)]),
        ("postgresql://u@a,b:2/d", "postgresql://u@a,b:2/d", [("a", None), ("b", 2)]),
        ("postgresql+asyncpg://u@/d?host=a:1&host=b:2", "postgresql://u@a:1,b:2/d", [("a", 1), ("b", 2)]),
        ("postgresql://u@/d?host=a,b&port=1,2", "postgresql://u@a:1,b:2/d", [("a", 1), ("b", 2)]),
        (
            "postgresql://u@/d?host=a:1,/run/pg",
            "postgresql://u@/d?host=a,/run/pg&port=1,5432",
            [("a", 1), ("/run/pg", None)],
        ),
        ("postgresql://u@/d?host=a,b&port=7", "postgresql://u@a:7,b:7/d", [("a", 7), ("b", 7)]),
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
        ("postgresql+asyncpg://me:secret@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:secret@a:1,b:2/d", "postgresql://me:***@a:1,b:2/d"),
        ("postgresql://me@h/d?password=secret&sslmode=require", "postgresql://me:***@h/d"),
        ("postgresql://me@h:5432/d", "postgresql://me@h:5432/d"),
    ],
)
def test_password_is_masked(url: str, masked: str) -> None:
    assert mask_password(url) == masked


@pytest.mark.parametrize(
    ("userinfo", "password"),
    [
        ("u:p%40ss", "p@ss"),
        ("u:p@ss", "p@ss"),
        ("u:p@ss/w:o#r?d%41 &+", "p@ss/w:o#r?d%41 &+"),
        ("u:p#ss", "p#ss"),
        ("u:p?s%41", "p?sA"),
        ("u:a/b", "a/b"),
        ("u:100%", "100%"),
        ("u:", ""),
    ],
)
@pytest.mark.parametrize("rest", ["h/d", "h:5432/d", "a:1,b:2/d?sslmode=require", "[::1]:5432/d", "h"])
def test_password_is_read_with_and_without_escapes(userinfo: str, password: str, rest: str) -> None:
    address = parse_address(f"postgresql://{userinfo}@{rest}")
    assert (address.user, address.password) == ("u", password)
    assert parse_address(address.to_url()) == address


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("sslmode=Verify_Full", {"sslmode": "verify-full"}),
        ("sslrootcert=system", {"sslrootcert": "system", "sslmode": "verify-full"}),
        ("sslmode=disable&ssl=true", {"sslmode": "disable"}),
        ("sslaccept=strict", {"sslmode": "verify-full"}),
        ("channel_binding=require", {"sslmode": "require"}),
        ("channel_binding=prefer", {}),
        ("connect_timeout=0", {}),
        ("connectTimeout=7", {"connect_timeout": "7"}),
        ("fallback_application_name=a&application_name=b", {"application_name": "b"}),
        ("options=-c%20geqo%3Doff%20--my.name%3Da%5C%20b", {"geqo": "off", "my.name": "a b"}),
        ("options=-c+geqo=off", {"geqo": "off"}),
        ("options=-cgeqo%3Doff&geqo=on", {"geqo": "on"}),
        ("schema=public", {"search_path": "public"}),
        ("pgbouncer=true", {"pgbouncer": "true"}),
        ("pgbouncer=false", {}),
        ("targetServerType=preferSecondary", {"target_session_attrs": "prefer-standby"}),
        ("load_balance_hosts=random&sslcompression=0&keepalives=1", {}),
    ],
)
def test_parameters_of_other_programs_are_translated(query: str, parameters: dict[str, str]) -> None:
    address = parse_address(f"postgresql://u@h/d?{query}")
    assert address.parameters == parameters
    assert parse_address(address.to_url()) == address
    assert parse_address(normalize_url(address.to_url(), pooled=True)).is_pooled


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:s3cret@h/d?sslmode=s3cret", "parameter sslmode must be one of disable, allow, prefer"),
        ("postgresql://u:s3cret@h/d?unknown=s3cret", "unknown parameter unknown: "),
        ("postgresql://u:1?s3cret=2@h/d", "unknown parameter: "),
        ("postgresql://u:s3cret@h/d?target_session_attrs=s3cret", "must be one of any, read-write"),
        ("postgresql://u:s3cret@h/d?connect_timeout=s3cret", "connect_timeout must be a number"),
        ("postgresql://u:s3cret@h/d?connect_timeout=nan", "connect_timeout must be a number"),
        ("postgresql://u:s3cret@h/d?options=s3cret", "options must be a list of -c name=value"),
        ("postgresql://u:s3cret@h/d?sslrootcert=s3cret", "parameter sslrootcert: the file cannot be read"),
        ("postgresql://u:s3cret@h/d?client_encoding=latin1", "client_encoding cannot have this value"),
        ("postgresql://u:s3cret@h/d?gssencmode=require", "gssencmode cannot have this value"),
        ("postgresql://u:s3cret@h/d?replication=database", "replication cannot have this value"),
        ("postgresql://u:s3cret@h/d?require_auth=none", "unknown parameter require_auth"),
        ("postgresql://u:s3cret@h/d?pgbouncer=maybe", "pgbouncer must be true or false"),
        ("postgresql://u:s3cret@h:99999/d", "must be a PostgreSQL URL"),
        ("postgresql://u:s3cret@h:5432:1/d", "must be a PostgreSQL URL"),
        ("postgresql://u:s3cret@[::1/d", "must be a PostgreSQL URL"),
        ("postgresql://u:s3cret@h/d?port=s3cret", "must be a number of a port"),
        ("mysql://u:s3cret@h/d", "must be a PostgreSQL URL"),
        ("s3cret", "must be a PostgreSQL URL"),
    ],
)
def test_refusal_is_one_line_without_a_part_of_the_password(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse_address(url)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert mask_password(url) == "postgresql://***"


def test_parameters_are_listed_with_the_names_of_libpq() -> None:
    assert list_parameters("postgresql://u@h/d?ApplicationName=a&currentSchema=s") == {
        "application_name": "a",
        "search_path": "s",
    }
