"""gpumarket volume: what it asks for, what it prints where, and how it exits."""

import pytest

from tests.marketplace.cli.shop import Shop, make_problem

GIB = 1024**3
SITES = [
    {"id": "sit_1", "slug": "narvik", "name": "Narvik"},
    {"id": "sit_2", "slug": "osaka-edge", "name": "Osaka edge"},
]


def make_row(name, **changes):
    can = {"available": True, "reason": None}
    return {
        "id": f"vol_{name}",
        "name": name,
        "project": {"id": "prj_1", "name": "default"},
        "site": {"name": "Narvik", "country": "NO"},
        "kind": "local",
        "node": "h200-1",
        "offer": "h200-narvik",
        "size_gib": 100,
        "used_bytes": 25 * GIB,
        "used_percent": 25,
        "is_snapshot": False,
        "source": None,
        "state": "available",
        "health": "ok",
        "message": "",
        "attachment": None,
        "cost": {
            "billing": "running",
            "currency": "USD",
            "per_gib_hour": "0.000100",
            "per_hour": "0.010000",
            "per_month": "7.300000",
        },
        "actions": {"attach": can, "delete": can, "restore": {"available": False, "reason": "There is no deletion."}},
        "deleted_when_unpaid": None,
        "delete_after": None,
    } | changes


class ShopWithVolumes(Shop):
    """A shop that keeps volumes: what a test put there, and what is asked of them."""

    def __init__(self):
        super().__init__()
        self.volumes = {}
        self.ends_as = {"state": "available"}

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["volumes" | "sites" as kind]:
                there = {"volumes": self.volumes.values(), "sites": SITES}[kind]
                rows = [row for row in there if query.get("name", row["name"]) == row["name"]]
                return 200, {"data": rows, "next_cursor": None}
            case "POST", ["volumes"]:
                row = make_row(body["name"], state="creating", size_gib=body["size_gib"])
                self.volumes[row["id"]] = row
                return 202, dict(row)
            case "GET", ["volumes", key] if key in self.volumes:
                if self.volumes[key]["state"] == "creating":
                    self.volumes[key] |= self.ends_as
                return 200, self.volumes[key]
            case "DELETE", ["volumes", key]:
                restore = {"restore": {"available": True, "reason": None}}
                self.volumes[key] |= {"state": "deleting", "delete_after": "2026-11-29T12:00:00Z", "actions": restore}
                return 202, self.volumes[key]
            case "PATCH", ["volumes", key]:
                self.volumes[key] |= body
                return 200, self.volumes[key]
            case "POST", ["volumes", key, "snapshot"]:
                return 202, make_row(body["name"], is_snapshot=True)
            case "POST", ["volumes", key, _verb] if key in self.volumes:
                return 202, self.volumes[key]
            case _, ["volumes", *_]:
                return make_problem(404, "not_found")
        return super().answer(method, words, query, headers, body)


@pytest.fixture
def shop():
    shop = ShopWithVolumes()
    shop.open()
    yield shop
    shop.close()


@pytest.fixture
def kept(shop):
    shop.volumes["vol_data"] = make_row("data")
    return shop


def test_the_list_says_what_they_cost_together_also_when_nothing_runs(gpumarket, kept):
    said = gpumarket("volume", "ls")
    assert said.code == 0
    assert "data" in said.out
    assert "25.0 GiB (25 %)" in said.out
    assert "They cost 7.30 USD per month together, also when nothing runs." in said.err
    assert gpumarket("volume", "ls", "--json").json["data"][0]["id"] == "vol_data"


def test_create_prints_the_id_waits_and_says_the_cost(gpumarket, shop):
    said = gpumarket("volume", "create", "data", "--size", "50", "--site", "narvik", "--offer", "h200-narvik")
    assert (said.code, said.out) == (0, "vol_data\n")
    assert said.err.splitlines()[-1] == "data is available; it costs 7.30 USD per month while it exists."
    (asked,) = shop.asked("POST", "/api/v1/volumes")
    assert asked["body"] == {"name": "data", "size_gib": 50, "site": "narvik", "offer": "h200-narvik"}
    assert asked["headers"]["Idempotency-Key"]


@pytest.mark.parametrize("named", ["osaka-edge", "Osaka edge", "osaka EDGE", "sit_2"])
def test_a_site_is_named_as_the_offers_name_it(gpumarket, shop, named):
    assert gpumarket("volume", "create", "data", "--size", "50", "--site", named).code == 0
    (asked,) = shop.asked("POST", "/api/v1/volumes")
    assert asked["body"]["site"] == "osaka-edge"


def test_a_site_that_is_not_there_is_told_with_those_that_are(gpumarket, shop):
    said = gpumarket("volume", "create", "data", "--size", "50", "--site", "nowhere")
    assert said.code == 4
    assert "No single site is named nowhere." in said.err
    assert "narvik (Narvik), osaka-edge (Osaka edge)" in said.err
    assert not shop.asked("POST", "/api/v1/volumes")


def test_a_volume_that_cannot_be_made_is_a_failure_with_its_reason(gpumarket, shop):
    shop.ends_as = {"state": "failed", "message": "the disk has 3 GiB free"}
    said = gpumarket("volume", "create", "data", "--size", "50", "--site", "narvik")
    assert said.code != 0
    assert "the disk has 3 GiB free" in said.err
    assert "gpumarket volume rm vol_data" in said.err


def test_rm_says_until_when_it_can_be_taken_back(gpumarket, kept):
    said = gpumarket("volume", "rm", "data", "--yes")
    assert said.code == 0
    assert "data is deleted and costs nothing any more. Until 2026-11-29" in said.err
    assert "gpumarket volume restore vol_data" in said.err
    assert gpumarket("volume", "restore", "vol_data").code == 0
    assert kept.asked("POST", "/api/v1/volumes/vol_data/restore")


def test_show_snapshot_resize_rename_and_detach(gpumarket, kept):
    assert "on node h200-1 (offer h200-narvik)" in gpumarket("volume", "show", "data").out
    assert gpumarket("volume", "snapshot", "data", "monday").out == "vol_monday\n"
    assert "data has 200 GiB now" in gpumarket("volume", "resize", "data", "200").err
    assert "data is detached" in gpumarket("volume", "detach", "data").err
    assert "data is now big" in gpumarket("volume", "rename", "data", "big").err


def test_a_volume_is_attached_to_an_instance_by_name(gpumarket, kept):
    gpumarket("launch", "--name", "train", "--", "true")
    assert "data is attached to train at /data." in gpumarket("volume", "attach", "data", "train", "/data").err
    (asked,) = kept.asked("POST", "/api/v1/volumes/vol_data/attach")
    assert asked["body"] == {"instance": "ins_1", "path": "/data"}


def test_run_with_a_local_volume_takes_the_offer_where_it_lies(gpumarket, kept):
    assert gpumarket("run", "--volume", "data:/data", "--", "true").code == 0
    (asked,) = kept.asked("POST", "/api/v1/instances")
    assert (asked["body"]["offer"], asked["body"]["volumes"]) == (
        "h200-narvik", [{"volume": "data", "path": "/data"}]
    )  # fmt: skip


@pytest.mark.parametrize("text", ["data", "data:", ":/data", "data:relative"])
def test_a_mount_that_is_none_is_wrong_use(gpumarket, kept, text):
    assert gpumarket("run", "--volume", text, "--", "true").code == 2


def test_an_unknown_volume_is_said_before_anything_is_ordered(gpumarket, shop):
    said = gpumarket("run", "--volume", "nothing:/data", "--", "true")
    assert "There is no volume 'nothing'." in said.err
    assert shop.asked("POST", "/api/v1/instances") == []


def test_an_unknown_name_says_where_to_look(gpumarket, shop):
    assert "gpumarket volume ls" in gpumarket("volume", "show", "nothing").err
