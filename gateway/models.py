"""Who draws the images: providers, their keys, and the models with their sizes and upper bounds."""

import ipaddress
import re
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils.timezone import now

from tokens.audited import Audited
from tokens.validators import validate_model_name, validate_quality


def validate_base_url(url: str) -> None:
    """Accept an http or https address with a host, any host: Django's own validator refuses names without a dot,
    which services inside a network have. A query, a fragment or a name and password in it are refused: the last
    would be a secret that is kept in the open. Plain http would carry the key in the open, too: it is for this
    machine and private networks."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.scheme in {"http", "https"} and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in url):
        raise ValidationError("This is not a base URL. https://api.openai.com/v1 is one.")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValidationError("A base URL has no ?, no # and no name or password in it.")
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        raise ValidationError(
            "Plain http would carry the provider's key in the open: write https://. Only this machine, private"
            " addresses and names without a dot may be called without TLS."
        )


def _is_near(host: str) -> bool:
    """Whether a host is this machine, in a private network, or a name without a dot, as containers have."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # It begins with a letter: resolvers read 134744072 and 0x8080808 as addresses.
        return re.fullmatch(r"[a-z][a-z0-9_-]*", host, re.IGNORECASE) is not None
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_private


def authority(base_url: str) -> tuple[str, str, int]:
    """Whom a valid base URL's calls, and the key with them, go to: scheme, host in lower case, port."""
    parts = urlsplit(base_url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]


class Provider(Audited):
    """A remote service that speaks the OpenAI Images API."""

    name = models.SlugField(max_length=63, unique=True)
    base_url = models.CharField(
        "base URL",
        max_length=500,
        validators=[validate_base_url],
        help_text="Up to and including the version, such as https://api.openai.com/v1",
    )
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ProviderKey(Audited):
    """A provider's key, encrypted at rest (config.encryption) and never shown again."""

    HIDDEN = frozenset({"encrypted"})
    PART = "key"

    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="keys")
    label = models.CharField(max_length=100, help_text="So that people know which key this is.")
    encrypted = models.BinaryField(editable=False)
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.label

    def audit_parent(self) -> models.Model:
        """Its provider."""
        return self.provider


class Model(Audited):
    """A model that clients' calls are answered with."""

    class AnswerForm(models.TextChoices):
        """How the provider is asked for its images."""

        DEFAULT = "", "The provider's default (GPT image models: base64)"
        B64_JSON = "b64_json", "base64"
        URL = "url", "URL"

    name = models.CharField(
        max_length=100, unique=True, validators=[validate_model_name], help_text="Its name in calls and reports."
    )
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="models")
    upstream_name = models.CharField(
        max_length=100,
        validators=[validate_model_name],
        help_text="What the provider calls it.",
    )
    active = models.BooleanField(default=True)
    default = models.BooleanField(default=False, help_text="Answers the calls of tenants that name no model.")
    answer_form = models.CharField(max_length=16, choices=AnswerForm, blank=True, default=AnswerForm.DEFAULT)
    quality = models.CharField(
        max_length=16,
        blank=True,
        validators=[validate_quality],
        help_text="That the provider is asked for, such as high. Empty: its own choice. Prices may depend on it.",
    )
    prompt_limit = models.PositiveIntegerField(
        default=32_000, validators=[MinValueValidator(1), MaxValueValidator(32_000)], help_text="Characters."
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["default"], condition=models.Q(default=True), name="one_default_model")
        ]

    def __str__(self) -> str:
        return self.name


class ModelSize(Audited):
    """A size that a model draws, and the most tokens that one such image can cost.

    The reservation of a call is ``n * most_tokens + the prompt's bytes in UTF-8`` (a token is at least one byte):
    an upper bound, so that settling never takes more than was reserved.
    """

    PART = "size"

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="sizes")
    size = models.CharField(
        max_length=16, validators=[RegexValidator(r"^([0-9]{2,5}x[0-9]{2,5}|auto)\Z", "Such as 1024x1024.")]
    )
    most_tokens = models.PositiveIntegerField(
        "most tokens an image",
        validators=[MinValueValidator(1)],
        help_text="Output tokens of the dearest image of this size.",
    )

    class Meta:
        ordering = ["size"]
        constraints = [models.UniqueConstraint(fields=["model", "size"], name="one_row_per_model_and_size")]

    def __str__(self) -> str:
        return self.size

    def audit_parent(self) -> models.Model:
        """Its model."""
        return self.model
