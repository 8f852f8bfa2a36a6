"""The tenants of a run: what each may take, and how it calls."""

import random
from dataclasses import dataclass, field

from config import encryption
from gateway import catalog
from gateway.models import Model, ModelSize, Provider, ProviderKey
from tests.chaos.environment import SANDBOX_KEY
from tokens import issuing
from tokens.models import ProxyToken, Tenant

SIZES = {"256x256": 1200, "512x512": 2400, "1024x1024": 4800}
RATE, BURST = 60, 5  # requests a minute
CONCURRENT = 3
SPARE_TOKENS = 12  # to be revoked one after the other

# What a prompt's directive asks of the sandbox, and how often.
FAULTS = {
    "": 90,
    "drop=after_draw": 4,
    "drop=midway": 2,
    "drop=unread": 3,
    "status=503": 5,
    "status=400": 3,
    "status=429": 1,
    "status=502": 2,
    "usage=missing": 3,
    "usage=absurd": 1,
    "usage=parts": 1,
    "body=garbage": 2,
}


@dataclass
class Persona:
    """A tenant of the run. `keys`: the share of its calls with an Idempotency-Key, which are then repeated."""

    name: str
    weight: int
    limits: list[str] = field(default_factory=list)  # of the tenant
    token_limits: list[str] = field(default_factory=list)
    keys: float = 0.2
    delay: tuple[int, int] = (0, 250)  # ms that the sandbox takes before it draws
    tenant: Tenant = field(init=False)
    tokens: list[tuple[ProxyToken, str]] = field(init=False, repr=False)


def personas(minutes: float) -> list[Persona]:
    """Quotas grow with the run, so that each is used up in it."""
    more = max(minutes, 0.5)
    return [
        Persona("free", 44, keys=0),
        Persona("keys", 24, keys=1),
        Persona("images", 6, [f"images:{int(120 * more)}/day"]),
        Persona("tokens", 6, [f"tokens:{int(110_000 * more)}/month"], keys=0.3),
        Persona("both", 5, [f"images:{int(90 * more)}/month", "concurrent:50"], [f"requests:{int(50 * more)}/day"]),
        Persona("total", 3, [], [f"requests:{int(40 * more)}/total"]),
        Persona("rate", 4, [f"requests:{RATE}/minute:burst={BURST}"], keys=0),
        Persona("concurrent", 5, [f"concurrent:{CONCURRENT}"], keys=0, delay=(200, 450)),
        Persona("revoked", 5, ["images:100000/day"], keys=0),
    ]


def make(everyone: list[Persona]) -> None:
    """Tenants, tokens and limits."""
    for persona in everyone:
        persona.tenant = issuing.create_tenant(f"chaos-{persona.name}", persona.name, limit_texts=persona.limits)
        member = issuing.add_member(persona.tenant, f"{persona.name}@chaos.test")
        count = SPARE_TOKENS if persona.name == "revoked" else 2 if persona.name == "free" else 1
        persona.tokens = [
            issuing.issue_token(member, f"{persona.name}-{number}", limit_texts=persona.token_limits)
            for number in range(count)
        ]


def point_at(url: str) -> None:
    """The model that answers all calls."""
    provider = Provider.objects.create(name="sandbox", base_url=f"{url}/v1")
    ProviderKey.objects.create(provider=provider, label="chaos", encrypted=encryption.encrypt(SANDBOX_KEY))
    model = Model.objects.create(name="sandbox", provider=provider, upstream_name="sandbox-image-1", default=True)
    for size, most in SIZES.items():
        ModelSize.objects.create(model=model, size=size, most_tokens=most)
    catalog.publish()


class Marks:
    """Delays with a thousandth of a millisecond of their own: the sandbox's account tells whose call it drew."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._taken: set[str] = set()

    def take(self, delay: tuple[int, int]) -> str:
        """Such as ``delay=17.123ms``, never given before."""
        while True:
            mark = f"delay={self._chance.randint(*delay)}.{self._chance.randrange(1000):03d}ms"
            if mark not in self._taken:
                self._taken.add(mark)
                return mark
