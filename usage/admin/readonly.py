"""Pages of the books: nobody changes them here, and a list can be downloaded whole."""

import asyncio
from collections.abc import Generator
from typing import Any, Self

from asgiref.sync import sync_to_async
from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect, StreamingHttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action
from unfold.paginator import InfinitePaginator

from tokens.admin.history import note_download
from tokens.admin.scoping import OwnRows
from tokens.roles import sees_margins
from usage.admin.paging import PagesByKey
from usage.exports import csv_pieces

PATIENCE_SECONDS = 60


class UnchangeableAdmin(OwnRows):
    """Rows that nobody adds, changes or deletes by hand; what may be done with them is an action with its own right."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody."""
        return False


class ReadOnlyAdmin(UnchangeableAdmin):
    """A list of rows to look at and to download, by the filters in force. `csv_columns`: heading -> lookup."""

    csv_columns: dict[str, str] = {}
    margin_columns: dict[str, str] = {}  # further ones, for those who may see what providers ask
    csv_name = "usage"
    paginator = InfinitePaginator  # never counts
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_filter_submit = True
    list_disable_select_all = True  # would have to count
    list_per_page = 50
    actions: tuple[str, ...] = ("selected_csv",)
    actions_list: tuple[str, ...] = ("csv",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """A list that nobody can sort otherwise goes by its ids, however long it is."""
        return PagesByKey if tuple(self.ordering or ()) == ("-id",) and self.sortable_by == () else ChangeList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseBase:
        """The list; its download keeps the list's filters."""
        response: HttpResponseBase = super().changelist_view(request, extra_context)
        for button in (getattr(response, "context_data", None) or {}).get("actions_list", ()):
            button["path"] += f"?{request.GET.urlencode()}"
        return response

    @action(description="Download CSV", icon="download", url_path="csv", permissions=["view"])
    def csv(self, request: HttpRequest) -> HttpResponseBase:
        """Every row that the filters let through; back to the list, which says so, when they can't be read."""
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            options = self.model._meta
            listed = reverse(f"admin:{options.app_label}_{options.model_name}_changelist")
            return HttpResponseRedirect(f"{listed}?{ERROR_FLAG}=1")
        note_download(request, self.model, request.GET.urlencode() or "all rows")
        return self.stream(request, rows)

    @action(description="Download selected rows as CSV", permissions=["view"])
    def selected_csv(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        """The selected rows."""
        note_download(request, self.model, f"{len(request.POST.getlist('_selected_action'))} selected rows")
        return self.stream(request, queryset)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Filters typed by hand tell nobody what they may not see: prices say what providers ask, too."""
        hidden = lookup.partition("__")[0] in {"price", "price_id"}
        return super().lookup_allowed(lookup, value, request) and (not hidden or _sees_margins(request))

    def stream(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        """A CSV file, read and sent piece by piece."""
        headers = {"Content-Disposition": f'attachment; filename="{self.csv_name}.csv"', "Cache-Control": "no-store"}
        columns = self.csv_columns | self.margin_columns if _sees_margins(request) else self.csv_columns
        pieces = Pieces(csv_pieces(queryset, columns))
        return StreamingHttpResponse(pieces, content_type="text/csv; charset=utf-8", headers=headers)


def _sees_margins(request: HttpRequest | None) -> bool:
    return request is not None and sees_margins(request.user)


def in_one_line(text: str) -> SafeString:
    """Text that a narrow column doesn't break."""
    return format_html('<span class="gw-when">{}</span>', text)


class Pieces:
    """What is read from the database for ASGI, which would otherwise gather everything before it sends.

    Each piece is read in the request's own thread. Django closes it with the response, so the database is free again
    when the client has left, and a client that takes nothing for `patience` seconds is given up: a reading transaction
    holds up vacuum and new partitions. An error ends the connection before the file's end, so nobody takes a part for
    the whole.
    """

    def __init__(self, pieces: Generator[bytes], patience: float = PATIENCE_SECONDS) -> None:
        self._pieces, self._patience = pieces, patience
        self._timer: asyncio.TimerHandle | None = None
        self._giving_up: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._timer is not None:
            self._timer.cancel()
        if self._giving_up is not None:
            raise TimeoutError("The client took nothing of the download for too long.")
        piece = await sync_to_async(lambda: next(self._pieces, None))()
        if piece is None:
            raise StopAsyncIteration
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_up)
        return piece

    def _give_up(self) -> None:
        if not self._closed:
            self._giving_up = asyncio.ensure_future(sync_to_async(self._pieces.close)())

    def close(self) -> None:
        """Stop reading; in the thread that read."""
        self._closed = True
        self._pieces.close()
