"""URLs of the admin and everything that isn't the API (that is gateway.urls)."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

urlpatterns = [path("admin/", admin.site.urls), path("", RedirectView.as_view(pattern_name="admin:index"))]
handler404 = "config.errorpages.not_found"
handler500 = "config.errorpages.server_error"
