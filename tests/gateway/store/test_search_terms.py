"""Terms of texts and of queries, which PostgreSQL compares."""

# ruff: noqa: RUF001 - the texts have characters that look like others

import random
import string
import unicodedata
from collections.abc import AsyncGenerator

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.store.search.query import parse_query
from gateway.store.search.snippet import SnippetMarker
from gateway.store.search.terms import MAX_LEXEME_LENGTH, fold
from gateway.store.search.vector import MAX_TEXT_LENGTH, build_search_vector, find_plain_words
from gateway_runtime.embedded_postgres import EmbeddedPostgres
from tests.conftest import dsn

MATCHES = "SELECT cast($1 AS text)::tsvector @@ cast($2 AS text)::tsquery"
# Text, query, and whether the query finds the text.
CASES = [
    ("数据库连接池的配置", "连接池", True),
    ("数据库连接池的配置", "数据", True),
    ("数据库连接池的配置", "池", True),
    ("数据库连接池的配置", "置", True),
    ("数据库连接池的配置", "库池", False),
    ("数据库连接池的配置", "数据 配置", True),
    ("数据库连接池的配置", '"连接池的配置"', True),
    ("数据库连接池的配置", "数据 -配置", False),
    ("東京都に行きました。", "京都", True),
    ("コーヒーを飲む", "コーヒー", True),
    ("コーヒーを飲む", "ｺｰﾋｰ", True),
    ("한국어를 공부합니다", "한국어", True),
    ("한국어를 공부합니다", unicodedata.normalize("NFD", "한국어"), True),
    ("ภาษาไทยง่ายมาก", "ไทย", True),
    ("使用nginx配置服务器", "nginx", True),
    ("使用nginx配置服务器", "nginx配置", True),
    ("𠮷野家で食べる", "𠮷野家", True),
    ("see /etc/nginx/nginx.conf", "nginx", True),
    ("see /etc/nginx/nginx.conf", "nginx.conf", True),
    ("see /etc/nginx/nginx.conf", "conf", True),
    ("see /etc/nginx/nginx.conf", "/etc/nginx", True),
    ("nginx is a server with a conf", "nginx.conf", False),
    (r"C:\Users\anna\report.docx", "report", True),
    ("write to anna.schmidt@example.com", "schmidt", True),
    ("write to anna.schmidt@example.com", "example.com", True),
    ("write to anna.schmidt@example.com", "anna.schmidt@example.com", True),
    ("a List<UserName> is returned", "UserName", True),
    ("a List<UserName> is returned", "username", True),
    ("a Map<String, List<Order>> is returned", "order", True),
    ("<b>bold</b>", "bold", True),
    ("it costs 5€/Monat", "monat", True),
    ("it costs 5€/Monat", "5€/Monat", True),
    ("¥1000/夜", "夜", True),
    ("$HOME/bin", "home", True),
    ("getUserName()", "user", True),
    ("get_user_name()", "user", True),
    ("parseHTTPResponse", "http", True),
    ("parseHTTPResponse", "parsehttpresponse", True),
    ("the getUserName method", '"the getUserName method"', True),
    ("ein Café", "cafe", True),
    ("ein cafe", "CAFÉ", True),
    ("ein " + unicodedata.normalize("NFD", "Café"), "café", True),
    ("Łódź und Tromsø", "lodz tromso", True),
    ("die Straße", "STRASSE", True),
    ("İstanbul", "istanbul", True),
    ("Ελλάς", "ελλασ", True),
    ("Всё ёлки", "елки", True),
    ("كِتَاب", "كتاب", True),
    ("ｆｕｌｌｗｉｄｔｈ", "fullwidth", True),
    ("eﬃcient", "efficient", True),
    ("co\u00adoperate", "cooperate", True),
    ("हिन्दी में", "हिन्दी", True),
    ("हिन्दी में", "हन्द", False),
    ("l’école", "ecole", True),
    ("done 🎉❤️", "🎉", True),
    ("done 🎉❤️", "❤", True),
    ("x camels y", "camel", False),
    ("camels", "zebras or camels", True),
    ("camels", "zebras OR", False),
    ("or", "or", True),
    ("a b", "“a b”", True),
    ("a b", "!!! ' & | :* \\ <-> ()", False),
    ("a b", "", False),
]


@pytest.fixture(scope="module")
async def connection(postgres: EmbeddedPostgres) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn(postgres.build_url("postgres")))
    yield connection
    await connection.close()


async def is_found(connection: asyncpg.Connection, text: str, query: str) -> bool:
    return await connection.fetchval(MATCHES, build_search_vector(text), parse_query(query).format_tsquery())


async def test_queries_find_the_words_of_a_text(connection: asyncpg.Connection) -> None:
    wrong = [case[:2] for case in CASES if await is_found(connection, *case[:2]) is not case[2]]
    assert wrong == []


async def test_words_far_behind_in_a_long_text_are_found_as_a_phrase(connection: asyncpg.Connection) -> None:
    filler = "字" * 20_000 + " word" * 5_000
    assert await is_found(connection, f"{filler} 数据库连接池 /srv/app.conf", "连接池 app.conf")


async def test_repeated_and_endless_words_fit_into_a_vector(connection: asyncpg.Connection) -> None:
    endless = "x" * MAX_TEXT_LENGTH
    different = "".join(map(chr, range(0x4E00, 0x9FFF))) * 3
    rare = "".join(map(chr, range(0x20000, 0x20000 + MAX_TEXT_LENGTH)))
    assert await is_found(connection, endless, "x" * (MAX_LEXEME_LENGTH + 1))
    for text in ("same " * 20_000, different, rare):
        await connection.fetchval("SELECT cast($1 AS text)::tsvector", build_search_vector(text, rare))


@settings(max_examples=150, deadline=None)
@example(["\u00a8\u00ad"])
@example(["\u0308" * MAX_LEXEME_LENGTH + "a"])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=3))
def test_any_text_is_a_vector_of_plain_lexemes(texts: list[str]) -> None:
    vector = build_search_vector(*texts)
    lexemes = [entry.rpartition(":")[0] for entry in vector.split(" ")] if vector else []
    special = set(string.whitespace) | set("':\\&|!()*<>\x00")
    assert all(lexeme and not special & set(lexeme) for lexeme in lexemes)
    assert len(set(lexemes)) == len(lexemes)


async def test_postgres_reads_vectors_and_queries_of_every_character(connection: asyncpg.Connection) -> None:
    characters = [chr(code) for code in range(1, 0x30000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(characters), 20_000):
        block = characters[start : start + 20_000]
        text = " ".join(block) + " ".join(f"a{character}b" for character in block[::7])
        query = parse_query(" ".join(block[::50])).format_tsquery()
        assert await connection.fetchval(MATCHES, build_search_vector(text), query)


ALPHABETS = ["0123456789", "abcxyz", "0123456789eE", "0x1fab", "ABCxyz019", "e01", "1eE5", "aB", "e -+.", "a0/:@.-_<>&"]


async def test_postgres_finds_the_terms_in_plain_words(connection: asyncpg.Connection) -> None:
    generator = random.Random(1)
    plain = list[tuple[str, str]]()
    for number in range(4_000):
        alphabets = generator.choices(ALPHABETS, k=generator.randrange(1, 20))
        words = [
            "".join(generator.choices(alphabet, k=generator.choice([1, 2, 3, 5, 8, 99]))) for alphabet in alphabets
        ]
        text = generator.choice([" ", ", ", "\n", ""]).join(words)
        if number % 3:
            text = text.lower()
        if (found := find_plain_words("What?", text)) is not None:
            plain.append((found, build_search_vector("What?", text)))
    assert len(plain) > 1_000
    different = await connection.fetch(
        "SELECT words FROM unnest($1::text[], $2::text[]) AS plain (words, vector)"
        " WHERE to_tsvector('simple', words) <> vector::tsvector",
        *map(list, zip(*plain, strict=True)),
    )
    assert different == []


def test_texts_with_other_terms_are_not_plain() -> None:
    texts = ["getName", "Café", "1e5a", "HTMLPage", "x" * MAX_LEXEME_LENGTH, "a1B"]
    assert [text for text in texts if find_plain_words("Plain words, 1e5 of them.", text) is not None] == []


def test_folding_twice_changes_nothing() -> None:
    characters = [chr(code) for code in range(1, 0x20000) if not 0xD800 <= code < 0xE000]
    assert [c for c in characters if fold(fold(c)) != fold(c)] == []


@pytest.mark.parametrize(
    ("query", "text", "snippet"),
    [
        ("cafe", "A naïve café", "A naïve <mark>café</mark>"),
        ("strasse", "Die Straße", "Die <mark>Straße</mark>"),
        ("世界你好", "他说世界你好吗", "他说<mark>世界你好</mark>吗"),
        ("nginx", "使用nginx配置", "使用<mark>nginx</mark>配置"),
        ("user", "call getUserName()", "call get<mark>User</mark>Name()"),
        ("camels -deserts", "camels deserts", "<mark>camels</mark> deserts"),
        ("zebra", "camels", "camels"),
        ("b", "a " * 400 + "b", "a " * 29 + "<mark>b</mark>"),
    ],
)
def test_snippet_marks_the_words_as_they_stand_in_the_text(query: str, text: str, snippet: str) -> None:
    assert SnippetMarker(parse_query(query)).build_snippet(text) == snippet
