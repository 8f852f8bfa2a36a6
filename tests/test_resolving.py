"""Calls of unknown outcome, resolved by people: books and store agree, one decision a call, the quota free at once."""

import csv
import datetime as dt
import hashlib
import io
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from config.redis import store
from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.conftest import Customer, Gateway
from tests.ledgerwatch import check_books, outcome, rows
from tests.ownvalkey import own_valkey
from tests.processes import wait_until
from tests.scriptcalls import ESTIMATE as BOUND
from tests.scriptcalls import EXACT, UNRESOLVED, Caller
from tests.test_admin_usage import refuse_counting
from tokens.admission import keys, scripts
from tokens.admission.scripts import Script
from tokens.admission.settlement import Ending
from tokens.audit import AuditEntry
from tokens.errors import Refused
from tokens.management.base import operator as whoami
from tokens.models import User
from usage import ledger, resolving, unsettled
from usage.admin import unresolvedpages
from usage.drain import drain
from usage.ledger import record
from usage.models import UnresolvedCall, UnsettledCall, UsageRecord
from usage.resolving import ESTIMATE, NOTHING, Ruling, read_rulings, resolve, resolve_matching
from usage.unresolved import matching

DAY = dt.date(2026, 11, 22)


@pytest.fixture
def alice() -> Books:
    return Books()


@pytest.fixture
def operator() -> User:
    """An administrator without a password, which would take long to hash."""
    return User.objects.create(email=f"{uuid.uuid4().hex}@operators.test", is_staff=True, is_superuser=True)


def unresolved(caller: Caller) -> tuple[uuid.UUID, bytes]:
    """A call of two images that the store and the books hold as unresolved: its id, and its JSON."""
    status, request, call = caller.admit(2)
    assert status == "ADMITTED"
    assert caller.end(request, call, *UNRESOLVED) == b"DONE"
    assert outcome(request).kind == "unresolved"
    return uuid.UUID(request), call


def use(caller: Caller) -> tuple[int, int, int]:
    """What the store counts today: requests, images, tokens."""
    return caller.use("token", f"day:{caller.principal().plan(time.time()).periods.day}")


def book(caller: Caller) -> None:
    """Bring all events into the books; a worker of another test may have some of them in hand."""
    wait_until(lambda: (drain(), store().xlen(keys.usage(caller.shard)))[1] == 0, 20, "the drained stream")


def standing(request: uuid.UUID) -> tuple[str, int, int]:
    """What the books say of a call: outcome, images and tokens of all its rows."""
    found = list(UsageRecord.objects.filter(request_id=request).order_by("number"))
    return found[-1].outcome, sum(row.images for row in found), sum(row.charged_tokens for row in found)


@pytest.mark.parametrize(
    ("ruling", "stands", "counted"),
    [
        (NOTHING, ("void", 0, 0), (1, 0, 0)),
        (ESTIMATE, ("exact", 2, BOUND), (1, 2, BOUND)),
        (Ruling("actual", 640, 1), ("exact", 1, 640), (1, 1, 640)),
        (Ruling("actual", 900), ("exact", 2, 900), (1, 2, 900)),
    ],
)
def test_books_and_store_say_what_was_decided(
    operator: User, ruling: Ruling, stands: tuple[str, int, int], counted: tuple[int, int, int]
) -> None:
    caller = Caller()
    call, _ = unresolved(caller)
    assert use(caller) == (1, 2, BOUND)
    result = resolve({call: ruling}, "the provider's\n account", operator)
    assert ([row.request_id for row in result.resolved], result.refused, result.waiting) == ([call], {}, 0)
    assert (standing(call), use(caller)) == (stands, counted)
    book(caller)  # the store's own event says nothing new
    _, correction = UsageRecord.objects.filter(request_id=call).order_by("number")
    assert correction.reason == f"resolved by {operator}: the provider's account"
    assert correction.provenance == "decided"
    assert not UnsettledCall.objects.filter(pk=call).exists()
    assert AuditEntry.objects.get(object_id=str(call)).reason == "the provider's account"
    again = resolve({call: NOTHING}, "once more", operator)
    assert again.refused[call].startswith(f"was resolved before, as {stands[0]} (resolved by {operator}")
    assert standing(call) == stands


def test_what_cant_be_resolved_is_said_and_holds_up_no_other(alice: Books) -> None:
    unknown, good, dear, many = request_id(), *(alice.event("unresolved") for _ in range(3))
    exact = alice.event()
    record([good, dear, many, exact])
    rulings = dict.fromkeys([unknown, exact.request_id, good.request_id], NOTHING)
    rulings[dear.request_id] = Ruling("actual", 48_501)
    rulings[many.request_id] = Ruling("actual", 4000, 3)
    result = resolve(rulings, "asked", "tests")
    assert [row.request_id for row in result.resolved] == [good.request_id]
    assert result.refused == {
        unknown: "is not in the books",
        exact.request_id: "was never unresolved: it ended exact",
        dear.request_id: "can't have cost 48501 tokens: its bound is 4850",
        many.request_id: "can't have drawn 3 images: 2 were asked for",
    }
    with pytest.raises(Refused, match="reason"):
        resolve({dear.request_id: NOTHING}, " \n", "tests")
    alice.check_books()
    assert alice.total("unresolved_requests") == 2


def without(text: str, instead: str) -> Script:
    """The finish script with a part changed."""
    right = scripts.finish().text
    assert text in right
    wrong = right.replace(text, instead)
    return Script("finish", wrong, hashlib.sha1(wrong.encode(), usedforsecurity=False).hexdigest())


@pytest.mark.parametrize("guarded", [True, False], ids=["script", "control"])
def test_the_providers_own_answer_replaces_nothing(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not guarded:
        mutant = without("state == 'VOIDED' and reservation[10]", "false")
        monkeypatch.setattr(scripts, "finish", lambda: mutant)
    caller = Caller()
    call, fields = unresolved(caller)
    assert resolve({call: NOTHING}, "nothing was drawn", "tests").resolved
    late = caller.end(str(call), fields, *EXACT)
    book(caller)
    if guarded:
        assert late == b"DONE"
        assert (standing(call), use(caller)) == (("exact", 2, 700), (1, 2, 700))
        assert caller.end(str(call), fields, *EXACT) == b"REPEAT"
    else:
        assert (standing(call), use(caller)) == (("void", 0, 0), (1, 0, 0))


def test_a_decision_replaces_what_waits_for_the_store() -> None:
    """Booked as unresolved while the store was down, resolved before the store had learned even that."""
    caller = Caller()
    _, request, fields = caller.admit(2)
    result = {"images": 2, "input": None, "output": None, "reported": None, "charged": BOUND, "provenance": "estimated"}
    told = json.dumps(result).encode()
    unsettled.record([Ending(request, caller.shard, caller.tenant.pk, "unresolved", 2, BOUND, True, told, fields)])
    call = uuid.UUID(request)
    assert resolve({call: NOTHING}, "refunded", "tests").waiting == 0
    assert (standing(call), use(caller)) == (("void", 0, 0), (1, 0, 0))
    unsettled.replay()
    assert caller.end(request, fields, *UNRESOLVED) == b"REPEAT"
    assert caller.end(request, fields, *EXACT) == b"DONE"
    book(caller)
    assert (standing(call), use(caller)) == (("exact", 2, 700), (1, 2, 700))


def test_what_the_store_has_settled_meanwhile_is_left_to_the_books() -> None:
    caller = Caller()
    call, fields = unresolved(caller)
    assert caller.end(str(call), fields, *EXACT) == b"DONE"  # its event waits, unless a worker was quicker
    assert call in resolve({call: NOTHING}, "too late", "tests").refused
    assert outcome(str(call)).kind == "unresolved" or standing(call)[0] == "exact"
    book(caller)
    assert standing(call) == ("exact", 2, 700)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
def test_of_two_people_at_once_one_decides(alice: Books, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    event = alice.event("unresolved")
    record([event])
    look, write = resolving._settled, ledger.write

    def meanwhile(calls: Any) -> set[uuid.UUID]:
        monkeypatch.setattr(resolving, "_settled", look)
        before = look(calls)
        assert resolve({event.request_id: NOTHING}, "first", "bob").resolved
        return before

    monkeypatch.setattr(resolving, "_settled", meanwhile)
    if not guarded:
        monkeypatch.setattr(ledger, "write", lambda events, note, **_: write(events, note))
    result = resolve({event.request_id: ESTIMATE}, "second", "carol")
    if guarded:
        assert result.refused == {event.request_id: "was resolved meanwhile"}
        assert standing(event.request_id) == ("void", 0, 0)
    else:
        assert standing(event.request_id) == ("exact", 2, 4850)
    alice.check_books()


def test_with_the_store_down_the_books_are_right_and_the_store_learns_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller()
    call, _ = unresolved(caller)
    with monkeypatch.context() as patched:
        patched.setattr(settings, "REDIS_URL", "unix:///tmp/there-is-no-such-socket")
        store.cache_clear()
        result = resolve({call: NOTHING}, "refunded", "tests")
    store.cache_clear()
    assert (len(result.resolved), result.waiting) == (1, 1)
    assert standing(call) == ("void", 0, 0)
    unsettled.replay()
    assert use(caller) == (1, 0, 0)
    assert not UnsettledCall.objects.filter(pk=call).exists()


def test_a_store_that_hangs_is_asked_once(alice: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "BATCH", 2)
    monkeypatch.setattr(resolving, "STORE_SECONDS", 0.3)
    events = [alice.event("unresolved") for _ in range(5)]
    record(events)
    with own_valkey(monkeypatch) as valkey, valkey.frozen():
        begun = time.monotonic()
        result = resolve_matching(matching(alice.tenant), NOTHING, "month's end", "tests")
        took = time.monotonic() - begun
    assert (len(result.resolved), result.waiting) == (5, 5)
    assert took < 4, "three batches, and one wait of 0.3 s; the store's usual client waits for 5 s"
    alice.check_books()


def test_many_are_resolved_by_filter_and_no_others(alice: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "BATCH", 2)
    bob = Books()
    ours = [alice.event("unresolved") for _ in range(5)]
    others = [
        alice.event("unresolved", model="other"),
        alice.event("unresolved", of=request_id(dt.datetime(2026, 11, 20, tzinfo=dt.UTC)), day="2026-11-20"),
        bob.event("unresolved"),
    ]
    record([*ours, *others])
    result = resolve_matching(matching(alice.tenant, DAY, DAY, alice.model), NOTHING, "closed", "tests")
    assert [row.request_id for row in result.resolved] == sorted(event.request_id for event in ours)
    assert {standing(event.request_id)[0] for event in others} == {"unresolved"}
    assert alice.total("unresolved_requests") == 2
    alice.check_books()


# The command line


def run(*words: str) -> tuple[str, str]:
    out, errors = io.StringIO(), io.StringIO()
    call_command("usage", *words, stdout=out, stderr=errors)
    return out.getvalue(), errors.getvalue()


def test_the_command_lists_and_resolves(alice: Books, tmp_path: Path) -> None:
    events = [alice.event("unresolved") for _ in range(5)]
    record(events)
    ids = sorted(str(event.request_id) for event in events)
    of_alice = ("unresolved", "--tenant", alice.tenant.slug)
    assert [line.split("\t")[0] for line in run(*of_alice)[0].splitlines()] == ids
    listed = list(csv.DictReader(io.StringIO(run(*of_alice, "--format", "csv")[0])))
    as_json = json.loads(run(*of_alice, "--format", "json")[0])
    assert listed == [{name: str(value) for name, value in row.items()} for row in as_json]
    assert (listed[0]["tokens"], listed[0]["n"], listed[0]["reason"]) == ("4850", "2", "lease_ended")
    assert run(*of_alice, "--to", "2026-11-22")[0] == run(*of_alice, "--from", "2026-11-23")[0] == ""
    (tmp_path / "list.csv").write_text(f"request_id,tokens,images\n{ids[0]},4100\n\n{ids[1]}, 2000, 1\n")
    assert run("resolve", "--list", str(tmp_path / "list.csv"), "--reason", "account")[0].count("resolved") == 2
    assert run("resolve", ids[2], "--tokens", "4000", "--images", "1", "--reason", "account")[0].startswith(ids[2])
    run("resolve", ids[3], "--estimate", "--reason", "account")
    assert alice.rows(uuid.UUID(ids[3]))[-1].reason == f"resolved by {whoami()}: account"
    out, _ = run("resolve", "--tenant", alice.tenant.slug, "--from", "2026-11-22", "--nothing", "--reason", "the rest")
    assert out == f"{ids[4]}\tresolved\n"
    found = [standing(uuid.UUID(call)) for call in ids]
    assert found == [("exact", 2, 4100), ("exact", 1, 2000), ("exact", 1, 4000), ("exact", 2, 4850), ("void", 0, 0)]
    with pytest.raises(CommandError, match="0 resolved, 1 not"):
        run("resolve", ids[4], "--nothing", "--reason", "again")
    alice.check_books()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--nothing",), "Name the calls"),
        ((str(uuid.uuid4()), "--tenant", "x", "--nothing"), "Name the calls"),
        (("--tenant", "x", "--tokens", "5"), "--tokens is for one call"),
        ((str(uuid.uuid4()), "--nothing", "--images", "1"), "--images goes with --tokens"),
        (("--tenant", "nobody-here", "--nothing"), "There is no tenant"),
        (("--from", "2026-11-02", "--to", "2026-11-02", "--nothing"), "--to must be a later day"),
        (("nonsense", "--nothing"), "not a request id"),
        (("--list", "/tmp/there-is-no-such-file"), r"can't be read: No such file or directory\.$"),
        (("--list", "/proc/self/exe"), "is not UTF-8 text"),
    ],
)
def test_the_command_says_what_is_wrong(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        run("resolve", *words, "--reason", "x")


CALL = "01a202d2-8c62-73a9-99b3-b0e52c5db036"


@pytest.mark.parametrize("line", ["nonsense,1", CALL, f"{CALL},-1", f"{CALL},1,2,3", ",5"])
def test_a_list_that_cant_be_read_names_its_line(line: str) -> None:
    with pytest.raises(Refused, match="Line 2"):
        read_rulings([f"{uuid.uuid4()},5", line])
    same = f"{uuid.uuid4()},5"
    with pytest.raises(Refused, match="a second time"):
        read_rulings([same, same])


# The admin

LIST = "usage_unresolvedcall_changelist"


def row_of(request: uuid.UUID) -> UnresolvedCall:
    return UnresolvedCall.objects.get(request_id=request)


def test_calls_are_found_and_resolved_one_by_one(admin: Client, operator: User, alice: Books) -> None:
    events = [alice.event("unresolved"), alice.event("unresolved", reason="answer_502")]
    record([*events, alice.event()])
    query = f"?tenant__id__exact={alice.tenant.pk}"
    with connection.execute_wrapper(refuse_counting):
        html = admin.get(page(LIST) + query).text
    assert [str(event.request_id) in html for event in events] == [True, True]
    shown = admin.get(f"{page(LIST)}{query}&reason__icontains=502").context["cl"].result_list
    assert [row.request_id for row in shown] == [events[1].request_id]
    change = page("usage_unresolvedcall_change", row_of(events[0].request_id).pk)
    assert alice.user.email in admin.get(change).text
    for fields, sentence in (
        ({"outcome": "actual", "reason": "x"}, "Say how many tokens"),
        ({"outcome": "nothing", "tokens": 5, "reason": "x"}, "choose what it really cost"),
        ({"outcome": "nothing", "reason": " "}, "This field is required"),
        ({"outcome": "actual", "tokens": 4000, "images": 5, "reason": "kept"}, "Only 2 were asked for."),
        ({"outcome": "actual", "tokens": 48_501, "reason": "kept"}, "At most 48,500"),
    ):
        again = admin.post(change, fields)
        assert sentence in again.text
        kept = [f'value="{fields[name]}"' for name in ("tokens", "images") if name in fields]
        assert [value in again.text for value in kept] == [True] * len(kept)
    answer = admin.post(change, {"outcome": "actual", "tokens": 4000, "images": 1, "reason": "x"}, follow=True)
    assert "Resolved 1 call." in answer.text
    assert standing(events[0].request_id) == ("exact", 1, 4000)
    again = admin.post(change, {"outcome": "nothing", "reason": "x"}, follow=True)
    assert "This call is resolved." in again.text
    rows_of_call = f"{page('usage_usagerecord_changelist')}?q={events[0].request_id}"
    assert [rows_of_call in html for html in (answer.text, again.text)] == [True, True]
    assert "recorded 2026-" in admin.get(rows_of_call).text
    assert f"resolved by {operator}" in alice.rows(events[0].request_id)[-1].reason
    alice.check_books()


def test_a_selection_is_asked_about_and_resolved(admin: Client, alice: Books) -> None:
    events = [alice.event("unresolved") for _ in range(3)]
    record(events)
    chosen = [row_of(event.request_id).pk for event in events[:2]]
    picked = admin.post(page(LIST), {"action": "resolve_selected", "_selected_action": chosen})
    asked = admin.get(picked["Location"])
    bound = "9,700 tokens, 4 images are charged and stay taken"
    assert [word in asked.text for word in ("Resolve 2 calls?", bound, alice.tenant.slug)] == [True] * 3
    until = asked.context["form"].initial["until"]
    answer = admin.post(picked["Location"], {"outcome": "estimate", "reason": "x", "until": until}, follow=True)
    assert "Resolved 2 calls." in answer.text
    assert [standing(event.request_id)[0] for event in events] == ["exact", "exact", "unresolved"]


def test_all_that_match_are_resolved_but_none_that_came_after_the_question(
    admin: Client, alice: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = Books()
    record([*[alice.event("unresolved") for _ in range(3)], bob.event("unresolved")])
    resolve_all = f"{page('usage_unresolvedcall_resolve_all')}?tenant__id__exact={alice.tenant.pk}"
    asked = admin.get(resolve_all)
    assert "Resolve 3 calls?" in asked.text
    later = alice.event("unresolved")
    record([later])
    fields = {"outcome": "nothing", "reason": "month's end", "until": asked.context["form"].initial["until"]}
    answer = admin.post(resolve_all, fields, follow=True)
    assert "Resolved 3 calls." in answer.text
    assert answer.redirect_chain[-1][0].endswith(f"?tenant__id__exact={alice.tenant.pk}")
    assert matching(alice.tenant).get().request_id == later.request_id
    assert matching(bob.tenant).exists()
    monkeypatch.setattr(unresolvedpages, "MOST_AT_ONCE", 1)
    record([alice.event("unresolved")])
    assert "oldest 1; more match" in admin.get(resolve_all).text
    assert "No unresolved call matches." in admin.get(f"{resolve_all}&reason__icontains=x{later}", follow=True).text


def test_a_list_of_real_costs_is_resolved(admin: Client, alice: Books) -> None:
    event = alice.event("unresolved")
    record([event])
    url = page("usage_unresolvedcall_resolve_list")
    assert "Line 1" in admin.post(url, {"calls": "nonsense", "reason": "x"}).text
    unknown = f"{uuid.uuid4()},1,0"
    answer = admin.post(url, {"calls": f"{event.request_id},4000\r\n{unknown}", "reason": "account"})
    assert answer.context["form"].initial == {"calls": unknown, "reason": "account"}, "only what is left to do"
    assert "Resolved 1 call." in answer.text
    assert "is not in the books" in answer.text
    assert standing(event.request_id) == ("exact", 2, 4000)


def test_who_may_only_look_resolves_nothing(alice: Books) -> None:
    event = alice.event("unresolved")
    record([event])
    change = page("usage_unresolvedcall_change", row_of(event.request_id).pk)
    places = [page("usage_unresolvedcall_resolve_all"), page("usage_unresolvedcall_resolve_list")]
    person = User.objects.create_user(f"{uuid.uuid4().hex}@operators.test", "", is_finance=True)
    client = Client()
    client.force_login(person)
    assert [client.get(url).status_code for url in places] == [403] * 2
    assert client.get(page(LIST)).status_code == 200
    assert 'type="submit"' not in client.get(change).text.partition("gw-card")[2].partition("</section>")[0]
    fields = {"outcome": "nothing", "reason": "x", "until": 2**62, "calls": f"{event.request_id},1"}
    assert [client.post(url, fields).status_code for url in (change, *places)] == [403] * 3
    assert standing(event.request_id)[0] == "unresolved"
    person.is_superuser = True
    person.save()
    assert Client().post(change, fields)["Location"].startswith("/admin/login/")
    client.post(change, {"outcome": "nothing", "reason": "x"})
    assert standing(event.request_id)[0] == "void"


def test_resolving_frees_the_quota_for_the_next_call(
    admin: Client, gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer()
    customer.limit("tokens:2500/month")
    body = {"prompt": "a gem", "size": "512x512"}  # bounded by 2,400 tokens and a few for the prompt
    lost = gateway.post(customer.secret, {**body, "prompt": "a gem [sandbox drop=after_draw]"})
    assert (lost.status_code, outcome(lost.headers["x-request-id"]).kind) == (500, "unresolved")
    assert gateway.post(customer.secret, body).status_code == 429
    call = row_of(uuid.UUID(lost.headers["x-request-id"]))
    admin.post(page("usage_unresolvedcall_change", call.pk), {"outcome": "nothing", "reason": "gone"})
    answer = gateway.post(customer.secret, body)
    assert answer.status_code == 200
    found = [(row.kind, row.outcome) for row in rows(customer)]
    assert found == [("unresolved", "unresolved"), ("correction", "void"), ("exact", "exact")]
    assert sum(row.charged_tokens for row in rows(customer)) == answer.json()["usage"]["total_tokens"]
    check_books([customer])
