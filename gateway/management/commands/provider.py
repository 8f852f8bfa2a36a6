"""``manage.py provider``: set up providers and models without the admin."""

import argparse
import getpass
import sys
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from gateway.models import Model, Provider
from gateway.providers import make_default, set_model, set_provider

EXAMPLES = """examples:
  manage.py provider set openai --base-url https://api.openai.com/v1 --key-file key.txt \\
      --model gpt-image-1-mini --default
  manage.py provider set local --base-url http://images:8080/v1 --model sketch --size 512x512=2400 <key.txt
  manage.py provider list
"""


class Command(BaseCommand):
    help = "Set up the providers that draw the images, their keys and their models."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = EXAMPLES
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="set | list")
        adding = verbs.add_parser("set", help="create a provider with a model, or bring both up to date")
        adding.add_argument("name", metavar="NAME", help="short name of the provider")
        adding.add_argument("--base-url", required=True, metavar="URL", help="such as https://api.openai.com/v1")
        adding.add_argument(
            "--key-file",
            metavar="FILE",
            help="file that holds the provider's key, - for standard input; without it an existing provider keeps"
            " its key and a new one's is read from standard input",
        )
        adding.add_argument("--model", required=True, metavar="NAME", help="the model's name here")
        adding.add_argument("--upstream-name", default="", metavar="NAME", help="what the provider calls the model")
        adding.add_argument(
            "--size",
            action="append",
            type=_size,
            metavar="SIZE=TOKENS",
            help="a size that the model draws and the most tokens of one image, such as 1024x1024=4800; repeat it for"
            " each size (these replace the sizes it has; without any a new model gets the usual ones)",
        )
        adding.add_argument("--default", action="store_true", help="answer tenants that name no model with this one")
        verbs.add_parser("list", help="the providers with their models, one line a model")

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            if options["verb"] == "set":
                self._set(options)
            else:
                self._list()
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages)) from exc

    def _set(self, options: dict[str, Any]) -> None:
        name = options["name"]
        known = Provider.objects.filter(name=name, keys__active=True).exists()
        key = _key(name, options["key_file"] or (None if known else "-"))
        with transaction.atomic():
            provider = set_provider(name, options["base_url"], key)
            sizes = dict(options["size"]) if options["size"] else None
            model = set_model(provider, options["model"], options["upstream_name"], sizes)
            if options["default"]:
                make_default(model)
        self.stdout.write(_line(model))

    def _list(self) -> None:
        for model in Model.objects.select_related("provider").order_by("provider__name", "name"):
            self.stdout.write(_line(model))
        for provider in Provider.objects.filter(models=None):
            self.stdout.write(f"{provider.name}  {provider.base_url}  no model")


def _size(text: str) -> tuple[str, int]:
    size, _, tokens = text.partition("=")
    if not (tokens.isascii() and tokens.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} doesn't read SIZE=TOKENS, as 1024x1024=4800 does")
    return size, int(tokens)


def _key(provider: str, source: str | None) -> str | None:
    """The key from a file, or from standard input for ``-`` (asked for without echo at a terminal)."""
    if source is None:
        return None
    try:
        if source != "-":
            return Path(source).read_text(encoding="utf-8").strip()
        return (getpass.getpass(f"Key of {provider}: ") if sys.stdin.isatty() else sys.stdin.read()).strip()
    except OSError as exc:
        raise CommandError(f"The key can't be read from {source}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise CommandError(f"The key can't be read from {source}: it is not UTF-8 text.") from exc


def _line(model: Model) -> str:
    sizes = " ".join(f"{size.size}={size.most_tokens}" for size in model.sizes.all())
    remarks = [word for word, applies in _remarks(model) if applies]
    return "  ".join([model.provider.name, model.provider.base_url, model.name, model.upstream_name, sizes, *remarks])


def _remarks(model: Model) -> list[tuple[str, bool]]:
    return [
        ("default", model.default),
        ("inactive", not (model.active and model.provider.active)),
        ("no active key", not model.provider.keys.filter(active=True).exists()),
    ]
