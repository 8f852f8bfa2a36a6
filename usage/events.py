"""Usage events: what the admission scripts append to a shard's stream when a call ends, and how it is read."""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

EventKind = Literal["exact", "void", "unresolved"]
KINDS: dict[bytes, EventKind] = {b"exact": "exact", b"void": "void", b"unresolved": "unresolved"}

VERSION = 1  # of the events that this program reads and the scripts of `tokens.admission` append
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MOST = 2**63 - 1  # PostgreSQL's bigint

Id = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
# No call spends so much; otherwise one absurd event could fill a rollup to the brim and keep all after it out.
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Images = Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class BadEventError(ValueError):
    """An event that can't be read. The message names the field and says nothing of the client."""


class FutureEventError(BadEventError):
    """An event of a `version` that only a newer program can read, as there is while an upgrade is under way."""

    def __init__(self, version: int) -> None:
        super().__init__(f"The event is of version {version}; this program reads up to version {VERSION}.")
        self.version = version


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one call, which came in `at`, ended, in absolute figures.

    `kind` is exact, void (nothing was spent: no images, no tokens) or unresolved (images asked for and tokens
    estimated). `images` were delivered, `n` asked for. `day` is the tenant's day at admission. `reported` is what the
    provider said, None where it said nothing; `charged` is what counts. `sequence` (gapless for each tenant) and
    `generation` (of the store) are None for an event that did not come through a stream.
    """

    request_id: uuid.UUID
    at: dt.datetime
    kind: EventKind
    sequence: int | None
    generation: str | None
    tenant: int
    member: int
    token: int
    secret: int
    model: str
    size: str
    quality: str
    n: int
    provider: str
    day: dt.date
    address: str
    agent: str
    images: int
    input_tokens: int | None
    output_tokens: int | None
    reported: int | None
    charged: int
    provenance: str
    provider_request_id: str
    latency_ms: int
    reason: str


def moment_of(request_id: uuid.UUID) -> dt.datetime:
    """When a call came in: the milliseconds at the head of its UUIDv7. Raises OverflowError beyond the year 9999."""
    return EPOCH + dt.timedelta(milliseconds=request_id.int >> 80)


class _Call(msgspec.Struct, gc=False):
    v: Literal[1]
    tenant: Id
    member: Id
    token: Id
    secret: Id
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    size: Annotated[str, msgspec.Meta(max_length=100)]
    n: Images
    provider: str
    day: dt.date
    address: str = ""
    agent: str = ""
    quality: Annotated[str, msgspec.Meta(max_length=100)] = ""  # events from before there was any have none


class _Version(msgspec.Struct):
    v: Annotated[int, msgspec.Meta(ge=1, le=MOST)]


class _Result(msgspec.Struct, gc=False):
    images: Images
    input: Count | None
    output: Count | None
    reported: int | None
    charged: Count
    provenance: Literal["reported", "derived", "estimated", "missing", "decided"]
    provider_request_id: str = ""
    latency_ms: Count = 0
    reason: str = ""


_call = msgspec.json.Decoder(_Call)
_result = msgspec.json.Decoder(_Result)
_version = msgspec.json.Decoder(_Version)


def parse(fields: Mapping[bytes, bytes]) -> UsageEvent:
    """Read one stream entry: request_id, kind, sequence, generation, call (JSON) and result (JSON).

    Raises BadEventError when a field is missing or not what it must be; FutureEventError, which is one, when the
    event's version (`v` of `call`, in every version) is above `VERSION`.
    """
    try:
        return _checked(fields)
    except BadEventError:
        version = _version_of(fields)
        if version > VERSION:
            raise FutureEventError(version) from None
        raise


def _version_of(fields: Mapping[bytes, bytes]) -> int:
    """The version that an unreadable event names, 0 when it names none."""
    try:
        return _version.decode(fields.get(b"call", b"")).v
    except (msgspec.MsgspecError, ValueError):  # ValueError: not UTF-8
        return 0


def _checked(fields: Mapping[bytes, bytes]) -> UsageEvent:
    try:
        event = _event(fields)
    except BadEventError:
        raise
    except KeyError as exc:
        raise BadEventError(f"The field {exc.args[0].decode()} is missing.") from None
    except msgspec.MsgspecError as exc:
        raise BadEventError(f"The event's JSON is not as it must be: {exc}") from None
    except (ValueError, OverflowError) as exc:
        raise BadEventError(f"A field has no value of its kind ({type(exc).__name__}).") from None
    if event.request_id.version != 7:
        raise BadEventError("The request id is no UUIDv7.")
    if event.kind == "void" and (event.images or event.charged):
        raise BadEventError("A void event has images or charged tokens.")
    return event


def _event(fields: Mapping[bytes, bytes]) -> UsageEvent:
    call, result = _call.decode(fields[b"call"]), _result.decode(fields[b"result"])
    request_id = uuid.UUID(fields[b"request_id"].decode("ascii"))
    kind = KINDS.get(fields[b"kind"])
    if kind is None:
        raise BadEventError("The kind is none of exact, void, unresolved.")
    sequence = fields.get(b"sequence")
    reported = result.reported
    return UsageEvent(
        request_id=request_id,
        at=moment_of(request_id),
        kind=kind,
        sequence=_sequence(sequence) if sequence else None,
        generation=_text(fields[b"generation"].decode()) if sequence else None,
        tenant=call.tenant,
        member=call.member,
        token=call.token,
        secret=call.secret,
        model=_text(call.model),
        size=_text(call.size),
        quality=_text(call.quality),
        n=call.n,
        provider=_text(call.provider),
        day=call.day,
        address=_text(call.address),
        agent=_text(call.agent),
        images=result.images,
        input_tokens=result.input,
        output_tokens=result.output,
        # A provider may say any number; one that no column holds must not keep the charge out of the books.
        reported=reported if reported is not None and -MOST <= reported <= MOST else None,
        charged=result.charged,
        provenance=result.provenance,
        provider_request_id=_text(result.provider_request_id),
        latency_ms=result.latency_ms,
        reason=_text(result.reason),
    )


def _sequence(value: bytes) -> int:
    number = int(value)
    if not 1 <= number <= MOST:
        raise BadEventError("The sequence is not a positive number.")
    return number


def _text(value: str) -> str:
    """PostgreSQL's text holds any character but NUL; a client's header must not keep a charge out of the books."""
    return value.replace("\0", "") if "\0" in value else value
