"""People: they sign in with their e-mail address, or only own proxy tokens through a membership."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.db import models


class UserManager(BaseUserManager["User"]):
    """Makes users that sign in with their e-mail address."""

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


class User(AbstractUser):
    """A person: signs in to the admin, or only owns proxy tokens through a membership."""

    username = None  # type: ignore[assignment]
    email = models.EmailField("e-mail address", unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects = UserManager()  # type: ignore[assignment,misc]

    def __str__(self) -> str:
        return self.email
