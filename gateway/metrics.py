"""Figures for Prometheus: counted in each process, added up when they are asked for.

With ``PROMETHEUS_MULTIPROC_DIR`` set, every process keeps its figures in files of that folder and any of them answers
for all; without it a process knows its own alone. What only the admission store knows (backlog, open reservations) is
read from it at that moment. Every name is explained in docs/operations.md.
"""

import asyncio
import hmac
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from config import addresses
from config.redis import store
from gateway import metricfiles
from gateway.bookmetrics import BookCollector
from gateway.errors import NotFound
from tokens.admission import keys

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

Event = Literal["settle_booked", "settle_spooled", "estimate_exceeded", "unresolved"]
EVENTS: dict[Event, str] = {
    "settle_booked": "Calls whose usage went straight into the ledger: the store was out of reach",
    "settle_spooled": "Calls whose usage went to the spool: store and PostgreSQL were out of reach",
    "estimate_exceeded": "Calls whose provider reported more tokens than the model's upper bound",
    "unresolved": "Calls that were dispatched and whose outcome isn't known",
}
STORE_GAUGES = {
    "gateway_backlog_events": "Usage events that aren't in the ledger yet",
    "gateway_backlog_oldest_seconds": "Age of the oldest of them",
    "gateway_backlog_pending": "Events that a worker has taken and not finished",
    "gateway_reservations_open": "Admitted calls that haven't ended",
    "gateway_reservations_overdue": "Those of them whose lease is over",
}
LEASES_ENDED = "gateway_leases_ended_total"


class Book:
    """The figures of this process, and the cached children that the request path adds to."""

    def __init__(self) -> None:
        self.folder = os.environ.get(FOLDER_VARIABLE)
        if self.folder:
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            values.ValueClass = values.MultiProcessValue(metricfiles.process_identifier)  # type: ignore[no-untyped-call]
        # Otherwise one process alone shows a `_created` series for each counter, several together show none.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gateway_requests", "Answered requests", ["route", "status", "type"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "gateway_request_seconds", "Time to answer", ["route"], registry=self.registry, buckets=SECONDS
        )
        self.upstream = Counter(
            "gateway_upstream_calls", "Calls to providers", ["model", "outcome"], registry=self.registry
        )
        self.upstream_seconds = Histogram(
            "gateway_upstream_seconds", "Time a provider took", ["model"], registry=self.registry, buckets=SECONDS
        )
        self.in_flight = Gauge(
            "gateway_in_flight", "Calls being answered", registry=self.registry, multiprocess_mode="livesum"
        )
        self.breaker = Gauge(
            "gateway_breaker_open",
            "1 while calls of a provider that is down are refused",
            ["provider"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.events = {name: Counter(f"gateway_{name}", text, registry=self.registry) for name, text in EVENTS.items()}
        self.request_children: dict[tuple[str, int, str], Counter] = {}
        self.request_timers: dict[str, Histogram] = {}
        self.upstream_children: dict[tuple[str, str], Counter] = {}
        self.upstream_timers: dict[str, Histogram] = {}


@cache
def book() -> Book:
    """This process's figures, begun at the first of them."""
    return Book()


def request_finished(route: str, status: int, kind: str, seconds: float) -> None:
    """Count an answer. `kind` is the error's `type`, "" for a success; `seconds` from head to last byte."""
    figures = book()
    key = (route, status, kind)
    child = figures.request_children.get(key)
    if child is None:
        child = figures.request_children[key] = figures.requests.labels(route, str(status), kind)
    child.inc()
    timer = figures.request_timers.get(route)
    if timer is None:
        timer = figures.request_timers[route] = figures.request_seconds.labels(route)
    timer.observe(seconds)


def upstream_finished(model: str, outcome: str, seconds: float) -> None:
    """Count an upstream call. `outcome` is ``exact``, ``void`` or ``unresolved``; `seconds` what the provider took."""
    figures = book()
    key = (model, outcome)
    child = figures.upstream_children.get(key)
    if child is None:
        child = figures.upstream_children[key] = figures.upstream.labels(model, outcome)
    child.inc()
    timer = figures.upstream_timers.get(model)
    if timer is None:
        timer = figures.upstream_timers[model] = figures.upstream_seconds.labels(model)
    timer.observe(seconds)


def in_flight(delta: int) -> None:
    """A call begins (1) or ends (-1)."""
    book().in_flight.inc(delta)


def breaker_open(provider: str, is_open: bool) -> None:
    """A provider's breaker opens or closes."""
    book().breaker.labels(provider).set(is_open)


def counted(name: Event) -> None:
    """Count something that should be rare; an operator has an alarm on each. KeyError for a name not in `EVENTS`."""
    book().events[name].inc()


def render() -> tuple[bytes, str]:
    """All workers' figures, the store's and the books', as (text, content type). Blocks on files and both servers."""
    figures = book()
    registry = figures.registry
    if figures.folder:
        metricfiles.forget_the_dead(Path(figures.folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=figures.folder)  # type: ignore[no-untyped-call]
    asked = CollectorRegistry()
    asked.register(StoreCollector())
    asked.register(BookCollector())
    return generate_latest(registry) + generate_latest(asked), CONTENT_TYPE_PLAIN_0_0_4


class StoreCollector(Collector):
    """What the admission store and the spool folder hold at the moment of asking."""

    def collect(self) -> Iterator[Metric]:
        """One figure each; with the store out of reach only ``gateway_store_up 0`` and the spool."""
        spooled = sum(1 for path in settings.SPOOL_ROOT.glob("*") if not path.name.startswith("."))
        yield GaugeMetricFamily(
            "gateway_spool_files", "Files of usage that wait to be replayed, or can't be read", spooled
        )
        try:
            figures = read_store(settings.SHARDS)
        except redis.RedisError:
            figures = {}
        yield GaugeMetricFamily("gateway_store_up", "1 when the admission store answers", float(bool(figures)))
        for name, value in figures.items():
            if name == LEASES_ENDED:
                yield CounterMetricFamily(name, "Calls that a worker ended because their lease was over", value)
            else:
                yield GaugeMetricFamily(name, STORE_GAUGES[name], value)


def read_store(shards: int) -> dict[str, float]:
    """The figures of `STORE_GAUGES` over all shards, and `LEASES_ENDED`.

    Takes one round trip, and one before it for the store's clock.

    Raises:
        redis.RedisError: the store doesn't answer, or not in time.
    """
    seconds, micros = store().time()
    now = seconds + micros / 1e6
    pipeline = store().pipeline(transaction=False)
    for shard in range(shards):
        stream = keys.usage(shard)
        pipeline.xlen(stream)
        pipeline.xrange(stream, count=1)
        pipeline.xpending(stream, keys.GROUP)
        pipeline.zcard(keys.deadlines(shard))
        pipeline.zcount(keys.deadlines(shard), "-inf", int(now * 1_000_000))
    pipeline.get(keys.EXPIRED)
    *answers, ended = pipeline.execute(raise_on_error=False)
    if isinstance(ended, redis.RedisError):
        raise ended
    figures = {**dict.fromkeys(STORE_GAUGES, 0.0), LEASES_ENDED: float(ended or 0)}
    for length, oldest, pending, open_, overdue in zip(*[iter(answers)] * 5, strict=True):
        for answer in (length, oldest, open_, overdue):
            if isinstance(answer, redis.RedisError):
                raise answer
        figures["gateway_backlog_events"] += length
        if oldest:
            age = max(0.0, now - int(oldest[0][0].split(b"-")[0]) / 1000)
            figures["gateway_backlog_oldest_seconds"] = max(figures["gateway_backlog_oldest_seconds"], age)
        if not isinstance(pending, redis.RedisError):  # no stream yet, or no group: nobody has taken any
            figures["gateway_backlog_pending"] += pending["pending"]
        figures["gateway_reservations_open"] += open_
        figures["gateway_reservations_overdue"] += overdue
    return figures


async def metrics(request: HttpRequest) -> HttpResponse:
    """``GET /metrics``. Raises NotFound for whoever may not see them."""
    if not is_allowed(request):
        raise NotFound("There is nothing here.")
    body, content_type = await asyncio.to_thread(render)
    return HttpResponse(body, content_type=content_type)


def is_allowed(request: HttpRequest) -> bool:
    """Whether the caller is this machine itself, in ``METRICS_NETWORKS``, or presents ``METRICS_TOKEN``.

    A call that carries ``X-Forwarded-For`` came through a proxy and is not the machine itself, even where the proxy is
    on it and nobody listed it in ``TRUSTED_PROXIES``: the figures would be public otherwise.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if settings.METRICS_TOKEN and scheme.lower() == "bearer":
        return hmac.compare_digest(token.strip().encode(), settings.METRICS_TOKEN.encode())
    forwarded = request.headers.get("X-Forwarded-For")
    peer = request.META.get("REMOTE_ADDR") or ""
    address = addresses.parse(addresses.client_address(peer, forwarded, settings.TRUSTED_PROXIES))
    if address is None:
        return False
    if address.is_loopback and forwarded is None and "Forwarded" not in request.headers:
        return True
    return addresses.is_within(address, settings.METRICS_NETWORKS)
