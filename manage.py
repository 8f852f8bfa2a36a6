#!/usr/bin/env python
"""Django's command line. `DATA=<folder> manage.py ...` finds the running stack of that folder."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

from tokens import actors

BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE ended


def main() -> None:
    """Run the command; what it printed is out when this returns or raises."""
    try:
        with actors.acting_as(actors.of_command()):  # for the commands that Django brings along, too
            execute_from_command_line(sys.argv)
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        main()
    except ImproperlyConfigured as exc:
        sys.exit(f"manage.py: {exc}")
    except BrokenPipeError:  # whoever read has enough, as with `| head`; the rest goes nowhere, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
