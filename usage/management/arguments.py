"""What the verbs of `manage.py usage` share: reading their arguments."""

import datetime as dt
from argparse import ArgumentTypeError


def day(text: str) -> dt.date:
    """An argument such as 2026-11-01."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text} is not a day such as 2026-11-01.") from exc
