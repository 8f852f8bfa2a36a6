"""What is looked at every minute for alarms, each by a function of its own: {subject: message} of what is wrong now."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import redis
from django.conf import settings
from django.db import OperationalError
from django.db.models import Sum
from django.utils.timezone import now

from config.redis import store
from tokens.admission import keys
from tokens.admission.memory import share_in_use
from usage import drain
from usage.alarms import AlarmKind, clear_alarms, raise_alarm
from usage.models import DailyUsage, QuarantinedEvent, UnsettledCall, UsageRecord
from usage.partitions import least_request_id
from usage.unresolved import still_unresolved

logger = logging.getLogger(__name__)

UNDECIDED_DAYS = 7
WAITING_MINUTES = 5
COUNTED = 1_000  # no more are counted
FILLING = 5 / 6  # of MEMORY_LIMIT_SHARE: there is time left to act before calls are refused
Findings = Mapping[str, str]


def check() -> None:
    """Run every check, open and close alarms. One that fails keeps its alarms as they are, and no other from running.

    Raises django.db.OperationalError when the alarms can't be kept; they are in the log then.
    """
    failure: OperationalError | None = None
    for kind, look in CHECKS.items():
        try:
            findings = look()
            for subject, message in findings.items():
                raise_alarm(kind, subject, message)
            clear_alarms(kind, findings)
        except redis.RedisError:
            logger.warning("The store is out of reach, the alarm %s wasn't looked at", kind.value)
        except OperationalError as exc:
            failure = exc
        except Exception:  # whatever surprises one check, the others are looked at
            logger.exception("The alarm %s can't be looked at", kind.value)
    if failure is not None:
        raise failure


def store_down() -> Findings:
    """The store doesn't answer this process either."""
    try:
        store().ping()
    except redis.RedisError:
        return {"": "The admission store doesn't answer. Nobody is admitted; usage goes to PostgreSQL or the spool."}
    return {}


def store_fenced() -> Findings:
    """The store has no generation: it was emptied or rolled back, and the guardian has fenced it."""
    pipeline = store().pipeline(transaction=True)
    for shard in range(settings.SHARDS):
        pipeline.hget(keys.meta(shard), "generation")
    if all(pipeline.execute()):
        return {}
    return {"": "The admission store lost data. Nobody is admitted until it is rebuilt from the ledger."}


def store_full() -> Findings:
    """So much of the store's memory is used that new calls will soon be refused, or are already."""
    share, most = share_in_use(store().info("memory")), settings.MEMORY_LIMIT_SHARE
    if share <= most * FILLING:
        return {}
    return {"": f"{share:.0%} of the admission store's memory is used; above {most:.0%} new calls are refused."}


def backlog() -> Findings:
    """Usage events that wait for long, or so many that admissions will be shed."""
    seconds = drain.oldest_seconds()
    if seconds > settings.LAG_LIMIT_SECONDS:
        return {"": f"Usage events have waited for {seconds:,.0f} s: is the worker running, is PostgreSQL up?"}
    pipeline = store().pipeline(transaction=False)
    for stream in drain.streams():
        pipeline.xlen(stream)
    count = sum(pipeline.execute())
    if count > settings.BACKLOG_LIMIT / 2:
        return {"": f"{count:,} usage events wait; at {settings.BACKLOG_LIMIT:,} calls are refused."}
    return {}


def quarantine() -> Findings:
    """Events that couldn't be booked and that nobody has dealt with."""
    count = QuarantinedEvent.objects.filter(resolved_at=None)[:COUNTED].count()
    return (
        {"": f"{_many(count, 'usage event')} in quarantine: usage that isn't in the books as it came."} if count else {}
    )


def unresolved_old() -> Findings:
    """Unresolved calls that nobody has decided on for a week."""
    if not unresolved_calls():
        return {}
    before = now() - timedelta(days=UNDECIDED_DAYS)
    # By the request id, too, which finds the partitions; a day later, since that bound is a midnight.
    old = UsageRecord.objects.filter(at__lt=before, request_id__lt=least_request_id(before.date() + timedelta(days=1)))
    count = still_unresolved(old).order_by()[:COUNTED].count()
    text = f"{_many(count, 'call')} unresolved for more than {UNDECIDED_DAYS} days: held at the estimate, not invoiced."
    return {"": text} if count else {}


def unresolved_calls() -> int:
    """The calls that are unresolved now, from the rollups: the ledger isn't counted."""
    return int(DailyUsage.objects.aggregate(count=Sum("unresolved_requests"))["count"] or 0)


def unsettled_old() -> Findings:
    """Calls that were booked without the store and that it hasn't taken since."""
    before = now() - timedelta(minutes=WAITING_MINUTES)
    count = UnsettledCall.objects.filter(at__lt=before)[:COUNTED].count()
    text = f"{_many(count, 'booked call')} unknown to the store for over {WAITING_MINUTES} minutes: quota isn't freed."
    return {"": text} if count else {}


def spool() -> Findings:
    """Files of usage that nobody has replayed, or that can't be read."""
    oldest = time.time() - WAITING_MINUTES * 60
    waiting = bad = 0
    for path in settings.SPOOL_ROOT.glob("*"):
        if path.suffix == ".bad":
            bad += 1
        elif not path.name.startswith("."):
            try:
                waiting += path.stat().st_mtime < oldest
            except FileNotFoundError:  # replayed just now
                continue
    texts = (
        [f"{_many(waiting, 'file')} waiting in the spool for more than {WAITING_MINUTES} minutes."] if waiting else []
    )
    texts += [f"{_many(bad, 'spool file')} can't be read."] if bad else []
    return {"": " ".join(texts)} if texts else {}


class _Model(msgspec.Struct):
    name: str
    sizes: dict[str, int]


class _Catalog(msgspec.Struct):
    """What is read of the published catalog."""

    models: list[_Model]


def bound_exceeded() -> Findings:
    """Models whose provider has charged more than the bound that they still have."""
    raw: Any = store().get(keys.CATALOG)
    exceeded: Any = store().hgetall(keys.EXCEEDED)
    if not (raw and exceeded):
        return {}
    found = {}
    for model in msgspec.json.decode(raw, type=_Catalog).models:
        for size, bound in model.sizes.items():
            if bound <= int(exceeded.get(f"{model.name}:{size}".encode(), -1)):
                found[f"{model.name} {size}"] = (
                    f"A {size} image of {model.name} cost more than its bound of {bound} tokens: raise the bound."
                    " Callers with a token limit get 503 for it until then."
                )
    return found


def _many(count: int, noun: str) -> str:
    number = f"{COUNTED:,} or more" if count >= COUNTED else f"{count:,}"
    return f"{number} {noun}{'' if count == 1 else 's'}"


CHECKS: dict[AlarmKind, Callable[[], Findings]] = {
    AlarmKind.STORE_DOWN: store_down,
    AlarmKind.STORE_FENCED: store_fenced,
    AlarmKind.STORE_FULL: store_full,
    AlarmKind.BACKLOG: backlog,
    AlarmKind.QUARANTINE: quarantine,
    AlarmKind.UNRESOLVED_OLD: unresolved_old,
    AlarmKind.UNSETTLED_OLD: unsettled_old,
    AlarmKind.SPOOL: spool,
    AlarmKind.BOUND_EXCEEDED: bound_exceeded,
}
