"""The request path's connection to the store: answers in order, errors at once, and back by itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from config.redis import parse_address
from tests import processes
from tests.ownvalkey import OwnValkey
from tokens.admission import connection as admission_connection
from tokens.admission import scripts
from tokens.admission.connection import StoreConnection, StoreError, StoreUnavailable

TIMEOUT = 0.2
NO_PLAN = msgspec.msgpack.encode([0])  # no counters, no limits


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    made = OwnValkey(tmp_path)
    made.start()
    yield made
    made.stop(5)


async def nothing() -> None:
    """For `on_connect`."""


async def until_ready(connection: StoreConnection, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not connection.ready:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(
    url: str, on_connect: Callable[[], Awaitable[None]] = nothing, timeout: float = TIMEOUT
) -> AsyncIterator[StoreConnection]:
    connection = StoreConnection(parse_address(url), timeout, on_connect)
    connection.start()
    try:
        await until_ready(connection)
        yield connection
    finally:
        await connection.close()


async def test_many_calls_at_once_get_their_own_answers(valkey: OwnValkey) -> None:
    async with connected(valkey.url, timeout=5) as connection:
        calls = [connection.call("ECHO", f"{number}") for number in range(2000)]
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(2000)]


async def test_what_one_turn_of_the_loop_asks_leaves_in_one_write(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        before = (await connection.call("INFO", "stats")).partition(b"total_reads_processed:")[2].split(b"\r")[0]
        await asyncio.gather(*[connection.call("PING") for _ in range(100)])
        after = (await connection.call("INFO", "stats")).partition(b"total_reads_processed:")[2].split(b"\r")[0]
    assert int(after) - int(before) <= 3


async def test_a_call_that_is_alone_leaves_at_once(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        alone = asyncio.ensure_future(connection.call("SET", "text", "x"))
        await asyncio.sleep(0)  # one turn of the loop: it asks
        with redis.Redis.from_url(valkey.url) as client:  # blocks the loop's next one
            assert client.get("text") == b"x"
        assert await alone == b"OK"


async def test_an_abandoned_call_takes_nobody_elses_answer(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        abandoned = asyncio.ensure_future(connection.call("ECHO", "one"))
        await asyncio.sleep(0)
        abandoned.cancel()
        assert await connection.call("ECHO", "two") == b"two"


async def test_error_replies_have_their_code(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        await connection.call("SET", "text", "x")
        with pytest.raises(StoreError) as caught:
            await connection.call("INCR", "text")
        assert caught.value.code == "ERR"
        with pytest.raises(StoreError) as caught:
            await connection.call("HGET", "text", "field")
        assert caught.value.code == "WRONGTYPE"
        assert await connection.call("PING") == b"PONG"


async def test_a_script_that_the_server_forgot_is_sent_again(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        await connection.call("SCRIPT", "FLUSH")
        for _ in range(2):
            assert await connection.run(scripts.standing(), 0, NO_PLAN) == []


@pytest.mark.parametrize("kind", ["socket", "tcp", "password", "user"])
async def test_every_form_of_address(kind: str, valkey: OwnValkey) -> None:
    url = valkey.url
    with redis.Redis.from_url(url) as client:
        if kind == "tcp":
            port = processes.free_port()
            client.config_set("port", port)
            url = f"redis://127.0.0.1:{port}/0"
        elif kind == "password":
            client.config_set("requirepass", "a secret")
            url = valkey.url.replace("unix://", "unix://:a%20secret@")
        elif kind == "user":
            client.execute_command("ACL", "SETUSER", "gateway", "on", ">secret", "~*", "+@all")
            url = valkey.url.replace("unix://", "unix://gateway:secret@")
        async with connected(url.replace("db=0", "db=5").replace("/0", "/5")) as connection:
            await connection.call("SET", "where", kind)
    other = valkey.url.replace("db=0", "db=5").replace(
        "unix://", "unix://:a%20secret@" if kind == "password" else "unix://"
    )
    with redis.Redis.from_url(other) as client:
        assert client.get("where") == kind.encode()


async def test_a_lost_connection_fails_at_once_and_comes_back(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        under_way = asyncio.ensure_future(connection.call("BLPOP", "nothing", 5))
        await asyncio.sleep(0.05)
        valkey.kill()
        with pytest.raises(StoreUnavailable) as caught:
            await under_way
        assert caught.value.sent
        begun = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreUnavailable) as caught:
                await connection.call("PING")
            assert not caught.value.sent
        assert time.monotonic() - begun < 0.2
        valkey.start()
        await until_ready(connection)
        assert await connection.call("PING") == b"PONG"


async def test_a_frozen_server_fails_calls_within_the_time_out_and_then_at_once(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        with valkey.frozen():
            begun = time.monotonic()
            calls = [connection.call("INCR", "count") for _ in range(50)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - begun < TIMEOUT * 2
            assert all(isinstance(result, StoreUnavailable) and result.sent for result in results)
            with pytest.raises(StoreUnavailable) as caught:
                await connection.call("PING")
            assert not caught.value.sent
        async with asyncio.timeout(8):
            while True:
                try:
                    assert await connection.call("INCR", "count") == 51  # it is the same connection, in step
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.01)


async def test_a_server_that_stays_silent_is_given_up(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_connection, "STUCK_SECONDS", 0.1)
    async with connected(valkey.url) as connection:
        with valkey.frozen():
            with pytest.raises(StoreUnavailable):
                await connection.call("PING")
            async with asyncio.timeout(2):
                while connection.ready:
                    await asyncio.sleep(0.01)
        await until_ready(connection, 8)
        assert await connection.call("PING") == b"PONG"


async def test_no_call_is_taken_before_the_connection_is_set_up(valkey: OwnValkey) -> None:
    attempts = []

    async def on_connect() -> None:
        attempts.append(await connection.setup_call("PING"))
        if len(attempts) < 3:
            raise StoreError("LOADING not yet")

    connection = StoreConnection(parse_address(valkey.url), TIMEOUT, on_connect)
    with pytest.raises(StoreUnavailable):
        await connection.call("PING")
    connection.start()
    await until_ready(connection)
    assert attempts == [b"PONG"] * 3
    await connection.close()
    with pytest.raises(StoreUnavailable):
        await connection.call("PING")


async def test_it_closes_in_the_very_moment_in_which_the_connection_is_lost(valkey: OwnValkey) -> None:
    async with connected(valkey.url) as connection:
        under_way = asyncio.ensure_future(connection.call("BLPOP", "nothing", 5))
        await asyncio.sleep(0.05)
        valkey.kill()
        with pytest.raises(StoreUnavailable):
            await under_way
        assert not connection.ready
        async with asyncio.timeout(1):
            await connection.close()
