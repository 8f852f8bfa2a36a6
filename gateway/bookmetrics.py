"""Figures that only PostgreSQL knows, read when they are asked for, over a connection that lives no longer.

Each is one look at a small or summed-up table; the ledger is never counted.
"""

from collections.abc import Iterator

import psycopg
from django.db import connection
from django.db.models import Model
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from usage.alarms import AlarmKind
from usage.models import Alarm, DailyUsage, QuarantinedEvent, UnsettledCall

CONNECT_SECONDS = 2
STATEMENT_MILLISECONDS = 2_000


def _table(model: type[Model]) -> str:
    return model._meta.db_table


QUARANTINED = f"SELECT count(*) FROM {_table(QuarantinedEvent)} WHERE resolved_at IS NULL"  # noqa: S608 - constants
UNRESOLVED = f"SELECT coalesce(sum(unresolved_requests), 0) FROM {_table(DailyUsage)}"  # noqa: S608 - constants
UNSETTLED = f"SELECT count(*) FROM {_table(UnsettledCall)}"  # noqa: S608 - constants
ALARMS = f"SELECT kind, count(*) FROM {_table(Alarm)} WHERE closed_at IS NULL GROUP BY kind"  # noqa: S608 - constants
GAUGES = {
    "gateway_quarantined_events": ("Usage events that couldn't be booked and nobody has dealt with", QUARANTINED),
    "gateway_unresolved_calls": ("Calls whose outcome isn't known to this day", UNRESOLVED),
    "gateway_unsettled_calls": ("Calls that are booked and that the store has yet to learn of", UNSETTLED),
}


class BookCollector(Collector):
    """What the books hold at the moment of asking."""

    def collect(self) -> Iterator[Metric]:
        """One figure each; with PostgreSQL out of reach only ``gateway_database_up 0``, after some seconds."""
        try:
            figures, alarms = read_books()
        except psycopg.Error:
            figures, alarms = {}, {}
        yield GaugeMetricFamily("gateway_database_up", "1 when PostgreSQL answers", float(bool(figures)))
        if not figures:
            return
        for name, value in figures.items():
            yield GaugeMetricFamily(name, GAUGES[name][0], value)
        gaps = "Runs of usage events that the store numbered and that never came into the ledger"
        yield GaugeMetricFamily("gateway_sequence_gaps", gaps, alarms.get(AlarmKind.SEQUENCE_GAP, 0))
        family = GaugeMetricFamily("gateway_alarms_open", "Open alarms", labels=["kind"])
        for kind in AlarmKind:
            family.add_metric([kind.value], alarms.get(kind, 0))
        yield family


def read_books() -> tuple[dict[str, float], dict[str, int]]:
    """The figures of `GAUGES`, and the number of open alarms by kind.

    Raises psycopg.Error when PostgreSQL doesn't answer, or not in time.
    """
    # Not Django's: this runs in any thread of a pool, and that thread's connection nobody would close.
    parameters = {**connection.get_connection_params(), "connect_timeout": CONNECT_SECONDS, "autocommit": True}
    with psycopg.connect(**parameters) as own, own.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, false)", [str(STATEMENT_MILLISECONDS)])
        figures = {}
        for name, (_, statement) in GAUGES.items():
            ((value,),) = cursor.execute(statement)
            figures[name] = float(value)
        cursor.execute(ALARMS)
        return figures, dict(cursor.fetchall())
