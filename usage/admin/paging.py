"""Lists of millions of rows, page by page: each begins where the other ended, by the rows' ids, and none is counted.

An OFFSET would read all the rows before a page. The address of a page says ``before`` or ``after`` which id it is;
rows that come in meanwhile move nothing.
"""

from typing import Any

from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, QueryDict
from unfold.paginator import InfinitePaginator

from tokens.admin.scoping import row_id

BEFORE, AFTER = "before", "after"


class KeyPaginator(InfinitePaginator):
    """Only says which template has the links; `PagesByKey` finds the rows."""

    template_name = "admin/pages_by_key.html"


class PagesByKey(ChangeList):
    """A list that is ordered by -id. `newer_url` and `older_url` lead to the pages beside it; "" without one."""

    newer_url = older_url = ""

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        """The list of an address. Its filters, search and download lead to a list from its beginning again.

        Their links and hidden fields are made of `request.GET`, so the place in the list is taken out of it: kept, it
        would hide the newer ones of other rows. A row's page still leads back to the same page of the list.
        """
        asked = QueryDict(request.META.get("QUERY_STRING", ""))
        self._place = [row_id(asked.get(name, "")) for name in (BEFORE, AFTER)]
        rest = request.GET.copy()
        for name in (BEFORE, AFTER):
            rest.pop(name, None)
        request.GET = rest  # type: ignore[assignment]
        super().__init__(request, *args)
        request.GET = asked
        self.preserved_filters = self.model_admin.get_preserved_filters(request)
        request.GET = rest  # type: ignore[assignment]

    def get_query_string(self, new_params: Any = None, remove: Any = None) -> Any:
        """Django's, which writes what an ``__in`` asks as Python writes a list, and can't read that again."""
        told = {
            name: [_joined(one) for one in value] if isinstance(value, list) else value
            for name, value in (new_params or {}).items()
        }
        return super().get_query_string(told, remove)

    def get_results(self, request: HttpRequest) -> None:
        """The page that is asked for; the first one when that can't be read."""
        super().get_results(request)
        self.full_result_count = self.result_count  # the header would tell how many are found, which nobody has counted
        before, after = self._place
        rows, most = self.queryset, self.list_per_page
        if after is not None:
            found = list(rows.filter(pk__gt=after).order_by("pk")[: most + 1])
            more_newer, more_older = len(found) > most, True
            found = found[:most][::-1]
        else:
            found = list((rows if before is None else rows.filter(pk__lt=before))[: most + 1])
            more_newer, more_older = before is not None, len(found) > most
            found = found[:most]
        self.result_list = found
        self.paginator = KeyPaginator(rows, most)
        if not found:  # beyond an end: back to where the rows are
            self.newer_url = self._url(None, None) if before is not None or after is not None else ""
            return
        self.newer_url = self._url(AFTER, found[0].pk) if more_newer else ""
        self.older_url = self._url(BEFORE, found[-1].pk) if more_older else ""

    def _url(self, name: str | None, pk: int | None) -> str:
        return str(self.get_query_string({} if name is None else {name: pk}))


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value
