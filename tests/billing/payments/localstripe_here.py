"""Runs localstripe on 127.0.0.1 in a process of its own: it is GPL, so nothing of ours imports it but this file.

    python localstripe_here.py PORT

It speaks an older API. What it does not know is taken out or added here, and nothing else is changed:
`allowed_payment_method_types` of a payment (all its payments are by card), and listing payments by their customer.
"""

import sys

from aiohttp import web
from localstripe import server
from localstripe.resources import PaymentIntent

make, list_all = PaymentIntent.__init__, PaymentIntent._api_list_all.__func__


def made(self, allowed_payment_method_types=None, **facts):
    make(self, **facts)


def listed(cls, url, customer=None, **asked):
    found = list_all(cls, url, **asked)
    found._list = [one for one in found._list if customer in {None, one.customer}]
    return found


PaymentIntent.__init__ = made
PaymentIntent._api_list_all = classmethod(listed)

if __name__ == "__main__":
    web.run_app(server.app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
