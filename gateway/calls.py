"""A call on its way, and what is known of it before it is admitted."""

import hashlib
from dataclasses import dataclass

import msgspec

from gateway.answermemory import Held
from gateway.catalog import UpstreamModel
from gateway.errors import InvalidRequest, Unavailable
from gateway.runtime import Runtime
from gateway.validation import GenerationRequest
from tokens.admission.admission import Decision, Standing
from tokens.admission.principal import Principal


@dataclass(slots=True)
class Call:
    """One call on its way: who asks for what, and what became of it."""

    request_id: str
    token: str
    principal: Principal
    asked: GenerationRequest
    model: UpstreamModel
    estimate: int  # tokens, an upper bound
    address: str
    origin: str
    agent: str
    idempotency_key: str
    fingerprint: str
    event: bytes = b""
    admitted_at: float = 0.0  # monotonic
    upstream_ms: float | None = None
    provider_request_id: str = ""
    held: Held | None = None  # memory of the provider's answer
    charged: int | None = None  # tokens, once the call is settled
    decision: Decision | None = None  # the admit script's last one
    standings: tuple[Standing, ...] = ()
    replayed: bool = False


class Skeleton(msgspec.Struct, frozen=True):
    """What an answer is made of, as an idempotency key remembers it: URLs are signed anew each time."""

    created: int = 0
    names: list[str] = []
    urls: list[str] = []
    output_format: str = "png"
    total_tokens: int = 0
    error: str = ""  # an error type that is replayed instead


def choose_model(runtime: Runtime, principal: Principal, asked: GenerationRequest) -> UpstreamModel:
    """The model that answers this call. Raises InvalidRequest when it can't draw it, Unavailable when there is none."""
    model = runtime.catalog.pick(principal.model) if runtime.catalog else None
    if model is None:
        raise Unavailable("No model is configured to answer this call.", 30)
    if asked.size not in model.sizes:
        raise InvalidRequest(f"The field size must be one that the model draws: {', '.join(model.sizes)}.")
    if len(asked.prompt) > model.prompt_limit:
        raise InvalidRequest(f"The field prompt may have at most {model.prompt_limit} characters for this model.")
    if principal.counts_tokens and not runtime.trusts_bound(model, asked.size):
        raise Unavailable("The model cost more tokens than its upper bound allows; its operator must raise it.", 60)
    return model


def estimate_tokens(model: UpstreamModel, asked: GenerationRequest) -> int:
    """An upper bound: `n` of the dearest image of this size, and a token for each byte of the prompt."""
    return asked.n * model.sizes[asked.size] + len(asked.prompt.encode())


def fingerprint(asked: GenerationRequest, secret: bytes) -> str:
    """A keyed digest of what was asked, so that a retry can be told from another request without storing prompts."""
    text = msgspec.json.encode((asked.prompt, asked.size, asked.n))
    return hashlib.blake2b(text, key=secret[:64], digest_size=16).hexdigest()


def event_of(call: Call, day: str) -> bytes:
    """The call as its usage event will carry it; `day` is the tenant's at admission."""
    principal = call.principal
    return msgspec.json.encode(
        {
            "v": 1,
            "tenant": principal.tenant,
            "member": principal.member,
            "token": principal.token,
            "secret": principal.secret,
            "model": call.model.name,
            "size": call.asked.size,
            "quality": call.model.quality,
            "n": call.asked.n,
            "provider": call.model.provider,
            "estimate": call.estimate,
            "day": day,
            "address": call.address,
            "agent": call.agent,
        }
    )
