"""The paths that the lean handler serves."""

from django.urls import path, re_path

from gateway.health import healthz, readyz
from gateway.imageviews import image
from gateway.metrics import metrics
from gateway.views import GenerateImage

urlpatterns = [
    re_path(r"^wp-json/my-proxy/v1/generate-image/?$", GenerateImage.as_view(), name="generate-image"),
    path("images/<str:day>/<str:file>", image, name="image"),
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]
