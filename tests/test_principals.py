"""Remembered principals: what is equal is held once, so that a process can remember a hundred thousand of them."""

import time
import tracemalloc

import msgspec

from tokens.admission.principal import Principal, read_principal

MOST_BYTES = 1_600  # of a principal with its plan; gateway.authentication.REMEMBERED counts on it
RATE = {"id": 7, "metric": "requests", "period": "minute", "amount": 60, "burst": 0, "start": 1_795_000_000}
TOTAL = {**RATE, "metric": "images", "period": "total"}


def principal(tenant: int, token: int, *limits: dict[str, object]) -> Principal:
    """One as the store has it; each limit has an id and a moment of its own."""
    own = [{**limit, "id": 1000 * token + place, "start": token} for place, limit in enumerate(limits)]
    status = {b"status": b"active", b"version": b"3"}
    member = {**status, b"limits": b"[]"}
    zones = {b"timezone": b"Europe/Berlin", b"next_timezone": b"", b"next_timezone_from": b"0"}
    rest = {b"origins": b'["https://shop.example"]', b"model": b"instant-1", b"limits": msgspec.json.encode([RATE])}
    fields = {b"expires": b"0", b"networks": b"[]", b"limits": msgspec.json.encode(own), b"secret:%d" % token: b"0"}
    return read_principal((3, tenant, tenant, token, token), {**status, **fields}, member, {**status, **zones, **rest})


def test_tokens_of_one_tenant_share_what_is_equal() -> None:
    first, second = principal(5, 1, RATE), principal(5, 2, RATE)
    assert first.limits is second.limits
    assert first.calendar is second.calendar
    assert first.origins is second.origins
    plans = first.plan(time.time()), second.plan(time.time())
    assert plans[0].packed is plans[1].packed
    pairs = [pair for pair in zip(*(plan.keys for plan in plans), strict=True) if ":token:" not in pair[0]]
    assert len(pairs) == 7
    assert all(one is other for one, other in pairs)


def test_a_total_quota_counts_under_its_own_id_from_its_own_creation() -> None:
    first, second = principal(5, 1, TOTAL), principal(5, 2, TOTAL)
    assert [(one.limits[0].limit.id, one.limits[0].limit.start) for one in (first, second)] == [(1000, 1), (2000, 2)]
    assert "{s3}:use:token:2:total:2000" in second.plan(time.time()).keys


def test_a_remembered_principal_is_light() -> None:
    now, known = time.time(), []
    principal(0, 0, RATE).plan(now)
    tracemalloc.start()
    try:
        for token in range(2_000):
            known.append(principal(token // 100, token, RATE))
            known[-1].plan(now)
        each = tracemalloc.get_traced_memory()[0] / len(known)
    finally:
        tracemalloc.stop()
    assert each < MOST_BYTES
