"""Figures on pages that only show: with thousands separators, and amounts without their column's closing zeros."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from usage.exports import separated, signed


def figure(name: str, title: str) -> Callable[[Any, Any], str]:
    """A field of an admin's page that shows a whole number or an amount of its row; "–" where there is none."""

    def shown(_admin: Any, row: Any) -> str:
        value = getattr(row, name)
        if value is None:
            return "–"
        return separated(value) if isinstance(value, Decimal) else signed(value)

    shown.short_description = title  # type: ignore[attr-defined]
    return shown
