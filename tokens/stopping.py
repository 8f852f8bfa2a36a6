"""The verbs that end or pause a right to call: revoke, suspend, activate.

Revoking a token and suspending a tenant act in the admission store first: they are for emergencies, and once they
have answered no admission succeeds, with PostgreSQL or without it.
"""

import datetime as dt
import logging
from contextlib import AbstractContextManager
from functools import partial

from django.db import transaction
from django.utils.timezone import now

from tokens import actors, control, directory
from tokens.admission.connection import StoreUnavailable
from tokens.control import Order
from tokens.errors import DATABASE_DOWN, Refused
from tokens.models import Membership, ProxyToken, Status, Tenant, TokenStatus, User
from tokens.outbox import Entry, Kind
from tokens.roles import require_right_over

logger = logging.getLogger(__name__)


def revoke(token_id: int, by: str, reason: str = "") -> bool:
    """Revoke a token for good. When this returns, no admission with it succeeds, on any process.

    Returns True when the database has it, too; False when it is down: the store keeps the revocation until it is back.
    A token that is revoked already keeps the first revocation's date and reason.

    Raises:
        StoreUnavailable: nothing has changed, or the database has it and the store will when it is back.
        Refused: there is no such token.
    """
    order = Order(TokenStatus.REVOKED, now().timestamp(), by, reason, actors.current())
    entry = control.find_token(token_id)
    if entry is not None:
        control.carry_out(entry, order)
    try:
        token = _revoke_in_database(token_id, order)
    except DATABASE_DOWN as exc:
        if entry is None:
            raise Refused(f"The database is down, and the admission store knows no token {token_id}.") from exc
        return False
    if entry is not None:
        _forget_after_commit(entry, order)
    if token is None:
        raise Refused(f"There is no token {token_id}.")
    if entry is None:
        directory.publish([token.entry()])  # it was in the database only: the record is the tombstone
    return True


def _revoke_in_database(token_id: int, order: Order) -> ProxyToken | None:
    with transaction.atomic(), _as_ordered(order):
        token = ProxyToken.objects.select_for_update(no_key=True).filter(pk=token_id).first()
        if token is not None and token.status != TokenStatus.REVOKED:
            token.status = TokenStatus.REVOKED
            token.revoked_at = dt.datetime.fromtimestamp(order.at, dt.UTC)
            token.revoked_by, token.revoke_reason = order.by[:254], order.reason[:200]
            token.save(update_fields=["status", "revoked_at", "revoked_by", "revoke_reason"])
    return token


def _as_ordered(order: Order) -> AbstractContextManager[None]:
    """Within this, what is changed was ordered by whom and when the order says."""
    return actors.acting_as(order.actor, order.reason, dt.datetime.fromtimestamp(order.at, dt.UTC))


def suspend_tenant(slug: str, by: str) -> bool:
    """Suspend a tenant: when this returns, no admission of its tokens succeeds. Returns and raises as `revoke`."""
    order = Order(Status.SUSPENDED, now().timestamp(), by, actor=actors.current())
    database = True
    try:
        pk = Tenant.objects.filter(slug=slug).values_list("pk", flat=True).first()
        entry = None if pk is None else Entry(Kind.TENANT, pk, pk)
    except DATABASE_DOWN:
        database, entry = False, control.find_tenant(slug)
    if entry is None:
        raise Refused(f"There is no tenant {slug!r}.")
    known = control.carry_out(entry, order)
    if not database:
        return False
    try:
        _suspend_in_database(entry, order, ordered=known)
    except DATABASE_DOWN:
        return False
    if not known:
        directory.publish([entry])  # it was in the database only
    return True


def _suspend_in_database(entry: Entry, order: Order, *, ordered: bool) -> None:
    """Save the suspension; `ordered`: only while the store still holds the order, nobody has activated it since."""
    with transaction.atomic(), _as_ordered(order):
        tenant = Tenant.objects.select_for_update(no_key=True).filter(pk=entry.object_id).first()
        withdrawn = ordered and control.pending_order(entry) != order
        if tenant is not None and not withdrawn and tenant.status != Status.SUSPENDED:
            tenant.status = Status.SUSPENDED
            tenant.save(update_fields=["status"])
    if ordered:
        _forget_after_commit(entry, order)


def _forget_after_commit(entry: Entry, order: Order) -> None:
    """Once the database has it for certain: the caller may have a transaction of its own around the verb."""
    transaction.on_commit(partial(_forget, entry, order))


def _forget(entry: Entry, order: Order) -> None:
    try:
        control.forget(entry, order)
    except StoreUnavailable:
        # All that was asked for is done; carrying the order out once more changes nothing.
        logger.warning("An order stays in the admission store's control hash: the store did not answer.")


def activate_tenant(slug: str) -> Tenant:
    """Let a suspended tenant call again. Raises Refused; StoreUnavailable when that waits for the store."""
    with transaction.atomic():
        tenant = Tenant.objects.select_for_update(no_key=True).filter(slug=slug).first()
        if tenant is None:
            raise Refused(f"There is no tenant {slug!r}.")
        # Under the row's lock: a suspension that the database has yet to learn of must not come after this.
        version = control.withdraw(tenant.entry())
        tenant.status = Status.ACTIVE
        tenant.save(update_fields=["status"])
        tenant.raise_version(at_least=version + 1)
    directory.require_published(tenant)
    return tenant


def suspend_member(member: Membership, by: User | None = None) -> None:
    """Suspend a member: its tokens stop working, and it has no role in the admin. `by`: the person who asks.

    Raises Refused for what `by` may not (tokens.roles), StoreUnavailable when it works only when the store is back.
    """
    with transaction.atomic():
        require_right_over(member, by)
        _save_status(member, Status.SUSPENDED)
    directory.require_published(member)


def activate_member(member: Membership) -> None:
    """Let a suspended member call again. Raises StoreUnavailable as suspend_member."""
    _save_status(member, Status.ACTIVE)
    directory.require_published(member)


def _save_status(member: Membership, status: Status) -> None:
    member.status = status
    member.save(update_fields=["status"])


def apply_orders() -> int:
    """Make durable what was ordered in the store and the database has yet to learn of. Returns the number of orders.

    Raises StoreUnavailable, or OperationalError while the database is down.
    """
    count = 0
    for kind, number, order in control.pending_orders():
        if kind is Kind.TENANT:
            _suspend_in_database(Entry(kind, number, number), order, ordered=True)
        elif kind is Kind.TOKEN:
            _apply_revocation(number, order)
        count += 1
    return count


def _apply_revocation(token_id: int, order: Order) -> None:
    token = _revoke_in_database(token_id, order)
    entry = token.entry() if token is not None else control.find_token(token_id)
    if entry is not None:
        _forget_after_commit(entry, order)
