"""What a field may hold that more than one part knows. Each raises ValidationError with a sentence."""

import ipaddress
import re
import zoneinfo

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator

# A model's name wherever it stands: in the catalog, with a tenant, in the price list.
validate_model_name = RegexValidator(r"^[A-Za-z0-9_.:/-]+\Z", "Letters, digits and . : / - _ only.")

# What a provider is asked for, with a model and in the price list.
validate_quality = RegexValidator(r"^[a-z0-9_-]+\Z", "Small letters, digits, - and _ only, such as high.")


def validate_timezone(name: str) -> None:
    """Accept the names of the IANA time zone database."""
    if name not in zoneinfo.available_timezones():
        raise ValidationError("%(name)s is not a time zone. Europe/Berlin is one.", params={"name": name})


def validate_origin(text: str) -> None:
    """Accept a web origin as browsers send it (scheme, host and perhaps port, nothing after), or ``*``."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/,?#]+", text):
        raise ValidationError("%(text)s is not a web origin. https://app.example is one.", params={"text": text})


def validate_network(text: str) -> None:
    """Accept an address or a network in CIDR notation, with no bits beyond the mask."""
    try:
        ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValidationError("%(text)s is not a network. 203.0.113.0/24 is one.", params={"text": text}) from exc
