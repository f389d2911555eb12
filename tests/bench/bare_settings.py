"""Django with a database and a view: the product's settings less everything that stands between the two."""

from marketplace.settings import ALLOWED_HOSTS, DATABASES, SECRET_KEY, USE_TZ

__all__ = ["ALLOWED_HOSTS", "DATABASES", "ROOT_URLCONF", "SECRET_KEY", "USE_TZ"]

ROOT_URLCONF = "tests.bench.bare"
