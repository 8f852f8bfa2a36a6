"""URLs of the admin's pages about usage that are no model's."""

from django.contrib import admin
from django.urls import path

from usage.admin import exceptionpages, exportpages, monthpages, reportpages

page = admin.site.admin_view
urlpatterns = [
    path("months/", page(monthpages.months), name="months"),
    path("months/close/", page(monthpages.close), name="close_months"),
    path("reports/", page(reportpages.reports), name="reports"),
    path("exports/", page(exportpages.exports), name="exports"),
    path("exports/<uuid:job_id>/", page(exportpages.export_page), name="export"),
    path("exports/<uuid:job_id>/state/", page(exportpages.state), name="export_state"),
    path("exports/<uuid:job_id>/file/", page(exportpages.file), name="export_file"),
    path("exports/<uuid:job_id>/cancel/", page(exportpages.cancel), name="export_cancel"),
    path("exceptions/", page(exceptionpages.exceptions), name="exceptions"),
    path("exceptions/provider/", page(exceptionpages.provider), name="exceptions_provider"),
]
