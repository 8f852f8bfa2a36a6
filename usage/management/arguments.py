"""What the verbs of `manage.py usage` share: reading their arguments."""

import datetime as dt
from argparse import ArgumentTypeError


def day(text: str) -> dt.date:
    """An argument such as 2026-11-01."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text} is not a day such as 2026-11-01.") from exc


def at_least_one(text: str) -> int:
    """An argument such as 50: how many, of which there can't be none or fewer."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise ArgumentTypeError(f"{text} is no number from 1 on.")
    return int(text)
