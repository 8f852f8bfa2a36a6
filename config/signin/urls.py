"""URLs of sign-in. They stand before the admin's own, so that its login page is ours."""

from django.urls import path

from config.signin import passwordviews, people, views

urlpatterns = [
    path("login/", views.sign_in, name="login"),
    path("password/forgotten/", passwordviews.forgotten, name="password_forgotten"),
    path("password/choose/<uidb64>/<token>/", passwordviews.Choose.as_view(), name="password_choose"),
    path("second-factor/", views.own, name="second_factor"),
    path("second-factor/verify/", views.verify, name="second_factor_verify"),
    path("second-factor/set-up/", views.enrol, name="second_factor_enrol"),
    path("second-factor/codes/", views.new_codes, name="second_factor_codes"),
    path("second-factor/remove/", views.remove, name="second_factor_remove"),
    path("second-factor/reset/<id>/", people.reset, name="second_factor_reset"),
]
