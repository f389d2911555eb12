"""`gpumarket run`: the command's output, the command's exit code, one launch, and the bill."""

import signal
import threading
import time

import pytest

from marketplace.cli.problems import SUGGESTIONS
from marketplace.cli.run import as_exit_status
from tests.marketplace.cli.shop import make_offer, make_problem


def test_stdout_is_the_output_of_the_command_and_nothing_else(gpumarket, shop):
    shop.output = [(0, "one\ntw"), (0, "o\n"), (0, "\ttail without end")]
    said = gpumarket("run", "--", "true")
    assert said.out == "one\ntwo\n\ttail without end"


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_run_exits_with_the_exit_code_of_its_command(gpumarket, shop, code):
    shop.exit_code = code
    assert gpumarket("run", "--", "true").code == code


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 7), (-9, 137), (300, 1)])
def test_a_death_by_signal_becomes_the_code_that_shells_use(code, status):
    assert as_exit_status(code) == status


def test_the_command_arrives_word_by_word_and_its_dashes_are_not_ours(gpumarket, shop):
    command = ["python3", "-c", "print('a b')", "--", "--json", "--help", ""]
    assert gpumarket("run", "--gpus", "2", "--", *command).code == 0
    assert shop.asked("POST", "/api/v1/instances")[0]["body"]["command"] == command


def test_a_command_that_is_over_before_anybody_looks_still_gives_its_output_and_code(gpumarket, shop):
    shop.is_quick, shop.exit_code = True, 3
    said = gpumarket("run", "--", "true")
    assert (said.code, said.out) == (3, "hello\n")


def test_the_bill_is_gpu_milliseconds_times_price_on_stderr(gpumarket):
    said = gpumarket("run", "--gpus", "2", "--", "true")
    assert "3,000 GPU-milliseconds x 2.49 USD per GPU-hour = 0.002075 USD" in said.err
    assert said.err.splitlines()[-1] == "quiet-otter-1 exited with 0; cost 0.002075 USD."


def test_the_instance_is_terminated_at_the_end(gpumarket, shop):
    gpumarket("run", "--", "true")
    assert [row["phase"] for row in shop.instances.values()] == ["terminated"]


def test_the_steps_are_numbered_and_said_once(gpumarket):
    err = gpumarket("run", "--", "true").err
    for step in ("[1/4] Reserve GPUs: done 0.4 s (usually 0.3 s)", "[3/4] Verify GPUs: done", "[4/4] Run: started"):
        assert err.count(step) == 1


def test_replicas_write_whole_lines_with_their_rank(gpumarket, shop):
    shop.output = [(0, "he"), (1, "wor"), (0, "llo\n"), (1, "ld\nend")]
    assert gpumarket("run", "--replicas", "2", "--", "true").out == "[0] hello\n[1] world\n[1] end\n"


def test_with_json_every_line_is_an_event(gpumarket, shop):
    shop.exit_code = 7
    said = gpumarket("run", "--json", "--", "true")
    assert said.code == 7
    assert [record["event"] for record in said.records] == ["accepted", "log", "end"]
    assert said.records[1]["text"] == "hello\n"
    end = said.records[-1]
    assert (end["exit_code"], end["bill"]["total"]) == (7, {"amount": "0.001037", "currency": "USD"})


def test_an_answer_lost_after_the_work_launches_once(gpumarket, shop):
    shop.faults.extend(["drop", "drop"])
    assert gpumarket("run", "--", "true").code == 0
    orders = shop.asked("POST", "/api/v1/instances")
    assert len(orders) == 3
    assert len({order["headers"]["Idempotency-Key"] for order in orders}) == 1
    assert len(shop.instances) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_is_being_restarted_is_asked_again_with_the_same_key(gpumarket, shop, status):
    shop.faults.append((status, b"<html>Bad gateway</html>"))
    assert gpumarket("run", "--", "true").code == 0
    assert len({order["headers"]["Idempotency-Key"] for order in shop.asked("POST", "/api/v1/instances")}) == 1


def test_an_order_that_is_still_at_work_is_asked_again(gpumarket, shop):
    shop.faults.append(make_problem(409, "conflict", retry="same_request"))
    assert gpumarket("run", "--", "true").code == 0


def test_a_restart_of_the_server_in_the_middle_is_survived(gpumarket, shop):
    shop.output = [(0, f"{number}\n") for number in range(200)]

    def restart():
        while not shop.asked("GET", "/api/v1/instances/ins_1/logs"):
            time.sleep(0.001)
        shop.close()
        time.sleep(0.2)
        shop.open()

    restarting = threading.Thread(target=restart)
    restarting.start()
    said = gpumarket("run", "--", "true")
    restarting.join()
    assert said.code == 0
    assert said.out == "".join(f"{number}\n" for number in range(200))
    assert len(shop.instances) == 1


def test_a_failure_before_the_start_says_why_and_that_nothing_was_charged(gpumarket, shop):
    shop.fails_with = ("gpu_unhealthy", "GPU 3 did not pass its check.")
    said = gpumarket("run", "--", "true")
    assert said.code == 1
    assert "did not start" in said.err
    assert "GPU 3 did not pass its check." in said.err
    assert "Charged: nothing was charged." in said.err
    assert said.out == ""


@pytest.mark.parametrize(("reason", "code"), [("no_capacity", 6), ("no_funds", 7)])
def test_a_start_that_fails_for_a_known_reason_exits_by_the_table(gpumarket, shop, reason, code):
    shop.fails_with = (reason, "Why.")
    assert gpumarket("run", "--", "true").code == code


@pytest.mark.parametrize(
    ("status", "name", "code"),
    [(402, "insufficient_funds", 7), (409, "no_capacity", 6), (409, "quota_exceeded", 5), (422, "invalid_request", 2)],
)
def test_a_refused_order_exits_by_the_table_in_five_parts(gpumarket, shop, status, name, code):
    shop.faults.append(make_problem(status, name, errors=[{"pointer": "/gpus", "detail": "at most 8"}]))
    said = gpumarket("run", "--", "true")
    assert said.code == code
    for part in (
        f"Refused: {name}.",
        "Why: The reason",
        "--gpus: at most 8",
        "Charged: nothing",
        f"What to do: {SUGGESTIONS[name]}",
        "req_1",
    ):
        assert part in said.err


def test_a_reason_is_not_said_twice(gpumarket, shop):
    errors = [{"pointer": "/gpus", "detail": "At most 8."}]
    shop.faults.append(make_problem(422, "invalid_request", detail="gpus: At most 8.", errors=errors))
    assert gpumarket("run", "--", "true").err.count("At most 8.") == 1


def test_a_command_that_somebody_else_ended_has_no_exit_code_of_its_own(gpumarket, shop):
    shop.runs_on = True

    def end():
        while not shop.asked("GET", "/api/v1/instances/ins_1/logs"):
            time.sleep(0.001)
        with shop.lock:
            shop.end(shop.instances["ins_1"], "terminated")
            shop.instances["ins_1"] |= {"reason": "no_funds", "message": "The credit was used up."}

    ending = threading.Thread(target=end)
    ending.start()
    said = gpumarket("run", "--", "true")
    ending.join()
    assert said.code == 7
    assert "was ended before its command was done" in said.err
    assert "Charged: yes" in said.err


def test_the_cheapest_offer_that_fits_is_taken_and_named(gpumarket, shop):
    shop.offers = [
        make_offer("dear", amount="9.000000"),
        make_offer("full", amount="1.000000", free=8, largest=1),
        make_offer("cheap", amount="2.000000"),
    ]
    said = gpumarket("run", "--gpus", "2", "--", "true")
    assert "Offer: cheap, the cheapest of 2 that fit." in said.err
    assert shop.instances["ins_1"]["offer"]["slug"] == "cheap"


def test_an_offer_of_our_choice_that_sells_out_makes_way_for_the_next(gpumarket, shop):
    shop.offers = [make_offer("cheap", amount="1.000000"), make_offer("dear", amount="9.000000")]
    shop.faults.append(make_problem(409, "no_capacity"))
    said = gpumarket("run", "--", "true")
    assert said.code == 0
    assert "cheap was sold out meanwhile; taking dear." in said.err
    first, second = shop.asked("POST", "/api/v1/instances")
    assert first["headers"]["Idempotency-Key"] != second["headers"]["Idempotency-Key"]


@pytest.mark.parametrize("command", [["run"], ["launch", "--dry-run"]])
def test_an_offer_of_our_choice_that_a_policy_keeps_out_makes_way_for_the_next(gpumarket, shop, command):
    shop.offers = [make_offer("cheap", amount="1.000000"), make_offer("dear", amount="9.000000")]
    shop.faults.append(make_problem(409, "policy_excludes"))
    said = gpumarket(*command, "--", "true")
    assert said.code == 0
    assert "cheap is kept out by a policy; taking dear." in said.err
    assert "for 9.00 USD per hour; billing starts when ready." in said.err


def test_a_named_offer_that_a_policy_keeps_out_is_refused_with_where_to_look(gpumarket, shop):
    shop.offers = [make_offer("cheap", amount="1.000000"), make_offer("dear", amount="9.000000")]
    shop.faults.append(make_problem(409, "policy_excludes", placement="plc_1"))
    said = gpumarket("run", "cheap", "--", "true")
    assert said.code == 5
    assert "Looked at: gpumarket why plc_1" in said.err
    assert not shop.instances


def test_a_wish_that_nothing_fits_is_no_capacity(gpumarket, shop):
    shop.offers = [make_offer("small", free=3, largest=2)]
    said = gpumarket("run", "--gpus", "4", "--", "true")
    assert said.code == 6
    assert "small: 3 GPUs free, 2 of them on one node" in said.err
    assert not shop.asked("POST", "/api/v1/instances")


def test_variables_come_from_file_and_options_and_never_into_the_explanation(gpumarket, shop, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "from here")
    (tmp_path / "variables").write_text("# a comment\nA=file\nB=x=y\n")
    said = gpumarket("run", "--explain", "--env-file", "variables", "--env", "A=s3cret", "--env", "MINE", "--", "true")
    assert shop.instances["ins_1"]["env"] == {"A": "s3cret", "B": "x=y", "MINE": "from here"}
    assert "curl -X POST" in said.err
    assert "s3cret" not in said.err
    assert "gm_of_the_demo" not in said.err


def test_a_command_without_dashes_is_explained(gpumarket, shop):
    said = gpumarket("run", "--gpus", "1", "python3", "train.py")
    assert said.code == 2
    assert "gpumarket run --gpus 1 -- python3 train.py" in said.err
    assert not shop.requests


def test_time_that_is_up_ends_the_instance_and_exits_8(gpumarket, shop):
    shop.runs_on = True
    said = gpumarket("run", "--timeout", "0.1", "--", "sleep", "inf")
    assert said.code == 8
    assert shop.instances["ins_1"]["phase"] == "terminated"
    assert "cost 0.001037 USD" in said.err


def test_time_that_is_up_before_the_start_ends_the_instance_too(gpumarket, shop):
    shop.stays_in = "placing"
    said = gpumarket("run", "--timeout", "0.05", "--", "true")
    assert said.code == 8
    assert shop.instances["ins_1"]["phase"] == "terminated"
    assert "nothing was charged" in said.err


def test_an_end_that_nobody_confirms_does_not_hang(gpumarket, shop, monkeypatch):
    monkeypatch.setattr("marketplace.cli.run.PATIENCE_WITH_END_S", 0.05)
    monkeypatch.setattr(shop, "end", lambda row, phase: row.update(phase="terminating", desired=phase))
    said = gpumarket("run", "--", "true")
    assert said.code == 0
    assert "not confirmed as ended yet" in said.err


def test_a_server_that_is_gone_for_good_leaves_the_way_back(gpumarket, shop, monkeypatch):
    monkeypatch.setattr("marketplace.cli.session.PATIENCE_WITH_WORK_S", 0.2)
    shop.runs_on = True

    def vanish():
        while not shop.asked("GET", "/api/v1/instances/ins_1/logs"):
            time.sleep(0.001)
        shop.close()

    vanishing = threading.Thread(target=vanish)
    vanishing.start()
    said = gpumarket("run", "--", "true")
    vanishing.join()
    shop.open()
    assert said.code == 8
    assert "gpumarket terminate ins_1" in said.err


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_ends_the_instance_and_says_the_bill(process, shop, name):
    shop.runs_on = True
    child = process("run", "--", "sleep", "inf")
    wait_for(lambda: len(shop.asked("GET", "/api/v1/instances/ins_1/logs")) > 1)
    child.send_signal(getattr(signal, name))
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert shop.instances["ins_1"]["phase"] == "terminated"
    assert out == "hello\n"
    assert "GPU-milliseconds x" in err
    assert "Traceback" not in err


def test_an_interrupt_while_the_order_is_on_its_way_finds_and_ends_the_instance(process, shop):
    shop.faults.extend(["drop"] * 6)
    child = process("run", "--", "sleep", "inf")
    wait_for(lambda: len(shop.asked("POST", "/api/v1/instances")) >= 2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "asking what became of it" in err
    assert [row["phase"] for row in shop.instances.values()] == ["terminated"]


def test_a_second_interrupt_gives_up_and_says_what_is_left(process, shop):
    shop.runs_on = True
    child = process("run", "--", "sleep", "inf")
    wait_for(lambda: shop.asked("GET", "/api/v1/instances/ins_1/logs"))
    shop.faults.extend([(503, b"")] * 100)
    child.send_signal(signal.SIGINT)
    wait_for(lambda: shop.asked("POST", "/api/v1/instances/ins_1/terminate"))
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "gpumarket terminate ins_1" in err


def test_detached_an_interrupt_leaves_the_instance_running(process, shop):
    shop.runs_on = True
    child = process("run", "--detach", "--", "sleep", "inf")
    wait_for(lambda: shop.asked("GET", "/api/v1/instances/ins_1/logs"))
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert shop.instances["ins_1"]["phase"] == "running"
    assert "gpumarket logs -f ins_1" in err


def test_a_reader_that_goes_away_ends_the_instance(process, shop):
    shop.output = [(0, "x" * 10_000 + "\n")] * 50
    shop.runs_on = True
    child = process("run", "--", "yes")
    child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(timeout=60) == 1
    assert shop.instances["ins_1"]["phase"] == "terminated"
    assert "Traceback" not in err
    assert "Exception ignored" not in err
