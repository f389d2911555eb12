"""What is told of jobs, their tasks and attempts: why they ended, or did not begin."""

from django.utils.translation import gettext_lazy as _

from provisioning.told import Told

CANCELLED = Told(_("Cancelled by %(who)s."))
DEADLINE = Told(_("Its deadline passed before all of its tasks were done."))
NEED_LOST = Told(_("The job %(job)s, which it needs, did not succeed."))
TASKS_FAILED = Told(_("%(failed)s of %(size)s tasks failed."))
SPENT = Told(_("What is left of the most that it may cost does not pay for another attempt."))
NO_CHEAP_HOUR = Told(_("No cheap hour came in time; it goes on on demand."))
NO_OUTPUT = Told(_("It left nothing that is named %(names)s."))
REST_PAID = Told(_("What was left of the most that the job may cost paid for %(seconds)s s."))
MAY_NOT = Told(_("Whoever ordered it may not rent here any more."))
DISK_FILLED = Told(_("It filled its share of the disk (“disk” in the job): %(used)s of %(most)s."))
TIME_LIMIT = Told(_("It took longer than its time limit of %(seconds)s s."))
NEVER_SENT = Told(_("Its node had not sent what it left behind after %(hours)s hours."))
