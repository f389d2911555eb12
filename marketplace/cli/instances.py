"""Instances: list them, look at one, and change what it should be."""

import re
import shlex
from collections.abc import Callable
from typing import Annotated, Any

import typer

from marketplace.cli import standing, words
from marketplace.cli.orders import project_id
from marketplace.cli.problems import problem
from marketplace.cli.progress import Steps, ended_early, interruptible, is_billing_over, is_settled, wait_until
from marketplace.cli.session import (
    AsJson,
    Explain,
    InstanceName,
    Project,
    Session,
    TimeoutS,
    Wait,
    open_session,
)
from marketplace.cli.terminal import printable

LISTED_MAX = 1000
OVER = {"terminated"}


def find_instance(session: Session, name: str) -> dict[str, Any]:
    """Return the instance with this id or name. Of several with one name, the one that is not over."""
    if re.fullmatch("ins_[a-z0-9_]+", name):
        return session.client.get(f"/instances/{name}")
    found = list(session.client.rows("/instances", name=name))
    living = [instance for instance in found if instance["phase"] not in OVER] or found
    if len(living) == 1:
        return living[0]
    if living:
        raise problem(
            code="ambiguous_name",
            title=f"{len(living)} instances have the name {name}.",
            detail=", ".join(
                f"{instance['id']} ({words.phase(instance)}, {instance['project']['name']})" for instance in living[:10]
            ),
            suggestion="Give the id instead of the name.",
        )
    raise problem(
        code="not_found",
        title=f"There is no instance with the name {name}.",
        suggestion="See what there is: gpumarket ls --all",
    )


def ls(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that are over.")] = False,
    phase: Annotated[str | None, typer.Option(help="Only in this phase.", show_default=False)] = None,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List instances: phase, GPUs, cost so far and age."""
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = project_id(session, project) if project else None
        shown: list[dict[str, Any]] = []
        for looked_at, instance in enumerate(session.client.rows("/instances", project=wanted, phase=phase), start=1):
            if everything or phase or instance["phase"] not in OVER:
                shown.append(instance)
            if looked_at == LISTED_MAX:
                session.terminal.say(
                    f"Only the newest {LISTED_MAX:,} were looked at; narrow it with --project or --phase."
                )
                break
        if as_json:
            session.terminal.document({"data": shown, "next_cursor": None})
        elif shown:
            session.terminal.table(
                ["NAME", "ID", "PROJECT", "PHASE", "GPUS", ">COST SO FAR", ">AGE"], [list_cells(row) for row in shown]
            )
        else:
            session.terminal.say("No instance is here now. See past ones: gpumarket ls --all")
            session.terminal.say("Start one: gpumarket launch --gpus 1 -- COMMAND")


def list_cells(instance: dict[str, Any]) -> list[str]:
    return [
        instance["name"],
        instance["id"],
        instance["project"]["name"],
        words.phase(instance),
        words.gpus(instance),
        words.cost_so_far(instance),
        words.duration(words.ms_between(instance["created_at"], None)),
    ]


def show(instance: InstanceName, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show one instance: steps, cost, nodes, what can be done now."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_instance(session, instance)
        if as_json:
            session.terminal.document(found)
        else:
            session.terminal.data(printable("\n".join([*describe(found), *standing.describe(session, found)])))
            session.terminal.say(next_hint(found))


def describe(instance: dict[str, Any]) -> list[str]:
    """Return what there is to know about an instance, a line for each."""
    offer, cost = instance["offer"], instance["cost"]
    lines = [
        f"{instance['name']}  {words.phase(instance)}",
        f"  id        {instance['id']}",
        f"  project   {instance['project']['name']}",
        f"  GPUs      {words.gpus(instance)} at {offer['slug']}, {offer['site']['name']} ({offer['site']['country']})",
        f"  command   {shlex.join(instance['command']) or 'the own one of its image'}",
        f"  created   {words.local_time(instance['created_at'])}",
    ]
    lines += describe_running(instance)
    if instance.get("env_names"):
        lines.append(f"  env       {', '.join(instance['env_names'])}")
    lines += [f"  volume    {mount}" for mount in words.mounts(instance)]
    if because := words.why(instance):
        lines.append(f"  because   {because}")
    if instance.get("repair"):
        lines.append(f"  repair    {words.repair(instance['repair'])}")
    lines.append(f"  cost      {words.cost_so_far(instance)} so far, {describe_rate(cost)}")
    steps = instance.get("steps") or []
    for number, step in enumerate(steps, start=1):
        took = f" {words.duration(step['elapsed_ms'])}" if step.get("elapsed_ms") is not None else ""
        lines.append(f"  step      [{number}/{len(steps)}] {step['title']}: {step['state']}{took}")
        if step.get("progress"):
            lines.append(f"            {words.transfer(step['progress'])}")
    lines += [
        f"  replica   {node['replica']} on {node['node']}: {', '.join(node['gpus'])}" for node in instance["nodes"]
    ]
    for verb, action in instance["actions"].items():
        possible = "possible" if action["available"] else f"not now: {action['reason']}"
        lines.append(f"  {verb:<9} {possible}")
    return lines


def describe_running(instance: dict[str, Any]) -> list[str]:
    """Return how it runs, a line for each thing that was chosen."""
    lines = [f"  image     {instance['image']}"] if instance.get("image") else []
    if instance.get("ports"):
        lines.append(f"  ports     {', '.join(str(port) for port in instance['ports'])}")
    if instance.get("lease_s"):
        lines.append(f"  lease     {words.lease(instance)}")
    if instance.get("on_failure") == "restart":
        due = f", next at {words.local_time(instance['restart_at'])}" if instance.get("restart_at") else ""
        lines.append(f"  restarts  elsewhere when its node or a GPU fails; so far {instance['restarts']}{due}")
    return lines


def describe_rate(cost: dict[str, Any]) -> str:
    currency = cost["currency"]
    rate = f"{words.money(cost['per_hour'], currency)} per hour, {words.money(cost['per_day'], currency)} per day"
    return {
        "not_started": f"billing has not started; {rate} once ready",
        "running": rate,
        "paused": "nothing is charged now",
        "ended": "billing has ended",
    }[cost["billing"]]


def next_hint(instance: dict[str, Any]) -> str:
    name, actions = instance["name"], instance["actions"]
    hints = [f"gpumarket logs {'-f ' if instance['phase'] == 'running' else ''}{name}"]
    hints += [f"gpumarket {verb} {name}" for verb in ("start", "stop", "terminate") if actions[verb]["available"]]
    return "Next: " + ", ".join(hints)


def rename(instance: InstanceName, name: str, as_json: AsJson = False, explain: Explain = False) -> None:
    """Give an instance another name."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_instance(session, instance)
        renamed = session.client.patch(f"/instances/{found['id']}", {"name": name})
        conclude(session, renamed, f"{found['name']} is now {renamed['name']}.")


def start(
    instance: InstanceName,
    wait: Wait = True,
    timeout_s: TimeoutS = 600,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Start a stopped instance again; its GPUs are looked for anew."""
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        found = ask_for(session, instance, "start")
        if not wait:
            conclude(session, found, f"{found['name']} is {words.phase(found)}; billing starts when ready.")
            return
        conclude_start(session, wait_until_started(session, found, timeout_s=timeout_s))


def stop(
    instance: InstanceName,
    wait: Wait = True,
    timeout_s: TimeoutS = 120,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Stop an instance: its GPUs go back, charging ends, and it can be started again.

    What is not on a volume is deleted, also the working folder (/workspace in a container).
    """
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        found = find_instance(session, instance)
        if found["actions"]["stop"]["available"]:
            session.terminal.say(words.what_is_lost(found))
        found = ask_for(session, found["id"], "stop")
        if wait:
            found = wait_for_phase(
                session, found, timeout_s, lambda row: row["phase"] in {"stopped", "failed", "terminated"}
            )
        conclude(session, found, f"{verdict(found)} Its GPUs are given back; a start looks for new ones.")


def terminate(
    instance: InstanceName,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout_s: TimeoutS = 120,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """End an instance for good: its GPUs go back and its files are deleted. Asks first at a terminal."""
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        found = find_instance(session, instance)
        if session.terminal.can_ask and not yes:
            typer.confirm(f"End {found['name']} for good and delete its files?", abort=True, err=True)
        found = ask_for(session, found["id"], "terminate")
        if wait:
            found = wait_for_phase(session, found, timeout_s, is_billing_over)
        conclude(session, found, verdict(found))


def ask_for(session: Session, name: str, verb: str) -> dict[str, Any]:
    """Start, stop or terminate the instance with this name or id, and return it."""
    found = find_instance(session, name)
    return session.client.post(f"/instances/{found['id']}/{verb}")


def wait_until_started(session: Session, instance: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Wait with numbered steps until the instance runs or has run; raise the problem of one that never will."""
    with interruptible(session, f"{instance['name']} goes on starting. Look: gpumarket show {instance['id']}"):
        instance = wait_until(session, instance, is_so=is_settled, timeout_s=timeout_s, on_look=Steps(session).look)
    if instance["ready_at"] is None:
        raise ended_early(instance)
    return instance


def wait_for_phase(
    session: Session, instance: dict[str, Any], timeout_s: float, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    def look(row: dict[str, Any]) -> None:
        session.terminal.status(f"{row['name']} is {words.phase(row)}")

    with interruptible(session, f"It is asked for and goes on. Look: gpumarket show {instance['id']}"):
        return wait_until(session, instance, is_so=is_so, timeout_s=timeout_s, on_look=look)


def verdict(instance: dict[str, Any]) -> str:
    return f"{instance['name']} is {words.phase(instance)}; it cost {words.cost_so_far(instance)}."


def conclude_start(session: Session, instance: dict[str, Any]) -> None:
    """Say what to do next, and last of all how it ended and what it costs."""
    session.terminal.say(next_hint(instance))
    where = f"on {words.gpus(instance)} in {instance['offer']['site']['name']}"
    cost = f"{words.cost_so_far(instance)} so far, {describe_rate(instance['cost'])}"
    conclude(session, instance, f"{instance['name']} is {words.phase(instance)} {where}: {cost}.")


def conclude(session: Session, instance: dict[str, Any], text: str) -> None:
    session.terminal.say(text)
    if session.terminal.as_json:
        session.terminal.document(instance)
