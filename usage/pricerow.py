"""The row that is a price."""

import datetime as dt
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models, transaction
from django.db.models import OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils.timezone import now

from tokens.audited import Audited, AuditedQuerySet, plain_amount
from tokens.errors import Refused
from tokens.models import Tenant
from tokens.validators import validate_model_name, validate_quality

PRICE_DIGITS = 18
PRICE_PLACES = 8
SELLS = ("per_image", "per_million_input", "per_million_output")
PROVIDER_ASKS = tuple(f"provider_{name}" for name in SELLS)
KEY = ("tenant", "model", "size", "quality")  # what a price is for; among those of one key the newest holds

USED = (
    "Calls were charged at this price, so it stays as it is. To change what later calls cost, add a price that is"
    " valid from a later day: it takes this one's place."
)
NO_SELL_PRICE = "Give at least one price: an image, a million input tokens or a million output tokens."
HALF_A_COST = (
    "Give all three of the provider's prices, 0 for what it doesn't charge, or none: then its cost is unknown."
)

validate_size = RegexValidator(r"^([0-9]{2,5}x[0-9]{2,5}|auto)\Z", "Such as 1024x1024.")


def _amount(title: str, help_text: str = "") -> "models.DecimalField[Any, Any]":
    return models.DecimalField(
        title,
        max_digits=PRICE_DIGITS,
        decimal_places=PRICE_PLACES,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=help_text,
    )


class Prices(AuditedQuerySet["Price"]):
    """Prices, and until when each holds."""

    def with_end(self) -> "Prices":
        """With `replaced_on`: the day from which a newer price of the same key holds; None: none does yet."""
        newer = Price._base_manager.annotate(whose=Coalesce("tenant_id", Value(0))).filter(
            whose=Coalesce(OuterRef("tenant_id"), Value(0)),
            model=OuterRef("model"),
            size=OuterRef("size"),
            quality=OuterRef("quality"),
            valid_from__gt=OuterRef("valid_from"),
        )
        return self.annotate(replaced_on=Subquery(newer.order_by("valid_from").values("valid_from")[:1]))


class Price(Audited):
    """What calls to a model cost from a day on: sold at, and what the provider asks for them, in one currency.

    Images, input tokens and output tokens each have their price, and all three count; one that is null isn't charged.
    The provider's are all null where what it asks isn't known. Of several prices one of the call's tenant goes before
    one for everybody, then one of its size before one for any size, then one of its quality before one for any
    quality; among those of the same key it is the newest that is valid on the call's day (the tenant's).

    A price at which a call was charged (`used_at`) can't be changed or deleted, which the database enforces.
    """

    UNAUDITED = frozenset({"used_at"})
    PLATFORMS_OWN = True  # what the provider asks is nothing for the people of the tenant whose price it is

    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text="Whose calls alone it is for. Empty: everybody's who has no price of their own.",
    )
    model = models.CharField(
        max_length=100, validators=[validate_model_name], help_text="The model's name, as in the list of models."
    )
    size = models.CharField(
        max_length=16, blank=True, validators=[validate_size], help_text="Such as 1024x1024. Empty: any size."
    )
    quality = models.CharField(
        max_length=16,
        blank=True,
        validators=[validate_quality],
        help_text="As the model's page says, such as high. Empty: any quality.",
    )
    per_image = _amount("an image", "Of what is charged. Empty: images aren't charged.")
    per_million_input = _amount("a million input tokens", "Empty: input tokens aren't charged.")
    per_million_output = _amount("a million output tokens", "Empty: output tokens aren't charged.")
    provider_per_image = _amount("provider's price of an image", "What you pay. All three empty: unknown.")
    provider_per_million_input = _amount("provider's price of a million input tokens")
    provider_per_million_output = _amount("provider's price of a million output tokens")
    currency = models.CharField(
        max_length=3,
        validators=[RegexValidator(r"^[A-Z]{3}\Z", "Three capital letters, such as EUR (ISO 4217).")],
        help_text="Of both sides, such as EUR.",
    )
    valid_from = models.DateField(help_text="The first day it holds. Calls already in the books keep their price.")
    created_at = models.DateTimeField(default=now, editable=False)
    used_at = models.DateTimeField(
        "first used", null=True, editable=False, help_text="When the first call was charged at it."
    )

    objects = Prices.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["model", "tenant", "size", "quality", "-valid_from"]
        constraints = [
            models.UniqueConstraint(
                fields=[*KEY, "valid_from"],
                name="one_price_per_key_and_day",
                nulls_distinct=False,
                violation_error_message="There is a price for the same calls from that day already.",
            ),
            models.CheckConstraint(
                condition=Q(*[Q((name, None)) | Q((f"{name}__gte", 0)) for name in (*SELLS, *PROVIDER_ASKS)]),
                name="price_is_not_negative",
            ),
            models.CheckConstraint(
                condition=~Q(**dict.fromkeys(SELLS)), name="price_says_something", violation_error_message=NO_SELL_PRICE
            ),
            models.CheckConstraint(
                condition=Q(**dict.fromkeys(PROVIDER_ASKS)) | Q(**{f"{name}__isnull": False for name in PROVIDER_ASKS}),
                name="providers_price_is_whole",
                violation_error_message=HALF_A_COST,
            ),
        ]

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> "Price":
        """As Django does, amounts without the zeros that the database fills them up with."""
        price = super().from_db(*args, **kwargs)
        for name in (*SELLS, *PROVIDER_ASKS):
            if isinstance(price.__dict__.get(name), Decimal):
                setattr(price, name, Decimal(plain_amount(getattr(price, name))))
        return price

    def __str__(self) -> str:
        return f"{self.calls()} from {self.valid_from}"

    def calls(self) -> str:
        """For which calls it is, such as "gpt-image-1, 1024x1024, any quality"."""
        whose = f" of {self.tenant.slug}" if self.tenant else ""
        return f"{self.model}{whose}, {self.size or 'any size'}, {self.quality or 'any quality'}"

    def clean(self) -> None:
        """Refuse to change what was used. Within a transaction nobody uses it until its end."""
        if self.is_used():
            raise ValidationError(USED)

    def is_used(self) -> bool:
        """Whether a call was charged at it by now; locks the row within a transaction."""
        rows = type(self)._base_manager.filter(pk=self.pk).order_by("pk")
        if transaction.get_connection().in_atomic_block:
            rows = rows.select_for_update(no_key=True)
        return self.pk is not None and rows.values_list("used_at", flat=True).first() is not None

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save, and tell the audit trail. Raises Refused for a price that was used."""
        with transaction.atomic():
            if self.is_used():
                raise Refused(USED)
            super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete. Raises Refused for a price that was used."""
        with transaction.atomic():
            if self.is_used():
                raise Refused(USED)
            return super().delete(*args, **kwargs)

    def state_on(self, day: dt.date) -> str:
        """Of a row of `with_end`: "planned", "in force" or "ended" on a day."""
        if self.valid_from > day:
            return "planned"
        replaced: dt.date | None = self.replaced_on  # type: ignore[attr-defined]
        return "ended" if replaced is not None and replaced <= day else "in force"
