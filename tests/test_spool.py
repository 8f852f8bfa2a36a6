"""The spool: what can't be read or taken holds up nothing else."""

from pathlib import Path

import pytest

from config.requestids import make_request_id
from gateway.spool import SLICE, Spool
from tokens.admission.connection import StoreError, StoreUnavailable
from tokens.admission.settlement import Ending


def ending(request_id: str) -> Ending:
    """An exact ending."""
    return Ending(request_id, 1, 1, "exact", 1, 100, True, b"{}", b"{}")


async def test_it_replays_every_ending_once_and_deletes_it(tmp_path: Path) -> None:
    spool, taken = Spool(tmp_path / "spool"), []
    ids = [make_request_id() for _ in range(SLICE + 5)]
    for request_id in ids:
        await spool.keep(ending(request_id))

    async def take(replayed: Ending) -> None:
        taken.append(replayed)

    assert await spool.replay(take) == len(ids)
    assert [replayed.request_id for replayed in taken] == sorted(ids)
    assert taken[0] == ending(sorted(ids)[0])
    assert list(spool.folder.iterdir()) == []
    assert spool.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"", b'{"request_id": 1}', b'"\xff"'])
async def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0000.json").write_bytes(content)
    spool, taken = Spool(tmp_path), []
    await spool.keep(ending(make_request_id()))

    async def take(replayed: Ending) -> None:
        taken.append(replayed)

    assert await spool.replay(take) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["0000.bad"]
    assert (tmp_path / "0000.bad").read_bytes() == content


async def test_an_ending_that_the_store_refuses_waits_and_holds_up_no_other(tmp_path: Path) -> None:
    spool, ids = Spool(tmp_path), [make_request_id() for _ in range(3)]
    for request_id in ids:
        await spool.keep(ending(request_id))

    async def take(replayed: Ending) -> None:
        if replayed.request_id == ids[0]:
            raise StoreError("WRONGTYPE of this one")

    assert await spool.replay(take) == 2
    assert [path.stem for path in tmp_path.iterdir()] == [ids[0]]


async def test_without_a_store_it_stops_and_keeps_everything(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(3):
        await spool.keep(ending(make_request_id()))
    calls = 0

    async def take(_: Ending) -> None:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("gone", sent=True)

    with pytest.raises(StoreUnavailable):
        await spool.replay(take)
    assert calls == 1
    assert len(list(tmp_path.iterdir())) == 3
