"""A drain as it must not be, as a process of its own: entries are acknowledged before they are booked."""

import time

import django

django.setup()

from config.redis import store  # noqa: E402
from tokens.admission import keys  # noqa: E402
from usage import drain  # noqa: E402


def main():
    while True:
        batch = drain._unread()
        if not batch:
            time.sleep(0.1)
            continue
        for stream, entries in batch.items():
            ids = [entry_id for entry_id, _ in entries]
            store().xack(stream, keys.GROUP, *ids)
            store().xdel(stream, *ids)
        time.sleep(0.5)  # as a slow commit takes: whoever dies now takes the entries along
        drain.record([drain.parse(fields) for entries in batch.values() for _, fields in entries])


if __name__ == "__main__":
    drain._create_groups()
    main()
