"""A marketplace in one thread and one dict: plays the API's part of the contract, and breaks on request."""

import json
import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "gm_of_the_demo"
MOVES = {"queued": "placing", "placing": "provisioning", "provisioning": "verifying", "verifying": "running"}
STEP_OF = {"queued": 0, "placing": 0, "provisioning": 1, "verifying": 2, "running": 3}


def make_offer(
    slug, *, amount="2.490000", model="H200", country="NO", free=8, largest=8, runtime="process", by_auction=False
):
    return {
        "id": f"ofr_{slug}",
        "slug": slug,
        "name": slug,
        "gpu_model": model,
        "gpu_memory_gib": 141,
        "runtime": runtime,
        "gpus_per_node": 8,
        "min_gpus": 1,
        "max_gpus": 64,
        "interconnect": "NVLink",
        "site": {"id": "sit_1", "name": "Narvik", "slug": "narvik", "country": country},
        "supplier": {"name": "Nordlys"},
        "price": {"amount": amount, "currency": "USD", "unit": "gpu_hour"},
        "available_gpus": free,
        "largest_replica": largest,
        "by_auction": by_auction,
        "as_of": "2026-11-23T12:00:00Z",
    }


def make_door(**changes):
    return {
        "replica": 0,
        "host": "node1.example",
        "ssh_port": 2222,
        "user": "ins_1",
        "host_key": "ssh-ed25519 AAAA",
        "ports": [{"port": 80, "host": "node1.example", "host_port": 31001}],
    } | changes


def make_key(number, **changes):
    return {
        "id": f"key_{number}",
        "project": "prj_1",
        "fingerprint": f"SHA256:{number}",
        "public_key": "ssh-ed25519 AAAA",
        "created_at": "2026-11-23T12:00:00Z",
    } | changes


def make_problem(status, code, **overrides):
    document = {
        "type": f"https://gpumarket.example/problems/{code}",
        "title": f"Refused: {code}.",
        "status": status,
        "detail": "The reason in a sentence.",
        "code": code,
        "charged": False,
        "retry": "none",
        "suggestion": "Do something else.",
        "errors": [],
        "request_id": "req_1",
    }
    return status, document | overrides


class Shop:
    """What a test may set: offers, what the command prints and how it exits, and what goes wrong when."""

    def __init__(self):
        self.offers = [make_offer("h200-narvik")]
        self.output = [(0, "hello\n")]
        self.exit_code = 0
        self.telemetry = []  # what the GPUs of every instance read
        self.runs_on = False  # the command never ends by itself
        self.is_quick = False  # the command has ended before anybody sees it run
        self.stays_in = None  # a phase in which every start gets stuck
        self.fails_with = None  # (reason, message): the start fails instead of running
        self.instances = {}
        self.answers = {}  # Idempotency-Key -> first answer
        self.registries = []
        self.requests = []
        self.faults = deque()  # for the next POSTs: "drop" after the work, or (status, problem)
        self.read_faults = deque()  # the same for the next GETs
        self.server = None
        self.port = 0
        self.lock = threading.RLock()
        self.door = make_door()
        self.keys = [make_key(1, name="laptop")]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self):
        self.server = Server(("127.0.0.1", self.port), Counter)
        self.server.shop = self
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def asked(self, method, path):
        """Return the requests that were made with this method to this path."""
        return [request for request in self.requests if request["method"] == method and request["path"] == path]

    def handle(self, method, path, query, headers, body):
        self.requests.append({"method": method, "path": path, "query": query, "headers": headers, "body": body})
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return make_problem(401, "not_authenticated")
        faults = self.read_faults if method == "GET" else self.faults
        fault = faults.popleft() if faults else None
        if isinstance(fault, tuple):
            return fault
        answer = self.answer(method, path.removeprefix("/api/v1").strip("/").split("/"), query, headers, body)
        return "drop" if fault == "drop" else answer

    def answer(self, method, words, query, headers, body):
        match method, words:
            case "GET", ["me"]:
                return 200, ME
            case "GET", ["offers"]:
                return 200, {"data": [offer for offer in self.offers if fits(offer, query)], "next_cursor": None}
            case "GET", ["offers", name]:
                found = [offer for offer in self.offers if name in {offer["slug"], offer["id"]}]
                return (200, found[0]) if found else make_problem(404, "not_found")
            case "POST", ["instances"]:
                return self.once(headers, body, lambda: self.rent(body, query))
            case "GET", ["instances"]:
                rows = [
                    self.shown(row) for row in self.instances.values() if query.get("name", row["name"]) == row["name"]
                ]
                return 200, {"data": rows, "next_cursor": None}
            case _, ["registries" | "ssh-keys" as kind, *key]:
                about = {"registries": self.about_registries, "ssh-keys": self.about_keys}[kind]
                return about(method, "".join(key), body)
            case "GET", ["balance"]:
                return 200, BALANCE
            case "GET", ["usage"]:
                wanted = query.get("instance")
                rows = [usage_row(row) for key, row in self.instances.items() if wanted in {None, key}]
                return 200, {"data": [row for row in rows if row["gpu_milliseconds"]], "next_cursor": None}
            case _, ["instances", key, *verb] if key in self.instances:
                return self.about(method, self.instances[key], "".join(verb), query, headers, body)
        return make_problem(404, "not_found")

    def once(self, headers, body, work):
        key = headers.get("Idempotency-Key")
        if not key:
            return make_problem(400, "idempotency_key_required")
        if key not in self.answers:
            self.answers[key] = (json.dumps(body), work())
        first, answer = self.answers[key]
        return answer if first == json.dumps(body) else make_problem(422, "idempotency_key_reused")

    def rent(self, body, query):
        offer = next((offer for offer in self.offers if body["offer"] in {offer["slug"], offer["id"]}), None)
        if offer is None:
            return make_problem(404, "not_found")
        if query.get("dry_run"):
            return 200, {"offer": offer["slug"]}
        number = len(self.instances) + 1
        row = {
            "id": f"ins_{number}",
            "name": body.get("name", f"quiet-otter-{number}"),
            "project": {"id": body.get("project", "prj_1"), "name": "research"},
            "offer": {key: offer[key] for key in ("id", "slug", "name", "gpu_model", "site")},
            "replicas": body["replicas"],
            "gpus_per_replica": body["gpus"],
            "gpus": body["gpus"] * body["replicas"],
            "command": body["command"],
            "image": body.get("image"),
            "ports": body.get("ports", []),
            "lease": body.get("lease", "sticky"),
            "lease_s": {"strict": 120, "sticky": 900}[body.get("lease", "sticky")],
            "on_failure": body.get("on_failure", "stop"),
            "restarts": 0,
            "env_names": sorted(body.get("env", {})),
            "env": body.get("env", {}),
            "desired": "running",
            "phase": "queued",
            "reason": "",
            "message": "",
            "exit_code": None,
            "ready_at": None,
            "gpu_milliseconds": 0,
            "log_read": 0,
        }
        self.instances[row["id"]] = row
        return 202, self.shown(row)

    def about_registries(self, method, key, body):
        if method == "DELETE":
            self.registries = [row for row in self.registries if row["id"] != key]
            return 204, None
        if method == "POST":
            row = body | {"id": f"reg_{len(self.registries) + 1}", "created_at": "2026-11-23T12:00:00Z"}
            self.registries.append(row)
            return 201, shown_registry(row)
        return 200, {"data": [shown_registry(row) for row in self.registries], "next_cursor": None}

    def about_keys(self, method, key, body):
        if method == "DELETE":
            self.keys = [row for row in self.keys if row["id"] != key]
            return 204, None
        if method == "POST":
            self.keys.append(make_key(len(self.keys) + 1, **body))
            return 201, self.keys[-1]
        return 200, {"data": self.keys, "next_cursor": None}

    def about(self, method, row, verb, query, headers, body):
        if method == "GET" and verb == "logs":
            return 200, self.log_page(row, int(query.get("cursor", 0)))
        if method == "GET" and verb == "telemetry":
            return 200, {"resolution": "10s", "since": "", "until": "", "gpus": self.telemetry}
        if method == "GET":
            self.move_on(row)
        if method == "PATCH":
            row["name"] = body["name"]
        if verb in {"stop", "terminate"}:
            self.end(row, {"stop": "stopped", "terminate": "terminated"}[verb])
        if verb == "start":
            if row["phase"] != "stopped":
                return make_problem(409, "wrong_state")
            row |= {"desired": "running", "phase": "queued", "exit_code": None, "ready_at": None}
        return 200, self.shown(row)

    def move_on(self, row):
        """Each look moves a start one step on: tests need no clock."""
        if row["phase"] not in MOVES or row["phase"] == self.stays_in:
            return
        if row["phase"] == "verifying" and self.fails_with:
            reason, message = self.fails_with
            row |= {"phase": "failed", "reason": reason, "message": message}
            return
        row["phase"] = MOVES[row["phase"]]
        if row["phase"] == "running":
            row |= {"ready_at": "2026-11-23T12:00:01Z", "gpu_milliseconds": 1500 * row["gpus"]}
            if self.is_quick:
                self.end(row, "stopped")
                row |= {"exit_code": self.exit_code, "reason": "exited"}

    def log_page(self, row, cursor):
        ready = row["ready_at"] is not None
        pieces = self.output[cursor : cursor + 2] if ready else []
        if ready and cursor + len(pieces) >= len(self.output) and not self.runs_on and row["phase"] == "running":
            self.end(row, "stopped")
            row |= {"exit_code": self.exit_code, "reason": "exited"}
        page = [{"replica": rank, "offset": cursor + n, "text": text} for n, (rank, text) in enumerate(pieces)]
        over = row["phase"] in {"stopped", "terminated", "failed"}
        return {
            "data": page,
            "next_cursor": str(cursor + len(page)),
            "complete": over and cursor + len(page) >= len(self.output),
        }

    def end(self, row, phase):
        row |= {"desired": phase, "phase": phase, "reason": "user", "message": "Asked by developer@example.com."}

    def shown(self, row):
        billing = "not_started" if row["ready_at"] is None else "running"
        if row["phase"] in {"stopped", "terminated", "failed"}:
            billing = {"stopped": "paused"}.get(row["phase"], "ended") if row["ready_at"] else "not_started"
        document = {key: value for key, value in row.items() if key not in {"env", "gpu_milliseconds", "log_read"}}
        return document | {
            "market": row.get("market", "on_demand"),
            "health": "healthy",
            "retryable": row["phase"] == "failed",
            "generation": 1,
            "observed_generation": 1,
            "steps": steps_of(row),
            "cost": {
                "billing": billing,
                "per_second": "0.000692",
                "per_hour": "2.490000",
                "per_day": "59.760000",
                "so_far": usage_row(row)["amount"]["amount"],
                "currency": "USD",
                "gpu_milliseconds": row["gpu_milliseconds"],
            },
            "actions": {
                "start": {"available": row["phase"] == "stopped", "reason": "It is not stopped."},
                "stop": {"available": row["phase"] == "running", "reason": "It does not run."},
                "terminate": {"available": row["phase"] != "terminated", "reason": "It is over."},
                "rename": {"available": True, "reason": None},
            },
            "nodes": [{"replica": 0, "node": "narvik-r1-n01", "gpus": ["GPU-1"]}],
            "access": [self.door] if row["phase"] == "running" else [],
            "created_at": (datetime.now(UTC) - timedelta(minutes=3)).isoformat(),
            "ended_at": None,
            "as_of": "2026-11-23T12:00:00Z",
        }


def fits(offer, query):
    return query.get("gpu_model", offer["gpu_model"]).casefold() == offer["gpu_model"].casefold() and (
        query.get("country", offer["site"]["country"]) == offer["site"]["country"]
    )


def steps_of(row):
    titles = {"reserve": "Reserve GPUs", "prepare": "Prepare nodes", "verify": "Verify GPUs", "run": "Run"}
    at = STEP_OF.get(row["phase"], 4)
    states = ["done" if number < at else "active" if number == at else "waiting" for number in range(4)]
    return [
        {"name": name, "title": title, "state": state, "elapsed_ms": 400, "typical_ms": 300}
        for (name, title), state in zip(titles.items(), states, strict=True)
    ]


def shown_registry(row):
    return {name: value for name, value in row.items() if name != "password"} | {"handed_out_at": None}


def usage_row(row):
    micros = row["gpu_milliseconds"] * 2_490_000 // 3_600_000
    return {
        "id": f"spn_{row['id']}",
        "resource": row["id"],
        "name": row["name"],
        "meter": "gpu",
        "gpus": row["gpus"],
        "started_at": "2026-11-23T12:00:01Z",
        "ended_at": "2026-11-23T12:00:02.500Z",
        "gpu_milliseconds": row["gpu_milliseconds"],
        "price": {"amount": "2.490000", "currency": "USD", "unit": "gpu_hour"},
        "amount": {"amount": f"{micros // 1_000_000}.{micros % 1_000_000:06}", "currency": "USD"},
    }


ME = {
    "user": {"email": "ada@acme.example", "name": "Ada"},
    "organization": {"id": "org_1", "name": "Acme", "currency": "USD"},
    "token": {"id": "tok_1", "name": "laptop", "scopes": ["write"], "expires_at": None},
    "projects": [
        {"id": "prj_1", "name": "research", "role": "developer", "suspended": False},
        {"id": "prj_2", "name": "serving", "role": "developer", "suspended": False},
    ],
}
BALANCE = {
    "organization": "org_1",
    "currency": "USD",
    "available": "100.000000",
    "promo": "100.000000",
    "cash": "0.000000",
    "held": "0.000000",
    "owed": "0.000000",
    "credit_limit": "0.000000",
    "credits": [],
    "past_due": "0.000000",
    "taken_back": "0.000000",
    "written_off": "0.000000",
    "coming": [],
    "burn_per_hour": "0.000000",
    "exhausts_at": None,
    "as_of": "2026-11-23T12:00:00Z",
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    shop: Shop


class Counter(BaseHTTPRequestHandler):
    def answer(self):
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        with self.server.shop.lock:
            answer = self.server.shop.handle(self.command, unquote(url.path), query, dict(self.headers), body)
        if answer == "drop":
            self.close_connection = True
            return
        status, document = answer
        if status == 204:
            self.send_response(status)
            self.end_headers()
            return
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = "text/html" if isinstance(document, bytes) else f"application/{'problem+' if status >= 400 else ''}json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815 - the names are the base class's

    def log_message(self, *_):
        pass
