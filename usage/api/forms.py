"""What GET /api/usage reads and answers."""

from typing import Any

from rest_framework import serializers

from tokens.api.forms import MOST_ID, Paged
from usage.reports import GROUPS


class UsageQuery(Paged):
    """Which usage, and how it is grouped."""

    group_by = serializers.CharField(
        max_length=100, default="day", help_text=f"Some of {', '.join(GROUPS)}, separated by commas, in any order."
    )
    tenant = serializers.SlugField(
        max_length=63,
        default="",
        help_text="Only this tenant's, by its short name. A key of one tenant needn't say it.",
    )
    user = serializers.EmailField(default="", help_text="Only that of this member.")
    token = serializers.IntegerField(min_value=1, max_value=MOST_ID, default=None, help_text="Only that of this token.")
    model = serializers.CharField(max_length=100, default="", help_text="Only that of this model.")

    def get_fields(self) -> dict[str, Any]:
        """With the two whose names are words of Python."""
        first = serializers.DateField(source="start", help_text="The first day, such as 2026-11-01.")
        end = serializers.DateField(source="end", help_text="The day after the last.")
        return {"from": first, "to": end, **super().get_fields()}

    def validate_group_by(self, text: str) -> list[str]:
        """As a list of known groups."""
        groups = [name.strip() for name in text.split(",")]
        for name in groups:
            if name not in GROUPS:
                raise serializers.ValidationError(f"{name or 'Nothing'} is not one of {', '.join(GROUPS)}.")
        if len(set(groups)) < len(groups):
            raise serializers.ValidationError("A group is named twice.")
        return groups

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """At least a day."""
        if attrs["start"] >= attrs["end"]:
            raise serializers.ValidationError(
                {"to": "It must be a later day than `from`: it is the day after the last."}
            )
        return attrs


class UsageFigures(serializers.Serializer[Any]):
    """What was used. Money is text, exact; cost and currency are null where no price was known, never 0."""

    requests = serializers.IntegerField(help_text="Calls that ended exactly.")
    images = serializers.IntegerField()
    tokens = serializers.IntegerField(help_text="As charged.")
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    cost = serializers.CharField(allow_null=True, help_text="Such as 12.50, never rounded.")
    currency = serializers.CharField(allow_null=True)
    unresolved_requests = serializers.IntegerField(
        help_text="Calls whose outcome isn't known: not in the figures above."
    )
    unresolved_tokens = serializers.IntegerField()
    voided_requests = serializers.IntegerField()
    unpriced_requests = serializers.IntegerField(help_text="Of `requests`: those that `cost` leaves out.")
    # What follows, keys of all tenants see only.
    provider_cost = serializers.CharField(
        required=False, allow_null=True, help_text="What the provider charges, for keys of all tenants. null: unknown."
    )
    margin = serializers.CharField(
        required=False, allow_null=True, help_text="cost less provider_cost, for keys of all tenants. null: unknown."
    )
    uncosted_requests = serializers.IntegerField(
        required=False, help_text="Of `requests`: those that `provider_cost` leaves out."
    )


class UsageRow(UsageFigures):
    """The usage of one group; of these fields those that were grouped by."""

    tenant = serializers.CharField(required=False)
    user = serializers.CharField(required=False)
    token = serializers.IntegerField(required=False)
    token_name = serializers.CharField(required=False)
    model = serializers.CharField(required=False)
    day = serializers.DateField(required=False)
    week = serializers.DateField(required=False, help_text="Its Monday.")
    month = serializers.CharField(required=False, help_text="Such as 2026-11.")


class UsagePage(serializers.Serializer[Any]):
    """A page of a report, ordered by its groups."""

    rows = UsageRow(many=True)
    totals = UsageFigures(
        many=True,
        required=False,
        help_text="On the first page: the sums over all pages, a row for each currency. Currencies are never summed.",
    )
    next = serializers.CharField(allow_null=True, help_text="The `cursor` of the next page; null: this is the last.")
