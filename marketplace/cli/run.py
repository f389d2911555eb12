"""Run one command on rented GPUs as if it ran here: its output, its exit code, and then the bill."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import typer

from marketplace.cli import orders, waits, words
from marketplace.cli.logs import LogReader, Pause, make_writer
from marketplace.cli.offers import Country, GpuModel
from marketplace.cli.problems import FAILED, INTERRUPTED, NoAnswer, Problem, problem
from marketplace.cli.progress import (
    PATIENCE_WITH_END_S,
    Steps,
    ended_early,
    is_billing_over,
    wait_until,
)
from marketplace.cli.session import AsJson, Explain, Project, Session, open_session

# Phases in which the command has not begun, so that there is no output to ask for.
BEFORE_START = {"queued", "placing", "provisioning", "verifying"}
OVER = {"stopped", "failed", "terminated"}
LOOK_EVERY_S = 0.5


def run(
    ctx: typer.Context,
    *,
    offer: orders.OfferName = None,
    gpu_model: GpuModel = None,
    country: Country = None,
    gpus: orders.Gpus = 1,
    replicas: orders.Replicas = 1,
    name: orders.Name = None,
    env: orders.Env = None,
    env_file: orders.EnvFile = None,
    image: orders.Image = None,
    port: orders.Port = None,
    lease: orders.Lease = None,
    restart_on_failure: orders.RestartOnFailure = False,
    reservation: orders.ReservationName = None,
    contract: orders.ContractName = None,
    project: Project = None,
    volume: orders.Volumes = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="End it after this time.", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="If nothing is free, wait in the queue.")] = False,
    max_price: waits.MaxPrice = None,
    until: waits.Until = waits.UNTIL_DEFAULT,
    detach: Annotated[bool, typer.Option("--detach", help="Ctrl-C stops watching and leaves it running.")] = False,
    key: orders.Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Run a command on GPUs: streams its output, exits with its exit code, prints the bill.

    stdout is the output of the command and nothing else; with --json it is one line of JSON for each event.
    Ctrl-C ends the instance; a second Ctrl-C gives up and says what is left.
    """
    with open_session(as_json=as_json, explain=explain, at_work=True) as session, every_end_as_interrupt():
        order = orders.make_order(
            session,
            offer=offer,
            gpu_model=gpu_model,
            country=country,
            gpus=gpus,
            replicas=replicas,
            name=name,
            env=orders.read_env(env or [], env_file),
            project=project,
            key=key,
            command=ctx.meta[orders.COMMAND],
            running=orders.Running(image, port, lease, restart_on_failure, reservation=reservation, contract=contract),
            volumes=volume or [],
        )
        order.say()
        place = partial(waits.place_or_wait, session, order, max_price=max_price, until=until) if wait else order.place
        raise typer.Exit(Run(session, place, timeout_s=timeout_s, detach=detach).to_the_end())


@contextmanager
def every_end_as_interrupt() -> Iterator[None]:
    """Treat TERM and a closed terminal like Ctrl-C, so that they do not leave a paid instance behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


class TimeUp(Exception):
    """The time that the customer gave the run is over."""


class Run:
    """One instance for one command, from the order to the bill."""

    def __init__(
        self, session: Session, order_it: Callable[[], dict[str, Any]], *, timeout_s: float | None, detach: bool
    ) -> None:
        self._session = session
        self._terminal = session.terminal
        self._client = session.client
        self._order_it = order_it
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        self._detach = detach
        self._instance: dict[str, Any] | None = None

    def to_the_end(self) -> int:
        """Return the exit code of the command, or raise the problem that kept it from having one."""
        try:
            return self._settle(self._follow(self._place()))
        except KeyboardInterrupt:
            return self._break_off("Interrupted")
        except TimeUp:
            self._break_off("Its time is up")
            raise time_up(self._known, self._timeout_s) from None
        except BrokenPipeError:
            self._break_off("Nobody reads the output any more")
            raise
        except NoAnswer as silence:
            if self._instance is None:
                raise
            raise lost_sight(self._instance, silence) from silence

    @property
    def _known(self) -> dict[str, Any]:
        assert self._instance is not None
        return self._instance

    def _place(self) -> dict[str, Any]:
        instance = self._instance = self._order_it()
        self._record("accepted", instance=instance)
        self._terminal.say(f"{instance['name']} ({instance['id']}) is accepted.")
        return instance

    def _follow(self, instance: dict[str, Any]) -> dict[str, Any]:
        """Pass on the output until the command has ended and all of it has come; return the instance then."""
        try:
            instance = wait_until(
                self._session,
                instance,
                is_so=lambda row: row["phase"] not in BEFORE_START,
                timeout_s=self._deadline - time.monotonic(),
                on_look=Steps(self._session).look,
            )
        except Problem as late:
            if late.code != "still_running":
                raise
            raise TimeUp from late
        write, finish = make_writer(self._session, ranks=instance["replicas"] > 1)
        reader = LogReader(self._session, f"/instances/{instance['id']}/logs", write=write)
        try:
            instance = self._read_until_over(instance, reader)
            if instance["ready_at"] is not None:
                self._read_the_rest(reader)
        finally:
            finish()
        return instance

    def _read_until_over(self, instance: dict[str, Any], reader: LogReader) -> dict[str, Any]:
        pause = Pause()
        next_look = 0.0
        while not is_over(instance):
            was_quiet = not reader.read()
            now = time.monotonic()
            if now > self._deadline:
                raise TimeUp
            if reader.complete or now > next_look:
                instance = self._look()
                next_look = now + LOOK_EVERY_S
            if not is_over(instance):
                pause.take(was_quiet=was_quiet)
        return instance

    def _read_the_rest(self, reader: LogReader) -> None:
        """Read what the node still sends after the command has ended, within bounds."""
        give_up_at = time.monotonic() + PATIENCE_WITH_END_S
        pause = Pause()
        reader.read_all()
        while not reader.complete:
            if time.monotonic() > give_up_at:
                self._terminal.say("The last lines of the output may be missing.")
                return
            pause.take(was_quiet=not reader.read())

    def _settle(self, instance: dict[str, Any]) -> int:
        """Give the GPUs back, say what it cost, and return the exit code of the command."""
        told = instance  # Why it ended; afterwards it says that we ended it.
        try:
            instance = self._end(instance)
            self._say_bill(instance)
        except NoAnswer as silence:
            if instance["exit_code"] is None:
                raise
            # The command has ended and with it the charging: its own code is worth more than our last questions.
            self._terminal.complain(silence)
        if instance["exit_code"] is None:
            raise ended_early(instance | {name: told[name] for name in ("phase", "reason", "message", "retryable")})
        return as_exit_status(instance["exit_code"])

    def _end(self, instance: dict[str, Any]) -> dict[str, Any]:
        """Terminate the instance and return it when nothing more can be charged, or after a bounded wait."""
        try:
            self._client.post(f"/instances/{instance['id']}/terminate")
        except Problem as refusal:
            if refusal.code != "wrong_state":
                raise
        try:
            return wait_until(self._session, self._look(), is_so=is_billing_over, timeout_s=PATIENCE_WITH_END_S)
        except Problem as late:
            if late.code != "still_running":
                raise
            instance = self._look()
            self._terminal.say(
                f"{instance['name']} is not confirmed as ended yet. Look again: gpumarket show {instance['id']}"
            )
            return instance

    def _look(self) -> dict[str, Any]:
        self._instance = self._client.get(f"/instances/{self._known['id']}")
        return self._instance

    def _say_bill(self, instance: dict[str, Any]) -> None:
        """Say each line of the bill, and last of all how it ended and what it costs."""
        rows = list(self._client.rows("/usage", instance=instance["id"]))
        for row in rows:
            self._terminal.say(f"  {words.usage_sum(row)}")
        currency = instance["cost"]["currency"]
        total = words.total(rows).get(currency, Decimal(0))
        ended = words.phase(instance) if instance["exit_code"] is None else f"exited with {instance['exit_code']}"
        charged = f"cost {words.money(total, currency)}" if rows else "nothing was charged"
        self._terminal.say(f"{instance['name']} {ended}; {charged}.")
        bill = {"usage": rows, "total": {"amount": str(total), "currency": currency}}
        self._record("end", exit_code=instance["exit_code"], instance=instance, bill=bill)

    def _break_off(self, why: str) -> int:
        """End the instance before its command has ended; if even that is interrupted, say what is left."""
        try:
            if self._instance is None:
                if not self._client.may_have_arrived:
                    self._terminal.say(f"{why}. Nothing was launched or charged.")
                    return INTERRUPTED
                self._terminal.say(f"{why} while the order was on its way: asking what became of it.")
                self._place()
            if self._detach:
                self._terminal.say(f"{why}. {self._known['name']} goes on: gpumarket logs -f {self._known['id']}")
                return INTERRUPTED
            self._terminal.say(f"{why}: ending {self._known['name']}. Ctrl-C gives up.")
            self._say_bill(self._end(self._known))
        except KeyboardInterrupt:
            self._terminal.say(self._what_is_left())
        except NoAnswer as silence:
            if self._instance is None:
                raise
            raise lost_sight(self._instance, silence) from silence
        return INTERRUPTED

    def _what_is_left(self) -> str:
        if self._instance is None:
            return "Given up. The order may have been accepted. Look: gpumarket ls"
        return (
            f"Given up. {self._instance['name']} may still run and cost money. "
            f"End it: gpumarket terminate {self._instance['id']}"
        )

    def _record(self, event: str, **more: Any) -> None:
        if self._terminal.as_json:
            self._terminal.event(event, **more)


def is_over(instance: dict[str, Any]) -> bool:
    return instance["exit_code"] is not None or instance["phase"] in OVER


def as_exit_status(code: int) -> int:
    """Return a code that a process can exit with: a death by signal becomes 128 + signal, as shells have it."""
    if code < 0:
        return 128 - code
    return code if code <= 255 else FAILED


def time_up(instance: dict[str, Any], timeout_s: float | None) -> Problem:
    return problem(
        code="still_running",
        title=f"{instance['name']} was ended: its command still ran after {timeout_s:g} s.",
        charged=instance["cost"]["gpu_milliseconds"] > 0,
        suggestion="Give it more time: --timeout SECONDS.",
        instance_id=instance["id"],
    )


def lost_sight(instance: dict[str, Any], silence: NoAnswer) -> Problem:
    """Return the problem of a command that may still run while its marketplace does not answer."""
    return problem(
        code="still_running",
        title=f"{instance['name']} is out of sight: {silence.document['title']}",
        detail=silence.document["detail"],
        charged=None,
        suggestion=f"It may still run, and stops by itself when its command ends. Watch: gpumarket logs -f "
        f"{instance['id']}. End it: gpumarket terminate {instance['id']}",
        instance_id=instance["id"],
    )
