"""People: they sign in with their e-mail address, or only own proxy tokens through a membership."""

from collections.abc import Collection
from typing import Any, ClassVar

from django.contrib.auth.base_user import BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.indexes import GinIndex, OpClass
from django.db import models
from django.db.models.functions import Upper

from tokens.audited import Audited, AuditedQuerySet


class Role(models.TextChoices):
    """What a member may do in the admin with the rows of their own tenant; tokens.roles says what exactly."""

    MEMBER = "", "None: only owns tokens"
    VIEWER = "viewer", "Viewer: looks at everything"
    ADMINISTRATOR = "administrator", "Administrator: manages members and tokens"


class UserManager(BaseUserManager["User"]):
    """Makes users that sign in with their e-mail address."""

    def get_queryset(self) -> AuditedQuerySet["User"]:
        """Without updates in bulk."""
        return AuditedQuerySet(self.model, using=self._db)

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user; without a password one that can't sign in (a member who only owns tokens)."""
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        """Whoever signs in with that address, however they write it: it is stored in lower case."""
        return super().get_by_natural_key((username or "").lower())

    async def aget_by_natural_key(self, username: str | None) -> "User":
        """The same for asynchronous code."""
        return await super().aget_by_natural_key((username or "").lower())

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A platform administrator."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(AbstractUser, Audited):
    """A person: signs in to the admin, or only owns proxy tokens through a membership.

    `is_staff`, whether they may enter the admin, follows from their roles (tokens.roles).
    """

    UNAUDITED = frozenset({"last_login", "is_staff"})
    HIDDEN = frozenset({"password"})

    username = None  # type: ignore[assignment]
    email = models.EmailField("e-mail address", unique=True)
    is_finance = models.BooleanField(
        "finance", default=False, help_text="Reads the books of all tenants and takes them away as files."
    )

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects = UserManager()  # type: ignore[assignment,misc]

    class Meta(AbstractUser.Meta):
        indexes: ClassVar[list[models.Index]] = [
            GinIndex(OpClass(Upper("email"), name="gin_trgm_ops"), name="users_by_a_part_of_an_address")
        ]

    def __str__(self) -> str:
        return self.email

    def audits(self, names: Collection[str]) -> bool:
        """Not that Django hashes the same password anew, at a sign-in after an update."""
        renewed = set(names) == {"password"} and getattr(self, "_password", None) is None and self.has_usable_password()
        return super().audits(names) and not renewed

    def audit_words(self, name: str) -> str | None:
        """Whether there is a password; nobody may read which."""
        return "none" if name == "password" and not self.has_usable_password() else None
