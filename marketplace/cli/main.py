"""gpumarket: rent GPUs from the command line."""

import sys

import typer

from marketplace.cli import (
    account,
    bids,
    budgets,
    claims,
    commitments,
    contracts,
    copying,
    costs,
    guarantees,
    idle,
    instances,
    invoices,
    jobs,
    launch,
    logs,
    offers,
    orders,
    payments,
    placements,
    quotas,
    receipts,
    registries,
    resale,
    reservations,
    revenue,
    sla,
    ssh,
    ssh_keys,
    statements,
    top,
    verifying,
    volumes,
    waits,
    webhooks,
)
from marketplace.cli import run as run_command
from marketplace.cli.problems import EXIT_CODES, INTERRUPTED, USAGE, Problem, usage
from marketplace.cli.terminal import Terminal

EPILOG = "\n".join(
    [
        "\b",
        "Connection: GPUMARKET_URL and GPUMARKET_TOKEN, then gpumarket login, then",
        "connection.json in GPUMARKET_HOME or .gpumarket (a marketplace of this folder).",
        "",
        "\b",
        "Exit codes:",
        *(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()),
        "gpumarket run and gpumarket ssh exit with the exit code of their command.",
    ]
)

# Plain help: the decorated one takes three times as long to start and is the same to a pipe.
app = typer.Typer(
    help="Rent GPUs: see offers, run commands on them, and know what they cost.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(account.login)
app.command()(offers.offers)
app.command(cls=orders.TakesCommand)(launch.launch)
app.command(cls=orders.TakesCommand)(run_command.run)
app.command(cls=orders.TakesCommand)(waits.wait)
app.command()(instances.ls)
app.command()(instances.show)
app.command()(placements.why)
app.command()(logs.logs)
app.command()(top.top)
app.command(cls=ssh.MayTakeCommand)(ssh.ssh)
app.command()(copying.cp)
app.command()(ssh.ports)
app.command()(instances.stop)
app.command()(instances.start)
app.command()(instances.terminate)
app.command()(instances.rename)
app.command(cls=orders.TakesCommand)(bids.bid)
app.add_typer(bids.app, name="bids")
app.command()(bids.spot_price)
app.command()(bids.simulate_interruption)
app.add_typer(volumes.app, name="volume")
app.command()(reservations.windows)
app.command()(reservations.reserve)
app.add_typer(reservations.app, name="reservations")
app.command()(reservations.lend)
app.command()(resale.resell)
app.add_typer(resale.app, name="listings")
app.add_typer(jobs.app, name="job")
app.add_typer(waits.app, name="waits")
app.add_typer(quotas.app, name="quota")
app.add_typer(budgets.app, name="budget")
app.command()(webhooks.events)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(idle.app, name="idle")
app.command()(account.usage)
app.command()(account.balance)
app.command()(payments.topup)
app.command()(payments.cards)
app.command()(costs.cost)
app.command()(commitments.commitments)
app.add_typer(invoices.app, name="invoices")
app.add_typer(contracts.app, name="contracts")
app.add_typer(claims.app, name="claims")
app.add_typer(claims.disputes, name="disputes")
app.add_typer(receipts.app, name="receipts")
app.command()(verifying.verify)
app.add_typer(statements.app, name="statements")
app.command()(sla.sla)
app.command()(guarantees.guarantee)
app.add_typer(revenue.app, name="revenue")
app.command()(account.version)
app.add_typer(placements.app, name="policy")
app.add_typer(registries.app, name="registry")
app.add_typer(ssh_keys.app, name="ssh-key")


def run(arguments: list[str] | None = None) -> None:
    """Run one command line and exit by the table of exit codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(exit_code_of(arguments))


def exit_code_of(arguments: list[str]) -> int:
    """Run one command line; say what goes wrong, in JSON too if that was asked for."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    terminal = Terminal(as_json="--json" in own)
    try:
        return app(arguments, prog_name="gpumarket", standalone_mode=False) or 0
    except Problem as problem:
        terminal.complain(problem)
        return problem.exit_code
    except typer.Abort:
        terminal.say("Nothing was done.")
        return INTERRUPTED
    except typer.TyperException as refusal:
        refusal.show()  # type: ignore[attr-defined]  # the class that has it is not public
        if terminal.as_json:
            terminal.event("problem", **usage(refusal.format_message()).document)
        return USAGE
