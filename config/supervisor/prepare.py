"""Everything that `manage.py` has to do before the first request, in one process: starting Python costs most.

Run as `python -m config.supervisor.prepare`, with the options of `manage.py demo`, whose output is all that
standard output carries; without any option no demo tenant is made.
"""

import sys

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command


def main(demo_options: list[str]) -> None:
    """Migrate, collect the static files, prepare the stores, and make the demo tenant if asked. Safe to repeat."""
    django.setup()
    call_command("migrate", interactive=False, stdout=sys.stderr)
    call_command("collectstatic", interactive=False, verbosity=0)
    call_command("bootstrap", stdout=sys.stderr)
    if demo_options:
        call_command("demo", *demo_options)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CommandError, ImproperlyConfigured) as exc:
        sys.exit(str(exc))
