"""How full the admission store is, as it says itself."""

from collections.abc import Mapping
from typing import Any


def share_in_use(facts: Mapping[str, Any]) -> float:
    """How full a store is, 0 to 1 (over 1: beyond its limit), from the fields of its INFO memory.

    Without a `maxmemory` of its own it has the machine's. 0 where it tells neither, as some managed services.
    """
    most = int(facts.get("maxmemory", 0)) or int(facts.get("total_system_memory", 0))
    return int(facts["used_memory"]) / most if most else 0.0
