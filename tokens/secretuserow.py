"""Who still uses a secret that a rotation has replaced: what has to be changed before its grace ends."""

from django.db import models

MOST_CLIENTS = 200  # kept of one secret; more are one client's changing addresses


class SecretUse(models.Model):
    """The calls of one client with an old secret, since the rotation: known by its address and its User-Agent.

    Written with the books (usage.statements), so exactly once for each call, and a second or two after it.
    """

    secret = models.ForeignKey("tokens.Secret", on_delete=models.CASCADE, related_name="uses")
    address = models.GenericIPAddressField(null=True)
    agent = models.CharField("client", max_length=200, blank=True)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    calls = models.PositiveBigIntegerField()

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["secret", "address", "agent"], name="one_use_per_secret_and_client", nulls_distinct=False
            )
        ]

    def __str__(self) -> str:
        return f"{self.agent or 'unknown'} at {self.address or 'unknown'}"
