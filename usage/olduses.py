"""Who still calls with a secret that a rotation has replaced, for the cut-over report of its token."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from django.db import connection

from tokens.models import SecretUse
from tokens.secretuserow import MOST_CLIENTS
from usage.events import UsageEvent

ADD = f"""
INSERT INTO {SecretUse._meta.db_table} AS known (secret_id, address, agent, first_at, last_at, calls)
SELECT u.id, u.address, u.agent, u.first_at, u.last_at, u.calls
FROM unnest(%s::bigint[], %s::inet[], %s::text[], %s::timestamptz[], %s::timestamptz[], %s::bigint[])
    AS u (id, address, agent, first_at, last_at, calls)
WHERE (SELECT count(*) FROM {SecretUse._meta.db_table} o WHERE o.secret_id = u.id) < {MOST_CLIENTS}
    OR EXISTS (
        SELECT FROM {SecretUse._meta.db_table} o
        WHERE o.secret_id = u.id AND o.address IS NOT DISTINCT FROM u.address AND o.agent = u.agent
    )
ORDER BY u.id, u.address, u.agent
ON CONFLICT (secret_id, address, agent) DO UPDATE
SET first_at = least(known.first_at, excluded.first_at), last_at = greatest(known.last_at, excluded.last_at),
    calls = known.calls + excluded.calls
"""  # noqa: S608 - constants


def note(secrets: Collection[int], events: Sequence[UsageEvent], address_of: Callable[[str], str | None]) -> None:
    """Within the writer's transaction: add the calls of these events that were made with one of these old secrets.

    `events` are of calls that were not in the books before; `address_of` reads an address as PostgreSQL takes it.
    """
    calls: defaultdict[tuple[int, str | None, str], list[dt.datetime]] = defaultdict(list)
    for event in events:
        if event.secret in secrets:
            agent = event.agent[: SecretUse._meta.get_field("agent").max_length]
            calls[event.secret, address_of(event.address), agent].append(event.at)
    if not calls:
        return
    ordered = sorted(calls.items(), key=lambda use: (use[0][0], use[0][1] or "", use[0][2]))
    rows = [(*client, min(at), max(at), len(at)) for client, at in ordered]
    with connection.cursor() as cursor:
        cursor.execute(ADD, [list(column) for column in zip(*rows, strict=True)])
