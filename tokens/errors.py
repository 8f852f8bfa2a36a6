"""What goes wrong with tokens, tenants and limits when nothing is broken.

::

    ValueError
    └── Refused            what was asked for can't be done; its message is a sentence for the person who asked

The admission store not answering is `tokens.admission.connection.StoreUnavailable`.
"""

from django.db import InterfaceError, OperationalError

DATABASE_DOWN = (OperationalError, InterfaceError)  # what Django raises when PostgreSQL can't be reached


class Refused(ValueError):
    """A request that can't be carried out. The message is one sentence and holds no secret."""
