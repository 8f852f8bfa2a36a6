"""The audit trail: whatever people change or take away leaves one entry that nobody can change, and no secret in it."""

import csv
import datetime as dt
import io
import ipaddress
import json
import secrets
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin import site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, models, transaction
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from config.signin import factors
from gateway.models import Model, ModelSize, Provider, ProviderKey
from gateway.providers import make_default, set_model, set_provider
from tests.adminpages import PASSWORD, page, rows
from tests.bookkeeping import Customer as Books
from tests.conftest import Customer
from tokens import actors, audit, control, installation, issuing, stopping
from tokens.actors import Actor
from tokens.apikeyrow import ApiKey
from tokens.audit import AuditEntry, Verb
from tokens.audited import Audited
from tokens.errors import Refused
from tokens.management.base import operator as command_line
from tokens.models import Installation, Limit, Membership, Plan, PlanLimit, ProxyToken, Role, Secret, Tenant, User
from tokens.requestactors import actor_of
from tokens.roles import set_role
from usage import resolving, retrying
from usage.admin.auditpages import AuditEntryAdmin
from usage.alertrows import AlertSetting, Webhook
from usage.exports import csv_pieces
from usage.ledger import record
from usage.models import Alarm, Price, QuarantinedEvent, SavedReport

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

# Rows that nobody changes by hand; of those marked so, what people decide is told by the verb that decides it.
NOT_AUDITED = {
    "tokens.outboxentry": "what the store must learn",
    "tokens.auditentry": "the trail itself",
    "usage.usagerecord": "told by usage.resolving; else the ledger, append-only",
    "usage.unresolvedcall": "the same rows",
    "usage.eventreceipt": "written by the ledger",
    "usage.dailyusage": "written by the ledger",
    "usage.unsettledcall": "what the store must learn",
    "usage.sequencecheck": "written by a task",
    "usage.quarantinedevent": "told by usage.retrying",
    "usage.alarm": "told by the alarms' page",
    "usage.alert": "written by a task",
    "usage.alertdelivery": "written by a task",
    "tokens.secretuse": "written by the ledger",
    "tokens.issuereceipt": "beside a token's own entry",
    "usage.reportsending": "written by a task; to whom a report goes, its saved report's entries say",
    "usage.exportjob": "asking for one and fetching its file each leave an entry; the rest is how far it has come",
    "usage.statement": "closing the month leaves an entry, and so does each download; nothing of it ever changes",
    "usage.statementfile": "made when the month is closed, which leaves its statement's entry",
    "usage.statementpiece": "what such a file holds",
}
# Fields that no save changes: each is refused, or kept as it is by the model.
FIXED = {
    *(("tokens.tenant", name) for name in ("timezone", "next_timezone", "next_timezone_from")),
    *(("tokens.membership", name) for name in ("tenant", "user")),
    *(("tokens.proxytoken", name) for name in ("tenant", "member")),
    *(("tokens.limit", name) for name in ("tenant", "member")),  # its token decides
    ("tokens.planlimit", "plan"),  # the other plan has such a limit already
}
ITEMS = {
    "origins": "https://x.example",
    "networks": "203.0.113.0/24",
    "thresholds": 40,
    "emails": "x@people.test",
    "recipients": "x@people.test",
    "scopes": "tokens:write",
}
AUDITED = [model for model in apps.get_models() if issubclass(model, Audited)]


class Trail:
    """The entries that were written since."""

    def __init__(self) -> None:
        self.last = AuditEntry.objects.order_by("-pk").values_list("pk", flat=True).first() or 0

    def all(self, **conditions: Any) -> list[AuditEntry]:
        return list(AuditEntry.objects.filter(pk__gt=self.last, **conditions).order_by("pk"))

    def one(self, **conditions: Any) -> AuditEntry:
        (entry,) = self.all(**conditions)
        return entry

    def text(self) -> str:
        return str(list(AuditEntry.objects.filter(pk__gt=self.last).values_list()))


@pytest.fixture
def trail() -> Trail:
    return Trail()


def name() -> str:
    return f"a{uuid.uuid4().hex[:12]}"


def make(model: type[Audited]) -> Any:
    """A row of that model, of its own."""
    if model is Installation:
        return Installation.objects.get()
    if model is User:
        return User.objects.create_user(f"{name()}@people.test")
    if model is Price:
        asked = ("provider_per_image", "provider_per_million_input", "provider_per_million_output")
        amounts = dict.fromkeys(("per_image", *asked), Decimal("0.5"))
        return Price.objects.create(model=name(), currency="EUR", valid_from=now().date(), **amounts)
    if model in (Provider, ProviderKey, Model, ModelSize):
        provider = Provider.objects.create(name=name(), base_url="https://images.example/v1", active=False)
        offered = Model.objects.create(name=name(), provider=provider, upstream_name="x", active=False)
        key = ProviderKey.objects.create(provider=provider, label="first", encrypted=b"sealed")
        if model is ModelSize:
            return ModelSize.objects.create(model=offered, size="256x256", most_tokens=9)
        return {Provider: provider, ProviderKey: key, Model: offered}[model]
    if model is ApiKey:
        digest = secrets.token_hex(32)
        return ApiKey.objects.create(name=name(), scopes=["usage:read"], digest=digest, pepper_version=1, shown="gem_")
    if model in (Plan, PlanLimit):
        plan = Plan.objects.create(name=name())
        limit = PlanLimit.objects.create(plan=plan, metric="images", period="day", amount=5)
        return plan if model is Plan else limit
    books = Books()
    if model is AlertSetting:
        return AlertSetting.objects.create(tenant=books.tenant)
    if model is Webhook:
        return Webhook.objects.create(tenant=books.tenant, url="https://hooks.example/quotas", encrypted=b"sealed")
    if model is SavedReport:
        told = {"owner": make(User), "tenant": books.tenant, "question": "group=day"}
        return SavedReport.objects.create(name=name(), recipients=["books@people.test"], **told)
    if model is Limit:
        return Limit.objects.create(tenant=books.tenant, token=books.token, metric="images", period="day", amount=5)
    return {Tenant: books.tenant, Membership: books.member, ProxyToken: books.token, Secret: books.secret}[model]


def another(row: Any, field: Any) -> Any:
    """A value of the field that the row doesn't have."""
    value = getattr(row, field.attname)
    if field.flatchoices:
        return next(choice for choice, _ in field.flatchoices if choice != value)
    if field.is_relation:
        return make(field.related_model).pk
    kinds: dict[type, Callable[[], Any]] = {
        models.BooleanField: lambda: not value,
        models.DateTimeField: lambda: now() + dt.timedelta(days=1),
        models.DateField: lambda: value + dt.timedelta(days=1),
        models.IntegerField: lambda: (value or 0) + 1,
        models.DecimalField: lambda: (value or 0) + 1,
        models.EmailField: lambda: f"x{value}",
        models.BinaryField: lambda: b"another",
        models.GenericIPAddressField: lambda: "203.0.113.77",
        models.CharField: lambda: {"size": "512x512", "currency": "USD", "timezone": "Asia/Tokyo"}.get(
            field.name, f"x{value}"[: field.max_length]
        ),
        models.TextField: lambda: f"x{value}",
        models.Field: lambda: [*value, ITEMS[field.name]],
    }
    return next(value() for kind, value in kinds.items() if isinstance(field, kind))


def walk(model: type[Audited]) -> set[str]:
    """Change each audited field of a row by `save`; what the database has then must be told. Which fields changed."""
    changed, made = set(), make(model)
    for field in model._meta.concrete_fields:
        if field.primary_key or field.name in model.UNAUDITED:
            continue
        stored: Any = model._base_manager.filter(pk=made.pk).values()
        before = stored.get()
        row = model._base_manager.get(pk=made.pk)
        setattr(row, field.attname, another(row, field))
        trail = Trail()  # what was made until now is of no concern
        try:
            with transaction.atomic():
                Model._base_manager.filter(default=True).exclude(pk=row.pk).update(default=False)  # there can be one
                row.save()
                after = stored.all().get()
                different = [one for one in model._meta.concrete_fields if before[one.attname] != after[one.attname]]
                told = [one for one in different if one.name not in {*model.UNAUDITED, "id"}]
                check_told(row, told, trail)
                if field in told:
                    changed.add(field.name)
                transaction.set_rollback(True)
        except (ValidationError, IntegrityError):
            pass
    return changed


def check_told(row: Any, fields: list[Any], trail: Trail) -> None:
    """One entry tells of exactly these fields, each with a before or an after."""
    names = {str(one.verbose_name) for one in fields}
    if names:
        entry = trail.one()
        assert {change[0] for change in entry.changes} == names
        assert all(before or after for _, before, after in entry.changes)
        subject = row.audit_parent() or row
        assert (entry.object_type, entry.object_id) == (subject._meta.label_lower, str(subject.pk))


def test_every_model_is_audited_or_says_why_not() -> None:
    ours = {
        model._meta.label_lower: model
        for app in ("tokens", "usage", "gateway")
        for model in apps.get_app_config(app).get_models()
    }
    assert {label for label, model in ours.items() if not issubclass(model, Audited)} == NOT_AUDITED.keys()


@pytest.mark.parametrize("model", AUDITED, ids=lambda model: model._meta.label_lower)
def test_each_change_of_each_field_is_told(model: type[Audited]) -> None:
    label = model._meta.label_lower
    audited_fields = {one.name for one in model._meta.concrete_fields if not one.primary_key} - model.UNAUDITED
    assert {(label, one) for one in audited_fields - walk(model)} <= FIXED


@pytest.mark.parametrize("model", AUDITED, ids=lambda model: model._meta.label_lower)
def test_control_a_change_that_is_not_told_is_caught(model: type[Audited], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "note", lambda *_args, **_kwargs: None)
    with pytest.raises(ValueError, match="not enough values"):
        walk(model)


@pytest.mark.parametrize(
    "model", [model for model in AUDITED if model is not Installation], ids=lambda m: m._meta.label_lower
)
def test_rows_that_are_new_or_go_are_told(model: type[Audited]) -> None:
    made = Trail()
    row = make(model)
    subject = row.audit_parent() or row
    about = {"object_type": subject._meta.label_lower, "object_id": str(subject.pk)}
    usual = {ProxyToken: Verb.ISSUED, ApiKey: Verb.ISSUED, Secret: Verb.SHOWN}.get(model, Verb.CREATED)
    assert [entry.verb for entry in made.all(**about)][-1 if row is not subject else 0] == usual
    gone = Trail()
    with transaction.atomic():
        for protecting in (ProxyToken, Membership):  # in the order in which they let go
            if model in (Tenant, Membership):
                getattr(
                    row, "tokens" if protecting is ProxyToken else "members", protecting.objects.none()
                ).all().delete()
        if model is Provider:
            row.models.all().delete()
        row.delete()
        assert gone.all(**about)[-1].verb == Verb.DELETED
        assert all(after == "" for entry in gone.all(verb=Verb.DELETED) for _, _, after in entry.changes)
        if model is User or model is Tenant:
            transaction.set_rollback(True)


@pytest.mark.parametrize("model", AUDITED, ids=lambda model: model._meta.label_lower)
def test_bulk_changes_that_would_go_round_the_trail_are_refused(model: Any) -> None:
    field = next(one for one in model._meta.concrete_fields if not one.primary_key and one.name not in model.UNAUDITED)
    with pytest.raises(TypeError, match="go round"):
        model.objects.filter(pk=-1).update(**{field.name: None})
    with pytest.raises(TypeError, match="go round"):
        model.objects.bulk_create([model()])
    with pytest.raises(TypeError, match="go round"):
        model.objects.bulk_update([model(pk=1)], [field.name])


def test_a_role_cannot_be_given_in_bulk(customer: Customer) -> None:
    with pytest.raises(TypeError, match="audit trail"):
        Membership.objects.filter(pk=customer.member.pk).update(role="administrator")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tokens_auditentry SET actor = 'somebody else' WHERE id = (SELECT max(id) FROM tokens_auditentry)",
        "DELETE FROM tokens_auditentry WHERE id = (SELECT max(id) FROM tokens_auditentry)",
        "TRUNCATE tokens_auditentry",
        "TRUNCATE tokens_auditentry CASCADE",
    ],
)
def test_the_trail_is_append_only(customer: Customer, statement: str) -> None:
    before = AuditEntry.objects.count()
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert AuditEntry.objects.count() == before


def test_a_change_that_is_rolled_back_is_not_told(customer: Customer, trail: Trail) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        customer.tenant.name = "never"
        customer.tenant.save()
        assert trail.one().changes == [["name", customer.tenant.slug, "never"]]
        raise ZeroDivisionError
    assert trail.all() == []


# Who, from where, by which way


def test_the_admin_tells_who_from_where_and_what(
    customer: Customer, operator: User, settings: Any, trail: Trail
) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    client = Client(headers={"User-Agent": "Firefox", "X-Forwarded-For": "198.51.100.9, 203.0.113.5"})
    client.force_login(operator)
    change = page("tokens_proxytoken_change", customer.token.pk)
    form = {"name": "renamed", "expires_at_0": "", "expires_at_1": "", "networks": "203.0.113.0/24"}
    assert client.post(change, form | rows("limits")).status_code == 302
    entry = trail.one(verb=Verb.CHANGED, object_type="tokens.proxytoken")
    assert (entry.actor, entry.user_id, entry.way) == (operator.email, operator.pk, "admin")
    assert (entry.address, entry.agent) == ("203.0.113.5", "Firefox")
    assert entry.changes == [["name", "test", "renamed"], ["allowed networks", "", "203.0.113.0/24"]]
    assert (entry.tenant_id, entry.object_id, entry.object_name) == (
        customer.tenant.pk,
        str(customer.token.pk),
        "renamed",
    )
    assert entry.sentence == "changed proxy token renamed: name test → renamed; allowed networks 203.0.113.0/24"


def test_revoking_in_the_admin_keeps_the_reason(
    customer: Customer, admin: Client, operator: User, trail: Trail
) -> None:
    admin.post(page("tokens_proxytoken_revoke", customer.token.pk), {"reason": "left on a bus"})
    entry = trail.one(verb=Verb.REVOKED)
    assert (entry.actor, entry.reason, entry.object_name) == (operator.email, "left on a bus", "test")
    assert ["status", "Active", "Revoked"] in entry.changes


def test_the_command_line_is_told_as_such(customer: Customer, trail: Trail) -> None:
    call_command("tenant", "suspend", customer.tenant.slug)
    call_command("limit", "set", "--tenant", customer.tenant.slug, "images:5/day")
    call_command("limit", "set", "--tenant", customer.tenant.slug, "images:8/day")
    suspended, added, raised = trail.all()
    assert {entry.actor for entry in trail.all()} == {command_line()}
    assert {entry.way for entry in trail.all()} == {"command"}
    assert suspended.verb == Verb.SUSPENDED
    assert (added.verb, added.part) == (Verb.CREATED, "limit images/day")
    assert raised.sentence == f"changed limit images/day of tenant {customer.tenant.name}: amount 5 → 8"
    assert actors.current() == actors.SYSTEM, "the next one isn't taken for the command line"


def test_issue_and_rotate_tell_that_a_secret_was_shown_and_not_which(customer: Customer, trail: Trail) -> None:
    token, secret = issuing.issue_token(customer.member, "ci", limit_texts=["images:5/day"])
    fresh = issuing.rotate(token, dt.timedelta(hours=1))
    told = [(entry.verb, entry.part) for entry in trail.all(object_id=str(token.pk))]
    old, new = (f"secret {one[:12]}"[:11] for one in (secret, fresh))
    assert [verb for verb, _ in told] == [Verb.ISSUED, Verb.CREATED, Verb.SHOWN, Verb.CHANGED, Verb.SHOWN]
    assert told[2][1].startswith(old) and told[4][1].startswith(new)
    for one in (secret, fresh, *Secret.objects.filter(token=token).values_list("digest", flat=True)):
        assert one not in trail.text()


def test_passwords_and_keys_are_only_told_to_have_changed(trail: Trail) -> None:
    user = User.objects.create_user(f"{name()}@people.test", PASSWORD)
    user.set_password("another long password")
    user.save()
    key = f"sk-{uuid.uuid4().hex}"
    provider = set_provider(name(), "https://images.example/v1", key)
    assert trail.all(object_type="tokens.user", object_id=str(user.pk))[-1].changes == [
        ["password", audit.HIDDEN, audit.HIDDEN]
    ]
    sealed = bytes(provider.keys.get().encrypted).decode()
    for hidden in (user.password, PASSWORD, key, sealed):
        assert hidden not in trail.text()


def test_a_password_that_is_only_hashed_anew_is_nothing_to_tell(settings: Any) -> None:
    user = User.objects.create_user(f"{name()}@people.test", PASSWORD)
    trail, before = Trail(), user.password
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher", *settings.PASSWORD_HASHERS]
    assert User.objects.get(pk=user.pk).check_password(PASSWORD)
    assert User.objects.get(pk=user.pk).password != before
    assert trail.all() == []


def test_money_times_choices_and_names_read_as_people_know_them(customer: Customer) -> None:
    price = make(Price)
    trail = Trail()
    price.per_image = Decimal("0.04")
    price.save()
    assert trail.one().changes == [["an image", "0.50 EUR", "0.04 EUR"]]
    trail = Trail()
    customer.token.expires_at = dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)
    customer.token.save()
    assert trail.one().changes == [["expires at", "", "2027-01-31 12:00:00 UTC"]]
    trail = Trail()
    member = issuing.add_member(customer.tenant, f"{name()}@people.test")
    assert ["user", "", member.user.email] in trail.one(object_type="tokens.membership").changes
    assert ["password", "", "none"] in trail.one(object_type="tokens.user").changes
    trail = Trail()
    stopping.suspend_member(member)
    assert trail.one().changes == [["status", "Active", "Suspended"]]


def test_an_order_that_the_database_missed_is_told_as_it_was_given(customer: Customer, trail: Trail) -> None:
    person = Actor("alice@example.com", "admin", 7, "203.0.113.5", "Firefox")
    at = dt.datetime(2026, 11, 20, 10, tzinfo=dt.UTC)
    order = control.Order("revoked", at.timestamp(), person.name, "leaked", person)
    control.carry_out(customer.token.entry(), order)
    stopping.apply_orders()
    entry = trail.one()
    assert (entry.verb, entry.reason, entry.at) == (Verb.REVOKED, "leaked", at)
    assert (entry.actor, entry.user_id, entry.address, entry.agent) == (person.name, 7, "203.0.113.5", "Firefox")
    assert entry.recorded_at > at + dt.timedelta(days=1)
    stopping.apply_orders()
    assert len(trail.all()) == 1


def test_the_emergency_stop_is_told(trail: Trail) -> None:
    try:
        with actors.acting_as(actors.of_command()):
            installation.stop_all()
    finally:
        installation.start_all()
    stopped, started = trail.all()
    assert (stopped.sentence.partition(":")[0], stopped.actor) == ("stopped all calls", command_line())
    assert (started.verb, started.actor) == (Verb.STARTED, "system")


def test_the_default_model_that_is_replaced_is_told(trail: Trail) -> None:
    provider = set_provider(name(), "https://images.example/v1", "sk-test-key")
    model = set_model(provider, name(), sizes={"256x256": 9})
    former = Model.objects.filter(default=True).first()
    since = Trail()
    try:
        make_default(model)
        told = {(entry.object_name, tuple(entry.changes[0])) for entry in since.all()}
        assert (model.name, ("default", "no", "yes")) in told
        if former is not None:
            assert (former.name, ("default", "yes", "no")) in told
    finally:
        if former is not None:
            make_default(former)
            assert Model.objects.get(default=True) == former, "other tests' calls need it"
        model.delete()


# What isn't a row that changes


def test_sign_ins_are_told(operator: User, trail: Trail) -> None:
    client = Client()
    for password in ("wrong password here", PASSWORD):
        client.post("/admin/login/", {"username": operator.email, "password": password})
    client.post("/admin/logout/")
    failed, entered, left = trail.all()
    assert (failed.verb, failed.actor, failed.object_id) == (Verb.SIGN_IN_FAILED, "nobody signed in", str(operator.pk))
    assert [(entry.verb, entry.actor, entry.address) for entry in (entered, left)] == [
        (Verb.SIGNED_IN, operator.email, "127.0.0.1"),
        (Verb.SIGNED_OUT, operator.email, "127.0.0.1"),
    ]
    assert f"failed to sign in as {operator.email}" in str(failed)


def test_a_password_typed_as_a_name_is_not_kept(trail: Trail) -> None:
    Client().post("/admin/login/", {"username": "hunter2-my-password", "password": "x"})
    assert trail.one().verb == Verb.SIGN_IN_FAILED
    assert "hunter2" not in trail.text()


def test_decisions_about_calls_are_told_each(operator: User, trail: Trail) -> None:
    books = Books()
    calls = [books.event("unresolved") for _ in range(3)]
    record(calls)
    trail = Trail()
    with actors.acting_as(Actor(operator.email, "admin", operator.pk)):
        resolving.resolve({call.request_id: resolving.NOTHING for call in calls}, "month's end", operator)
    told = trail.all(verb=Verb.RESOLVED)
    assert {entry.object_id for entry in told} == {str(call.request_id) for call in calls}
    assert {(entry.actor, entry.reason, entry.tenant_id) for entry in told} == {
        (operator.email, "month's end", books.tenant.pk)
    }
    assert told[0].changes == [["outcome", "Unresolved", "Void"], ["images", "", "0"], ["tokens", "", "0"]]


def test_quarantined_events_and_alarms_that_are_dealt_with_are_told(
    admin: Client, operator: User, trail: Trail
) -> None:
    event = QuarantinedEvent.objects.create(raw={"a": "b"}, digest=uuid.uuid4().hex, error="bad", message="m")
    admin.post(page("usage_quarantinedevent_set_aside", event.pk), {"reason": "a test"})
    aside = trail.one(verb=Verb.SET_ASIDE)
    assert (aside.actor, aside.reason, aside.object_id) == (operator.email, "a test", str(event.pk))
    again = QuarantinedEvent.objects.create(raw={"x": "y"}, digest=uuid.uuid4().hex, error="bad", message="m")
    with pytest.raises(Refused):
        retrying.retry(again, operator)
    alarm = Alarm.objects.create(kind="sequence_gap", subject=name(), message="One is missing.")
    admin.post(page("usage_alarm_deal_with", alarm.pk), {"reason": "known"})
    assert trail.one(verb=Verb.DEALT_WITH).reason == "known"
    assert f"Dealt with: known ({operator.email})" in admin.get(page("usage_alarm_change", alarm.pk)).text


def test_downloads_are_told(admin: Client, operator: User, customer: Customer, trail: Trail) -> None:
    query = f"?tenant__id__exact={customer.tenant.pk}"
    assert admin.get(page("usage_dailyusage_csv") + query).status_code == 200
    entry = trail.one(verb=Verb.EXPORTED)
    assert (entry.actor, entry.object_name, entry.tenant_id) == (operator.email, "daily usage", customer.tenant.pk)
    assert entry.changes == [["filter", "", query[1:]]]


# The page and the command


def test_the_page_is_downloaded_with_every_value(operator: User, customer: Customer) -> None:
    customer.token.name = "=1+1"
    customer.token.save()
    request = RequestFactory().get("/")
    request.user = operator
    entries = AuditEntryAdmin(AuditEntry, site).get_queryset(request).filter(tenant=customer.tenant).order_by("-id")
    text = b"".join(csv_pieces(entries, AuditEntryAdmin.csv_columns)).decode()
    table = list(csv.DictReader(io.StringIO(text)))
    assert (table[0]["object_name"], json.loads(table[0]["changes"])) == ("'=1+1", [["name", "test", "=1+1"]])
    assert {row["tenant"] for row in table} == {customer.tenant.slug}


def test_the_page_lists_finds_and_shows(admin: Client, operator: User, customer: Customer) -> None:
    customer.token.name = f"<b>{name()}"
    customer.token.save()
    listed = page("tokens_auditentry_changelist")
    tenant = f"?tenant__id__exact={customer.tenant.pk}"

    def verbs(query: str) -> list[str]:
        return [entry.verb for entry in admin.get(listed + query).context["cl"].result_list]

    everything = verbs(tenant)
    assert everything[0] == Verb.CHANGED and Verb.ISSUED in everything
    assert verbs(f"{tenant}&verb=issued") == [Verb.ISSUED]
    assert verbs(f"{tenant}&who=nobody-of-that-name") == []
    assert set(verbs(f"{tenant}&who=SYST")) == set(everything)
    assert set(verbs(f"{tenant}&object_type=tokens.tenant")) == {Verb.CREATED}
    assert verbs(f"?q={customer.token.name[:9].upper()}") == [Verb.CHANGED]
    today = now().date().isoformat()
    assert verbs(f"{tenant}&at_from={today}&at_to={today}") == everything
    assert verbs(f"{tenant}&at_to=2001-01-01") == verbs("?q=no-such-id") == []
    html = admin.get(f"{listed}{tenant}").text
    assert "&lt;b&gt;" in html and "<b>a" not in html
    entry = AuditEntry.objects.filter(tenant=customer.tenant).latest("pk")
    shown = admin.get(page("tokens_auditentry_change", entry.pk)).text
    assert "<td>Name</td>" in shown and page("tokens_proxytoken_change", customer.token.pk) in shown
    assert admin.post(page("tokens_auditentry_change", entry.pk), {"actor": "x"}).status_code == 403
    assert admin.post(page("tokens_auditentry_delete", entry.pk), {"post": "yes"}).status_code == 403
    assert admin.get(page("tokens_auditentry_add")).status_code == 403


def test_history_leads_to_the_trail_and_nowhere_else(admin: Client, operator: User, customer: Customer) -> None:
    before = LogEntry.objects.count()
    admin.post(page("tokens_membership_suspend", customer.member.pk))
    answer = admin.get(page("tokens_membership_history", customer.member.pk), follow=True)
    told = answer.context["cl"].result_list
    assert [entry.verb for entry in told] == [Verb.SUSPENDED, Verb.CREATED]
    assert f"<strong>History of member {customer.member.user.email}</strong>" in answer.text
    assert LogEntry.objects.count() == before
    entry = told[0]
    again = admin.get(page("tokens_auditentry_history", entry.pk), follow=True)
    assert [one.pk for one in again.context["cl"].result_list] == [one.pk for one in told]
    assert admin.get(page("tokens_membership_history", 10**15)).status_code in {302, 404}


def test_the_list_costs_the_same_for_one_row_and_for_twenty(admin: Client, customer: Customer) -> None:
    def queries(query: str) -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            assert admin.get(page("tokens_auditentry_changelist") + query).status_code == 200
        assert not any("COUNT(" in one["sql"] and "auditentry" in one["sql"] for one in seen.captured_queries)
        return len(seen)

    for number in range(20):
        customer.tenant.name = f"name {number}"
        customer.tenant.save()
    tenant = f"?tenant__id__exact={customer.tenant.pk}"
    assert queries(f"{tenant}&verb=issued") == queries(f"{tenant}&verb=changed")


def test_pages_follow_each_other_whatever_is_written_meanwhile(
    admin: Client, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditEntryAdmin, "list_per_page", 2)
    listed = page("tokens_auditentry_changelist")

    def rename(name: str) -> None:
        customer.tenant.name = name
        customer.tenant.save()

    def names(answer: Any) -> list[str]:
        return [entry.changes[0][2] for entry in answer.context["cl"].result_list]

    for name in "abcde":
        rename(name)
    first = admin.get(f"{listed}?tenant__id__exact={customer.tenant.pk}&verb=changed")
    rename("f")
    pages = [first]
    with CaptureQueriesContext(connection) as seen:
        while pages[-1].context["cl"].older_url:
            pages.append(admin.get(listed + pages[-1].context["cl"].older_url))
    assert [names(one) for one in pages] == [["e", "d"], ["c", "b"], ["a"]]
    assert not any("OFFSET" in one["sql"] and "auditentry" in one["sql"] for one in seen.captured_queries)
    back = admin.get(listed + pages[-1].context["cl"].newer_url)
    assert names(back) == ["c", "b"] and ">Newer</a>" in back.text
    back = admin.get(listed + back.context["cl"].newer_url)
    assert names(back) == ["e", "d"] and names(admin.get(listed + back.context["cl"].newer_url)) == ["f"]


@pytest.mark.parametrize("value", ["abc", "²", "9" * 30, "%00", "-1", "0001-01-01", "9999-12-31", "2026-02-31"])
def test_filters_that_cant_be_read_are_no_errors(admin: Client, customer: Customer, value: str) -> None:
    few = f"?tenant__id__exact={customer.tenant.pk}"  # rows: to show them is no part of the question
    for parameter in (
        "tenant__id__exact",
        "who",
        "verb",
        "object_type",
        "object_id",
        "way__exact",
        "at_from",
        "at_to",
        "q",
        "p",
        "before",
        "after",
    ):
        for view in ("changelist", "csv"):
            answer = admin.get(f"{page(f'tokens_auditentry_{view}')}{few}&{parameter}={value}")
            assert answer.status_code in {200, 302, 400}, (view, parameter)


def test_an_entry_outlives_its_tenant_and_its_object(admin: Client, trail: Trail) -> None:
    tenant = Tenant.objects.create(slug=name(), name="Gone")
    number = tenant.pk
    tenant.delete()
    entry = trail.all(object_type="tokens.tenant", object_id=str(number))[0]
    assert f"tenant {number}" in admin.get(page("tokens_auditentry_change", entry.pk)).text
    assert admin.get(f"{page('tokens_auditentry_changelist')}?object_id={number}").status_code == 200
    out = io.StringIO()
    call_command("audit", "export", "--object", f"tokens.tenant:{number}", stdout=out)
    assert [row["verb"] for row in csv.DictReader(io.StringIO(out.getvalue()))] == ["created", "deleted"]


def test_the_command_lists_and_exports(customer: Customer, trail: Trail) -> None:
    customer.token.name = "=HYPERLINK(1)"
    customer.token.save()

    def run(*words: str) -> str:
        out = io.StringIO()
        call_command("audit", *words, stdout=out)
        return out.getvalue()

    of_tenant = ("--tenant", customer.tenant.slug)
    (newest, *_rest) = run("list", *of_tenant).splitlines()
    assert newest.split("\t")[2:4] == ["system", "system"] and "changed proxy token" in newest
    assert len(run("list", *of_tenant, "--limit", "2").splitlines()) == 2
    assert run("list", *of_tenant, "--since", "2100-01-01") == ""
    table = list(csv.DictReader(io.StringIO(run("export", *of_tenant))))
    assert table[-2]["object_name"] == "'=HYPERLINK(1)" and table[-2]["tenant"] == customer.tenant.slug
    assert table[-1]["verb"] == Verb.EXPORTED
    lines = [
        json.loads(line) for line in run("export", *of_tenant, "--format", "jsonl", "--verb", "changed").splitlines()
    ]
    assert lines[0]["changes"] == [["name", "test", "=HYPERLINK(1)"]]
    with pytest.raises(Exception, match="is not an object"):
        run("list", "--object", "nonsense")


def test_what_a_caller_of_the_api_does_is_no_entry(customer: Customer, trail: Trail) -> None:
    Secret.objects.filter(pk=customer.token.secrets.get().pk).update(last_used_by="curl")
    books = Books()
    trail = Trail()
    record([books.event()])
    assert trail.all() == []


def test_what_becomes_of_a_second_factor_is_told(operator: User) -> None:
    trail = Trail()
    codes = factors.new_recovery_codes(operator)
    assert factors.check(operator, codes[0]).device is not None
    made, used = trail.all()
    assert made.sentence == f"made new recovery codes of user {operator}"
    assert used.sentence == f"used a recovery code of user {operator}"
    assert not any(code in trail.text() for code in codes)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ADMINISTRATOR])
def test_a_tenants_people_learn_no_more_of_the_platforms_than_that_it_was_them(
    operator: User, customer: Customer, role: Role
) -> None:
    person = issuing.add_member(customer.tenant, f"{name()}@people.test")
    set_role(person, role)
    platform = Client(headers={"User-Agent": "Secret Browser"}, REMOTE_ADDR="203.0.113.5")
    platform.force_login(operator)
    platform.post(page("tokens_proxytoken_revoke", customer.token.pk), {"reason": "leaked"})
    entry = AuditEntry.objects.filter(tenant=customer.tenant, verb=Verb.REVOKED).get()
    assert (entry.of_platform, entry.address, entry.agent) == (True, "203.0.113.5", "Secret Browser")
    assert any(operator.email in str(change) for change in entry.changes)
    own = Client(REMOTE_ADDR="198.51.100.7")
    own.force_login(person.user)
    listed = page("tokens_auditentry_changelist")
    pages = [listed, page("tokens_auditentry_csv"), page("tokens_auditentry_change", entry.pk)]
    pages.append(f"{listed}?object_type=tokens.proxytoken&object_id={customer.token.pk}")
    texts = [answer.text if not answer.streaming else b"".join(answer).decode() for answer in map(own.get, pages)]
    for text in texts:
        assert "platform staff" in text.lower() and "leaked" in text
        for secret in (operator.email, "203.0.113.5", "Secret Browser"):
            assert secret not in text
    assert (person.user.email in texts[1], "198.51.100.7" in texts[1]) == (True, True), "their own download"
    for who, found in ((operator.email[:8], 0), ("platform st", 1), (person.user.email[:9], 0)):
        rows = own.get(f"{listed}?who={who}&verb=revoked").context["cl"].result_list
        assert len(rows) == found, who
    texts = [answer.text if not answer.streaming else b"".join(answer).decode() for answer in map(platform.get, pages)]
    assert all(operator.email in text and "203.0.113.5" in text for text in texts), "the platform's own see it all"


def test_whose_an_actor_is(customer: Customer) -> None:
    assert actors.of_command().platform and not actors.SYSTEM.platform
    request = RequestFactory().get("/")
    finance = User.objects.create_user(f"{name()}@people.test", is_finance=True)
    for user, platform in ((finance, True), (customer.member.user, False), (AnonymousUser(), False)):
        request.user = user
        assert actor_of(request).platform is platform
