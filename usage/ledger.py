"""The one writer of the books: usage events in, ledger rows and rollups out, each call exactly once."""

import datetime as dt
import ipaddress
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.db import DataError, IntegrityError, transaction

from tokens.models import Tenant
from usage import closedmonths, olduses, statements
from usage.events import UsageEvent
from usage.merging import RANK, Account, Rollups, State, Written, by_call, difference, state_of
from usage.models import Kind
from usage.prices import PriceList, Wanted, prices_of, wanted_by
from usage.quarantine import USED_TWICE, quarantine_event

logger = logging.getLogger(__name__)

AGENT_CHARACTERS = 200


def record(events: Sequence[UsageEvent]) -> None:
    """Write events to the books; when it returns they are committed, and recording them again changes nothing.

    One transaction for all: receipts, ledger rows, rollups, when secrets were last used. Events may come doubled, in
    any order and through several writers at once. An event that the database refuses is found by halving the batch
    and quarantined; the others are booked.

    Raises django.db.OperationalError when the database is out of reach: some of the events may then be in the books,
    give all of them again.
    """
    if not events:
        return
    try:
        write(events)
    except (DataError, IntegrityError) as exc:
        if len(events) == 1:
            quarantine_event(events[0], type(exc).__name__, str(exc).partition("\n")[0])
            return
        middle = len(events) // 2
        record(events[:middle])
        record(events[middle:])


def write(
    events: Sequence[UsageEvent],
    with_them: Callable[[Sequence[UsageEvent]], None] | None = None,
    only_unresolved: bool = False,
    corrections_on: dt.date | None = None,
) -> None:
    """The one transaction of `record`; `with_them` is called at its end and commits with it, or not at all.

    It gets the events that changed the books. `only_unresolved`: calls that are no longer unresolved stay as they are,
    whatever the rank of their event; one that is not in the ledger is written all the same. Corrections are booked
    today, on their tenants' calendars, or on `corrections_on`. Nothing is booked into a closed month: what would be
    counts on the first day of the tenant's first open one.
    Raises django.db.DataError and IntegrityError when the database refuses one of the events: none is booked then.
    """
    calls = by_call(events)
    prices = prices_of(events)
    rollups = Rollups()
    with transaction.atomic(durable=True):
        opens = closedmonths.share(event.tenant for event in events)
        prices.use(set(map(wanted_by, events)))
        known = statements.insert_receipts(key for event in events if (key := _receipt(event)))
        written = _write_primaries([first for first, *_ in calls.values()], prices, rollups, opens)
        booked = {event.request_id for event in written}
        later = {
            request_id: rest
            for request_id, all_of_call in calls.items()
            if (rest := all_of_call[1:] if request_id in booked else all_of_call)
        }
        if later:
            written += _write_corrections(later, prices, rollups, only_unresolved, corrections_on)
        statements.add_to_rollups(rollups.in_key_order())
        old = statements.touch_secrets(_last_uses(events))
        if old:
            olduses.note(old, written[: len(booked)], _address)
        _report_doubled(events, known, written)
        if with_them is not None:
            with_them(written)


def _write_primaries(
    firsts: Sequence[UsageEvent], prices: PriceList, rollups: Rollups, opens: Mapping[int, dt.date]
) -> list[UsageEvent]:
    """Write the first event of each call that is not in the ledger yet, and return these events."""
    states = {event.request_id: state_of(event, prices.find(wanted_by(event))) for event in firsts}
    days = {event.request_id: max(event.day, opens.get(event.tenant, event.day)) for event in firsts}
    rows = [_primary_row(event, states[event.request_id], days[event.request_id]) for event in firsts]
    known = statements.insert_primaries(rows)
    written = [event for event in firsts if event.request_id not in known]
    for event in written:
        rollups.add(_account(event), days[event.request_id], states[event.request_id])
    return written


def _write_corrections(
    later: dict[uuid.UUID, list[UsageEvent]],
    prices: PriceList,
    rollups: Rollups,
    only_unresolved: bool,
    on_day: dt.date | None,
) -> list[UsageEvent]:
    """Amend calls that are in the ledger with the events that outrank what it says; return these events."""
    calls = statements.lock_calls(list(later))
    tenants = Tenant.objects.in_bulk({call.account.tenant for call in calls.values()})
    opens = closedmonths.share(tenants)  # an event may name another tenant than the call that it is about
    now = dt.datetime.now(dt.UTC)
    rows, written = [], []
    for request_id, events in later.items():
        call = calls[request_id]
        for event in events:
            if RANK[event.kind] <= RANK[call.state.outcome]:
                continue
            if only_unresolved and call.state.outcome != Kind.UNRESOLVED:
                continue
            today = on_day or now.astimezone(tenants[call.account.tenant].zone(now)).date()
            booked_day = max(today, opens.get(call.account.tenant, today))
            rows.append(_correct(call, event, booked_day, prices, rollups))
            written.append(event)
    if rows:
        statements.insert_corrections(rows)
    return written


def _correct(
    call: Written, event: UsageEvent, booked_day: dt.date, prices: PriceList, rollups: Rollups
) -> tuple[Any, ...]:
    """Bring `call` to what `event` says; returns the row of the correction.

    A call keeps its price: that of an earlier row goes before the list's.
    """
    before, account = call.state, call.account
    kept = before.pricing.price
    wanted = Wanted(account.tenant, account.model, call.size, call.quality, call.day)
    price = prices.used(wanted) if kept is None else prices.get(kept)
    after = state_of(event, price)
    rollups.add(call.account, booked_day, before, -1)
    rollups.add(call.account, booked_day, after)
    call.state = after
    call.number += 1
    amount = State(after.outcome, difference(after.figures, before.figures), after.pricing)
    asked = call.size, call.quality, call.n
    return _row(event, Kind.CORRECTION, call.number, amount, call.account, asked, call.day, booked_day)


def _primary_row(event: UsageEvent, state: State, booked_day: dt.date) -> tuple[Any, ...]:
    asked = event.size, event.quality, event.n
    return _row(event, event.kind, 0, state, _account(event), asked, event.day, booked_day)


def _row(
    event: UsageEvent,
    kind: str,
    number: int,
    state: State,
    account: Account,
    asked: tuple[str, str, int],
    day: dt.date,
    booked_day: dt.date,
) -> tuple[Any, ...]:
    """The values of a row of the ledger, in the order of statements.RECORD_COLUMNS; `asked`: size, quality, images."""
    return (
        event.request_id,
        str(kind),
        number,
        state.outcome,
        *account[:3],
        account.model,
        *asked,
        *state.figures[:5],
        event.provenance,
        *state.figures[5:],
        *state.pricing,
        day,
        booked_day,
        event.provider,
        event.provider_request_id,
        event.latency_ms,
        event.reason,
        event.at,
        event.generation or "",
        event.sequence,
    )


def _account(event: UsageEvent) -> Account:
    return Account(event.tenant, event.member, event.token, event.model)


def _receipt(event: UsageEvent) -> statements.Receipt | None:
    if event.sequence is None or event.generation is None:
        return None
    return event.tenant, event.generation, event.sequence


def _last_uses(events: Iterable[UsageEvent]) -> list[tuple[int, dt.datetime, str | None, str]]:
    newest: dict[int, UsageEvent] = {}
    for event in events:
        if event.secret not in newest or event.request_id > newest[event.secret].request_id:
            newest[event.secret] = event
    return [
        (secret, event.at, _address(event.address), event.agent[:AGENT_CHARACTERS])
        for secret, event in sorted(newest.items())
    ]


def _address(text: str) -> str | None:
    """An IP address as PostgreSQL takes it, or None: a strange one must not keep a charge out of the books."""
    try:
        return str(ipaddress.ip_address(text.partition("%")[0]))  # PostgreSQL knows no IPv6 zone, as in fe80::1%eth0
    except ValueError:
        return None


def _report_doubled(events: Sequence[UsageEvent], known: set[statements.Receipt], written: list[UsageEvent]) -> None:
    """Quarantine (and book all the same) events of new calls whose sequence number was already taken.

    An event that comes a second time finds both its receipt and its row; a new row with an old receipt means that the
    store gave one number twice, as after losing a part of its data.
    """
    taken = set(known)
    doubled = set()
    for event in events:
        key = _receipt(event)
        if key in taken:
            doubled.add(id(event))
        elif key:
            taken.add(key)
    for event in written:
        if id(event) in doubled:
            quarantine_event(event, USED_TWICE, "Booked, but another call came with its sequence number.")
