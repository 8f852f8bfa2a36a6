"""What one web process holds: its connection to the admission store, the catalog, principals, the upstream client.

Made when the server starts the process's event loop and closed when it stops, after the calls in flight have ended.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec
from django.conf import settings

from config.redis import parse_address
from gateway.authentication import Authenticator
from gateway.bounds import read_bounds
from gateway.breaker import Breaker
from gateway.catalog import Catalog, UpstreamModel, parse
from gateway.errors import Unavailable
from gateway.images import image_store
from gateway.inflight import InFlight, Receive
from gateway.overload import StoreLoad
from gateway.recording import Recorder
from gateway.spool import Spool
from gateway.telemetry import Telemetry
from gateway.upstream import Upstream
from tokens.admission import keys, scripts
from tokens.admission.connection import StoreConnection, StoreError, StoreUnavailable
from tokens.admission.settlement import Ending, finish

logger = logging.getLogger(__name__)
REFRESH_SECONDS = 1.0
REPLAY_SECONDS = 5.0


class Runtime:
    """The state of one process's event loop. `start` and `close` belong to the server's life cycle."""

    def __init__(self) -> None:
        self.bounds = read_bounds()
        self.store = StoreConnection(parse_address(settings.REDIS_URL), settings.STORE_TIMEOUT, self._on_connect)
        self.authenticator = Authenticator(self.store, settings.TOKEN_PEPPERS)
        self.upstream = Upstream(
            settings.UPSTREAM_CONNECT_TIMEOUT,
            settings.UPSTREAM_DEADLINE,
            settings.UPSTREAM_ANSWER_LIMIT,
            settings.ANSWER_MEMORY,
        )
        self.breaker = Breaker(settings.BREAKER_FAILURES, settings.BREAKER_SECONDS)
        self.images = image_store()
        self.spool = Spool(settings.SPOOL_ROOT)
        self.recorder = Recorder(self.store, self.spool, self.bounds.settle_retry_seconds)
        self.load = StoreLoad()
        self.telemetry = Telemetry(self.store, self.load)
        self.catalog: Catalog | None = None
        self._exceeded: dict[bytes, int] = {}  # as the store knows them
        self._unpublished: dict[bytes, int] = {}  # and what it must still learn
        self.generation = ""  # empty while the store we are connected to isn't confirmed
        self.draining = False
        self.in_flight = InFlight(settings.DETACHED_LIMIT)
        self._catalog_raw = b""
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect and begin the background loops; returns once the store answered or after a second."""
        self.store.start()
        loop = asyncio.get_running_loop()
        loops = (self._refresh_forever(), self._replay_forever(), self.telemetry.flush_forever())
        self._background = [loop.create_task(forever) for forever in loops]
        for _ in range(100):
            if self.generation and self.catalog is not None:
                return
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Admit nobody, wait for the calls in flight (at most `DRAIN_SECONDS`), then let go of everything."""
        self.draining = True
        if self.in_flight.calls:
            await asyncio.wait(self.in_flight.calls, timeout=settings.DRAIN_SECONDS)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.telemetry.flush()
        await self.store.close()
        await self.upstream.close()

    def detach(self, call: Coroutine[Any, Any, Any], receive: Receive | None = None) -> asyncio.Task[Any]:
        """Run `call` to its end whatever becomes of the client that asked for it, whom `receive` tells of."""
        task = asyncio.get_running_loop().create_task(call)
        self.in_flight.add(task, receive)
        return task

    def problems(self) -> dict[str, str]:
        """What keeps this process from admitting, by part; empty when it is ready."""
        problems = {}
        if self.draining:
            problems["process"] = "stopping"
        if not self.store.ready:
            problems["store"] = "not connected"
        elif not self.generation:
            problems["store"] = "not confirmed since it was started"
        elif self.load.problem:
            problems["store"] = self.load.problem
        if self.catalog is None or self.catalog.pick("") is None:
            problems["catalog"] = "no default model with an active provider and key"
        return problems

    def require_room(self) -> None:
        """Raises Unavailable when this process takes no new call now: it stops, or it or the store is too full."""
        if self.draining:
            raise Unavailable("The gateway is stopping.")
        if self.load.problem:
            raise Unavailable("The gateway is busy: too much waits to be recorded.", 10)
        if len(self.in_flight.calls) >= self.bounds.in_flight_limit or self.in_flight.too_many:
            raise Unavailable("The gateway is busy.")

    def trusts_bound(self, model: UpstreamModel, size: str) -> bool:
        """Whether no call has cost more than the bound that `model` has now for `size`."""
        name = f"{model.name}:{size}".encode()
        return model.sizes[size] > max(self._exceeded.get(name, -1), self._unpublished.get(name, -1))

    def distrust_bound(self, model: UpstreamModel, size: str) -> None:
        """Remember that a call cost more than the bound allows; the store learns it with the next refresh.

        Raising the bound ends it.
        """
        self._unpublished[f"{model.name}:{size}".encode()] = model.sizes[size]

    async def settle(self, ending: Ending) -> None:
        """End a call: in the store, else in the ledger, else in the spool. Raises OSError when all of them failed."""
        await self.recorder.record(ending)

    async def refresh_generation(self) -> None:
        """Read the store's generation; it counts only when it names the server that we are connected to."""
        raw = await self.store.setup_call("HGET", keys.meta(0), "generation")
        generation = raw.decode() if raw else ""
        if not self.store.run_id or not generation.endswith(f":{self.store.run_id}"):
            generation = ""
        if generation != self.generation:
            self.authenticator.forget()
        self.generation = generation

    async def _on_connect(self) -> None:
        self.generation = ""
        for script in (scripts.admit(), scripts.finish(), scripts.standing(), scripts.tally(), scripts.remember()):
            await self.store.setup_call("SCRIPT", "LOAD", script.text)
        info = await self.store.setup_call("INFO", "server")
        self.store.run_id = info.partition(b"run_id:")[2].partition(b"\r")[0].decode()
        await self._refresh()

    async def _refresh(self) -> None:
        await self.refresh_generation()
        exceeded = await self.store.setup_call("HGETALL", keys.EXCEEDED)
        self._exceeded = {name: int(bound) for name, bound in zip(exceeded[::2], exceeded[1::2], strict=True)}
        for name, bound in list(self._unpublished.items()):
            await self.store.setup_call("HSET", keys.EXCEEDED, name, bound)
            self._exceeded[name] = self._unpublished.pop(name)
        raw = await self.store.setup_call("GET", keys.CATALOG)
        if raw is not None and raw != self._catalog_raw:
            try:
                self.catalog = parse(raw)
            except (ValueError, msgspec.DecodeError):
                logger.exception("the published catalog can't be read")
            self._catalog_raw = raw
        await self.load.read(self.store)

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                self.in_flight.look()
                if self.store.ready:
                    await self._refresh()
            except (StoreUnavailable, StoreError) as exc:
                logger.warning("the store can't be read", extra={"reason": str(exc)})
            except Exception:  # otherwise one surprise would end refreshing for good
                logger.exception("the store can't be read")

    async def _replay_forever(self) -> None:
        while True:
            if self.store.ready:
                try:
                    await self.spool.replay(lambda ending: finish(self.store, ending))
                except (StoreUnavailable, OSError) as exc:
                    logger.warning("the spool can't be replayed", extra={"reason": str(exc)})
                except Exception:  # otherwise one surprise would end replaying for good
                    logger.exception("the spool can't be replayed")
            await asyncio.sleep(REPLAY_SECONDS)
