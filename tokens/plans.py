"""Plans at work: the limits that a tenant has from its plan, kept equal to what the plan says.

They are rows like any other limit, marked `from_plan`, so whatever reads limits needs to know of no plan. A limit of
the tenant's own overrides the plan's of the same metric and period, and the plan's returns when it is removed. Which
version of its plan a tenant follows stands in its row: a change of a plan reaches its tenants one after the other, each
through the outbox, and a task goes on where a process has ended.
"""

from collections.abc import Iterable, Mapping

from django.db import transaction
from django.db.models import F, ProtectedError, Q, QuerySet

from tokens import actors, issuing, limits
from tokens.errors import Refused
from tokens.limits import LimitText
from tokens.models import Limit, Plan, PlanLimit, Tenant
from tokens.planrow import PlanScope, limits_given

AT_ONCE = 200  # tenants that follow while somebody waits: some seconds
IN_BACKGROUND = 100  # tenants that follow in one run of the task, which comes every two seconds

BEHIND = Q(plan_version=None) | (Q(plan__isnull=False) & ~Q(plan_version=F("plan__version")))


def behind() -> QuerySet[Tenant]:
    """The tenants whose limits are not yet what their plan says."""
    return Tenant.objects.filter(BEHIND).order_by("pk")


def follow(tenant_id: int) -> None:
    """Bring a tenant's limits to what its plan says; it publishes after the commit, as every change of limits does."""
    with transaction.atomic():
        tenant = Tenant.objects.select_for_update(no_key=True).get(pk=tenant_id)
        # Always after the tenant: whoever changes the plan meanwhile is waited for, and waits for no tenant.
        rows = Plan.objects.select_for_update(no_key=True)
        plan = rows.get(pk=tenant.plan_id) if tenant.plan_id is not None else None
        wanted = limits_given(plan, PlanScope.TENANT)
        why = f"plan {plan.name}" if plan is not None else "no longer has a plan"
        with actors.acting_as(actors.current(), why):
            for row in issuing.limits_of(tenant):
                given = wanted.pop(row.text().name, None)
                if row.from_plan:
                    _bring_to(row, given)
            for text in wanted.values():
                _write(Limit(tenant=tenant, metric=text.metric, period=text.period, from_plan=True), text)
        Tenant.objects.filter(pk=tenant.pk).update(plan_version=0 if plan is None else plan.version)


def _bring_to(row: Limit, given: LimitText | None) -> None:
    if given is None:
        row.delete()
    elif row.text() != given:
        _write(row, given)


def _write(row: Limit, text: LimitText) -> None:
    row.amount, row.burst = text.amount, text.burst
    row.save()


def follow_if_behind(tenant_id: int) -> None:
    """The same where there is something to do."""
    if behind().filter(pk=tenant_id).exists():
        follow(tenant_id)


def follow_all(most: int | None = None) -> int:
    """Bring the tenants that are behind to their plans, at most so many, each in a transaction of its own; how many."""
    ids = list(behind().values_list("pk", flat=True)[:most])
    for tenant_id in ids:
        follow(tenant_id)
    return len(ids)


# What the command line does with plans; the admin's forms write the same rows.

Texts = Mapping[PlanScope, Iterable[str]]


@transaction.atomic
def create(name: str, description: str, texts: Texts) -> Plan:
    """A new plan with limits such as ``images:500/day``. Raises Refused and ValidationError."""
    plan = Plan(name=name.strip(), description=description)
    plan.full_clean()
    plan.save()
    set_limits(plan, texts)
    return plan


@transaction.atomic
def set_limits(plan: Plan, texts: Texts) -> None:
    """Set limits of a plan, each in place of the one of the same name. Its tenants are to follow. Raises Refused."""
    Plan.objects.select_for_update(no_key=True).get(pk=plan.pk)
    for scope, given in texts.items():
        for text in map(limits.parse, given):
            what = {"scope": scope, "metric": text.metric, "period": text.period}
            row = plan.limits.filter(**what).first() or PlanLimit(plan=plan, **what)
            if row.pk is None or row.text() != text:
                row.amount, row.burst = text.amount, text.burst
                row.full_clean()
                row.save()


@transaction.atomic
def remove_limits(plan: Plan, names: Texts) -> None:
    """Remove limits of a plan by name, such as ``images/day``. Raises Refused for one that it doesn't have."""
    Plan.objects.select_for_update(no_key=True).get(pk=plan.pk)
    for scope, given in names.items():
        for name in given:
            metric, period = limits.parse_name(name)
            row = plan.limits.filter(scope=scope, metric=metric, period=period).first()
            if row is None:
                raise Refused(f"The plan has no limit {name} to remove.")
            row.delete()


def assign(tenant: Tenant, plan: Plan | None) -> None:
    """Give a tenant a plan, or none, and bring its limits to it."""
    tenant.plan = plan
    tenant.save(update_fields=["plan"])
    follow_if_behind(tenant.pk)


def delete(plan: Plan) -> None:
    """Delete a plan. Raises Refused while tenants have it."""
    try:
        plan.delete()
    except ProtectedError as exc:
        tenants = plan.tenants.count()
        has, them = ("A tenant has", "it") if tenants == 1 else (f"{tenants} tenants have", "them")
        raise Refused(f"{has} the plan {plan.name}: give {them} another one first.") from exc
