"""Django settings; what differs between machines comes from `environment.py`."""

import gc
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from marketplace import logs
from marketplace.environment import ENVIRONMENT, LOCAL_NAMES

# What a process makes while it starts stays, and hardly a request leaves cycles: look for garbage less often.
gc.set_threshold(20_000, 20, 20)

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = ENVIRONMENT.secret_key
SECRET_KEY_FALLBACKS = list(ENVIRONMENT.secret_key_fallbacks)
DEBUG = False
PUBLIC_URL = ENVIRONMENT.public_url
ALLOWED_HOSTS = list(ENVIRONMENT.allowed_hosts if ENVIRONMENT.is_production else LOCAL_NAMES)

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_htmx",
    "template_partials",
    "bootstrap",
    "billing",
    "provisioning",
    "marketplace",
]

MIDDLEWARE = [
    "marketplace.middleware.request_context",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "marketplace.middleware.security_headers",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]

ROOT_URLCONF = "marketplace.urls"
WSGI_APPLICATION = "marketplace.wsgi.application"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "marketplace.portal.shell.shell",
            ],
        },
    },
]


def _database(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "NAME": unquote(parts.path.removeprefix("/")) or "gpumarket",
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        # What the address says after its question mark, such as sslmode=verify-full, is libpq's.
        "OPTIONS": {"connect_timeout": 5, "application_name": "gpumarket", **dict(parse_qsl(parts.query))},
    }


DATABASES = {"default": _database(ENVIRONMENT.database_url)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "marketplace.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
ACCOUNT_ADAPTER = "marketplace.people.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "mandatory" if ENVIRONMENT.is_production else "optional"
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True

# In local mode messages are printed in the log of the web process.
_mail = urlsplit(ENVIRONMENT.email_url)
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if _mail.hostname else 'console'}.EmailBackend"
EMAIL_HOST, EMAIL_PORT = _mail.hostname or "", _mail.port or 587
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_mail.username or ""), unquote(_mail.password or "")
EMAIL_USE_TLS, EMAIL_USE_SSL = _mail.scheme == "smtp", _mail.scheme == "smtps"
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = f"gpumarket <no-reply@{urlsplit(PUBLIC_URL).hostname}>"

# Everything below says how requests are answered and guarded.
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_HTTPONLY = True
CSRF_USE_SESSIONS = True
CSRF_FAILURE_VIEW = "marketplace.portal.errors.csrf_failure"
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 1024 * 1024  # a node's report carries up to 1 MiB of log, base64
if ENVIRONMENT.is_production:
    SESSION_COOKIE_NAME = "__Host-session"
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$"]
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True

STATIC_URL = "static/"
STATIC_ROOT = ENVIRONMENT.home / "static"
STATICFILES_DIRS = [BASE_DIR / "marketplace" / "assets"]
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("ja", "日本語")]
LOCALE_PATHS = [BASE_DIR / "marketplace" / "locale"]
TIME_ZONE = "UTC"
USE_TZ = True

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["marketplace.api.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["marketplace.api.parsers.StrictJSONParser"],
    # Neither OPTIONS nor ?format= is a door of ours.
    "DEFAULT_METADATA_CLASS": None,
    "URL_FORMAT_OVERRIDE": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "marketplace.api.errors.handle",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "ENUM_NAME_OVERRIDES": {
        "BudgetActionEnum": "marketplace.models.Budget.Action",
        "ClaimDisputeReasonEnum": "marketplace.models.ClaimDispute.Reason",
        "ClaimDisputeStateEnum": "marketplace.models.ClaimDispute.State",
        "ClaimStateEnum": "marketplace.models.ClaimState",
        "ContractSideEnum": "marketplace.models.Side",
        "ContractStateEnum": "marketplace.models.ContractVersion.State",
        "CommitmentKindEnum": [("spend", "spend"), ("hours", "hours")],
        "IdleActionEnum": "marketplace.models.IdleAction",
        "InstanceMarketEnum": "provisioning.models.Instance.Market",
        "JobMarketEnum": "marketplace.models.Job.Market",
        "JobStateEnum": "marketplace.models.JobState",
        "QuoteKindEnum": "marketplace.models.Quote.Kind",
        "PriceUnitEnum": [("gpu_hour", "gpu_hour"), ("gib_hour", "gib_hour")],
        "RevenuePeriodStateEnum": "marketplace.models.PeriodState",
        "SigningKeyStateEnum": "marketplace.models.SigningKey.State",
        "SiteKindEnum": "provisioning.models.Site.Kind",
        "QuotaUnitEnum": [("gpus", "gpus"), ("per_hour", "per_hour")],
        "TaskEndReasonEnum": "marketplace.models.EndReason",
        "TaskStateEnum": "marketplace.models.TaskState",
        "UsageUnitEnum": [("gpu", "gpu"), ("gib", "gib")],
        "VolumeKindEnum": "provisioning.models.Site.VolumeKind",
    },
    "TITLE": "gpumarket",
    "DESCRIPTION": "Rent GPUs, watch them run, and see to the millisecond what they cost.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
}

CELERY_BROKER_URL = ENVIRONMENT.redis_url or "redis://127.0.0.1:6379/0"

# How often a node is asked to call, in milliseconds: with work in motion, with work at rest, and idle.
NODE_POLL_MS = {"moving": 200, "busy": 1000, "idle": 5000 if ENVIRONMENT.is_production else 500}

# How long an instance goes on where its node cannot reach us, in seconds; the node ends it by itself.
ASSIGNMENT_LEASE_S = {"strict": 120, "sticky": 900}
# Where gangs of containers get their private networks from; it must not be in use at any site.
GANG_NETWORKS = ENVIRONMENT.gang_networks
WEBHOOK_HOSTS = ENVIRONMENT.webhook_hosts
# Where artifacts of projects lie (every web and worker process shares the folder), how large one may be, and how much a
# project may keep.
ARTIFACTS = ENVIRONMENT.artifacts
ARTIFACT_BYTES_MAX = ENVIRONMENT.artifact_gib_max << 30
ARTIFACTS_PROJECT_BYTES_MAX = ENVIRONMENT.artifacts_project_gib_max << 30

# For how long what GPUs' meters said is kept at least, by table: every ten seconds, minutes, hours.
TELEMETRY_KEEP = {
    "provisioning_sample": timedelta(days=2),
    "provisioning_minute": timedelta(days=30),
    "provisioning_hour": timedelta(days=730),
}
# Whether a GPU whose memory no tool could scrub stays out of placement; without it, ended processes are enough.
GPU_WIPE_NEEDS_SCRUB = ENVIRONMENT.wipe_needs_scrub

# The card processor. Without keys everything but cards works; the base is the bundled processor's address or empty.
STRIPE_API_KEY = ENVIRONMENT.stripe_api_key
STRIPE_WEBHOOK_SECRET = ENVIRONMENT.stripe_webhook_secret
STRIPE_API_BASE = ENVIRONMENT.stripe_api_base

LOGGING_CONFIG = None
logs.configure(style=ENVIRONMENT.log_format, level=ENVIRONMENT.log_level)
