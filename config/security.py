"""The settings that protect the admin in a browser: sign-in, sessions and cookies, transport, what a page may load.

Part of config/settings.py, which takes over every name in capitals.
"""

from urllib.parse import urlsplit

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from config.checks import is_loopback
from config.environment import process_environment
from config.throttling import checked_rate

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "CSRF_COOKIE_HTTPONLY",
    "CSRF_COOKIE_NAME",
    "CSRF_COOKIE_SECURE",
    "CSRF_FAILURE_VIEW",
    "LOGIN_REDIRECT_URL",
    "LOGIN_URL",
    "OTP_TOTP_ISSUER",
    "OTP_TOTP_SYNC",
    "PASSWORD_RESET_TIMEOUT",
    "PERMISSIONS_POLICY",
    "SECOND_FACTOR_REQUIRED",
    "SECURE_CONTENT_TYPE_NOSNIFF",
    "SECURE_CROSS_ORIGIN_OPENER_POLICY",
    "SECURE_HSTS_INCLUDE_SUBDOMAINS",
    "SECURE_HSTS_PRELOAD",
    "SECURE_HSTS_SECONDS",
    "SECURE_PROXY_SSL_HEADER",
    "SECURE_REFERRER_POLICY",
    "SECURE_SSL_REDIRECT",
    "SESSION_COOKIE_AGE",
    "SESSION_COOKIE_HTTPONLY",
    "SESSION_COOKIE_NAME",
    "SESSION_COOKIE_SAMESITE",
    "SESSION_COOKIE_SECURE",
    "SESSION_IDLE_MINUTES",
    "SIGN_IN_RATE",
    "SIGN_IN_RATE_OF_AN_ADDRESS",
    "SILENCED_SYSTEM_CHECKS",
    "X_FRAME_OPTIONS",
]

env = process_environment()
_public = urlsplit(env.text("PUBLIC_URL"))
_https = _public.scheme == "https"

# Sign-in
LOGIN_URL, LOGIN_REDIRECT_URL = "admin:login", "admin:index"
NEED_ONE = {"platform", "finance", "none"}
_words = env.words("SECOND_FACTOR_REQUIRED", "none" if is_loopback(_public.hostname or "") else "platform,finance")
if not _words or not NEED_ONE.issuperset(_words) or ("none" in _words and len(_words) > 1):
    raise ImproperlyConfigured("SECOND_FACTOR_REQUIRED must list platform, finance or both, or say none.")
SECOND_FACTOR_REQUIRED = frozenset(_words) - {"none"}
SIGN_IN_RATE = checked_rate("SIGN_IN_RATE", env.text("SIGN_IN_RATE", "10/15m"))
SIGN_IN_RATE_OF_AN_ADDRESS = checked_rate(
    "SIGN_IN_RATE_OF_AN_ADDRESS", env.text("SIGN_IN_RATE_OF_AN_ADDRESS", "100/15m")
)
PASSWORD_RESET_TIMEOUT = 7 * 24 * 3600  # of an invitation; config.signin.passwords gives others an hour
OTP_TOTP_ISSUER = f"Gem Heaven Gateway ({_public.hostname})"
OTP_TOTP_SYNC = False  # else a clock that runs away takes the accepted codes with it, step by step

# Sessions and cookies. A cookie whose name begins with __Host- is taken from this host alone, over https.
SESSION_COOKIE_AGE = 12 * 3600  # from the sign-in on, however busy
SESSION_IDLE_MINUTES = env.number("SESSION_IDLE_MINUTES", 60, least=1)
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = ("__Host-session", "__Host-csrf") if _https else ("sessionid", "csrftoken")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"  # with "Strict" the links in our mails would ask people to sign in again
CSRF_FAILURE_VIEW = "config.errorpages.forgery"

# Transport security follows PUBLIC_URL: behind https everything that can be strict is.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.words("TRUSTED_PROXIES") else None
SECURE_SSL_REDIRECT = False  # the API answers errors in JSON; redirecting is the proxy's business
SILENCED_SYSTEM_CHECKS = ["security.W008"]  # asks for that redirect
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _https
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# What a page may load and do. Nothing inline and nothing evaluated: config/static/gateway/alpinepages.js says how the
# theme lives with that. Styles are files, too; scripts may set single properties of an element.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}
PERMISSIONS_POLICY = ", ".join(
    f"{feature}=()"
    for feature in (
        *("accelerometer", "autoplay", "browsing-topics", "camera", "display-capture", "encrypted-media"),
        *("fullscreen", "geolocation", "gyroscope", "magnetometer", "microphone", "midi", "payment"),
        *("picture-in-picture", "publickey-credentials-get", "screen-wake-lock", "usb", "xr-spatial-tracking"),
    )
)
