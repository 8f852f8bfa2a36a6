"""URLs of the admin and everything that isn't the API (that is gateway.urls)."""

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from config import apidocs
from tokens.api.apiview import NothingHere
from tokens.api.tokenviews import OneToken, Tokens
from usage.api.usageviews import Usage

urlpatterns = [
    path("admin/", include("config.signin.urls")),
    path("admin/", include("gateway.admin.urls")),
    path("admin/", include("usage.admin.urls")),
    path("admin/", admin.site.urls),
    path("api/usage", Usage.as_view(), name="api_usage"),
    path("api/tokens", Tokens.as_view(), name="api_tokens"),
    path("api/tokens/<int:token_id>", OneToken.as_view(), name="api_token"),
    path("api/openapi.json", apidocs.Document.as_view(), name="api_document"),
    path("api/docs", apidocs.page, name="api_docs"),
    re_path(r"^api(?:/.*)?$", NothingHere.as_view(), name="api_nothing"),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
handler400 = "config.errorpages.bad_request"
handler403 = "config.errorpages.forbidden"
handler404 = "config.errorpages.not_found"
handler500 = "config.errorpages.server_error"
