"""What the card processor calls: verified on the raw body, kept once, answered at once. Handling is a sweep's work."""

import structlog
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from billing.errors import BadSignature
from billing.payments import events, gateway

log = structlog.get_logger(__name__)


@csrf_exempt  # its signature says who sent it
@require_POST
def stripe(request: HttpRequest) -> HttpResponse:
    """Keep an event of the card processor. Answers 400 to what it did not sign, 404 where there are no cards."""
    if not gateway.is_there():
        return HttpResponse(status=404)
    try:
        event = gateway.signed_event(body=request.body, signature=request.headers.get("Stripe-Signature", ""))
    except BadSignature as refusal:
        log.warning("a webhook was refused", reason=str(refusal))
        return HttpResponse(status=400)
    is_new = events.receive(event=event, at=timezone.now())
    log.info("webhook", event_id=event.id, type=event.type, is_new=is_new)
    return HttpResponse(status=200)
