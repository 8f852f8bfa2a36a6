"""URLs of the admin's pages that are no model's."""

from django.contrib import admin
from django.urls import path

from gateway.admin.refusalpages import refusals

urlpatterns = [path("refusals/", admin.site.admin_view(refusals), name="refusals")]
