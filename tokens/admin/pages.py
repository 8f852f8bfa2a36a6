"""What the admin's pages of tenants, members and tokens share: the use panel, confirmations, and plain notices."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ShowFacets
from django.contrib.postgres.fields import ArrayField
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminTextInputWidget

from tokens import directory
from tokens.admin.scoping import OwnRows, row_id
from tokens.admin.standing import read_use
from tokens.admission.connection import StoreUnavailable
from tokens.errors import Refused
from tokens.issuing import Scope
from tokens.outbox import Published

STORE_AWAY = "The admission store did not answer: this takes effect when it is back."

logger = logging.getLogger(__name__)


class ScopeAdmin(OwnRows):
    """A page of a tenant, a member or a token: with its use of each limit, and no way to delete it."""

    change_form_outer_before_template = "admin/scope.html"
    list_per_page = 50
    paginator = InfinitePaginator  # never counts
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    formfield_overrides: Mapping[Any, Any] = {ArrayField: {"widget": UnfoldAdminTextInputWidget}}

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: the books refer to it. Suspending or revoking ends its right to call."""
        return False

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Lists in one line. Their items are checked by the form: Django drops what the model says of an item."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if isinstance(db_field, ArrayField):
            field.base_field.validators = [*field.base_field.validators, *db_field.base_field.validators]
        return field

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """What the address says of a new row; Django would fail on a tenant that is no number."""
        initial: dict[str, Any] = super().get_changeform_initial_data(request)
        return {name: value for name, value in initial.items() if name != "tenant" or row_id(value) is not None}

    def change_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The page, with what is used by now. The store is asked here, after any transaction has ended."""
        response: HttpResponse = super().change_view(request, *args, **kwargs)
        context = getattr(response, "context_data", None)
        if context is not None and context.get("original") is not None:
            context |= self.summary(context["original"])
        return response

    def summary(self, scope: Scope) -> dict[str, Any]:
        """The context of the panel above the form."""
        try:
            return {"use": read_use(scope), "scope": scope.entry()}
        except StoreUnavailable:
            return {"store_away": True, "scope": scope.entry()}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save the fields that the person changed, no others."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        names = {field.name for field in self.model._meta.concrete_fields}.intersection(form.changed_data)
        if names:
            obj.save(update_fields=names)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save, and tell the person once it is committed if the store has yet to learn of it."""
        super().save_related(request, form, formsets, change)
        transaction.on_commit(partial(warn_if_waiting, request, form.instance))

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """The row of a page of our own, or 404."""
        return get_object_or_404(self.rows(request, object_id))

    def rows(self, request: HttpRequest, object_id: Any) -> QuerySet[Any]:
        """The row with that id from the address, if there is one."""
        queryset: QuerySet[Any] = self.get_queryset(request)
        number = row_id(object_id)
        return queryset.none() if number is None else queryset.filter(pk=number)

    def page_url(self, pk: int) -> str:
        """The address of a row's page."""
        options = self.model._meta
        return reverse(f"admin:{options.app_label}_{options.model_name}_change", args=(pk,))

    def confirm(
        self,
        request: HttpRequest,
        obj: Any,
        carry_out: Callable[[forms.Form], HttpResponse | None],
        form_class: type[forms.Form] = forms.Form,
        **texts: Any,
    ) -> HttpResponse:
        """Ask first, act on POST only. `texts`: title, text, submit_text, and danger for what ends a right to call.

        `carry_out` gets the valid form, outside of any transaction; what it raises as Refused or StoreUnavailable is
        shown. It returns the answer, or None to go back to the page.
        """
        form = form_class(request.POST if request.method == "POST" else None)
        if form.is_valid():
            try:
                response = carry_out(form)
            except (Refused, StoreUnavailable) as exc:
                messages.error(request, str(exc))
                response = None
            return response or HttpResponseRedirect(self.page_url(obj.pk))
        context = {
            **self.admin_site.each_context(request),
            **texts,
            "opts": self.model._meta,
            "original": obj,
            "form": form,
            "back": self.page_url(obj.pk),
        }
        return TemplateResponse(request, "admin/confirm.html", context)


def warn_if_waiting(request: HttpRequest, changed: Published) -> None:
    """Say so when the admission store has yet to learn of a committed change."""
    if directory.is_waiting(changed):
        messages.warning(request, STORE_AWAY)
