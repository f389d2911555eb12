"""`gpumarket verify`: what is changed, missing, forged or revoked is refused, and it says what was checked."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cli import proofs
from marketplace.cli.main import exit_code_of
from provisioning.agent.signing import canonical, digest, key_id, moment, new_private, public_of, signature, signed
from tests.marketplace.receipts.papers import NOON, Platform

LATER = NOON + timedelta(hours=1)
WHOLE = Platform()
WHOLE.add()
KEYS = proofs.read_keys(WHOLE.keys)
DATA = canonical(WHOLE.documents[0])


@pytest.fixture
def platform():
    return Platform()


@pytest.fixture
def verify(tmp_path, capfd):
    """Run the command on a folder; return its exit code and what it says as JSON."""

    def run(platform, *options, folder=None):
        where = folder or platform.save(tmp_path / "receipts")
        code = exit_code_of(["verify", str(where), "--json", *options])
        return code, json.loads(capfd.readouterr().out)

    return run


def says(answer):
    """Every word of what was found."""
    return json.dumps(answer, ensure_ascii=False)


def judged(platform, document):
    found = proofs.verify("it", canonical(document), proofs.read_keys(platform.keys))
    return found.is_good, " ".join(check.says for check in found.checks if check.result == proofs.REFUSED)


def test_a_whole_chain_is_good_and_every_check_is_named(platform, verify):
    for _ in range(3):
        platform.add()
    code, answer = verify(platform)
    assert (code, answer["good"]) == (0, True)
    assert [chain["receipts"] for chain in answer["chains"]] == [3]
    checks = {check["check"]: check["result"] for check in answer["documents"][1]["checks"]}
    assert checks == dict.fromkeys(
        ["bytes", "signature", "node statements", "terms", "price", "verdicts", "chain"], "good"
    )


def test_it_speaks_in_words_and_says_that_later_ones_may_exist(platform, tmp_path, capfd):
    platform.add()
    path = platform.save(tmp_path / "r", head=False) / "1.json"
    assert exit_code_of(["verify", str(path)]) == 0
    said = capfd.readouterr().out
    assert (
        "1,234 frame at 2.500000 USD for 1,000, of which 90 % are due: 2.776500 USD. In the end 2.776500 USD." in said
    )
    assert "1 node signed what it saw, and it agrees with the receipt." in said
    assert "head.json) was not given" in said


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_every_byte_that_is_changed_is_noticed(place, byte):
    changed = DATA[:place] + bytes([byte]) + DATA[place + 1 :]
    assert proofs.verify("it", changed, KEYS).is_good == (changed == DATA)


def test_no_bit_of_it_can_be_flipped_and_no_byte_taken_out_or_put_in():
    assert proofs.verify("it", DATA, KEYS).is_good
    for place in range(len(DATA)):
        for changed in (
            DATA[:place] + bytes([DATA[place] ^ 1]) + DATA[place + 1 :],
            DATA[:place] + bytes([DATA[place] ^ 32]) + DATA[place + 1 :],
            DATA[:place] + DATA[place + 1 :],
            DATA[:place] + b" " + DATA[place:],
        ):
            assert not proofs.verify("it", changed, KEYS).is_good, (place, changed[max(0, place - 20) : place + 20])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_receipt_that_was_taken_out_is_missed(platform, verify, tmp_path, number):
    for _ in range(4):
        platform.add()
    folder = platform.save(tmp_path / "r")
    (folder / f"{number}.json").unlink()
    code, answer = verify(platform, folder=folder)
    assert (code, answer["good"]) == (1, False)
    assert f"Missing{' at the end' if number == 4 else f': {number}'}" in says(answer)
    # A part that is meant to be one is no fault, but a cut end is.
    assert verify(platform, "--part", folder=folder)[0] == (1 if number == 4 else 0)


def test_a_chain_cut_short_is_found_by_its_head_alone(platform, verify, tmp_path):
    for _ in range(3):
        platform.add()
    folder = platform.save(tmp_path / "r")
    (folder / "3.json").unlink()
    assert verify(platform, folder=folder)[0] == 1
    (folder / "head.json").unlink()
    code, answer = verify(platform, folder=folder)
    assert code == 0
    assert "Whether later ones exist is not checked" in says(answer)


def test_two_receipts_with_one_number_and_one_that_follows_another_are_refused(platform, verify, tmp_path):
    platform.add()
    platform.add()
    forked = signed(platform.documents[1]["body"] | {"id": "rcp_other"}, private=platform.private, at=NOON)
    (tmp_path / "keys.json").write_bytes(platform.keys)
    lines = b"".join(canonical(one) + b"\n" for one in [*platform.documents, forked])
    (tmp_path / "all.jsonl").write_bytes(lines)
    code, answer = verify(platform, folder=tmp_path)
    assert code == 1
    assert "two different receipts with number 2" in says(answer)
    platform.documents = platform.documents[:1]
    platform.add(previous=digest("another"))
    code, answer = verify(platform)
    assert code == 1
    assert "does not follow the number 1" in says(answer)


def test_a_signature_of_somebody_else_and_one_of_another_document_are_refused(platform):
    document = platform.add()
    assert judged(platform, document) == (True, "")
    forged = signed(document["body"], private=new_private(), at=NOON)
    assert "not among the keys that you trust" in judged(platform, forged)[1]
    stolen = document | {"signatures": [platform.head()["signatures"][0]]}
    assert "what it signed was something else" in judged(platform, stolen)[1]
    as_ours = signature(document["body"], private=new_private(), at=NOON) | {"key": platform.rows[0]["id"]}
    assert "what it signed was something else" in judged(platform, document | {"signatures": [as_ours]})[1]
    assert judged(platform, document | {"signatures": []}) == (False, "Nobody signed it.")


def test_what_a_retired_key_signed_in_its_time_stays_good_and_nothing_later(platform):
    platform.add()
    old = platform.private
    platform.rotate(at=NOON + timedelta(minutes=1))
    platform.add(at=LATER)
    assert [judged(platform, one)[0] for one in platform.documents] == [True, True]
    late = signed(platform.documents[1]["body"], private=old, at=LATER)
    assert "signed from" in judged(platform, late)[1]
    early = signed(platform.documents[1]["body"], private=platform.private, at=NOON)
    assert "signed from" in judged(platform, early)[1]


def test_what_a_revoked_key_signed_counts_for_nothing_until_it_is_signed_anew(platform):
    document = platform.add()
    platform.rotate(at=LATER)
    platform.rows[0] |= {"state": "revoked", "revoked_at": moment(LATER), "revoked_because": "it leaked"}
    good, why = judged(platform, document)
    assert not good
    assert "revoked" in why
    assert "it leaked" in why
    document["signatures"].append(signature(document["body"], private=platform.private, at=LATER))
    assert judged(platform, document) == (True, "")


def test_a_key_that_is_not_trusted_and_one_under_a_false_id_verify_nothing(platform, verify, tmp_path, capfd):
    platform.add()
    assert verify(platform, "--trust", platform.rows[0]["id"])[0] == 0
    assert verify(platform, "--trust", "key_other")[0] == 2
    platform.rows[0]["public_key"] = public_of(new_private())
    code, answer = verify(platform)
    assert code == 2
    assert "somebody has put another key in" in says(answer)
    folder = platform.save(tmp_path / "r")
    (folder / "keys.json").unlink()
    code, answer = verify(platform, folder=folder)
    assert code == 2
    assert "/api/v1/keys" in says(answer)
    assert verify(platform, folder=tmp_path / "nothing")[0] == 2


@pytest.mark.parametrize(
    "changes",
    [{"gpus": ["GPU-x"]}, {"exit_code": 1}, {"fence": 2}, {"node": "nod_b"}, {"assignment": "asg_b"},
     {"instance": "ins_b"}, {"image": "another"}, {"inputs": "b" * 64}, {"outputs": "b" * 64}],
)  # fmt: skip
def test_a_node_that_signed_other_facts_is_refused(platform, changes):
    content = platform.content()
    content["attempts"][0]["replicas"][0]["statement"] = platform.statement(**changes)
    assert f"signed other facts: {next(iter(changes))}" in judged(platform, platform.add(content))[1]


def test_a_statement_that_the_node_did_not_sign_is_refused_even_under_the_platforms_signature(platform):
    content = platform.content()
    replica = content["attempts"][0]["replicas"][0]
    replica["statement"]["body"]["message"] = "made up"
    assert "is not signed by its key" in judged(platform, platform.add(content))[1]
    other = Platform()
    replica["statement"] = other.statement()
    assert "is not signed by its key" in judged(platform, platform.add(content))[1]
    replica["statement"] = signed(
        platform.content()["contract"] | {"kind": "other"}, private=platform.node_private, at=NOON
    )
    assert "is not signed by its key" in judged(platform, platform.add(content))[1]
    replica["key"]["id"] = key_id(public_of(new_private()))
    assert "names no key" in judged(platform, platform.add(content))[1]


def test_a_nodes_revoked_key_counts_before_the_revocation_alone(platform):
    key = platform.content()["attempts"][0]["replicas"][0]["key"]["id"]
    platform.revoked_nodes.append({"id": key, "revoked_at": moment(LATER)})
    assert judged(platform, platform.add(at=NOON))[0]
    assert "was revoked" in judged(platform, platform.add(at=LATER))[1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"asked_micros": "2776501"}, "does not follow from units"),
        ({"paid_micros": "2776501", "amount_micros": "2776501"}, "More was charged"),
        ({"amount_micros": "2776499"}, "do not come out"),
        ({"bps": 10_000}, "not what being late"),
        ({"unit_price_micros": "1"}, "not that of the terms"),
        ({"per": 0}, "not that of the terms"),
        ({"units": "many"}, "not of the form"),
    ],
)
def test_arithmetic_that_does_not_come_out_is_refused(platform, changes, why):
    content = platform.content()
    content["price"] |= changes
    assert why in judged(platform, platform.add(content))[1]


def test_evidence_in_a_receipt_is_what_was_claimed_and_its_units_are_those_of_the_price(platform):
    content = platform.content()
    evidence = {"outputs": "a" * 64, "units": content["price"]["units"], "readings": [{"first": 0, "last": 9}]}
    content["claim"] |= {"evidence": evidence, "evidence_sha256": digest(evidence)}
    assert judged(platform, platform.add(content)) == (True, "")
    changed = evidence | {"readings": [{"first": 0, "last": 99}]}
    content["claim"] |= {"evidence": changed}
    assert "does not have the digest" in judged(platform, platform.add(content))[1]
    more = evidence | {"units": evidence["units"] - 1}
    content["claim"] |= {"evidence": more, "evidence_sha256": digest(more)}
    assert "not those that were counted" in judged(platform, platform.add(content))[1]


@pytest.mark.parametrize(
    ("seconds", "is_good"), [(3600, False), (3601, True), (7200, True), (7201, False), (None, True)]
)
def test_what_being_late_leaves_follows_from_the_deadline_and_the_times_in_the_evidence(platform, seconds, is_good):
    content = platform.content()  # which says that 90 % of the price are left
    late = [{"after_s": 0, "price_bps": 9000}, {"after_s": 3600, "price_bps": 0}]
    terms = content["contract"]["terms"] | {"deadline": {"within_s": 3600, "late": late}}
    content["contract"] |= {"terms": terms, "sha256": digest(terms)}
    ended = {} if seconds is None else {"ended_at": (NOON + timedelta(seconds=seconds)).isoformat()}
    evidence = {"since": NOON.isoformat(), **ended}
    content["claim"] |= {"evidence": evidence, "evidence_sha256": digest(evidence)}
    why = "" if is_good else "does not follow from its deadline"
    found = judged(platform, platform.add(content))
    assert (found[0], why in found[1]) == (is_good, True)


@pytest.mark.parametrize(
    "changes", [None, {"result": "fail"}, {"run": 2}, {"verifier": "customer"}, {"verifier": "silence"}]
)
def test_what_was_paid_without_a_verdict_that_passed_it_is_refused(platform, changes):
    content = platform.content()
    content["verdicts"] = [] if changes is None else [content["verdicts"][0] | changes]
    assert "no verifier of the terms passed run 1" in judged(platform, platform.add(content))[1]
    for state, is_good in (("rejected", False), ("partial", True), ("upheld", True)):
        content["disputes"] = [{"state": state}]
        assert judged(platform, platform.add(content))[0] == is_good


def test_a_third_partys_verdict_counts_with_its_own_signature_alone(platform):
    private, content = new_private(), platform.content()
    party = {"name": "Judges", "organization": None, "public_key": public_of(private)}
    terms = content["contract"]["terms"]
    terms["verifier"] = {"kind": "third_party", "party": party, "answer_within_s": 60, "on_silence": "fail"}
    content["contract"]["sha256"] = digest(terms)
    said = {
        "schema": "gpumarket.verdict/1", "claim": "clm_a", "contract_version": digest(terms), "evidence": "e" * 64,
        "result": "pass", "run": 1,
    }  # fmt: skip
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    good = key.sign(canonical(said)).hex()
    verdict = content["verdicts"][0]
    verdict |= {"verifier": "third_party", "signature": good}
    assert judged(platform, platform.add(content)) == (True, "")
    flipped = f"{int(good[0], 16) ^ 1:x}{good[1:]}"
    for forged in (flipped, None, "", key.sign(canonical(said | {"run": 2})).hex()):
        verdict["signature"] = forged
        assert "did not sign its verdict" in judged(platform, platform.add(content))[1]
    content["verdicts"] = [verdict | {"verifier": "outputs"}]
    assert "no verifier of the terms passed" in judged(platform, platform.add(content))[1]
    terms["verifier"]["on_silence"] = "pass"
    content["contract"]["sha256"] = digest(terms)
    content["verdicts"] = [verdict | {"verifier": "silence"}]
    assert judged(platform, platform.add(content)) == (True, "")


def test_terms_that_nobody_accepted_and_a_price_of_what_failed_are_refused(platform):
    content = platform.content()
    content["contract"]["sha256"] = digest("others")
    assert "do not have the digest" in judged(platform, platform.add(content))[1]
    assert "was charged for a claim that was failed" in judged(platform, platform.add(event="failed"))[1]
    content = platform.content()
    del content["attempts"]
    assert "not of the form" in judged(platform, platform.add(content))[1]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"NaN", b'{"body":{},"signatures":[]}', b"\xff\xfe", b"[" * 100_000, b'"\\ud800"',
     b'{"body":{"kind":"gpumarket.receipt.1"},"signatures":[]}', b'{"body":{"kind":[]},"signatures":[]}'],
)  # fmt: skip
def test_what_is_no_receipt_is_refused_and_never_an_error_of_ours(data):
    assert not proofs.verify("it", data, KEYS).is_good


def test_it_needs_no_network_and_no_django(platform, tmp_path):
    platform.add()
    folder = platform.save(tmp_path / "r")
    program = """
import socket, sys
def no(*args, **kwargs): raise AssertionError("it went to the network")
socket.socket.connect = socket.getaddrinfo = no
from marketplace.cli.main import exit_code_of
code = exit_code_of(["verify", sys.argv[1]])
rooms = {"django", "celery", "psycopg", "billing", "provisioning", "httpx"}
assert not rooms.intersection(sys.modules), rooms.intersection(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all good" in done.stdout
