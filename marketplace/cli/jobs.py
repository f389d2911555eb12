"""Jobs: work that runs to its end, in as many tasks as it takes."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import artifacts, words
from marketplace.cli.logs import LogReader, Pause, make_writer
from marketplace.cli.orders import project_id
from marketplace.cli.problems import FAILED, problem, usage
from marketplace.cli.progress import FIRST_LOOK_S, SLOWEST_LOOK_S, interruptible
from marketplace.cli.session import AsJson, Explain, Project, Session, TimeoutS, open_session
from marketplace.cli.terminal import printable

OPEN = {"waiting", "active", "ending"}
SHOWN_MAX = 20

app = typer.Typer(
    help="Run work to its end: submit jobs, watch their tasks, read logs, collect outputs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name or id.", show_default=False)]
Task = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="This task alone; they count from 0.", show_default=False)
]


def find_job(session: Session, name: str) -> dict[str, Any]:
    """Return the job with this id, or the only one with this name."""
    if re.fullmatch("job_[a-z0-9_]+", name):
        return session.client.get(f"/jobs/{name}")
    found = list(session.client.rows("/jobs", name=name))
    if len(found) == 1:
        return session.client.get(f"/jobs/{found[0]['id']}")
    if found:
        raise problem(
            code="ambiguous_name",
            title=f"{len(found)} jobs have the name {name}.",
            detail=", ".join(f"{row['id']} ({row['state']})" for row in found[:10]),
            suggestion="Give the id instead of the name.",
        )
    raise problem(
        code="not_found",
        title=f"There is no job with the name {name}.",
        suggestion="See what there is: gpumarket job ls",
    )


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, YAML or JSON; - reads standard input.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and say what it costs at most; submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all of it has ended.")] = False,
    timeout_s: TimeoutS = 86_400,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="With the same key it is submitted once only.", show_default=False)
    ] = None,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Submit the jobs of a file, with the folders that they name; prints their ids on stdout."""
    with open_session(as_json=as_json, explain=explain, at_work=wait) as session:
        body: dict[str, Any] = {"file": read_file(file)}
        named = project_id(session, project) if project else None
        body |= {"project": named} if named else {}
        rehearsed = session.client.post("/jobs", body, dry_run="true")
        if dry_run:
            say_rehearsed(session, rehearsed)
            return
        folders = upload_all(session, rehearsed["folders"], beside=file, project=named)
        made = session.client.post("/jobs", body | ({"folders": folders} if folders else {}), key=key or "")["data"]
        if not as_json:
            for job in made:
                session.terminal.data(job["id"])
                session.terminal.say(submitted(job))
        if wait:
            made = [wait_until_over(session, job, timeout_s=timeout_s) for job in made]
        if as_json:
            session.terminal.document({"data": made})
    if wait and any(job["state"] != "succeeded" for job in made):
        raise typer.Exit(FAILED)


def read_file(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"{file} cannot be read.", detail=str(error)) from error


def upload_all(session: Session, folders: list[str], *, beside: Path, project: str | None) -> dict[str, str]:
    """Send the folders that jobs name, which lie beside their file; return the manifest of each."""
    if not folders:
        return {}
    base = Path.cwd() if str(beside) == "-" else beside.parent
    return {folder: artifacts.upload(session, base / folder, project=project) for folder in folders}


def say_rehearsed(session: Session, rehearsed: dict[str, Any]) -> None:
    if session.terminal.as_json:
        session.terminal.document(rehearsed)
        return
    for job in rehearsed["data"]:
        most = "" if job["most"] is None else f", at most {words.money(job['most'], job['currency'])}"
        tasks = words.count(job["tasks"], "task")
        session.terminal.say(f"{job['name']}: {tasks} of {job['offer']} ({market(job['market'])}){most}")
    for folder in rehearsed["folders"]:
        session.terminal.say(f"It would send the folder {folder}.")
    session.terminal.say("Nothing was submitted and nothing is charged.")


def submitted(job: dict[str, Any]) -> str:
    most = job["cost"]["most"]
    bound = f"it costs at most {words.money(most, job['cost']['currency'])}" if most else "without a limit of cost"
    return (
        f"{job['name']}: {words.count(job['tasks']['total'], 'task')}, {bound}. Watch: gpumarket job show {job['id']}"
    )


def market(name: str) -> str:
    return name.replace("_", " ")


def wait_until_over(session: Session, job: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Look at a job again and again until it is over; say how that went."""
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_LOOK_S
    with interruptible(session, f"The job goes on: gpumarket job show {job['id']}"):
        while job["state"] in OPEN:
            session.terminal.status(f"{job['name']}: {how_far(job)}")
            if time.monotonic() + pause_s > deadline:
                raise problem(
                    code="still_running",
                    title=f"{job['name']} is still {job['state']} after {timeout_s:g} s of waiting.",
                    suggestion=f"It goes on. Look: gpumarket job show {job['id']}",
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, SLOWEST_LOOK_S)
            job = session.client.get(f"/jobs/{job['id']}")
    session.terminal.clear()
    session.terminal.say(f"{job['name']} {job['state']}. {job['message']}".rstrip())
    return job


def how_far(job: dict[str, Any]) -> str:
    """Return "12 of 200 tasks done, 3 failed, 16 running, 240 an hour, 47 min left"."""
    tasks, pace = job["tasks"], job["progress"]
    done = tasks["succeeded"] + tasks["failed"] + tasks["cancelled"]
    parts = [f"{done} of {words.count(tasks['total'], 'task')} done"]
    parts += [f"{tasks[name]} {name}" for name in ("failed", "cancelled", "running", "verifying") if tasks[name]]
    if pace["per_hour"]:
        parts.append(f"{pace['per_hour']:,} an hour")
    if pace["seconds_left"] is not None:
        parts.append(f"{words.duration(pace['seconds_left'] * 1000)} left")
    return ", ".join(parts)


@app.command()
def ls(
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only those in this state.", show_default=False)
    ] = None,
    project: Project = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List jobs, newest first: state, progress and cost."""
    with open_session(as_json=as_json, explain=explain) as session:
        wanted = project_id(session, project) if project else None
        rows = list(session.client.rows("/jobs", project=wanted, state=state))
        if as_json:
            session.terminal.document({"data": rows, "next_cursor": None})
            return
        if not rows:
            session.terminal.say("There are no jobs. Submit one: gpumarket job submit FILE")
            return
        session.terminal.table(
            ["NAME", "ID", "STATE", ">DONE", ">RUNNING", ">FAILED", "LEFT", ">SPENT", ">AT MOST"],
            [list_cells(row) for row in rows],
        )


def list_cells(row: dict[str, Any]) -> list[str]:
    tasks, cost, left = row["tasks"], row["cost"], row["progress"]["seconds_left"]
    return [
        row["name"],
        row["id"],
        row["state"],
        f"{tasks['succeeded'] + tasks['failed'] + tasks['cancelled']}/{tasks['total']}",
        str(tasks["running"]),
        str(tasks["failed"]),
        "" if left is None else words.duration(left * 1000),
        words.money(cost["spent"], cost["currency"]),
        "" if cost["most"] is None else words.money(cost["most"], cost["currency"]),
    ]


@app.command()
def show(job: JobName, task: Task = None, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show one job, or one of its tasks: progress, cost, and why what failed did."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_job(session, job)
        if task is not None:
            row = session.client.get(f"/jobs/{found['id']}/tasks/{task}")
            lines = describe_task(row, found["cost"]["currency"])
            found = row
        else:
            lines = describe(found)
            if not as_json and found["tasks"]["failed"]:
                lines += failed_tasks(session, found)
        if as_json:
            session.terminal.document(found)
        else:
            session.terminal.data(printable("\n".join(lines)))


def describe(row: dict[str, Any]) -> list[str]:
    cost = row["cost"]
    most = f" of at most {words.money(cost['most'], cost['currency'])}" if cost["most"] else ""
    lines = [
        f"{row['name']}  {row['state']}",
        f"  id        {row['id']}",
        f"  project   {row['project']['name']}",
        f"  tasks     {how_far(row)}",
        f"  each      {row['replicas']} x {words.count(row['gpus'], 'GPU')}",
        f"  offer     {row['offer']} ({market(row['market'])})",
        f"  spent     {words.money(cost['spent'], cost['currency'])}{most}",
    ]
    if row["message"]:
        lines.append(f"  because   {row['message']}")
    if row["waits_for"]:
        lines.append(f"  waits     {row['waits_for']['message']}")
    if row["needs"]:
        lines.append(f"  needs     {', '.join(one['name'] for one in row['needs'])}")
    if row["deadline"]:
        lines.append(f"  deadline  {words.local_time(row['deadline'])}")
    if row["contract"]:
        lines.append(f"  contract  {row['contract']}")
    cancel = row["actions"]["cancel"]
    lines.append(f"  cancel    {'possible' if cancel['available'] else 'not now: ' + cancel['reason']}")
    return lines


def failed_tasks(session: Session, job: dict[str, Any]) -> list[str]:
    page = session.client.get(f"/jobs/{job['id']}/tasks", state="failed", limit=SHOWN_MAX)
    rows = reversed(page["data"])
    lines = [f"  failed    task {row['index']}: {row['message'] or row['reason']}" for row in rows]
    if page["next_cursor"]:
        lines.append(f"            and others: gpumarket job show {job['id']} --task N")
    return lines


def describe_task(row: dict[str, Any], currency: str) -> list[str]:
    lines = [f"task {row['index']}  {row['state']}"]
    lines += [f"  {name} = {value}" for name, value in row["parameters"].items()]
    for one in row["tries"]:
        end = f", exit code {one['exit_code']}" if one["exit_code"] is not None else ""
        lines.append(f"  attempt {one['number']}: {one['state']}{end}, {one['instance']} ({one['phase']})")
        if one["message"]:
            lines.append(f"    because  {one['message']}")
        if one["ended_at"]:
            lines.append(f"    cost     {words.money(one['cost'], currency)}")
    return lines


@app.command()
def logs(
    job: JobName,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    task: Task = None,
    attempt: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="This attempt; the last one otherwise.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Print what a task printed. A job of one task needs no --task."""
    with open_session(as_json=as_json, explain=explain, at_work=follow) as session:
        found = find_job(session, job)
        if task is None and found["tasks"]["total"] > 1:
            raise usage(
                f"{found['name']} has {found['tasks']['total']} tasks.",
                suggestion=f"Say which: gpumarket job logs {found['id']} --task 0",
            )
        write, finish = make_writer(session, ranks=found["replicas"] > 1)
        try:
            for path, params in attempts_to_read(session, found["id"], task or 0, attempt, follow=follow):
                reader = LogReader(session, path, write=write, **params)
                reader.read_all()
                pause = Pause()
                while follow and not reader.complete:
                    pause.take(was_quiet=not reader.read())
        finally:
            finish()


def attempts_to_read(
    session: Session, job_id: str, task: int, attempt: int | None, *, follow: bool
) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the address of each attempt's log: one, or with `follow` each that comes until the task has ended."""
    path, pause = f"/jobs/{job_id}/tasks/{task}", Pause()
    seen = 0
    while True:
        row = session.client.get(path)
        number = attempt or row["attempts"]
        if number > seen:
            seen = number
            yield f"{path}/logs", {"attempt": number}
            continue
        is_over = row["state"] not in {"pending", "running"} or attempt is not None
        if not follow or is_over:
            if not seen:
                session.terminal.say("It has not been tried yet, so nothing was printed.")
            return
        session.terminal.status(f"Task {task} is {row['state']}")
        pause.take(was_quiet=True)


@app.command()
def outputs(
    job: JobName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put them; made if it is not there.")],
    task: Task = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Fetch what tasks left behind, each into FOLDER/N; what is there already and is the same is not fetched again."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_job(session, job)
        rows = [row for row in session.client.rows(f"/jobs/{found['id']}/outputs") if task in {None, row["task"]}]
        rows.sort(key=lambda row: row["task"])
        for row in rows:
            row["folder"] = str(folder / str(row["task"]))
            row["files"] = artifacts.download(
                session, row["manifest"], folder / str(row["task"]), project=found["project"]["id"]
            )
            if not as_json:
                for path in row["files"]:
                    session.terminal.data(f"{row['folder']}/{path}")
        if as_json:
            session.terminal.document({"data": rows})
        count = sum(len(row["files"]) for row in rows)
        session.terminal.say(f"{words.count(count, 'file')} of {words.count(len(rows), 'task')} in {folder}.")


@app.command()
def cancel(
    job: JobName,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Cancel a job: what runs is ended and charged until now, what succeeded stays. Asks first at a terminal."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_job(session, job)
        if session.terminal.can_ask and not yes:
            typer.confirm(f"Cancel {found['name']} ({how_far(found)})?", abort=True, err=True)
        row = session.client.post(f"/jobs/{found['id']}/cancel")
        session.terminal.say(f"{row['name']} is {row['state']}: {how_far(row)}.")
        if as_json:
            session.terminal.document(row)


@app.command()
def schema(explain: Explain = False) -> None:
    """Print the JSON schema of job files, for editors and programs."""
    with open_session(as_json=True, explain=explain) as session:
        session.terminal.document(session.client.get("/jobs/schema"))
