from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.forms import ModelForm

from tokens import audit
from tokens.errors import Refused
from tokens.management.base import VerbCommand, find_tenant, moment, one_line
from usage.admin.alertforms import AlertSettingForm, WebhookForm
from usage.alerting import addresses, delivering, quotas
from usage.alertrows import THRESHOLDS, usual_thresholds
from usage.management.arguments import at_least_one
from usage.models import AlertDelivery, AlertSetting, Webhook

OF_TENANT = {
    "show": "who is told about a tenant's quotas, and at which shares",
    "set": "say who is told by mail, and at which shares",
    "webhook-add": "add an address that is called; the secret that signs is printed alone on standard output, once",
    "test": "send a message that says it is a test to all of them",
}
OF_WEBHOOK = {
    "webhook-secret": "make a new secret, printed alone on standard output, once",
    "webhook-on": "call a webhook again that was switched off",
    "webhook-off": "stop calling a webhook",
    "webhook-remove": "remove a webhook",
}


class Command(VerbCommand):
    help = "Say who is told when a quota has reached a share of its amount, and see how that went."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        of_tenant = {name: verbs.add_parser(name, help=text) for name, text in OF_TENANT.items()}
        for verb in of_tenant.values():
            verb.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant")
        shares = of_tenant["set"]
        shares.add_argument("--at", type=int, action="append", choices=THRESHOLDS, help="percent; may be repeated")
        mails = shares.add_mutually_exclusive_group()
        mails.add_argument("--email", action="append", metavar="EMAIL", help="who is mailed; may be repeated")
        mails.add_argument("--no-email", action="store_true", help="mail nobody")
        of_tenant["webhook-add"].add_argument("url", metavar="URL", help="such as https://hooks.example.com/quotas")
        for name, text in OF_WEBHOOK.items():
            verbs.add_parser(name, help=text).add_argument("webhook_id", type=int, metavar="WEBHOOK_ID")
        listing = verbs.add_parser(
            "list", help="one line a delivery, newest first: id, when, tenant, to, status, attempts, last error, what"
        )
        listing.add_argument("--tenant", metavar="SLUG", help="only this tenant's")
        listing.add_argument("--limit", type=at_least_one, default=50, metavar="N", help="how many (default: 50)")
        verbs.add_parser("retry", help="try a delivery again that was given up").add_argument(
            "delivery_id", type=int, metavar="DELIVERY_ID", help="its id, as `alert list` shows it"
        )

    def do_show(self, options: dict[str, Any]) -> None:
        """Shares, addresses and webhooks."""
        tenant = find_tenant(options["tenant"])
        setting = AlertSetting.objects.filter(tenant=tenant).first()
        self.stdout.write(one_line("at", *sorted(setting.thresholds if setting else usual_thresholds())))
        for email in setting.emails if setting else []:
            self.stdout.write(one_line("email", email))
        for hook in tenant.webhooks.all():
            self.stdout.write(one_line("webhook", hook.pk, addresses.shown(hook.url), "on" if hook.active else "off"))

    def do_set(self, options: dict[str, Any]) -> None:
        """Shares and addresses; what isn't given stays."""
        tenant = find_tenant(options["tenant"])
        row = AlertSetting.objects.filter(tenant=tenant).first() or AlertSetting(tenant=tenant)
        emails = [] if options["no_email"] else options["email"] or row.emails
        fields = {"tenant": tenant.pk, "thresholds": options["at"] or row.thresholds, "emails": ",".join(emails)}
        _checked(AlertSettingForm(fields, instance=row)).save()
        self.do_show(options)

    def do_test(self, options: dict[str, Any]) -> None:
        """Put a test to everybody on its way."""
        tenant = find_tenant(options["tenant"])
        setting = AlertSetting.objects.filter(tenant=tenant).first()
        tests = quotas.deliveries(tenant, None, setting.emails if setting else [])
        if not tests:
            raise Refused(f"Nobody is told about the quotas of {tenant.slug}: add an address or a webhook first.")
        with transaction.atomic():
            AlertDelivery.objects.bulk_create(tests)
            audit.note("sent a test to", tenant, part="quota alerts")
        self.stdout.write(f"{len(tests)} on their way: `alert list` says what comes of them.")

    def do_webhook_add(self, options: dict[str, Any]) -> None:
        """Add a webhook."""
        tenant = find_tenant(options["tenant"])
        form = _checked(WebhookForm({"tenant": tenant.pk, "url": options["url"], "active": True}))
        secret = form.instance.new_secret()
        hook = form.save()
        self._show_secret(hook, secret)

    def do_webhook_secret(self, options: dict[str, Any]) -> None:
        """Replace the secret."""
        hook = _find(options)
        secret = hook.new_secret()
        hook.save(update_fields=["encrypted"])
        self._show_secret(hook, secret)

    def _show_secret(self, hook: Webhook, secret: str) -> None:
        self.stdout.write(secret)
        self.note(f"Webhook {hook.pk} signs with this secret, which is shown this once.")

    def do_webhook_on(self, options: dict[str, Any]) -> None:
        """Call it again."""
        self._switch(_find(options), active=True)

    def do_webhook_off(self, options: dict[str, Any]) -> None:
        """Call it no more."""
        self._switch(_find(options), active=False)

    def _switch(self, hook: Webhook, *, active: bool) -> None:
        hook.active = active
        hook.save(update_fields=["active"])
        self.stdout.write(f"Webhook {hook.pk} is {'on' if active else 'off'}.")

    def do_webhook_remove(self, options: dict[str, Any]) -> None:
        """Remove it; its deliveries stay listed."""
        hook = _find(options)
        hook.delete()
        self.stdout.write(f"Webhook {options['webhook_id']} is removed.")

    def do_list(self, options: dict[str, Any]) -> None:
        """One line a delivery."""
        rows = AlertDelivery.objects.select_related("tenant", "alert").order_by("-pk")
        if options["tenant"]:
            rows = rows.filter(tenant=find_tenant(options["tenant"]))
        for row in rows[: options["limit"]]:
            went = (row.status, row.attempts, row.error or "-")
            self.stdout.write(one_line(row.pk, moment(row.created_at), row.tenant.slug, row.target, *went, row.about))

    def do_retry(self, options: dict[str, Any]) -> None:
        """Begin anew with a delivery."""
        row = AlertDelivery.objects.filter(pk=options["delivery_id"]).first()
        if row is None:
            raise Refused(f"There is no delivery {options['delivery_id']}.")
        with transaction.atomic():
            again = delivering.try_again(row)
        if not again:
            raise Refused(f"Delivery {row.pk} was not given up: it is {row.status}.")
        self.stdout.write(f"Delivery {row.pk} is tried again.")


def _checked(form: ModelForm) -> ModelForm:  # type: ignore[type-arg]
    """The admin's form, when it takes what was given. Raises ValidationError."""
    if not form.is_valid():
        raise ValidationError(form.errors.as_data())
    return form


def _find(options: dict[str, Any]) -> Webhook:
    hook = Webhook.objects.filter(pk=options["webhook_id"]).first()
    if hook is None:
        raise Refused(f"There is no webhook {options['webhook_id']}.")
    return hook
