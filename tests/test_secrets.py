"""What must never be found anywhere: tokens, provider keys and prompts, in any store, log, file, answer or error."""

import datetime as dt
import re
import subprocess
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from config.redis import store
from tests import stack
from tests.conftest import PATH, SANDBOX_KEY, Customer, Gateway
from tests.contract import SMALL, assert_images, elsewhere, ending
from tokens import issuing, secrets
from tokens.errors import Refused

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_secret_has_the_documented_form() -> None:
    made = {secrets.make_secret() for _ in range(200)}
    assert len(made) == 200
    for secret in made:
        assert re.fullmatch(r"gem_[0-9A-Za-z]{46}", secret)
        number, check = zlib.crc32(secret[:44].encode()), ""
        for _ in range(6):
            number, rest = divmod(number, 62)
            check = BASE62[rest] + check
        assert secret[44:] == check
        assert secrets.is_plausible(secret)
    used = Counter("".join(secret[4:44] for secret in made))
    assert set(used) == set(BASE62), "all characters occur"
    assert max(used.values()) < 2 * min(used.values()), "none is favoured: 129 of each are expected"


def test_every_typo_is_noticed_without_a_look_up() -> None:
    secret = secrets.make_secret()
    for at in range(4, len(secret)):
        for other in BASE62:
            assert (other == secret[at]) == secrets.is_plausible(secret[:at] + other + secret[at + 1 :])
    for at in range(4, len(secret) - 1):
        swapped = secret[:at] + secret[at + 1] + secret[at] + secret[at + 2 :]
        assert swapped == secret or not secrets.is_plausible(swapped)


@pytest.mark.parametrize(
    "bad", ["", "gem_", "x" * 19, "x" * 256, "x" * 20 + " ", "x" * 20 + "\n", "é" * 20, "x" * 20 + "\0"]
)
def test_what_can_be_no_secret(bad: str) -> None:
    assert not secrets.is_plausible(bad)


def test_a_digest_depends_on_the_pepper_and_all_accepted_ones_are_tried() -> None:
    peppers = {1: b"1" * 32, 2: b"2" * 32}
    found = secrets.digests("a-secret-of-twenty-characters", peppers)
    assert found == [secrets.digest("a-secret-of-twenty-characters", peppers[version]) for version in (2, 1)]
    assert len(set(found)) == 2


def test_an_imported_secret_works_as_it_is(gateway: Gateway, customer: Customer) -> None:
    imported = f"wp-token-{uuid.uuid4().hex}"
    issuing.import_token(customer.member, "old", imported)
    assert_images(gateway.post(imported, SMALL))
    with elsewhere(gateway) as there:
        assert there.post(imported.upper(), SMALL).status_code == 403
    for bad in ("gem_" + "x" * 46, "short", imported):
        with pytest.raises(Refused) as caught:
            issuing.import_token(customer.member, "old", bad)
        assert bad not in str(caught.value)


@pytest.fixture
def used(gateway: Gateway, customer: Customer) -> Iterator[tuple[Customer, str, str]]:
    """A customer who has called in every way there is, the prompt, and a token of theirs that was rotated away."""
    mark = f"prompt-{uuid.uuid4().hex}"
    customer.limit("images:6/day")
    old = customer.secret
    key = {"Idempotency-Key": uuid.uuid4().hex}
    answers = [
        gateway.post(old, {**SMALL, "prompt": mark}, **key),
        gateway.post(old, {**SMALL, "prompt": f"{mark} other"}, **key),
        *(gateway.post(old, {**SMALL, "prompt": f"{mark} [sandbox {fault}]"}) for fault in FAULTS),
        gateway.post(old, {**SMALL, "prompt": mark, mark: 1}),
        gateway.post(old, f'{{"prompt":"{mark}'.encode()),
        gateway.post(old, {**SMALL, "prompt": mark, "n": 4}),
        gateway.post(old, {**SMALL, "prompt": mark, "n": 4}),
        gateway.client.post(f"{gateway.url}{PATH}?token={old}", json={}, headers={"Authorization": f"Bearer {old}"}),
    ]
    assert {answer.status_code for answer in answers} == {200, 400, 422, 429, 500}
    for answer in answers:
        for secret in (old, SANDBOX_KEY):
            assert secret not in answer.text
            assert secret not in str(answer.headers)
    customer.secret = issuing.rotate(customer.token, dt.timedelta(hours=1))
    assert_images(gateway.post(customer.secret, {**SMALL, "prompt": mark}))
    ending(answers[0])
    yield customer, mark, old


FAULTS = ["status=400", "status=401", "status=500", "drop=unread", "body=garbage"]


def everything_in_the_database() -> str:
    """Every row of every table, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        texts = []
        for table in tables:
            cursor.execute(f'SELECT row_to_json(t)::text FROM "{table}" t')
            texts += [f"{table} {row[0]}" for row in cursor.fetchall()]
    return "\n".join(texts)


READING: dict[bytes, tuple[str, ...]] = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"stream": ("XRANGE", "-", "+"),
    b"zset": ("ZRANGE", "0", "-1"),
    b"set": ("SMEMBERS",),
    b"list": ("LRANGE", "0", "-1"),
}


def everything_in_the_store() -> bytes:
    """Every key with its value, of every database of the store."""
    client, parts = store(), []
    pool = client.connection_pool.connection_kwargs
    for number in range(4):
        other = type(client).from_url(settings.REDIS_URL, db=number) if number != pool.get("db", 0) else client
        for name in other.scan_iter(count=1000):
            kind = other.type(name)
            assert isinstance(kind, bytes)
            if kind == b"none":  # its time was over
                continue
            verb, *rest = READING[kind]
            value = other.execute_command(verb, name, *rest)  # type: ignore[no-untyped-call]
            parts.append(name + b" " + repr(value).encode())
    return b"\n".join(parts)


def files_with(needle: str, *folders: Path) -> list[str]:
    found = subprocess.run(["grep", "-rlaF", "-e", needle, *map(str, folders)], capture_output=True, text=True)
    return found.stdout.split()


def test_neither_tokens_nor_prompts_nor_keys_are_kept_anywhere(
    gateway: Gateway, used: tuple[Customer, str, str]
) -> None:
    customer, mark, old = used
    database, kept = everything_in_the_database(), everything_in_the_store()
    assert customer.tenant.slug in database, "the control: what is kept is found"
    digest = secrets.digest(customer.secret, settings.TOKEN_PEPPERS[max(settings.TOKEN_PEPPERS)])
    assert digest in database
    assert digest.encode() in kept
    assert files_with(str(customer.tenant.slug), stack.FOLDER), "the control: PostgreSQL's files can be searched"
    for name, secret in {"token": customer.secret, "old token": old, "prompt": mark, "key": SANDBOX_KEY}.items():
        assert secret not in database, name
        assert secret.encode() not in kept, name
        assert files_with(secret, stack.FOLDER) == [], name


def test_the_logs_hold_none_of_it_either(gateway: Gateway, used: tuple[Customer, str, str]) -> None:
    customer, mark, old = used
    logs = [path.read_text(errors="replace") for path in gateway.folder.glob("*.log")]
    assert any('"event":"request"' in log.replace(": ", ":") for log in logs), "the control: calls are logged"
    for secret in (customer.secret, old, mark, SANDBOX_KEY, old[10:40]):
        assert not [log for log in logs if secret in log]


def test_no_row_shows_its_secret(customer: Customer) -> None:
    assert customer.secret not in repr(customer.token)
    for row in customer.token.secrets.all():
        assert customer.secret not in f"{row} {row!r} {vars(row)}"
