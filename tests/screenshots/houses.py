"""Who is in the pictures: tenants with their plans, people and tokens. Names and addresses are made up."""

import datetime as dt
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from django.utils.timezone import now

from tests.adminpages import PASSWORD
from tests.bookkeeping import Customer
from tokens import issuing, plans, stopping
from tokens.actors import Actor, Way, acting_as
from tokens.limits import parse
from tokens.models import Membership, Plan, PlanLimit, ProxyToken, Role, Tenant, User
from tokens.roles import set_role

ADMINISTRATOR, FINANCE = "lena.hartmann@gemheaven.example", "paul.weber@gemheaven.example"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
PLANS = {
    "Starter": (["requests:30/minute", "images:150/day", "concurrent:4"], ["images:100/day"]),
    "Studio": (["requests:120/minute", "images:600/day", "images:12000/month", "concurrent:16"], ["images:400/day"]),
    "Enterprise": (["requests:600/minute", "images:5000/day", "concurrent:64"], ["images:2000/day"]),
}
# Short name, name, time zone, plan, calls on a usual day, members, tokens.
HOUSES = [
    ("aurora", "Aurora Studios", "Europe/Berlin", "Studio", 70, "mara.voss jonas.lind", "campaigns web-shop nightly"),
    ("bluebird", "Bluebird Travel", "Europe/London", "Studio", 46, "edith.clarke", "brochures app-production"),
    ("cobalt", "Cobalt Games", "America/New_York", "Enterprise", 88, "sam.ortega lia.chen", "concept-art storefront"),
    ("dahlia", "Dahlia Publishing", "Europe/Paris", "Starter", 21, "claire.dubois", "covers"),
    ("everest", "Everest Outdoor", "America/Denver", "Starter", 26, "noah.reyes", "catalogue social-media"),
    ("fjord", "Fjord Interiors", "Europe/Oslo", "Studio", 33, "ingrid.moen", "room-planner"),
    ("harbor", "Harbor & Pine", "America/Chicago", "Starter", 15, "grace.hill", "shop old-shop"),
    ("kiko", "Kiko Toys", "Asia/Tokyo", "Studio", 38, "yuki.tanaka", "packaging app-production"),
]
ENDING_SOON, WITHOUT_END = "nightly", "web-shop"


@dataclass
class House(Customer):
    """A tenant of the pictures; `busy` is how many calls it makes on a usual day."""

    busy: int = 0

    def __post_init__(self) -> None:
        """It is given a tenant of its own by `make_houses`."""

    @cached_property
    def tokens(self) -> list[ProxyToken]:
        """Its tokens, the busiest first."""
        found = ProxyToken.objects.filter(tenant=self.tenant).select_related("member", "tenant")
        return list(found.prefetch_related("secrets").order_by("id"))


def acting(email: str) -> AbstractContextManager[None]:
    """Within this, what is changed was changed by that person in the admin, as the audit trail tells."""
    user = User.objects.get(email=email)
    return acting_as(Actor(email, Way.ADMIN.value, user.pk, f"203.0.113.{20 + user.pk % 200}", FIREFOX))


def make_houses() -> list[House]:
    """The gateway's own people, the plans, and every tenant: an administrator first, then perhaps a viewer."""
    User.objects.create_superuser(ADMINISTRATOR, PASSWORD)
    User.objects.create_user(FINANCE, PASSWORD, is_finance=True)
    with acting(ADMINISTRATOR):
        for name, scopes in PLANS.items():
            _make_plan(name, *scopes)
        return [_make(*house) for house in HOUSES]


def _make_plan(name: str, tenant: list[str], token: list[str]) -> None:
    plan = Plan.objects.create(name=name, description=f"{tenant[1].partition(':')[2].replace('/', ' images a ')}.")
    for scope, texts in (("tenant", tenant), ("token", token)):
        for text in map(parse, texts):
            limit = PlanLimit(plan=plan, scope=scope, metric=text.metric, period=text.period)
            limit.amount, limit.burst = text.amount, text.burst
            limit.save()


def _make(slug: str, name: str, zone: str, plan: str, busy: int, members: str, tokens: str) -> House:
    house = House(zone, busy=busy)
    tenant = issuing.create_tenant(slug, name, zone, origins=[f"https://www.{slug}.example"])
    tenant.plan = Plan.objects.get(name=plan)
    tenant.save()
    plans.follow_if_behind(tenant.pk)
    people = [issuing.add_member(tenant, f"{person}@{slug}.example") for person in members.split()]
    for member, role in zip(people, (Role.ADMINISTRATOR, Role.VIEWER), strict=False):
        set_role(member, role)
    house.tenant, house.member = Tenant.objects.get(pk=tenant.pk), people[0]
    for place, token_name in enumerate(tokens.split()):
        _issue(people[place % len(people)], token_name)
    house.token, house.model = house.tokens[0], "gem-1"
    house.secret = house.token.secrets.all()[0]
    return house


def _issue(member: Membership, name: str) -> None:
    ends = None if name == WITHOUT_END else now() + dt.timedelta(days=9 if name == ENDING_SOON else 68)
    token, _ = issuing.issue_token(member, name, expires_at=ends, created_by=ADMINISTRATOR)
    if name.startswith("old-"):
        stopping.revoke(token.pk, ADMINISTRATOR, "The old shop was switched off")
