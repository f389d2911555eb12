"""What timelines of claims say: by verdicts, verifiers, silence and money."""

from django.utils.translation import gettext_lazy as _

from marketplace.contracts import wording
from marketplace.models import Verdict, VerifierRun
from provisioning.told import SAYS, Told

VERIFIERS = {one.value: Told(one.label) for one in Verdict.Verifier}
RESULTS = {one.value: Told(one.label) for one in (*Verdict.Result, *VerifierRun.Result)}
EVIDENCE = {name: Told(text) for name, text in wording.EVIDENCE.items()}

TRIED_AGAIN = Told(_("Tried again: attempt %(number)s."))
BOTH_WAYS = Told(_("%(verifier)s answered both ways: first “%(first)s”, then “%(second)s”."))
DISPUTED_AFTERWARDS = Told(_("Disputed after it was paid: %(text)s"))
SILENCE_ACCEPTS = Told(_("The customer said nothing in time, which accepts it by the terms."))
SILENCE_REJECTS = Told(_("The customer said nothing in time, which rejects it by the terms."))
NOBODY_DECIDED = Told(_("Nobody decided in time; the terms say what holds then."))
WITHDRAWN = Told(_("Withdrawn."))
NOT_PAID = Told(_("Not paid: what was set aside for it went back."))
NOTHING_PAID = Told(_("Nothing was paid for it, so nothing goes back."))

MANY_VERIFIERS = Told(_("It waits: many verifiers run for this customer."))
ALL_HOSTS_EARN = Told(
    _("It waits: every host that could verify it belongs to its customer, or to somebody who earns by its contract.")
)
NO_HOST_FREE = Told(_("It waits: no host that may verify it has GPUs free."))
CUSTOMER_LETS_NONE = Told(
    _("It waits: its customer is suspended, or a policy of theirs excludes every host that may verify it.")
)
VERIFIER_STARTED = Told(_("Verifier started on another host, try %(number)s."))
VERIFIER_ENDED = Told(_("Verifier, try %(number)s: %(result)s."))

# What a verdict says, after who said it.
NO_VERDICT = Told(_("no verdict came in time, and the terms say what holds then"))
SAME_BYTES = Told(_("a second run on another host left the same bytes"))
OTHER_BYTES = Told(_("a second run on another host left other bytes"))
COMMAND_ENDED = Told(_("its command ended with code %(code)s"))
ALL_THERE = Told(_("exit code 0, and all declared outputs are there"))
NOT_DRAWN = Told(_("exit code 0 and outputs; not drawn for a second run, of which %(rate)s of 10,000 are"))
EXIT_CODE = Told(_("its exit code was %(code)s"))
OUTPUTS_MISSING = Told(_("its declared outputs are missing: %(names)s"))
EVIDENCE_MISSING = Told(_("evidence that its terms name is missing: %(lacking)s"))
NOT_COUNTED = Told(_("its units could not be counted"))


def said(verifier: str, detail: str) -> str:
    """Return in words that a verifier said something."""
    who = VERIFIERS[verifier]()
    return f"{who}{SAYS}{detail}" if detail else who
