"""Statements: what a tenant used in a month, frozen for good when the month was closed, and their files."""

import datetime as dt

from django.db import models
from django.utils.timezone import now

from tokens.models import Tenant


class Statement(models.Model):
    """A closed month of a tenant. Nothing is booked into the month any more, and no row of this table ever changes.

    The database refuses both. Numbers run without a gap within the year (UTC) in which the months were closed.
    """

    number = models.CharField(max_length=20, unique=True, help_text="Such as 2026-000123.")
    year = models.PositiveSmallIntegerField(help_text="In which it was closed, by UTC.")
    serial = models.PositiveIntegerField(help_text="Within that year, from 1, without gaps.")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="statements")
    month = models.DateField(help_text="Its first day.")
    timezone = models.CharField("time zone", max_length=64, help_text="Whose days these are.")
    policy = models.CharField(max_length=16, help_text="What calls of unknown outcome counted as.")
    decided = models.PositiveIntegerField(help_text="Calls of unknown outcome that the policy decided at the close.")
    rows = models.PositiveBigIntegerField(help_text="Rows of the ledger that are in it.")
    form = models.PositiveSmallIntegerField(help_text="Of the content that was hashed (usage.canonical).")
    content_hash = models.CharField(max_length=64, help_text="SHA-256 of its rows, in hexadecimal digits.")
    totals = models.JSONField(help_text="For each currency the figures; amounts of money are text.")
    prices = models.JSONField(help_text="Every price that a call was charged at, with its figures.")
    adjustments = models.JSONField(help_text="What it books of earlier months' calls, by month and currency.")
    closed_by = models.CharField(max_length=254)
    closed_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "month"], name="one_statement_per_month"),
            models.UniqueConstraint(fields=["year", "serial"], name="one_statement_per_serial"),
        ]

    def __str__(self) -> str:
        return self.number

    @property
    def end(self) -> dt.date:
        """The day after its last."""
        return (self.month + dt.timedelta(days=32)).replace(day=1)

    @property
    def month_name(self) -> str:
        """Such as October 2026."""
        return f"{self.month:%B %Y}"


class StatementFile(models.Model):
    """A file of a statement, as it was made when the month was closed."""

    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="files")
    format = models.CharField(max_length=16, help_text="Of usage.exporting.formats.FORMATS.")
    size = models.PositiveBigIntegerField(help_text="Bytes.")
    digest = models.CharField(max_length=64, help_text="SHA-256 of the file, in hexadecimal digits.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["statement", "format"], name="one_file_per_format")]

    def __str__(self) -> str:
        return f"{self.format} of statement {self.statement}"


class StatementPiece(models.Model):
    """A piece of such a file: small enough to be sent as it is read."""

    file = models.ForeignKey(StatementFile, on_delete=models.PROTECT, related_name="pieces")
    place = models.PositiveIntegerField()
    content = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["file", "place"], name="one_piece_per_place")]

    def __str__(self) -> str:
        return f"piece {self.place} of {self.file}"
