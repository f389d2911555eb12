"""Refusals that `main` knows without loading what raises them."""


class GatewayError(Exception):
    """The SSH gateway cannot listen; the message says why and what to do."""
