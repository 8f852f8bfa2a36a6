"""What has happened in the pictures: weeks of calls, refusals and failures, prices, and all that needs somebody."""

import datetime as dt
import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.utils.timezone import now

from config.redis import store
from gateway.models import Model, Provider
from gateway.providers import set_model
from gateway.telemetry import BUCKETS, LATENCIES
from tests.bookkeeping import request_id
from tests.screenshots.houses import House
from tokens.admission import keys
from usage.events import UsageEvent
from usage.ledger import record
from usage.models import Price
from usage.pricerow import SELLS

SIZES = {"512x512": 2_400, "1024x1024": 4_800, "1536x1024": 7_200}
TOKENS = {"512x512": 2_050, "1024x1024": 4_130, "1536x1024": 6_170}
MODELS = {"gem-1": 2_600, "gem-photo": 6_900, "gem-1-mini": 1_150}  # how long an answer takes, ms
SHARES = (5, 3, 2)  # of the calls, model by model
AGENTS = ["openai-python/1.54.3", "node-fetch/3.3.2", "python-httpx/0.27.2", "okhttp/4.12.0"]
# Model, size, an image, a million input and output tokens; the provider asks the share of that.
PRICES = [
    ("gem-1", "", "0.04", None, None, "0.6"),
    ("gem-1", "512x512", "0.018", None, None, "0.6"),
    ("gem-1-mini", "", "0.011", None, None, "0.5"),
    ("gem-photo", "", None, "6", "42", "0.7"),
]
REFUSALS = ["quota_exceeded"] * 6 + ["rate_limited"] * 5 + ["invalid_request"] * 2 + ["not_allowed"]
FAILURES = ["upstream_failed", "upstream_failed", "outcome_unknown"]
BATCH = 500


def make_prices(first: dt.date, house: House) -> None:
    """Models with their prices from that day on, a lower one for one tenant, and one model that nobody has priced."""
    Price.objects.all().delete()  # the demo's own
    provider = Provider.objects.get()
    for name in (*MODELS, "gem-sketch"):
        set_model(provider, name, sizes=SIZES, answer_form=Model.AnswerForm.B64_JSON)
    for model, size, image, read, drawn, share in PRICES:
        price: dict[str, Any] = {"model": model, "size": size, "currency": "USD", "valid_from": first}
        for name, amount in zip(SELLS, (image, read, drawn), strict=True):
            price |= {name: amount, f"provider_{name}": Decimal(amount or 0) * Decimal(share)}
        Price.objects.create(**price)
        if (model, size) == ("gem-1", ""):
            Price.objects.create(**price | {"tenant": house.tenant, "per_image": "0.032"})


def fill(houses: list[House], first: dt.date, seed: int) -> None:
    """Book the calls of every tenant from that day to this moment, and count them as web processes do.

    Each day of a tenant has chances of its own: those of the past are the same whenever it is filled.
    """
    for house in houses:
        zone, moment = house.tenant.zone(now()), now()
        day, today = first, moment.astimezone(zone).date()
        while day <= today:
            chance = random.Random(f"{seed} {house.tenant.slug} {day}")
            events = list(_day(house, day, moment, chance))
            for start in range(0, len(events), BATCH):
                record(events[start : start + BATCH])
            _count(house, day, events, chance)
            day += dt.timedelta(days=1)


def call(house: House, at: dt.datetime, chance: random.Random, kind: str = "exact", **more: Any) -> UsageEvent:
    """A call that one of the tenant's tokens made at that moment."""
    tokens = house.tokens
    token = chance.choice(tokens[:1] * 2 + tokens)
    model, size = chance.choices(list(MODELS), SHARES)[0], chance.choice([*SIZES, "1024x1024"])
    images = chance.choice((1, 1, 1, 1, 2, 2, 4))
    charged = TOKENS[size] * images + chance.randint(8, 90)
    shape: dict[str, Any] = {"model": model, "size": size, "n": images, "day": f"{at:%Y-%m-%d}"}
    shape |= {
        "member": token.member_id,
        "token": token.pk,
        "secret": token.secrets.all()[0].pk,
        "estimate": charged + 900,
    }
    shape |= {"address": f"198.51.100.{10 + token.pk}", "agent": AGENTS[token.pk % len(AGENTS)]}
    shape["latency_ms"] = int(MODELS[model] * chance.lognormvariate(0, 0.35))
    if kind == "exact":
        shape |= {"images": images, "reported": charged, "charged": charged, "input": 40, "output": charged - 40}
    elif kind == "unresolved":
        shape |= {"images": images, "charged": charged + 900}
    return house.event(kind, of=request_id(at), **shape | more)


def _day(house: House, day: dt.date, until: dt.datetime, chance: random.Random) -> Iterator[UsageEvent]:
    """A tenant's calls of a day up to a moment: fewer at the week's end, more from week to week."""
    busy = house.busy * (0.35 if day.weekday() > 4 else 1) * (1 + day.toordinal() % 60 / 250)
    midnight = dt.datetime.combine(day, dt.time(), house.tenant.zone(until))
    hours = [min(23.9, max(0.1, chance.gauss(13.5, 3.4))) for _ in range(max(1, int(chance.gauss(busy, busy / 9))))]
    for hour in sorted(hours):
        at = midnight + dt.timedelta(hours=hour)
        if at >= until:
            break
        yield call(house, at, chance, "void" if chance.random() < 0.01 else "exact")


def _count(house: House, day: dt.date, events: list[UsageEvent], chance: random.Random) -> None:
    """What the web processes' telemetry would have of that day (gateway.telemetry)."""
    shard, zone = keys.shard_of(house.tenant.pk, settings.SHARDS), house.tenant.zone(now())
    outcomes, hours, refused = Counter[str](), Counter[str](), Counter[str]()
    for event in events:
        hour = event.at.astimezone(zone).hour
        seconds = event.latency_ms / 1000
        place = next((place for place, end in enumerate(LATENCIES) if seconds <= end), len(LATENCIES))
        outcomes.update(["served", BUCKETS[place]])
        hours[f"{hour}:served"] += 1
        if chance.random() < 0.06:
            kind, token = chance.choice(REFUSALS), chance.choice(house.tokens)
            outcomes[f"refused:{kind}"] += 1
            hours[f"{hour}:refused"] += 1
            refused[f"{house.tenant.pk}:{token.pk}:{kind}"] += 1
        elif chance.random() < 0.008:
            outcomes[f"failed:{chance.choice(FAILURES)}"] += 1
            hours[f"{hour}:failed"] += 1
    pipeline = store().pipeline(transaction=False)
    for key in (keys.tally(shard, house.tenant.pk, f"{day}"), keys.zone_tally(zone.key, f"{day}")):
        for name, counts in ((key, outcomes), (keys.tally_hours(key), hours)):
            for field, count in counts.items():
                pipeline.hincrby(name, field, count)
        for pair, count in refused.items():
            pipeline.zincrby(keys.tally_refused(key), count, pair)
    pipeline.execute()
