"""Who may see and do what in the admin: the one place that says so.

A platform administrator (`User.is_superuser`) may do everything. Everybody else may do what `MAY` says of their
roles, and nothing by default: finance (`User.is_finance`) with the rows of all tenants, a tenant's administrators and
viewers (`Membership.role`) with those of that tenant. A suspended member has no role; of a suspended tenant its
administrators are viewers. Pages ask through Django's permissions (`RoleBackend`) and narrow their rows by `narrow`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser
from django.db import models, transaction
from django.db.models import BooleanField, Exists, ExpressionWrapper, OuterRef, Q, QuerySet
from django.db.models.signals import post_delete, post_save

from tokens.errors import Refused
from tokens.models import Membership, Role, Status, Tenant, User

ModelT = TypeVar("ModelT", bound=models.Model)

HOLDS_ROLE = Q(status=Status.ACTIVE) & ~Q(role=Role.MEMBER)  # a member who has a role now


class Powers(NamedTuple):
    """What each role may do with the rows of one model: any of view, add, change, delete."""

    viewer: str = ""
    administrator: str = ""
    finance: str = ""


MAY = {
    #                           a tenant's viewer, its administrator,        finance
    "tokens.tenant": Powers("view", "view change", "view"),
    "tokens.membership": Powers("view", "view add change", "view"),
    "tokens.proxytoken": Powers("view", "view add change", "view"),
    "tokens.limit": Powers("view", "view add change delete", "view"),
    "tokens.plan": Powers(finance="view"),
    "tokens.planlimit": Powers(finance="view"),
    "tokens.auditentry": Powers("view", "view", "view"),
    "usage.dailyusage": Powers("view", "view", "view"),
    "usage.usagerecord": Powers("view", "view", "view"),
    "usage.unresolvedcall": Powers("view", "view", "view"),
    "usage.quarantinedevent": Powers(finance="view"),
    "usage.price": Powers(finance="view"),
    "usage.statement": Powers("view", "view", "view add"),  # adding one is closing a month
    "usage.savedreport": Powers(*["view add change delete"] * 3),  # one's own; usage.admin.savedpages
    "usage.alertsetting": Powers("view", "view add change delete", "view"),
    "usage.webhook": Powers("", "view add change delete", "view"),
    "usage.alert": Powers("view", "view", "view"),
    "usage.alertdelivery": Powers("view", "view", "view"),
    "tokens.apikey": Powers("", "view add change", "view"),
}


def _permissions(role: str) -> frozenset[str]:
    named = ((name.split("."), getattr(powers, role).split()) for name, powers in MAY.items())
    return frozenset(f"{app}.{verb}_{model}" for (app, model), verbs in named for verb in verbs)


VIEWER, ADMINISTRATOR, FINANCE = (_permissions(role) for role in Powers._fields)


@dataclass(frozen=True, slots=True)
class Rights:
    """What one person may do: of `administers` and `views` each holds the ids of tenants, a tenant is in one of them.

    A permission is named as Django names it, such as "tokens.change_proxytoken".
    """

    platform: bool = False
    finance: bool = False
    administers: frozenset[int] = frozenset()
    views: frozenset[int] = frozenset()

    def permissions(self) -> set[str]:
        """Every permission they have for some row; a platform administrator isn't asked."""
        given = ((self.finance, FINANCE), (self.administers, ADMINISTRATOR), (self.views, VIEWER))
        return {permission for has, permissions in given if has for permission in permissions}

    def tenants(self, permission: str) -> frozenset[int] | None:
        """The ids of the tenants with whose rows they may do that. None: of all, and with the platform's own rows."""
        if self.platform or (self.finance and permission in FINANCE):
            return None
        administers = self.administers if permission in ADMINISTRATOR else frozenset[int]()
        return administers | self.views if permission in VIEWER else administers

    def may(self, permission: str, tenant_id: int | None) -> bool:
        """Whether they may do that with a row of this tenant; None: a row that is the platform's own."""
        tenants = self.tenants(permission)
        return tenants is None or tenant_id in tenants


NONE = Rights()


def rights_of(user: User | AnonymousUser) -> Rights:
    """What a person may do, read once for each copy of their row: within one request all ask the same copy."""
    if not isinstance(user, models.Model) or not user.is_active:
        return NONE
    known: Rights | None = getattr(user, "_rights", None)
    if known is None:
        known = user._rights = _read_rights(user)  # type: ignore[attr-defined]
    return known


def _read_rights(user: User) -> Rights:
    if user.is_superuser:
        return Rights(platform=True)
    administers: set[int] = set()
    views: set[int] = set()
    held = user.memberships.filter(HOLDS_ROLE).order_by()
    for tenant_id, role, status in held.values_list("tenant_id", "role", "tenant__status"):
        full = role == Role.ADMINISTRATOR and status == Status.ACTIVE
        (administers if full else views).add(tenant_id)
    return Rights(finance=user.is_finance, administers=frozenset(administers), views=frozenset(views))


def is_platform(user: Any) -> bool:
    """Whether this is a platform administrator."""
    return rights_of(user).platform


def sees_margins(user: Any) -> bool:
    """Whether they see what providers ask and what is left of it: the platform's own people, never a tenant's."""
    return rights_of(user).tenants("usage.view_price") is None


def sees_staff(user: Any) -> bool:
    """Whether they see which of the platform's people did something, and from where: the platform's own people do."""
    return rights_of(user).tenants("tokens.view_auditentry") is None


def narrow(queryset: QuerySet[ModelT], user: Any, permission: str, tenant_field: str | None) -> QuerySet[ModelT]:
    """Of these rows those with which the person may do that.

    `tenant_field` leads from a row to its tenant's id; None: rows that are the platform's own.
    """
    tenants = rights_of(user).tenants(permission)
    if tenants is None:
        return queryset
    return queryset.filter(**{f"{tenant_field}__in": tenants}) if tenant_field and tenants else queryset.none()


def visible_tenants(user: Any) -> QuerySet[Tenant]:
    """The tenants that a person may look at."""
    return narrow(Tenant.objects.all(), user, "tokens.view_tenant", "pk")


class RoleBackend(ModelBackend):
    """Signs people in with their password, and gives them what their roles give: no permission is granted otherwise.

    Whether a permission holds for one row is asked of `Rights.may`; here it holds when it does for some.
    """

    def get_user_permissions(self, user_obj: Any, obj: models.Model | None = None) -> set[str]:
        """What `MAY` says."""
        return rights_of(user_obj).permissions() if obj is None else set()

    async def aget_user_permissions(self, user_obj: Any, obj: models.Model | None = None) -> set[str]:
        """The same for asynchronous code."""
        return await sync_to_async(self.get_user_permissions)(user_obj, obj)

    def get_group_permissions(self, user_obj: Any, obj: models.Model | None = None) -> set[str]:
        """None: there are no groups."""
        return set()

    async def aget_group_permissions(self, user_obj: Any, obj: models.Model | None = None) -> set[str]:
        """None."""
        return set()


def in_words(user: User) -> list[str]:
    """A person's roles now, such as "Finance" and "Viewer of acme". Their memberships may have been fetched before."""
    found = ["Platform administrator"] if user.is_superuser else []
    found += ["Finance"] if user.is_finance else []
    held = [one for one in user.memberships.all() if one.role and one.status == Status.ACTIVE]
    return found + [f"{one.role.capitalize()} of {one.tenant.slug}" for one in held]


# Giving and taking roles


def set_role(member: Membership, role: str, by: User | None = None) -> None:
    """Give a member another role. `by`: the person who asks, None for the command line.

    Raises Refused for what `by` may not, see `require_right_over`.
    """
    with transaction.atomic():
        require_right_over(member, by)
        member.role = Role(role)
        member.save(update_fields=["role"])


def require_right_over(member: Membership, by: User | None) -> None:
    """Within a transaction: refuse whoever may not take a member's rights away, and let nobody else try until its end.

    A tenant's administrators can't do so to themselves. So there is always one left, even when two of them act on
    each other at once: the second one has no right any more. Raises Refused.
    """
    if by is None or by.is_superuser:
        return
    Tenant.objects.select_for_update(no_key=True).get(pk=member.tenant_id)
    if not _read_rights(by).may("tokens.change_membership", member.tenant_id):
        raise Refused("You are no longer an administrator of this tenant.")
    if member.user_id == by.pk:
        raise Refused("Nobody takes their own rights away: ask another administrator.")


def _let_in(user_id: int) -> None:
    """Whoever has a role may enter the admin."""
    held = Exists(Membership.objects.filter(HOLDS_ROLE, user=OuterRef("pk")))
    may = ExpressionWrapper(Q(is_superuser=True) | Q(is_finance=True) | held, output_field=BooleanField())
    User._base_manager.filter(pk=user_id).update(is_staff=may)  # it follows from what is audited


def _user_saved(instance: User, created: bool, update_fields: Any = None, **_kwargs: Any) -> None:
    if created and not (instance.is_superuser or instance.is_finance or instance.is_staff):
        return  # somebody who only owns tokens, as nearly everybody does
    if update_fields is None or not {"is_superuser", "is_finance", "is_staff"}.isdisjoint(update_fields):
        _let_in(instance.pk)
        instance.refresh_from_db(fields=["is_staff"])


def _member_changed(instance: Membership, created: bool = False, **_kwargs: Any) -> None:
    if not created or instance.role:
        _let_in(instance.user_id)


post_save.connect(_user_saved, sender=User)
for _signal in (post_save, post_delete):
    _signal.connect(_member_changed, sender=Membership)
