"""The one exception of the supervisor."""


class StartError(Exception):
    """The start can't go on. `str()` is the whole message for the person who typed the command: one sentence."""
