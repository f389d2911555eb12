"""Counters as an agent reads them from what runs: the text format, and programs that say nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from provisioning.agent.protocol import ProtocolError, parse_document
from provisioning.agent.readings import READINGS, Reading, Readings, parsed
from provisioning.agent.scraping import Scraper
from tests.provisioning.agent.control_plane import make_assignment

TEXT = """# HELP tokens_total What was written.
# TYPE tokens_total counter
tokens_total{model="a}b \\" c",user="x"} 1027 1395066363000
tokens_total{model="b"} 3.5e3
tokens_total_created 1.7e9
frames_total 12\r
  blanks_total\t 7
bad_total NaN
huge_total 1e300
minus_total -4
broken_total{x="1" 5
words_total many
"""


def test_counters_are_summed_over_their_labels_and_nonsense_is_left_out():
    names = ["tokens_total", "frames_total", "blanks_total", "bad_total", "huge_total", "minus_total", "broken_total",
             "words_total", "absent_total"]  # fmt: skip
    assert parsed(TEXT, names) == {"tokens_total": 4527, "frames_total": 12, "blanks_total": 7}


@pytest.fixture
def program():
    """A program that shows counters; `says` is its next answer."""

    class Handler(BaseHTTPRequestHandler):
        says = (200, {}, b"tokens_total 5\n")

        def do_GET(self):
            status, headers, content = Handler.says
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Handler, server.server_port
    server.shutdown()
    server.server_close()


class Running:
    def __init__(self, folder):
        self.metadata = folder / "work"

    def address(self):
        return "127.0.0.1"


def test_what_begins_is_read_soon_and_what_goes_on_every_15_seconds(program, tmp_path):
    handler, port = program
    told = []
    work = {"counters": {"port": port, "path": "/metrics", "names": ["tokens_total"]}}
    document = parse_document(generation=1, desired={"assignments": [make_assignment("asg_a", work=work)]})
    scraper = Scraper(
        wanted=lambda: document.assignments,
        running=lambda name, fence: Running(tmp_path),
        readings=Readings(record=lambda kind, body: told.append(second)),
    )
    for second in range(200):
        handler.says = (200, {}, f"tokens_total {5 + second}".encode())
        scraper.look(now=float(second))
    assert told[:6] == [0, 1, 2, 4, 8, 16]
    assert {later - one for one, later in pairwise(told[-6:])} == {15}
    assert json.loads((tmp_path / READINGS).read_text()) == {"tokens_total": [5, 5 + told[-1]]}


def test_what_runs_is_read_and_told_as_one_entry(program, tmp_path):
    handler, port = program
    told = []
    work = {"counters": {"port": port, "path": "/metrics", "names": ["tokens_total"]}}
    desired = {"assignments": [make_assignment("asg_a", work=work), make_assignment("asg_b", fence=2, work=work)]}
    desired["assignments"].append(make_assignment("asg_c"))
    document = parse_document(generation=1, desired=desired)
    scraper = Scraper(
        wanted=lambda: document.assignments,
        running=lambda name, fence: Running(tmp_path) if name != "asg_b" else None,
        readings=Readings(record=lambda kind, body: told.append((kind, body))),
    )
    scraper.look()
    sample = {"assignment": "asg_a", "fence": 1, "values": {"tokens_total": 5}}
    assert told == [("counters", {"samples": [sample]})]
    for answer in [
        (500, {}, b"tokens_total 6\n"),
        (302, {"Location": "http://127.0.0.1:1/"}, b""),
        (200, {}, b"\xff\xfe"),
        (200, {}, b"x" * (5 << 20)),
        (200, {}, b""),
    ]:
        handler.says = answer
        scraper.look()
    assert len(told) == 1


@pytest.mark.parametrize(
    "work",
    [
        {"inputs": "../x"},
        {"outputs": ["/etc/passwd"]},
        {"outputs": ["a/../../b"]},
        {"checkpoint": ".."},
        {"counters": {"port": 0, "path": "/m", "names": []}},
        {"counters": {"port": 80, "path": "@evil/", "names": []}},
    ],
)
def test_a_document_that_leads_out_of_a_work_folder_is_refused(work):
    with pytest.raises(ProtocolError):
        parse_document(generation=1, desired={"assignments": [make_assignment("asg_a", work=work)]})


@pytest.fixture
def ended(tmp_path):
    """A run that has ended, and whose port showed 50 before; its file of counters, and what is told of it."""

    class Ended:
        folder, told = tmp_path, []
        readings = Readings(record=lambda kind, body: Ended.told.append(body["samples"][0]["values"]))
        left = tmp_path / "work" / "gpumarket-counters.prom"
        wanted = parse_document(
            generation=1,
            desired={
                "assignments": [
                    make_assignment(
                        "asg_a", work={"counters": {"port": 9, "path": "/metrics", "names": ["tokens_total"]}}
                    )
                ]
            },
        ).assignments[0]

        def show(self, value):
            self.readings.tell([Reading("asg_a", 1, {"tokens_total": value}, tmp_path)])

    Ended.left.parent.mkdir()
    run = Ended()
    run.show(50)
    return run


def test_what_a_command_left_in_its_file_is_its_last_reading(ended):
    ended.left.write_text(TEXT)
    ended.readings.take_last(ended.wanted, ended.folder)
    ended.readings.take_last(ended.wanted, ended.folder)
    assert ended.told == [{"tokens_total": 50}, {"tokens_total": 4527}]
    assert json.loads((ended.folder / READINGS).read_text()) == {"tokens_total": [50, 4527]}


def test_what_was_read_before_the_end_and_is_told_after_it_does_not_count_as_a_new_beginning(ended):
    ended.left.write_text("tokens_total 90")
    ended.readings.take_last(ended.wanted, ended.folder)
    ended.show(60)
    assert ended.told[1:] == [{"tokens_total": 90}]
    ended.readings.tell([Reading("asg_a", 2, {"tokens_total": 3}, ended.folder)])
    assert ended.told[-1] == {"tokens_total": 3}, "the next run counts for itself"


@pytest.mark.parametrize("text", ["tokens_total 49", "tokens_total NaN", "other_total 90", "x" * (5 << 20), ""])
def test_a_file_that_is_old_or_nonsense_is_no_reading(ended, text):
    ended.left.write_text(text)
    ended.readings.take_last(ended.wanted, ended.folder)
    assert len(ended.told) == 1


def test_a_file_that_is_a_link_or_not_there_is_no_reading(ended):
    elsewhere = ended.folder / "secret"
    elsewhere.write_text("tokens_total 90")
    ended.readings.take_last(ended.wanted, ended.folder)
    ended.readings.forget("asg_a")
    ended.left.symlink_to(elsewhere)
    ended.readings.take_last(ended.wanted, ended.folder)
    assert len(ended.told) == 1
