"""What each page of the admin is built on: everybody sees and changes the rows that tokens.roles gives them, no others.

A page says by `tenant_field` how its rows belong to a tenant. One that doesn't is the platform's own, and closed to
the people of a tenant.
"""

from typing import Any, ClassVar

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth import get_permission_codename
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.http import HttpRequest
from django.utils.text import capfirst
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.contrib.filters.forms import AutocompleteDropdownForm

from tokens import roles
from tokens.admin.history import Trailed

ID_DIGITS = 18  # a bigint has at least these
ASKED = frozenset({"exact", "in", "isnull", "id", "pk"})  # of a field, by links and filters
TYPED = ASKED | {"icontains"}  # by filters only


class OwnRows(Trailed):
    """A page whose lists, filters, choices, actions and exports hold what the person may see."""

    tenant_field: ClassVar[str | None] = None  # from a row to its tenant's id; None: the rows are the platform's own
    linked_fields: ClassVar[frozenset[str]] = frozenset()  # by which links narrow the list, besides its filters

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """What the person may see: everything on the page begins here, and a URL typed by hand finds nothing else."""
        return self.limited(request, super().get_queryset(request), "view")

    def limited(self, request: HttpRequest, queryset: QuerySet[Any], verb: str) -> QuerySet[Any]:
        """Of these rows those that the person may view or change; actions on several rows ask it about each."""
        return roles.narrow(queryset, request.user, self._permission(verb), self.tenant_field)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the person may see this row, given as such or by its id; without one, whether any."""
        return super().has_view_permission(request, obj) and self._may(request, obj, "view")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same for changing it."""
        return super().has_change_permission(request, obj) and self._may(request, obj, "change")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same for deleting it."""
        return super().has_delete_permission(request, obj) and self._may(request, obj, "delete")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """What filters and links ask: otherwise an address could ask what no page shows, letter by letter."""
        name, *how = lookup.split(LOOKUP_SEP)
        try:
            asked = self._is_asked(self.opts.get_field(name), how, request)
        except FieldDoesNotExist:
            asked = True  # a name that a filter has of its own, or none at all
        return asked and bool(super().lookup_allowed(lookup, value, request))

    def _is_asked(self, field: Any, how: list[str], request: HttpRequest | None) -> bool:
        if field.concrete and (field.primary_key or field.is_relation or field.name in self.linked_fields):
            return ASKED.issuperset(how)
        filters = self.get_list_filter(request) if request is not None else self.list_filter
        firsts = (one[0] if isinstance(one, tuple) else getattr(one, "parameter_name", one) for one in filters)
        return TYPED.issuperset(how) and any(str(first).partition(LOOKUP_SEP)[0] == field.name for first in firsts)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list by the filters in force. PostgreSQL takes no NUL, which Django leaves to it.

        An empty list leads whoever may add rows to doing so; its title says what is listed.
        """
        if any("\0" in value for values in request.GET.lists() for value in values[1]):
            raise IncorrectLookupParameters
        listed = super().get_changelist_instance(request)
        listed.may_add = self.has_add_permission(request)
        listed.title = capfirst(self.opts.verbose_name_plural)  # of the browser's tab
        return listed

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Only what belongs to tenants for which the person may add rows here can be chosen."""
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        page = self.admin_site._registry.get(db_field.remote_field.model)
        if field is not None:
            of = page.tenant_field if isinstance(page, OwnRows) else None
            field.queryset = roles.narrow(field.queryset, request.user, self._permission("add"), of)
        return field

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """What the address says of a new row; the tenant, of people who have one only."""
        initial: dict[str, Any] = super().get_changeform_initial_data(request)
        tenants = roles.rights_of(request.user).tenants(self._permission("add"))
        return {"tenant": next(iter(tenants)), **initial} if tenants is not None and len(tenants) == 1 else initial

    def _permission(self, verb: str) -> str:
        return f"{self.opts.app_label}.{get_permission_codename(verb, self.opts)}"

    def _may(self, request: HttpRequest, obj: Any, verb: str) -> bool:
        rights = roles.rights_of(request.user)
        if obj is None or rights.platform:
            return True
        return rights.may(self._permission(verb), self._tenant_of(obj))

    def _tenant_of(self, obj: Any) -> int | None:
        """The tenant's id of a row, which unfold's actions name by its id only. None: none, or there is no such row."""
        if self.tenant_field is None:
            return None
        if isinstance(obj, Model):
            return getattr(obj, self.tenant_field)  # type: ignore[no-any-return]
        number, rows = row_id(obj), self.model._default_manager.order_by()
        found = rows.none() if number is None else rows.filter(pk=number)
        return found.values_list(self.tenant_field, flat=True).first()  # type: ignore[no-any-return]


class _TenantChoice(AutocompleteDropdownForm):
    """The field of the filter. It names the tenant that is chosen, which must be one that the person may see."""

    def __init__(self, request: HttpRequest, name: str, **kwargs: Any) -> None:
        super().__init__(request=request, name=name, **kwargs)
        self.fields[name].queryset = roles.visible_tenants(request.user)


class TenantFilter(AutocompleteSelectFilter):
    """By tenant, for people who may see more than one."""

    form_class = _TenantChoice

    def has_output(self) -> bool:
        """Whether there is anything to choose."""
        tenants = roles.rights_of(self.request.user).tenants("tokens.view_tenant")
        return tenants is None or len(tenants) > 1


def row_id(text: Any) -> int | None:
    """An id as an address has it; None for what can't be one (`isdigit` alone lets through ² and endless numbers)."""
    written = str(text)
    return int(written) if written.isascii() and written.isdigit() and len(written) <= ID_DIGITS else None
