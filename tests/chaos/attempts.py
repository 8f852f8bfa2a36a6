"""What a client was told: the first of the three accounts."""

from dataclasses import dataclass


@dataclass
class Attempt:
    """One request and what came back. `status` 0: nothing. `whole`: the answer's last byte arrived."""

    persona: str
    tenant: int
    token: int
    mark: str
    fault: str
    n: int
    key: str
    begun: float  # epoch seconds
    ended: float = 0.0
    status: int = 0
    whole: bool = False
    type: str = ""  # of the error; `broken` or `timeout` when there was no whole answer
    request_id: str = ""
    tokens: int | None = None
    images: int = 0
    replayed: bool = False
    may_be_charged: bool = False  # x-should-retry: false
