"""Every command but `run`: what it prints where, and how it exits."""

import io
import json
import stat
import time

import pytest

from marketplace.cli import instances
from marketplace.cli.account import moment
from marketplace.cli.connection import login_path
from tests.marketplace.cli.shop import BALANCE, TOKEN, make_offer, make_problem

ESCAPE = "\x1b"


@pytest.fixture
def renter(gpumarket, shop):
    """Has one instance that runs until somebody ends it."""
    shop.runs_on = True
    gpumarket("launch", "--name", "train", "--", "python3", "train.py")
    return gpumarket


def test_launch_prints_the_id_and_ends_with_a_verdict_and_the_cost(gpumarket, shop):
    shop.runs_on = True
    said = gpumarket("launch", "h200-narvik", "--gpus", "2", "--name", "train", "--project", "serving", "--", "true")
    assert (said.code, said.out) == (0, "ins_1\n")
    assert "billing starts when ready" in said.err
    assert "gpumarket logs -f train" in said.err
    last = said.err.splitlines()[-1]
    assert last == ("train is running on 2 H200 in Narvik: 0.002075 USD so far, 2.49 USD per hour, 59.76 USD per day.")
    assert shop.asked("POST", "/api/v1/instances")[0]["body"] == {
        "offer": "h200-narvik",
        "replicas": 1,
        "gpus": 2,
        "command": ["true"],
        "name": "train",
        "project": "prj_2",
    }


def test_a_launch_whose_command_is_already_over_is_no_failure(gpumarket, shop):
    shop.is_quick = True
    said = gpumarket("launch", "--name", "quick", "--", "true")
    assert said.code == 0
    assert said.err.splitlines()[-1].startswith("quick is stopped (exited 0) on 1 H200")


def test_launch_without_waiting_returns_at_once(gpumarket, shop):
    shop.stays_in = "queued"
    said = gpumarket("launch", "--no-wait", "--", "true")
    assert (said.code, said.out) == (0, "ins_1\n")
    assert not shop.asked("GET", "/api/v1/instances/ins_1")


def test_a_launch_that_takes_too_long_exits_8_and_goes_on(gpumarket, shop):
    shop.stays_in = "provisioning"
    said = gpumarket("launch", "--timeout", "0.05", "--", "true")
    assert (said.code, said.out) == (8, "ins_1\n")
    assert "still provisioning" in said.err
    assert "Charged: nothing was charged." in said.err
    assert shop.instances["ins_1"]["desired"] == "running"


def test_a_rehearsal_prices_the_order_and_launches_nothing(gpumarket, shop):
    said = gpumarket("launch", "--dry-run", "--gpus", "4", "--", "true")
    assert said.code == 0
    assert "9.96 USD per hour" in said.err
    assert "Nothing was launched or charged" in said.err
    assert not shop.instances


def test_the_same_key_finds_the_first_launch(gpumarket, shop):
    for _ in range(2):
        assert gpumarket("launch", "h200-narvik", "--key", "k1", "--no-wait", "--", "true").out == "ins_1\n"
    assert len(shop.instances) == 1


def test_a_key_without_its_offer_is_refused_before_anything_is_asked(gpumarket, shop):
    assert gpumarket("launch", "--key", "k1", "--", "true").code == 2
    assert not shop.requests


def test_offers_are_a_table_with_the_cheapest_first(gpumarket, shop):
    shop.offers = [make_offer("dear", amount="9.000000"), make_offer("cheap", amount="1.500000", country="JP")]
    lines = gpumarket("offers").out.splitlines()
    assert lines[0].split() == [
        "OFFER",
        "GPU",
        "MEMORY",
        "RUNS",
        "SITE",
        "COUNTRY",
        "PER",
        "GPU-HOUR",
        "AUCTION",
        "FREE",
        "LARGEST",
    ]
    assert lines[1].split() == [
        "cheap",
        "H200",
        "141",
        "GiB",
        "commands",
        "Narvik",
        "JP",
        "1.50",
        "USD",
        "no",
        "8",
        "8",
    ]
    assert lines[2].startswith("dear")


def test_offers_say_which_are_sold_by_auction_too(gpumarket, shop):
    shop.offers = [make_offer("fixed", amount="9.000000"), make_offer("bid-for", by_auction=True)]
    said = gpumarket("offers")
    assert [line.split()[-3] for line in said.out.splitlines()[1:]] == ["yes", "no"]
    assert "gpumarket spot-price OFFER" in said.err
    assert [row["by_auction"] for row in json.loads(gpumarket("offers", "--json").out)["data"]] == [False, True]
    shop.offers = [make_offer("fixed")]
    assert "spot-price" not in gpumarket("offers").err


def test_offers_are_asked_for_with_the_filters(gpumarket, shop):
    gpumarket("offers", "--gpu-model", "H200", "--country", "no", "--min-gpus", "4", "--available")
    query = shop.asked("GET", "/api/v1/offers")[0]["query"]
    assert query == {"gpu_model": "H200", "country": "NO", "min_gpus": "4", "available": "true", "limit": "200"}


def test_ls_says_project_phase_gpus_cost_and_age(renter):
    assert renter("ls").out.splitlines()[1].split() == [
        *("train", "ins_1", "research", "running", "1", "H200", "0.001037", "USD", "3", "min"),
    ]


def test_ls_leaves_out_what_is_over_unless_asked(renter):
    renter("terminate", "train")
    assert renter("ls").out == ""
    assert "gpumarket launch" in renter("ls").err
    assert "terminated" in renter("ls", "--all").out


def test_show_says_steps_nodes_and_what_can_be_done(renter):
    said = renter("show", "train")
    for part in ("[2/4] Prepare nodes: done 0.4 s", "narvik-r1-n01: GPU-1", "python3 train.py", "stop      possible"):
        assert part in said.out
    assert said.err == "Next: gpumarket logs -f train, gpumarket stop train, gpumarket terminate train\n"


@pytest.mark.parametrize("billing", ["not_started", "running", "paused", "ended"])
def test_every_way_to_be_charged_has_its_words(billing):
    cost = {"billing": billing, "currency": "USD", "per_hour": "1.780000", "per_day": "42.720000"}
    assert instances.describe_rate(cost)


def test_a_name_cannot_steer_the_terminal(renter, shop):
    shop.instances["ins_1"]["name"] = f"{ESCAPE}[2Jgone"
    for command in (("show", "ins_1"), ("ls",), ("stop", "ins_1")):
        said = renter(*command)
        assert ESCAPE not in said.out + said.err


def test_stop_and_start_wait_until_it_is_so(renter, shop):
    said = renter("stop", "train")
    assert said.code == 0
    assert said.err.splitlines()[-1].startswith("train is stopped; it cost 0.001037 USD.")
    assert renter("start", "train").err.splitlines()[-1].startswith("train is running on 1 H200")


def test_every_change_carries_a_key(renter, shop):
    renter("stop", "train")
    renter("start", "train")
    renter("terminate", "train")
    changes = [request for request in shop.requests if request["method"] == "POST"]
    assert len(changes) == 4
    assert len({request["headers"]["Idempotency-Key"] for request in changes}) == 4


def test_a_wrong_state_is_a_conflict(renter):
    said = renter("start", "train")
    assert said.code == 5
    assert "What to do: See what can be done now: gpumarket show INSTANCE" in said.err


def test_terminate_says_what_it_cost(renter, shop):
    said = renter("terminate", "train")
    assert said.err.splitlines()[-1] == "train is terminated; it cost 0.001037 USD."


def test_rename_gives_the_new_name(renter):
    assert "train is now eval." in renter("rename", "train", "eval").err
    assert renter("show", "eval").code == 0


def test_an_unknown_name_or_id_is_not_found(gpumarket):
    assert gpumarket("show", "nobody").code == 4
    assert gpumarket("show", "ins_nobody").code == 4


@pytest.mark.parametrize("name", ["ins_1/logs", "ins_1/../../me", "ins_1?x=1", "ins_1#"])
def test_an_id_is_one_part_of_a_path(renter, name):
    assert renter("show", name).code == 4
    assert renter("launch", f"h200-narvik{name}", "--", "true").code == 4


def test_a_name_of_two_lists_both_and_changes_neither(renter, shop):
    renter("launch", "--name", "train", "--", "true")
    said = renter("terminate", "train")
    assert said.code == 5
    assert "ins_1 (running, research), ins_2 (running, research)" in said.err
    assert {row["phase"] for row in shop.instances.values()} == {"running"}


def test_of_two_with_a_name_the_living_one_is_meant(renter, shop):
    renter("terminate", "train")
    renter("launch", "--name", "train", "--", "true")
    assert "ins_2" in renter("show", "train").out


def test_logs_print_what_there_is_and_follow_until_the_end(renter, shop):
    shop.output = [(0, f"{number}\n") for number in range(7)]
    everything = "".join(text for _, text in shop.output)
    assert renter("logs", "train").out == everything
    shop.runs_on = False
    said = renter("logs", "-f", "train")
    assert (said.code, said.out) == (0, everything)


def test_logs_of_one_replica_are_unaltered(gpumarket, shop):
    shop.output = [(0, "zero\n"), (1, "one, no end")]
    gpumarket("run", "--replicas", "2", "--name", "gang", "--", "true")
    assert gpumarket("logs", "gang", "--replica", "1").out == "one, no end"
    assert gpumarket("logs", "ins_1").out == "[0] zero\n[1] one, no end\n"


def test_usage_is_a_bill_with_its_sum(renter, shop):
    said = renter("usage", "--since", "2026-11-01", "--instance", "train")
    assert "1,500" in said.out
    assert "2.49 USD per GPU-hour" in said.out
    assert "Together 0.001037 USD" in said.err
    assert shop.asked("GET", "/api/v1/usage")[0]["query"]["instance"] == "ins_1"


def test_usage_without_rows_says_that_nothing_was_charged(gpumarket):
    said = gpumarket("usage")
    assert said.out == ""
    assert "nothing was charged" in said.err


def test_times_are_durations_or_dates(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert moment("2026-11-01") == "2026-10-31T15:00:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert moment("2026-11-01T10:00:00+01:00") == "2026-11-01T09:00:00Z"
    assert moment("24h") > moment("2d") > moment("1w")


@pytest.mark.parametrize("text", ["yesterday", "7", "d", "-3d", "9999999999d", ""])
def test_what_is_no_time_is_refused_as_usage(gpumarket, shop, text):
    assert gpumarket("usage", "--since", text).code == 2
    assert not shop.requests


def test_balance_says_the_runway_in_words(gpumarket, monkeypatch):
    said = gpumarket("balance")
    assert "100.00 USD" in said.out
    assert said.err == "Nothing is running that costs money.\n"


def test_balance_says_when_credit_expires_and_how_much_may_be_owed(gpumarket, monkeypatch):
    credit = {"id": "cgr_1", "reason": "Trial", "amount": "100.000000", "left": "40.000000"}
    known = {"credit_limit": "5000.000000", "credits": [credit | {"expires_at": "2026-12-24T12:00:00Z"}]}
    monkeypatch.setattr("tests.marketplace.cli.shop.BALANCE", BALANCE | known)
    said = gpumarket("balance")
    assert "You may owe up to 5,000.00 USD." in said.err
    assert "40.00 USD of “Trial” expires 2026-12-24" in said.err


def test_balance_says_what_comes_if_nobody_pays(gpumarket, monkeypatch):
    coming = {"at": "2026-12-24T12:00:00Z", "code": "restrict", "text": "Nothing new starts.", "invoice": "INV-000007"}
    monkeypatch.setattr("tests.marketplace.cli.shop.BALANCE", BALANCE | {"past_due": "12.5", "coming": [coming]})
    said = gpumarket("balance")
    assert "12.50 USD is past due." in said.err
    assert "Nothing new starts." in said.err


def test_a_login_is_saved_once_the_marketplace_has_confirmed_it(gpumarket, shop, monkeypatch):
    monkeypatch.delenv("GPUMARKET_URL")
    monkeypatch.delenv("GPUMARKET_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    said = gpumarket("login", shop.url)
    assert said.code == 0
    assert "ada@acme.example of Acme" in said.err
    assert stat.S_IMODE(login_path().stat().st_mode) == 0o600
    assert gpumarket("balance").code == 0


def test_a_token_that_the_marketplace_refuses_is_not_saved(gpumarket, shop):
    assert gpumarket("login", shop.url, "--token", "gm_wrong").code == 3
    assert not login_path().exists()


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_not_allowed_exits_3(gpumarket, shop, status):
    shop.read_faults.append(make_problem(status, "permission_denied"))
    assert gpumarket("ls").code == 3


EVERY_COMMAND = [
    ("login", "{url}"),
    ("offers",),
    ("launch", "--no-wait", "--", "true"),
    ("launch", "--dry-run", "--", "true"),
    ("launch", "--", "true"),
    ("ls",),
    ("show", "train"),
    ("stop", "train"),
    ("terminate", "train"),
    ("rename", "train", "eval"),
    ("usage",),
    ("balance",),
    ("version",),
]


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_with_json_stdout_is_one_document(renter, shop, command):
    place = command.index("--") if "--" in command else len(command)
    words = [word.format(url=shop.url) for word in command]
    said = renter(*words[:place], "--json", *words[place:])
    assert said.code == 0
    assert isinstance(said.json, dict)


@pytest.mark.parametrize("command", [("logs", "train"), ("logs", "ins_1"), ("run", "--", "true")], ids=" ".join)
def test_with_json_a_stream_is_one_event_a_line(renter, shop, command):
    shop.runs_on = False
    said = renter(command[0], "--json", *command[1:])
    assert said.code == 0
    assert {record["event"] for record in said.records} <= {"accepted", "log", "end"}


@pytest.mark.parametrize(
    "command", [("show", "nobody"), ("run", "nothing", "--", "true"), ("ls", "--nonsense"), ("logs",)]
)
def test_with_json_a_problem_is_a_document_on_stdout(gpumarket, command):
    said = gpumarket(command[0], "--json", *command[1:])
    assert said.code in {2, 4}
    assert said.json["event"] == "problem"
    assert said.json["code"] in {"usage", "not_found"}


def test_explain_shows_the_call_as_curl_without_the_token(gpumarket, shop):
    said = gpumarket("ls", "--explain")
    assert said.err.splitlines()[0] == (
        f"""curl -H "Authorization: Bearer $GPUMARKET_TOKEN" '{shop.url}/api/v1/instances?limit=200'"""
    )
    assert TOKEN not in said.err


def test_output_that_is_no_terminal_has_no_colour_and_nothing_that_moves(renter, monkeypatch):
    for command in (("ls",), ("offers",), ("show", "train"), ("stop", "train"), ("start", "train")):
        said = renter(*command)
        assert ESCAPE not in said.out + said.err
        assert "\r" not in said.out + said.err


def test_long_rows_are_not_broken_where_nobody_reads(renter, shop):
    shop.instances["ins_1"]["name"] = "n" * 300
    assert "n" * 300 in renter("ls").out


def test_this_very_machine_is_not_asked_for_through_a_proxy(gpumarket, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert gpumarket("balance").code == 0


def test_a_refused_token_is_named_by_where_it_came_from(gpumarket, monkeypatch):
    monkeypatch.setenv("GPUMARKET_TOKEN", "gm_old")
    assert "with the token from GPUMARKET_URL and GPUMARKET_TOKEN" in gpumarket("ls").err


@pytest.mark.parametrize("token", ["gm a", "gm_\x07", "gm_\u00e9", "gm\r\nX: y"])
def test_what_cannot_be_a_token_is_refused_before_it_is_sent(gpumarket, shop, monkeypatch, token):
    monkeypatch.setenv("GPUMARKET_TOKEN", token)
    assert gpumarket("ls").code == 2
    assert not shop.requests


def test_an_address_where_nobody_answers_is_said_soon(gpumarket, shop, monkeypatch):
    monkeypatch.setenv("GPUMARKET_URL", "http://127.0.0.1:1")
    said = gpumarket("ls")
    assert said.code == 1
    assert "http://127.0.0.1:1 does not answer." in said.err
    assert "GPUMARKET_URL and GPUMARKET_TOKEN" in said.err


@pytest.mark.parametrize("answer", [(200, b"<html>Welcome</html>"), (404, b"<html>Not here</html>"), (200, [1])])
def test_an_answer_that_is_not_the_marketplaces_is_a_problem(gpumarket, shop, answer):
    shop.read_faults.append(answer)
    said = gpumarket("balance")
    assert said.code in {1, 4}
    assert "not the marketplace's" in said.err


def test_a_key_that_got_no_answer_is_named_so_that_it_can_be_used_again(gpumarket, shop, monkeypatch):
    monkeypatch.setattr("marketplace.cli.session.PATIENCE_WITH_WORK_S", 0.1)
    shop.faults.extend(["drop"] * 50)
    said = gpumarket("launch", "h200-narvik", "--json", "--", "true")
    key = said.json["idempotency_key"]
    assert said.json["charged"] is None
    assert f"--key {key}" in said.err
    shop.faults.clear()
    assert gpumarket("launch", "h200-narvik", "--key", key, "--no-wait", "--", "true").code == 0
    assert len(shop.instances) == 1


def test_all_pages_of_a_list_are_read(gpumarket, shop, monkeypatch):
    first, second = make_offer("a"), make_offer("b")
    shop.read_faults.append((200, {"data": [first], "next_cursor": "next"}))
    shop.read_faults.append((200, {"data": [second], "next_cursor": None}))
    said = gpumarket("offers", "--json")
    assert [offer["slug"] for offer in said.json["data"]] == ["a", "b"]
    assert shop.asked("GET", "/api/v1/offers")[1]["query"]["cursor"] == "next"


def test_a_pause_that_the_server_asks_for_is_taken(gpumarket, shop):
    shop.read_faults.append(make_problem(429, "too_many_requests"))
    assert gpumarket("balance").code == 0


def test_json_of_a_problem_is_the_servers_document(gpumarket, shop):
    shop.faults.append(make_problem(402, "insufficient_funds"))
    said = gpumarket("launch", "--json", "--", "true")
    assert said.code == 7
    assert json.loads(said.out)["request_id"] == "req_1"


def test_stop_says_which_files_are_lost_and_which_are_kept(renter, shop):
    said = renter("stop", "train")
    assert "It has no volume: all its files are deleted, also those in its working folder." in said.err
    renter("start", "train")
    row = shop.instances["ins_1"]
    row["image"] = "registry.example.com/train:1"
    row["volumes"] = [{"id": "vol_1", "name": "data", "path": "/data", "read_only": True}]
    said = renter("stop", "train")
    assert (
        "Kept: its volumes, data at /data (read-only). All other files are deleted, also those in /workspace."
        in said.err
    )
    assert "volume    data at /data (read-only)" in renter("show", "train").out


def test_show_says_what_a_repair_means(renter, shop):
    repair = {"part": "node", "node": "n1", "reason": "The GPU has fallen off the bus", "since": "2026-11-26T12:00:00Z",
              "ends_at": "2026-11-26T13:00:00Z", "node_held": True}  # fmt: skip
    shop.instances["ins_1"]["repair"] = repair
    out = renter("show", "train").out
    assert "repair    The GPU has fallen off the bus (its node n1, since " in out
    assert "then it is ended and not charged any more; nothing new is placed on the node" in out
    shop.instances["ins_1"]["repair"] = repair | {"part": "gpu", "ends_at": None, "node_held": False}
    assert "it may go on, and the repair waits for it\n" in renter("show", "train").out
