"""Every URL by every role: who gets in, and that nobody sees a tenant who may not.

A URL without an entry in `TABLE` fails, and so does an entry without a URL. A role is a column: add it to `ROLES`, to
`Row`, and to the rows that treat it otherwise than its neighbours.
"""

import copy
import datetime as dt
import itertools
import re
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
import pytest
from django.contrib.admin import site
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest, HttpResponseBase
from django.test import Client
from django.urls import get_resolver, reverse
from django.utils.timezone import now

from gateway.admin import dashboard
from gateway.models import Model, Provider
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_error, assert_images, drawings
from tests.ledgerwatch import rows
from tokens import apikeys, issuing, roles, stopping
from tokens.admin.members import MemberAdmin
from tokens.admin.proxytokens import ProxyTokenAdmin
from tokens.admin.scoping import OwnRows
from tokens.models import AuditEntry, Plan, Tenant, User
from usage.admin.daily import DailyUsageAdmin
from usage.admin.ledgerpages import UsageRecordAdmin
from usage.alarms import AlarmKind
from usage.closing import close
from usage.ledger import record
from usage.models import (
    Alarm,
    Alert,
    AlertDelivery,
    AlertSetting,
    DailyUsage,
    ExportJob,
    Price,
    QuarantinedEvent,
    SavedReport,
    Statement,
    UsageRecord,
    Webhook,
)
from usage.months import look
from usage.reportrows import Sharing

# Downloads are streamed for ASGI; the test client is none.
pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

# Nobody below is let in: no session, a session of somebody without a role, or tokens, which open nothing here.
SIGNED_IN = ("user", "suspended administrator")
OUTSIDE = ("anonymous", "own token", "another's token", "suspended token", *SIGNED_IN)
# Everybody below is: people of another tenant, of the tenant that is looked for, and of the platform.
STRANGERS = ("strange viewer", "strange administrator")
INSIDE = (*STRANGERS, "viewer", "administrator", "finance", "superuser")
ROLES = (*OUTSIDE, *INSIDE)
LET_IN = {200, 201}


class Row(NamedTuple):
    """The status that a GET gets, by role."""

    outside: int
    strange_viewer: int
    strange_administrator: int
    viewer: int
    administrator: int
    finance: int
    superuser: int
    signed_in: int | None = None  # without a role, where that is another one than of the others outside

    def of(self, role: str) -> int:
        if role in SIGNED_IN and self.signed_in is not None:
            return self.signed_in
        return self.outside if role in OUTSIDE else int(getattr(self, role.replace(" ", "_")))


ANY_STAFF = Row(302, 200, 200, 200, 200, 200, 200)
REDIRECT = Row(302, 302, 302, 302, 302, 302, 302)
SUPERUSER = Row(302, 403, 403, 403, 403, 403, 200)
FINANCE = SUPERUSER._replace(finance=200)
OWN = Row(302, 302, 302, 200, 200, 200, 200)  # to others as if it didn't exist
OWN_FILE = Row(302, 404, 404, 200, 200, 200, 200)
ADMINISTRATOR = SUPERUSER._replace(administrator=200)
ADMINISTRATORS = ADMINISTRATOR._replace(strange_administrator=200)  # the form for a row of their own tenant
ON_TO_ISSUING = Row(302, 403, 403, 403, 302, 403, 302)
NOBODY = SUPERUSER._replace(superuser=403)
NOWHERE = Row(302, 404, 404, 404, 404, 404, 404)
FINANCE_ELSE_NOWHERE = NOWHERE._replace(finance=200, superuser=200)
NOT_ONES_OWN = Row(302, 302, 302, 403, 403, 403, 200)


def model(*pages: str, nobody: tuple[str, ...] = (), **changes: Row) -> dict[str, Row]:
    """The pages of a model: those that Django gives each, and `pages` of its own."""
    usual = {"changelist": SUPERUSER, "history": trail(SUPERUSER), "change": SUPERUSER, "": REDIRECT}
    usual |= {name: NOBODY if name in nobody else SUPERUSER for name in ("add", "delete", *pages)}
    return {**usual, **changes}


def viewed(by: Row, *lists: str) -> dict[str, Row]:
    """Pages that may be looked at: a row's by these; lists by all of them, and by who has rows of their own there."""
    of_list = ANY_STAFF if by is OWN else by
    return {"change": by, "history": trail(by), **dict.fromkeys(("changelist", *lists), of_list)}


def trail(of: Row) -> Row:
    """The history of a row leads whoever may see it on to the audit trail; to others there is no such row."""
    return Row(302, *(302 if status == 200 else 404 for status in of[1:-1]))


NO_VIEWERS = ADMINISTRATORS._replace(finance=200)  # whose rows a tenant's viewers don't see
OWN_NO_VIEWERS = NO_VIEWERS._replace(strange_administrator=302)
NO_VIEWERS_OWN = NO_VIEWERS._replace(strange_administrator=403)
ADMINISTRATOR_DELETES = ADMINISTRATOR._replace(strange_administrator=302)
READ_ONLY = ("add", "delete")
MODELS = {
    "tokens_tenant": model("suspend", "activate", "keep_zone", nobody=("delete",), issue=ON_TO_ISSUING) | viewed(OWN),
    "tokens_membership": model(nobody=("delete",), issue=ON_TO_ISSUING, add=ADMINISTRATORS)
    | viewed(OWN)
    | {"suspend": ADMINISTRATOR, "activate": ADMINISTRATOR, "invite": ADMINISTRATOR},
    "tokens_proxytoken": model(nobody=("delete",), add=ADMINISTRATORS)
    | viewed(OWN, "find_leaked")
    | {"rotate": ADMINISTRATOR, "end_grace": ADMINISTRATOR, "revoke": ADMINISTRATOR}
    | {"cut_over": ADMINISTRATOR._replace(viewer=200, finance=200)}
    | dict.fromkeys(("revoke_all", "extend_all", "limit_all"), ADMINISTRATORS),
    "tokens_plan": model() | viewed(FINANCE),
    "tokens_user": model("invite", nobody=("delete",)),
    "tokens_auditentry": model(nobody=READ_ONLY) | viewed(OWN, "csv"),
    "usage_alarm": model("deal_with", nobody=READ_ONLY),
    "usage_dailyusage": model(nobody=READ_ONLY) | viewed(OWN, "csv"),
    "usage_usagerecord": model(nobody=READ_ONLY) | viewed(OWN, "csv"),
    "usage_savedreport": model() | viewed(OWN) | {"add": ANY_STAFF, "delete": NOT_ONES_OWN},
    "usage_price": model("calculate", "export", "import_file") | viewed(FINANCE, "calculate", "export"),
    "usage_statement": model(nobody=READ_ONLY, file=OWN_FILE) | viewed(OWN, "csv"),
    "usage_quarantinedevent": model("retry", "set_aside", nobody=READ_ONLY) | viewed(FINANCE),
    "usage_unresolvedcall": model("resolve_all", "resolve_list", nobody=READ_ONLY) | viewed(OWN, "csv"),
    "gateway_provider": model(),
    "gateway_model": model(),
    "usage_alertsetting": model(add=ADMINISTRATORS, delete=ADMINISTRATOR_DELETES, test=ADMINISTRATOR) | viewed(OWN),
    "usage_webhook": model(add=ADMINISTRATORS, delete=ADMINISTRATOR_DELETES, test=ADMINISTRATOR)
    | {
        "new_secret": ADMINISTRATOR,
        "changelist": NO_VIEWERS,
        "change": OWN_NO_VIEWERS,
        "history": trail(NO_VIEWERS_OWN),
    },
    "usage_alert": model(nobody=READ_ONLY) | viewed(OWN, "csv"),
    "usage_alertdelivery": model(nobody=READ_ONLY, again=ADMINISTRATOR) | viewed(OWN, "csv"),
    "tokens_apikey": model(nobody=("delete",), add=ADMINISTRATORS, revoke=ADMINISTRATOR)
    | {"changelist": NO_VIEWERS, "change": OWN_NO_VIEWERS, "history": trail(NO_VIEWERS_OWN)},
}
TABLE = {
    "index": ANY_STAFF,
    "login": REDIRECT._replace(outside=200),
    "logout": ANY_STAFF._replace(**dict.fromkeys(Row._fields[1:-1], 405)),
    "password_change": ANY_STAFF,
    "password_change_done": ANY_STAFF,
    "jsi18n": ANY_STAFF,
    "search": ANY_STAFF,
    "autocomplete": ANY_STAFF,
    "view_on_site": NOWHERE,
    "refusals": ANY_STAFF,
    "months": FINANCE,
    "close_months": FINANCE._replace(finance=302, superuser=302),  # nothing is ready
    **dict.fromkeys(("reports", "exports", "exceptions"), ANY_STAFF),
    **dict.fromkeys(("export", "export_state"), FINANCE_ELSE_NOWHERE),
    "export_file": NOWHERE,  # it isn't made yet
    "export_cancel": FINANCE_ELSE_NOWHERE._replace(finance=405, superuser=405),
    "exceptions_provider": FINANCE._replace(finance=302, superuser=302),
    **dict.fromkeys(("password_forgotten", "password_choose"), Row(200, 200, 200, 200, 200, 200, 200)),  # no such link
    "second_factor": ANY_STAFF._replace(signed_in=200),  # everybody's own
    "second_factor_enrol": ANY_STAFF._replace(signed_in=200),
    "second_factor_verify": REDIRECT,  # there is none yet
    "second_factor_codes": REDIRECT,
    "second_factor_remove": REDIRECT,
    "second_factor_reset": SUPERUSER,
    "auth_user_password_change": SUPERUSER,
    "app_list": ANY_STAFF,
    "admin/(?P<url>.*)$": NOWHERE,
    "": REDIRECT,
    **dict.fromkeys(("api_usage", "api_tokens", "api_token"), Row(401, 401, 401, 401, 401, 401, 401)),  # keys only
    **dict.fromkeys(("api_document", "api_docs"), Row(200, 200, 200, 200, 200, 200, 200)),
    "api_nothing": Row(404, 404, 404, 404, 404, 404, 404),
    **{f"{name}_{page}": row for name, pages in MODELS.items() for page, row in pages.items()},
}
MAY_NOT_SEE = (*OUTSIDE, *STRANGERS)


@dataclass
class Victim:
    """A tenant with rows on every page; its names are nobody else's."""

    mark: str = field(default_factory=lambda: f"zq{secrets.token_hex(5)}")
    objects: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        books = Books()
        tenant, token, user, secret = books.tenant, books.token, books.user, books.secret
        tenant.slug = tenant.name = f"bravo-{self.mark}"
        tenant.save()
        token.name, user.email, secret.shown = self.mark, f"{self.mark}@victim.test", f"gem_{self.mark}"
        token.save()
        user.save()
        secret.save()
        books.model = f"model-{self.mark}"
        record([books.event(), books.event("unresolved")])
        ledger = UsageRecord.objects.filter(tenant=tenant)
        statement = self.closed(books)
        quarantined = QuarantinedEvent.objects.create(
            raw={"tenant": self.mark}, digest=self.mark, error="bad", message=self.mark
        )
        alarm = Alarm.objects.create(kind=AlarmKind.SEQUENCE_GAP, subject=self.mark, message=self.mark, closed_at=now())
        told = {"model": f"price-{uuid.uuid4().hex[:8]}", "per_image": 1, "currency": "EUR", "valid_from": now().date()}
        price = Price.objects.create(tenant=tenant, **told)
        # So many that it stands in front on the page of today.
        today = {"booked_day": now().date(), "requests": 10**9, "model": self.mark, "currency": ""}
        self.day = DailyUsage.objects.create(tenant=tenant, member=books.member, token=token, **today)
        plan = Plan.objects.create(name=self.mark)
        asks = f"tenant={tenant.slug}"
        saved = SavedReport.objects.create(
            name=self.mark, owner=user, tenant=tenant, question=asks, sharing=Sharing.TENANT
        )
        self.job = ExportJob.objects.create(owner=user, tenant=tenant, question=asks, format="csv")
        self.temporary = [saved, self.job, plan, self.day, quarantined, alarm, price]
        of = {"metric": "images", "period": "day", "period_name": "day:2026-11-22", "scope": "tenant", "scope_id": 1}
        alert = Alert.objects.create(tenant=tenant, scope_name=self.mark, threshold=80, used=8, amount=10, **of)
        setting = AlertSetting.objects.create(tenant=tenant, emails=[f"{self.mark}@victim.test"])
        hook = Webhook(tenant=tenant, url=f"https://{self.mark}.example/")
        hook.new_secret()
        hook.save()
        sent = AlertDelivery.objects.create(
            tenant=tenant, alert=alert, channel="email", target=self.mark, status="failed"
        )
        key, _ = apikeys.issue(self.mark, ["usage:read"], tenant)
        self.temporary += [alert, setting, hook]
        self.tenant, self.user = tenant, user
        self.objects = {
            "tokens_tenant": tenant.pk,
            "tokens_membership": books.member.pk,
            "tokens_proxytoken": token.pk,
            "tokens_plan": plan.pk,
            "tokens_user": user.pk,
            "tokens_auditentry": AuditEntry.objects.filter(tenant=tenant).latest("pk").pk,
            "usage_alarm": alarm.pk,
            "usage_dailyusage": self.day.pk,
            "usage_usagerecord": ledger.exclude(outcome="unresolved")[0].pk,
            "usage_price": price.pk,
            "usage_savedreport": saved.pk,
            "usage_statement": statement.pk,
            "usage_quarantinedevent": quarantined.pk,
            "usage_unresolvedcall": ledger.get(outcome="unresolved").pk,
            "usage_alert": alert.pk,
            "usage_alertsetting": setting.pk,
            "usage_webhook": hook.pk,
            "usage_alertdelivery": sent.pk,
            "tokens_apikey": key.pk,
            "gateway_provider": Provider.objects.first().pk,  # type: ignore[union-attr]
            "gateway_model": Model.objects.first().pk,  # type: ignore[union-attr]
        }

    def closed(self, books: Books) -> Statement:
        """The statement of a month that is over. What other tests have put aside may be anybody's."""
        QuarantinedEvent.objects.filter(resolved_at=None).update(resolved_at=now())
        last = now().replace(day=1) - dt.timedelta(days=3)
        record([books.event(day=last.date().isoformat(), of=request_id(last))])
        return close(look([books.tenant])[0], self.mark)

    def shown_in(self, text: str) -> bool:
        return self.mark in text


def patterns(urls: Any, prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Every URL of a resolver: its whole pattern and its name."""
    for pattern in urls:
        route = prefix + str(pattern.pattern)
        if hasattr(pattern, "url_patterns"):
            yield from patterns(pattern.url_patterns, route)
        else:
            yield route, pattern.name


def urls(victim: Victim) -> dict[str, str]:
    """The address of every URL by its name in `TABLE`, filled with the victim's ids."""
    found = {}
    for route, name in patterns(get_resolver("config.urls").url_patterns):
        match = re.match(r"admin/(tokens|usage|gateway)/(\w+)/", route)
        table = f"{match[1]}_{match[2]}" if match else ""
        key = name or (f"{table}_" if match else route)
        path = route.replace("<path:content_type_id>", str(ContentType.objects.get_for_model(victim.tenant).pk))
        path = path.replace("<path:object_id>", str(victim.objects.get(table, victim.tenant.pk)))
        path = path.replace("<int:number>", str(victim.objects["usage_statement"])).replace("<slug:format>", "csv")
        path = path.replace("<uuid:job_id>", str(victim.job.pk))
        path = path.replace("<int:token_id>", str(victim.objects["tokens_proxytoken"]))
        path = path.replace("<id>", str(victim.user.pk)).replace("(?P<url>.*)$", "nothing/")
        path = re.sub(r"\^\(\?P<app_label>.*\)/\$", "usage/", path)
        query = {
            "autocomplete": f"?app_label=usage&model_name=usagerecord&field_name=tenant&term={victim.mark[:-1]}",
            "search": f"?s={victim.mark[:-1]}",
        }
        found[key] = f"/{path}{query.get(key, '')}"
    return found


def lists_of_one(victim: Victim) -> dict[str, str]:
    """The address of every list, by its name in `TABLE`, narrowed to the victim's row by its id: whatever rows others
    have left, it stands there or isn't shown. The address says nothing that `shown_in` looks for."""
    found = {}
    for model, one in site._registry.items():
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        query = urlencode({f"{one.opts.pk.name}__exact": victim.objects[name]})
        found[f"{name}_changelist"] = f"{reverse(f'admin:{name}_changelist')}?{query}"
    return found


@dataclass
class World:
    """A victim, and a browser for each role."""

    victim: Victim
    browsers: dict[str, Client]


def browser(role: str, tokens: dict[str, str], victim: Tenant, other: Tenant) -> Client:
    if role in tokens:
        return Client(headers={"X-Proxy-Token": tokens[role], "Authorization": f"Bearer {tokens[role]}"})
    client = Client()
    if role == "anonymous":
        return client
    user = User.objects.create_user(f"{uuid.uuid4().hex}@isolation.test")
    user.is_superuser, user.is_finance = role == "superuser", role == "finance"
    user.save()
    where, _, what = role.rpartition(" ")
    if what in {"viewer", "administrator"}:
        member = issuing.add_member(other if where == "strange" else victim, user.email)
        roles.set_role(member, what)
        if where == "suspended":
            stopping.suspend_member(member)
    client.force_login(user)
    return client


@pytest.fixture(scope="module")
def world(provider: Any, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock():
        victim = Victim()
        tokens = {}
        for role in ("own token", "another's token", "suspended token"):
            slug = f"isolated-{secrets.token_hex(6)}"
            tenant = issuing.create_tenant(slug, slug)
            _, tokens[role] = issuing.issue_token(issuing.add_member(tenant, f"{slug}@example.com"), name="test")
        stopping.suspend_tenant(slug, "tests")
        other = issuing.create_tenant(f"other-{secrets.token_hex(6)}", "Other")
        yield World(victim, {role: browser(role, tokens, victim.tenant, other) for role in ROLES})
        for row in victim.temporary:
            row.delete()


def body(answer: HttpResponseBase) -> str:
    if answer.streaming:
        return b"".join(answer).decode()
    return answer.content.decode(errors="replace")  # type: ignore[attr-defined, no-any-return]


def visit(world: World, role: str, address: str) -> tuple[int, str]:
    """A GET's status, and everything that its answer says."""
    answer = world.browsers[role].get(address)
    return answer.status_code, body(answer) + str(dict(answer.headers))


def test_every_url_has_its_row_and_every_row_its_url(world: World) -> None:
    assert urls(world.victim).keys() == TABLE.keys()


@pytest.mark.parametrize("role", ROLES)
def test_each_url_lets_in_whom_the_table_says_and_shows_nobody_elses(world: World, role: str) -> None:
    wrong = {}
    for name, address in (*urls(world.victim).items(), *lists_of_one(world.victim).items()):
        status, text = visit(world, role, address)
        if status != TABLE[name].of(role):
            wrong[name] = f"{status} and not {TABLE[name].of(role)}"
        elif role in MAY_NOT_SEE and world.victim.shown_in(text):
            wrong[name] = "shows the tenant"
    assert wrong == {}


@pytest.mark.parametrize("role", [role for role in ROLES if role not in {"administrator", "superuser"}])
def test_no_post_gets_in_or_changes_anything(world: World, role: str) -> None:
    before = world_state(world.victim)
    wrong = {}
    for name, address in urls(world.victim).items():
        if name in {"login", "logout", "password_change", ""}:
            continue  # everybody's own
        answer = world.browsers[role].post(address, {"post": "yes", "action": "selected_csv", "reason": "x"})
        if answer.status_code in LET_IN and TABLE[name].of(role) != 200:
            wrong[name] = str(answer.status_code)
        if role in MAY_NOT_SEE and world.victim.shown_in(body(answer)):
            wrong[name] = "shows the tenant"
    assert wrong == {}
    assert world_state(world.victim) == before


def world_state(victim: Victim) -> list[Any]:
    """What a POST could have changed of the victim."""
    tenant = type(victim.tenant).objects.get(pk=victim.tenant.pk)
    counted = [model.objects.count() for model in (User, Price, Provider, Model, UsageRecord)]
    return [tenant.status, tenant.version, list(tenant.tokens.values_list("status", "version")), *counted]


OF_TENANTS = {"tokens_tenant", "tokens_proxytoken", "tokens_membership"}
OF_TENANTS |= {"usage_dailyusage", "usage_unresolvedcall", "usage_usagerecord"}


@pytest.mark.parametrize("role", ["viewer", "administrator", "finance", "superuser"])
def test_the_tenant_is_seen_where_it_is(world: World, role: str) -> None:
    """The control of the searches above: the same search finds the names where they may stand."""
    addresses = urls(world.victim)
    models = OF_TENANTS | ({"usage_quarantinedevent"} if role in {"finance", "superuser"} else set())
    models |= {"tokens_user", "usage_alarm"} if role == "superuser" else set()
    for name in ("index", "autocomplete", "usage_dailyusage_csv", *(f"{model}_change" for model in models)):
        assert world.victim.shown_in(visit(world, role, addresses[name])[1]), name


def test_control_a_page_that_shows_everybody_everything_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dashboard.dashboard

    def careless(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
        """The landing page as it was before it asked for a permission."""
        asked = copy.copy(request)
        asked.user = User(is_superuser=True)
        return real(asked, context)

    monkeypatch.setattr(dashboard, "dashboard", careless)
    assert world.victim.shown_in(visit(world, "strange viewer", "/admin/")[1])


@pytest.mark.parametrize("page", [DailyUsageAdmin, UsageRecordAdmin, MemberAdmin, ProxyTokenAdmin])
def test_control_a_list_that_is_not_narrowed_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch, page: type[Any]
) -> None:
    address = lists_of_one(world.victim)[f"{page.__module__.split('.')[0]}_{site_model(page)}_changelist"]
    status, text = visit(world, "strange viewer", address)
    assert (status, world.victim.shown_in(text)) == (200, False), "neither the address nor the page around the list"
    monkeypatch.setattr(OwnRows, "limited", lambda *asked: asked[2])
    assert world.victim.shown_in(visit(world, "strange viewer", address)[1])


def site_model(page: type[Any]) -> str:
    return next(str(model._meta.model_name) for model, one in site._registry.items() if type(one) is page)


def test_control_a_permission_too_many_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "FINANCE", roles.FINANCE | {"usage.view_alarm"})
    status, text = visit(world, "finance", urls(world.victim)["usage_alarm_change"])
    assert status != TABLE["usage_alarm_change"].of("finance")
    assert world.victim.shown_in(text)


def test_control_a_url_without_a_row_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TABLE, "usage_alarm_change")
    assert urls(world.victim).keys() != TABLE.keys()


# The API: a path, and what it gives to each caller. A signed image URL is a bearer's by design.

CALLERS = ("nobody", "own token", "another's token", "suspended token", "superuser's session")
API_TABLE: dict[str, tuple[int, ...]] = {
    "generate-image": (403, 200, 200, 403, 403),
    "image": (403, 403, 403, 403, 403),  # without its signature
    "healthz": (200, 200, 200, 200, 200),
    "readyz": (200, 200, 200, 200, 200),
    "metrics": (404, 404, 404, 404, 404),  # from elsewhere; to this machine they name no tenant
}


@dataclass
class Api:
    """Three tenants of names that are nobody else's, and an image of the second."""

    gateway: Gateway
    ours: Customer
    theirs: Customer
    headers: dict[str, dict[str, str]]
    image: str

    def ask(self, name: str, caller: str) -> httpx.Response:
        sent = {"X-Forwarded-For": "203.0.113.7", **self.headers[caller]}
        if name == "generate-image":
            content = {"Content-Type": "application/json"}
            return self.gateway.client.post(self.gateway.url + PATH, json=SMALL, headers={**sent, **content})
        path = self.image.partition("?")[0] if name == "image" else f"{self.gateway.url}/{name}"
        return self.gateway.client.get(path, headers=sent)


@pytest.fixture
def api(gateway: Gateway, make_customer: Callable[..., Customer], admin: Client) -> Api:
    ours, theirs, suspended = make_customer(), make_customer(), make_customer()
    ours.limit("images:50/day", "requests:40/hour")
    theirs.limit("images:7/day", "tokens:70000/month", "concurrent:3")
    stopping.suspend_tenant(suspended.tenant.slug, "tests")
    image = assert_images(gateway.post(theirs.secret, SMALL))["data"][0]["url"]
    session = f"sessionid={admin.cookies['sessionid'].value}"
    tokens = dict(zip(CALLERS[1:4], (ours.secret, theirs.secret, suspended.secret), strict=True))
    headers = {caller: {"X-Proxy-Token": secret} for caller, secret in tokens.items()}
    return Api(gateway, ours, theirs, {"nobody": {}, "superuser's session": {"Cookie": session}, **headers}, image)


def names_of(customer: Customer) -> list[str]:
    """What nobody else may read: slug (and e-mail address), the token's first characters and the token."""
    return [customer.tenant.slug, customer.secret[:12], customer.secret]


def test_each_path_of_the_api_gives_each_caller_what_the_table_says(api: Api) -> None:
    assert API_TABLE.keys() == {name for _, name in patterns(get_resolver("gateway.urls").url_patterns)}
    for (name, expected), (number, caller) in itertools.product(API_TABLE.items(), enumerate(CALLERS)):
        answer = api.ask(name, caller)
        assert answer.status_code == expected[number], (name, caller)
        told = answer.text + str(answer.headers)
        for customer in (api.ours, api.theirs):
            assert not [word for word in names_of(customer) if word in told], (name, caller)


def test_the_figures_for_prometheus_name_no_tenant(api: Api) -> None:
    text = api.gateway.client.get(f"{api.gateway.url}/metrics").text
    assert "gateway_requests_total" in text
    for customer in (api.ours, api.theirs):
        assert not [word for word in names_of(customer) if word in text]
    assert "tenant" not in text


def test_limits_and_what_is_left_are_ones_own(api: Api) -> None:
    ours, theirs = (api.gateway.post(customer.secret, SMALL) for customer in (api.ours, api.theirs))
    assert (ours.headers["x-ratelimit-limit-images"], ours.headers["x-ratelimit-remaining-images"]) == ("50", "49")
    assert (theirs.headers["x-ratelimit-limit-images"], theirs.headers["x-ratelimit-remaining-images"]) == ("7", "5")
    assert "x-ratelimit-limit-tokens" not in ours.headers
    assert "concurrent" not in ours.headers["ratelimit-policy"]
    assert "x-ratelimit-limit-requests" not in theirs.headers
    for _ in range(2):
        api.gateway.post(api.theirs.secret, {**SMALL, "n": 4})
    assert_error(api.gateway.post(api.theirs.secret, {**SMALL, "n": 4}), 429, "quota_exceeded")
    assert_images(api.gateway.post(api.ours.secret, {**SMALL, "n": 4}), 4)


def test_an_idempotency_key_is_ones_own(api: Api) -> None:
    key = {"Idempotency-Key": f"shared-{uuid.uuid4().hex}"}
    theirs = api.gateway.post(api.theirs.secret, SMALL, **key)
    ours = api.gateway.post(api.ours.secret, SMALL, **key)
    assert "idempotent-replayed" not in ours.headers
    assert drawings(api.gateway, ours) == drawings(api.gateway, theirs) == 1
    assert assert_images(ours)["data"][0]["url"] != assert_images(theirs)["data"][0]["url"]
    assert_images(api.gateway.post(api.ours.secret, {**SMALL, "n": 2}, **{"Idempotency-Key": "other"}), 2)
    other = api.gateway.post(api.theirs.secret, SMALL, **{"Idempotency-Key": "other"})
    assert_images(other)  # not 422: the other body was another token's
    second = issuing.issue_token(api.theirs.member, name="second")[1]
    assert "idempotent-replayed" not in api.gateway.post(second, SMALL, **key).headers


def test_an_image_needs_its_own_signature(api: Api) -> None:
    client, mine = api.gateway.client, api.gateway.post(api.ours.secret, SMALL).json()["data"][0]["url"]
    assert client.get(api.image).status_code == 200, "whoever holds the URL may see it: by design"
    path, _, query = api.image.partition("?")
    for wrong in (path, f"{path}?{mine.partition('?')[2]}", f"{path}?{query[:-1]}", f"{path}?{query}x"):
        answer = client.get(wrong, headers={"X-Proxy-Token": api.ours.secret})
        assert_error(answer, 403, "not_allowed")


def test_the_books_of_each_tenant_are_its_own(api: Api) -> None:
    before = len(rows(api.theirs))
    answer = api.gateway.post(api.ours.secret, SMALL)
    (row,) = rows(api.ours)
    assert (str(row.request_id), row.token_id) == (answer.headers["x-request-id"], api.ours.token.pk)
    assert len(rows(api.theirs)) == before
