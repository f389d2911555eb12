"""Errors that came before or after any view: a problem document under /api, a page everywhere else."""

from django.http import HttpRequest, HttpResponse

from marketplace.api import errors as api
from marketplace.portal import errors as portal


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer for what Django itself refuses, such as a host that is not ours."""
    return api.bad_request(request) if _is_api(request) else portal.bad_request(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer for an address that is no route."""
    return api.not_found(request) if _is_api(request) else portal.not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer for an error of ours."""
    return api.server_error(request) if _is_api(request) else portal.server_error(request)


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.split("/")[1:2] == ["api"]
