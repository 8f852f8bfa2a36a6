"""A server's URL in its parts, without ever repeating it: it holds a password."""

from urllib.parse import SplitResult, urlsplit

from django.core.exceptions import ImproperlyConfigured


def split_url(name: str, url: str) -> SplitResult:
    """Split the URL that the setting `name` holds.

    Raises ImproperlyConfigured for one that can't be read, and for one whose password holds a character that ends it
    early: what remains of the password would be taken for a port, a database's name or an option, and be shown as such.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # read only to be checked: urlsplit looks at it when asked
    except ValueError:
        pass  # its text shows a part of the password, and so would a traceback that says "during handling of"
    else:
        behind = parts.path + parts.fragment + ("" if "@" in parts.netloc else parts.query)
        if not (parts.netloc and "@" in behind) and not parts.fragment:
            return parts
    raise ImproperlyConfigured(
        f"{name} can't be read: in a user name or password write / as %2F, # as %23, ? as %3F, @ as %40, [ as %5B and"
        " % as %25, and the port as a number."
    )
