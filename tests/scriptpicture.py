"""What the store holds beside what the oracle says it holds, both in the same words."""

from typing import Any

import redis

from tests.scriptbench import USE_FIELDS, record_key
from tests.storeimage import Image
from tokens.admission import keys

EVENT = ("request_id", "kind", "sequence", "generation")


def seen(client: redis.Redis) -> dict[str, Any]:
    """By key, everything but rates and the times at which keys expire."""
    names = sorted(name.decode() for name in client.scan_iter("{s3}:*", count=1000))
    names = [name for name in names if ":rate:" not in name]
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            _read(pipeline, name)
        answers = pipeline.execute()
    return _filled({name: _plain(name, answer) for name, answer in zip(names, answers, strict=True)})


def _filled(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty, which the store may hold or not."""
    return {name: value for name, value in picture.items() if value and value != ("", "")}


def _read(pipeline: Any, name: str) -> None:
    kind = name.split(":")[1]
    if kind == "use":
        pipeline.hmget(name, USE_FIELDS)
    elif kind == "reservation":
        pipeline.hget(name, "state")
    elif kind in {"inflight", "deadlines"}:
        pipeline.zrange(name, 0, -1)
    elif kind == "idempotency":
        pipeline.hmget(name, "fingerprint", "request_id", "state", "answer")
    elif kind in {"token", "member", "tenant"}:
        pipeline.hmget(name, "status", "version")
    elif kind == "meta":
        pipeline.hmget(name, "generation", "stopped")
    elif kind == "control":
        pipeline.hkeys(name)
    elif kind == "sequence":
        pipeline.get(name)
    else:
        pipeline.xrange(name)


def _plain(name: str, answer: Any) -> Any:
    kind = name.split(":")[1]
    if kind == "usage":
        return [tuple(fields[field.encode()].decode() for field in EVENT) for _, fields in answer]
    if kind in {"inflight", "deadlines", "control"}:
        return {member.decode() for member in answer}
    if isinstance(answer, list):
        return tuple((part or b"").decode() for part in answer)
    return answer.decode()


def told(image: Image) -> dict[str, Any]:
    """The same of an image."""
    said: dict[str, Any] = {
        keys.meta(3): (image.generation, "1" if image.stopped else ""),
        keys.control(3): set(image.orders),
        keys.deadlines(3): set(image.open_calls()),
        keys.usage(3): [(e.request_id, e.kind, e.sequence, e.generation) for e in image.events],
        keys.sequence(3, 3): str(image.sequence or ""),
    }
    said |= {keys.use(3, scope, period): tuple(map(str, held)) for (scope, period), held in image.uses.items()}
    said |= {keys.reservation(3, name): kept.state for name, kept in image.calls.items()}
    said |= {record_key(name): (record.status, str(record.version)) for name, record in image.records.items()}
    for (token, key), slot in image.remembered.items():
        state, answer = ("open", "") if slot.answer is None else ("done", slot.answer.decode())
        said[keys.idempotency(3, token, key)] = (slot.body, slot.request_id, state, answer)
    for request_id, kept in image.open_calls().items():
        for scope in kept.asked.scopes.values() if kept.asked else ():
            said.setdefault(keys.inflight(3, scope), set()).add(request_id)
    return _filled(said)
