"""Step 1: from the headers to the principal, before the body is read.

A principal that the process remembers costs no look-up; what it remembers never admits, the admit script does.
"""

import time
from collections.abc import Mapping

from gateway.errors import InvalidRequest, InvalidToken, NotAllowed, Unavailable
from tokens import secrets
from tokens.admission import keys
from tokens.admission.connection import StoreConnection, StoreError, StoreUnavailable
from tokens.admission.principal import Principal, locate, read_principal

REMEMBERED = 120_000  # principals a process: 1.6 KB each with one limit of their own and their plan, 190 MB in all


def presented_token(meta: Mapping[str, str]) -> str:
    """The token in a request's headers (`meta` as WSGI names them), "" when there is none.

    Raises InvalidRequest when both headers carry a token and they differ.
    """
    token = meta.get("HTTP_X_PROXY_TOKEN", "").strip()
    scheme, _, bearer = meta.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not bearer.strip():
        return token
    if token and token != bearer.strip():
        raise InvalidRequest("X-Proxy-Token and Authorization carry different tokens. Send one.")
    return bearer.strip()


def require_allowed(principal: Principal, address: str, origin: str) -> None:
    """Raise NotAllowed unless the principal may call from this address and, for a web page, from its origin."""
    if not principal.allows_address(address):
        raise NotAllowed("This token may not be used from this address.")
    if origin and not principal.allows_origin(origin):
        raise NotAllowed("This token may not be used by pages of this origin.")


class Authenticator:
    """Finds principals in the store's directory and remembers the active ones."""

    def __init__(self, store: StoreConnection, peppers: Mapping[int, bytes]) -> None:
        self._store = store
        self._peppers = peppers
        self._newest = peppers[max(peppers)]
        self._known: dict[str, Principal] = {}

    def forget(self) -> None:
        """Forget every principal: the store was replaced."""
        self._known.clear()

    def drop(self, token: str) -> None:
        """Forget one token, which the admit script refused: the next call with it counts as a failed authentication."""
        self._known.pop(secrets.digest(token, self._newest), None)

    async def authenticate(self, token: str, fresh: bool = False) -> Principal:
        """The principal of a presented token; `fresh` reads it anew.

        Raises InvalidToken, and Unavailable when the store can't say.
        """
        if not secrets.is_plausible(token):
            raise InvalidToken
        digest = secrets.digest(token, self._newest)
        principal = None if fresh else self._known.get(digest)
        if principal is None:
            principal = await self._load(token, digest)
        if not principal.accepted(time.time()):
            self._known.pop(digest, None)
            raise InvalidToken(principal)
        return principal

    async def _load(self, token: str, digest: str) -> Principal:
        try:
            locator = await self._locate(token)
            shard, tenant, member, token_id, _ = locator
            records = [
                _mapping(await self._store.call("HGETALL", name))
                for name in (keys.token(shard, token_id), keys.member(shard, member), keys.tenant(shard, tenant))
            ]
        except (StoreUnavailable, StoreError) as exc:
            raise Unavailable("The gateway can't check tokens at the moment.") from exc
        try:
            principal = read_principal(locator, *records)
        except (KeyError, ValueError) as exc:
            raise Unavailable("The token directory is being loaded.") from exc
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)))
        if principal.active:
            self._known[digest] = principal
        return principal

    async def _locate(self, token: str) -> tuple[int, int, int, int, int]:
        names = [keys.locator(digest) for digest in secrets.digests(token, self._peppers)]
        for raw in await self._store.call("MGET", *names):
            if raw is not None:
                return locate(raw)
        if await self._store.call("HGET", keys.DIRECTORY, "complete") != b"1":
            raise Unavailable("The token directory is being loaded.")
        raise InvalidToken


def _mapping(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
