"""`gpumarket verify`: receipts are verified with the platform's public keys and nothing else, offline."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import chains, proofs
from marketplace.cli.problems import DONE, FAILED, Problem, problem, usage
from marketplace.cli.session import AsJson
from marketplace.cli.terminal import Terminal

KEYS_FILE = "keys.json"
FILE_BYTES_MAX = 1 << 30
MARKS = {proofs.GOOD: "+", proofs.REFUSED: "x", proofs.NOT_CHECKED: "-"}

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Receipts: files, JSON lines of many, or folders.", show_default=False),
]
KeysFile = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="The platform's public keys.", show_default="keys.json beside them"),
]
Trusted = Annotated[list[str] | None, typer.Option("--trust", metavar="KEY", help="Trust this key alone; repeatable.")]
Part = Annotated[bool, typer.Option("--part", help="Only a part of the chain is meant: gaps are no fault.")]


def verify(
    paths: Paths, keys: KeysFile = None, trust: Trusted = None, part: Part = False, as_json: AsJson = False
) -> int:
    """Verify receipts offline: their bytes, signatures, chain, nodes' statements and arithmetic. Exits 1 if refused."""
    terminal = Terminal(as_json=as_json)
    files = list(_files(paths))
    known = _keys(keys or _beside(paths), trust or ())
    found = [
        proofs.verify(f"{path}:{number}" if many else str(path), data, known)
        for path in files
        for number, data, many in _documents(path)
    ]
    if not found:
        raise usage("There is no receipt in these files.")
    linked = chains.chains(found, is_part=part or (len(found) == 1))
    is_good = all(one.is_good for one in found) and all(one.is_good for one in linked)
    if as_json:
        terminal.document(_answer(found, linked, known, is_good=is_good))
    else:
        _say(terminal, found, linked, known, is_good=is_good)
    return DONE if is_good else FAILED


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files to verify; of a folder those that may hold receipts."""
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix in {".json", ".jsonl"} and one.is_file())
            yield from (one for one in inside if one.name != KEYS_FILE)
        else:
            yield path


def _documents(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    parts = list(proofs.lines(_read(path)))
    yield from ((number, data, len(parts) > 1) for number, data in parts)


def _beside(paths: Sequence[Path]) -> Path:
    """Return where the keys lie if nobody says: in the folder, or beside the first file."""
    first = paths[0]
    return (first if first.is_dir() else first.parent) / KEYS_FILE


def _keys(path: Path, trusted: Sequence[str]) -> proofs.Keys:
    try:
        return proofs.read_keys(_read(path), trusted=trusted)
    except proofs.NotVerifiable as error:
        raise usage(f"{path}: {error}", suggestion=KEYS_HINT) from error


KEYS_HINT = (
    "Save the public keys from an address of the marketplace that you trust: "
    "curl https://MARKETPLACE/api/v1/keys > keys.json"
)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror or "cannot be read") from error
    if len(data) > FILE_BYTES_MAX:
        raise _unreadable(path, "it is larger than 1 GiB")
    return data


def _unreadable(path: Path, why: str) -> Problem:
    hint = KEYS_HINT if path.name == KEYS_FILE else "Name a receipt, a file of JSON lines, or a folder with them."
    return problem(code="usage", title=f"{path}: {why}.", suggestion=hint)


def _say(
    terminal: Terminal,
    found: Sequence[proofs.Verified],
    linked: Sequence[chains.Chain],
    known: proofs.Keys,
    *,
    is_good: bool,
) -> None:
    """Say in words what was checked; of many good ones only that they are good."""
    shown = found if len(found) <= 3 else [one for one in found if not one.is_good]
    for one in shown:
        terminal.data(f"{one.source}: {'good' if one.is_good else 'REFUSED'}")
        for check in one.checks:
            terminal.data(f"  {MARKS[check.result]} {check.name}: {check.says}")
    for chain in linked:
        of = f" ({chain.count} receipts, number {chain.first} to {chain.last})" if chain.count > 1 else ""
        terminal.data(f"Chain of {chain.organization}{of}: {'good' if chain.is_good else 'REFUSED'}")
        for says in (*chain.faults, *chain.says):
            terminal.data(f"  {'x' if says in chain.faults else '-'} {says}")
    refused = sum(not one.is_good for one in found)
    verdict = "all good" if is_good else f"{refused} refused" if refused else "the chain is refused"
    terminal.data(f"{len(found)} verified with {', '.join(known.platform) or 'no key'}: {verdict}.")


def _answer(
    found: Sequence[proofs.Verified], linked: Sequence[chains.Chain], known: proofs.Keys, *, is_good: bool
) -> dict[str, Any]:
    return {
        "good": is_good,
        "keys": list(known.platform),
        "documents": [
            {
                "source": one.source,
                "kind": one.body.get("kind"),
                "id": one.body.get("id"),
                "organization": one.body.get("organization"),
                "sequence": one.body.get("sequence"),
                "digest": one.digest or None,
                "good": one.is_good,
                "checks": [
                    {"check": check.name, "result": check.result.replace(" ", "_"), "says": check.says}
                    for check in one.checks
                ],
            }
            for one in found
        ],
        "chains": [chain.document() for chain in linked],
    }
