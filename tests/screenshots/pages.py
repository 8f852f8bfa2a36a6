"""Which pages are in the documentation, and what is done on them before the picture is taken."""

from collections.abc import Iterator
from dataclasses import dataclass

from django.urls import reverse
from playwright.sync_api import Page

from tests.adminpages import page
from tests.screenshots.houses import ADMINISTRATOR, FINANCE, House
from tests.screenshots.pictures import Picture
from tokens.models import ProxyToken
from usage.models import Statement


@dataclass
class Scene:
    """What the pages are about: the tenants, and a call that was refused, with its token."""

    houses: list[House]
    refused: str
    token: ProxyToken


def pictures(scene: Scene) -> Iterator[tuple[Picture, str]]:
    """Every picture, with the address of who looks at the page."""
    for picture in _of_administrator(scene):
        yield picture, ADMINISTRATOR
    for picture in _of_finance(scene):
        yield picture, FINANCE


def _of_administrator(scene: Scene) -> Iterator[Picture]:
    house, tokens = scene.houses[0], page("tokens_proxytoken_changelist")
    issue = page("tokens_proxytoken_add") + f"?tenant={house.tenant.pk}"
    rotated = scene.houses[1].tokens[1]
    yield Picture("sign-in", "/admin/login/", height=640, signed_in=False)
    yield Picture("dashboard", "/admin/?period=30d", height=1100)
    yield Picture("dashboard-dark", "/admin/?period=30d", height=1100, dark=True)
    yield Picture("dashboard-phone", "/admin/?period=7d", phone=True)
    yield Picture("tokens", tokens, height=1050)
    yield Picture("tokens-phone", tokens, phone=True)
    yield Picture("token", page("tokens_proxytoken_change", scene.token.pk), height=1000)
    yield Picture("token-issue", issue, prepare=_fill_in, height=900)
    yield Picture("token-secret", issue, prepare=_issue, height=640)
    yield Picture("token-cut-over", page("tokens_proxytoken_cut_over", rotated.pk), height=720)
    yield Picture("refusal", f"{reverse('refusals')}?request_id={scene.refused}", height=960)
    yield Picture("audit", page("tokens_auditentry_changelist"))
    yield Picture("alerts", page("usage_alert_changelist"), height=640)
    yield Picture("api", "/api/docs", prepare=_open_api, signed_in=False)


def _of_finance(scene: Scene) -> Iterator[Picture]:
    statement = Statement.objects.filter(tenant=scene.houses[0].tenant).latest("id")
    yield Picture("report", f"{reverse('reports')}?period=last-month&by=tenant&margins=1", height=1150)
    yield Picture("exports", reverse("exports"), height=560)
    yield Picture("prices", page("usage_price_changelist"), height=640)
    yield Picture("months", f"{reverse('months')}?state=ready", height=640)
    yield Picture("months-close", f"{reverse('close_months')}?tenant={scene.houses[-1].tenant.slug}", height=560)
    yield Picture("statement", page("usage_statement_change", statement.pk), height=1000)
    yield Picture("exceptions", f"{reverse('exceptions')}?period=this-month", height=1150)


def _fill_in(shown: Page) -> None:
    shown.fill("[name=email]", "jonas.lind@aurora.example")
    shown.fill("[name=name]", "poster-shop")


def _issue(shown: Page) -> None:
    _fill_in(shown)
    with shown.expect_navigation():
        shown.get_by_role("button", name="Save").last.click()


def _open_api(shown: Page) -> None:
    shown.locator(".opblock-summary").first.wait_for()
