"""`usage price`: the price book on the command line."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.db import transaction
from django.utils.timezone import now

from tokens.errors import Refused
from tokens.management.base import find_tenant, one_line
from usage import pricebook
from usage.exports import plain
from usage.management.arguments import day
from usage.models import Price
from usage.pricebook import AMOUNTS, REFUSED, SAME
from usage.pricerow import PROVIDER_ASKS, SELLS

HELP = {
    "per_image": "an image",
    "per_million_input": "a million input tokens",
    "per_million_output": "a million output tokens",
}


def add_arguments(verb: ArgumentParser) -> None:
    """What to do with the price book."""
    verbs = verb.add_subparsers(dest="what", required=True, metavar="list | set | import")
    listing = verbs.add_parser("list", help="the prices, those in force first of each")
    listing.add_argument("--model", default="", metavar="NAME", help="only this model's")
    listing.add_argument("--tenant", metavar="SLUG", help="only this tenant's own")
    listing.add_argument("--format", choices=["csv"], help="as import takes it (default: a line a price)")
    setting = verbs.add_parser("set", help="add a price, or change one that no call was charged at yet")
    setting.add_argument("model", metavar="MODEL", help="the model's name")
    setting.add_argument("--currency", required=True, metavar="CODE", help="such as EUR")
    setting.add_argument("--from", dest="valid_from", type=day, metavar="DAY", help="its first day (default: today)")
    setting.add_argument("--tenant", metavar="SLUG", help="only for this tenant's calls")
    setting.add_argument("--size", default="", metavar="SIZE", help="only for this size, such as 1024x1024")
    setting.add_argument("--quality", default="", metavar="NAME", help="only for this quality, such as high")
    for name, unit in HELP.items():
        flag = name.replace("_", "-")
        setting.add_argument(f"--{flag}", default="", metavar="AMOUNT", help=f"what {unit} is sold at")
        setting.add_argument(
            f"--provider-{flag}", default="", metavar="AMOUNT", help=f"what the provider asks for {unit}"
        )
    importing = verbs.add_parser("import", help="take prices from a CSV file: all of them or none")
    importing.add_argument("file", type=Path, metavar="FILE", help="- reads standard input")
    importing.add_argument("--dry-run", action="store_true", help="only say what each line would do")


def run(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Carry it out. Raises Refused, ValidationError and CommandError."""
    {"list": _list, "set": _set, "import": _import}[options["what"]](options, out, errors)


def _list(options: dict[str, Any], out: OutputWrapper, _errors: OutputWrapper) -> None:
    prices = Price.objects.with_end().select_related("tenant")
    prices = prices.order_by("model", "tenant__slug", "size", "quality", "-valid_from")
    if options["model"]:
        prices = prices.filter(model=options["model"])
    if options["tenant"]:
        prices = prices.filter(tenant=find_tenant(options["tenant"]))
    if options["format"]:
        pricebook.write(prices, out)
        return
    for price in prices:
        out.write(_line(price))


def _line(price: Price) -> str:
    amounts = [[getattr(price, name) for name in names] for names in (SELLS, PROVIDER_ASKS)]
    sold, asked = ("/".join("-" if one is None else plain(one) for one in side) for side in amounts)
    whose = price.tenant.slug if price.tenant else "everybody"
    where = price.model, whose, price.size or "any", price.quality or "any"
    return one_line(*where, price.valid_from, price.state_on(now().date()), sold, asked, price.currency)


def _set(options: dict[str, Any], out: OutputWrapper, _errors: OutputWrapper) -> None:
    cells = {name: options[name] for name in ("model", "size", "quality", "currency", *AMOUNTS)}
    cells |= {"tenant": options["tenant"] or "", "valid_from": str(options["valid_from"] or now().date())}
    with transaction.atomic():
        (line,) = pricebook.read([",".join(cells), ",".join(map(_quoted, cells.values()))])
        if line.verdict == REFUSED:
            raise Refused(line.why)
        pricebook.carry_out([line])
    out.write(_line(Price.objects.with_end().select_related("tenant").get(pk=line.price.pk)))


def _quoted(cell: str) -> str:
    return '"' + " ".join(cell.split()).replace('"', '""') + '"'


def _import(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    lines = _read(options["file"])
    for line in lines:
        out.write(one_line(line.number, line.verdict, line.price.calls(), line.price.valid_from, line.why))
    refused = sum(line.verdict == REFUSED for line in lines)
    if refused:
        raise CommandError(f"{refused} of {len(lines)} lines can't be imported, so none was.")
    changed = sum(line.verdict != SAME for line in lines)
    if options["dry_run"]:
        errors.write(f"{changed} would be imported.")
    else:
        errors.write(f"{pricebook.carry_out(lines)} imported.")


def _read(path: Path) -> list[pricebook.Line]:
    try:
        if str(path) == "-":
            return pricebook.read(sys.stdin)
        with path.open(encoding="utf-8-sig", newline="") as file:
            return pricebook.read(file)
    except UnicodeDecodeError as exc:
        raise Refused(f"{path} is not UTF-8 text.") from exc
    except OSError as exc:
        raise Refused(f"{path} can't be read: {exc.strerror}.") from exc
