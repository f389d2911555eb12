"""Launch an instance and leave it running."""

from typing import Annotated

import typer

from marketplace.cli import orders
from marketplace.cli.instances import conclude_start, next_hint, wait_until_started
from marketplace.cli.offers import Country, GpuModel
from marketplace.cli.progress import interruptible
from marketplace.cli.session import AsJson, Explain, Project, TimeoutS, Wait, open_session


def launch(
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
    within: orders.Within = None,
    spread: orders.Spread = None,
    project: Project = None,
    volume: orders.Volumes = None,
    wait: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and price the order; launch nothing.")] = False,
    key: orders.Key = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Launch an instance; prints its id on stdout.

    Without an OFFER the cheapest one that has the GPUs free is taken, and it says which and why.
    The instance runs until its command ends or somebody stops it.
    """
    with open_session(as_json=as_json, explain=explain, at_work=True) as session:
        terminal = session.terminal
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
            running=orders.Running(
                image, port, lease, restart_on_failure, orders.wish(within, spread), reservation, contract
            ),
            volumes=volume or [],
        )
        order.say()
        if dry_run:
            answer = order.rehearse()
            terminal.say("The order would be accepted. Nothing was launched or charged.")
            if as_json:
                terminal.document(answer)
            return
        with interruptible(session, "The order may have been accepted. Look: gpumarket ls"):
            instance = order.place()
        if not as_json:
            terminal.data(instance["id"])
        if wait:
            conclude_start(session, wait_until_started(session, instance, timeout_s=timeout_s))
            return
        terminal.say(next_hint(instance))
        terminal.say(f"{instance['name']} is {instance['phase']}; billing starts when ready.")
        if as_json:
            terminal.document(instance)
