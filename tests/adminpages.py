"""The admin as a browser speaks to it."""

from typing import Any

from django.urls import reverse

PASSWORD = "correct horse battery staple"


def rows(prefix: str, *forms: dict[str, Any], initial: int = 0) -> dict[str, Any]:
    """The fields of an inline's rows, as a browser posts them."""
    data: dict[str, Any] = {f"{prefix}-TOTAL_FORMS": len(forms), f"{prefix}-INITIAL_FORMS": initial}
    for number, form in enumerate(forms):
        data |= {f"{prefix}-{number}-{name}": value for name, value in form.items()}
    return data


def page(name: str, *args: Any) -> str:
    return str(reverse(f"admin:{name}", args=args))
