"""Events of tenants: a feed in one order, and webhooks that bring it to them."""
