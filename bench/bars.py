"""What a figure must reach, and how a line says whether it does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure with what it has to reach (`bar`) and would do well to (`reach`); `least`: more is better."""

    name: str
    value: float
    unit: str
    bar: float
    reach: float
    least: bool = False

    def line(self) -> str:
        """One line for a person."""
        sign = ">=" if self.least else "<="
        judged = ", ".join(
            f"{word} {sign} {_short(limit)}{self.unit}: {'yes' if self._holds(limit) else 'NO'}"
            for word, limit in (("bar", self.bar), ("reach", self.reach))
        )
        return f"{self.name}: {_short(self.value)}{self.unit} ({judged})"

    def as_json(self) -> Mapping[str, Any]:
        """The figure with whether it reaches its bar."""
        return {**asdict(self), "met": self._holds(self.bar)}

    def _holds(self, limit: float) -> bool:
        return self.value >= limit if self.least else self.value <= limit


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
