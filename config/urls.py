"""URLs of the admin and everything that isn't the API (that is gateway.urls)."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
