"""What a job file may say, as a JSON schema (2020-12). Published as docs/job.schema.json and by the API."""

from typing import Any

from marketplace.models import Job
from marketplace.work_orders import COUNTER_SHAPE, COUNTERS_MAX

TASKS_MAX = 10_000
JOBS_MAX = 1000
RETRIES_MAX = 100
PRIORITY_MAX = 100
GLOBS_MAX = 100

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
DURATION = r"^[1-9][0-9]{0,6}(s|m|h|d)$"
SIZE = r"^[1-9][0-9]{0,5}(M|G|T)$"
DISK_DEFAULT = "20G"
MONEY = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
SHA256 = r"^[0-9a-f]{64}$"
COUNTER = f"^{COUNTER_SHAPE.pattern}$"
COUNTERS_PATH = r"^/[!-~]{0,199}$"
RELATIVE = r"^(?!/)(?!(.*/)?\.\.(/|$))[^\u0000-\u001f\u007f]{1,255}$"

# YAML reads 2.50 as a number: it is taken as it is written.
_text = {"type": ["string", "number"]}
_variables = {
    "type": "object",
    "propertyNames": {"pattern": VARIABLE},
    "additionalProperties": _text,
    "maxProperties": 100,
}
_money = {"type": ["string", "number"], "pattern": MONEY}

JOB: dict[str, Any] = {
    "type": "object",
    "required": ["offer"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": NAME, "description": "1 to 63 lower-case letters, digits and hyphens"},
        "offer": {"type": "string", "minLength": 1, "maxLength": 64, "description": "an offer's id or slug"},
        "image": {"type": "string", "maxLength": 500, "description": "for offers that run images"},
        "command": {
            "type": ["array", "string"],
            "items": _text,
            "maxItems": 1000,
            "maxLength": 65536,
            "description": "a program and its arguments, or a line for /bin/sh",
        },
        "gpus": {"type": "integer", "minimum": 1, "maximum": 1024, "default": 1, "description": "of each replica"},
        "replicas": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1, "description": "of each task"},
        "env": {**_variables, "description": "variables of every task"},
        "inputs": {
            "type": "string",
            "pattern": RELATIVE,
            "description": "a folder beside the file, which the command line uploads, or the SHA-256 of a manifest",
        },
        "outputs": {
            "type": "array",
            "items": {"type": "string", "pattern": RELATIVE},
            "maxItems": GLOBS_MAX,
            "description": "what each task leaves behind: relative paths or globs; one that is missing is a failure",
        },
        "checkpoint": {
            "type": "string",
            "pattern": RELATIVE,
            "description": "a relative folder that the next attempt finds as the last one left it",
        },
        "network": {"type": "boolean", "default": True, "description": "whether the command reaches the network"},
        "volumes": {
            "type": "array",
            "maxItems": 16,
            "items": {
                "type": "object",
                "required": ["volume", "path"],
                "additionalProperties": False,
                "properties": {
                    "volume": {"type": "string", "maxLength": 63, "description": "its id or name"},
                    "path": {"type": "string", "maxLength": 200, "description": "such as /data"},
                    "read_only": {"type": "boolean", "default": False},
                },
            },
        },
        "counters": {
            "type": "object",
            "required": ["port", "names"],
            "additionalProperties": False,
            "properties": {
                "port": {"type": "integer", "minimum": 1, "maximum": 65_535},
                "path": {"type": "string", "pattern": COUNTERS_PATH, "default": "/metrics"},
                "names": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": COUNTERS_MAX,
                    "items": {"type": "string", "pattern": COUNTER},
                    "uniqueItems": True,
                },
            },
            "description": "what the command counts and shows at a port, in Prometheus text format",
        },
        "array": {"type": "integer", "minimum": 1, "maximum": TASKS_MAX, "description": "so many tasks"},
        "parameters": {
            "type": "array",
            "minItems": 1,
            "maxItems": TASKS_MAX,
            "items": _variables,
            "description": "one task for each of these sets of variables",
        },
        "matrix": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 16,
            "propertyNames": {"pattern": VARIABLE},
            "additionalProperties": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _text},
            "description": "one task for each combination of these values",
        },
        "parallel": {"type": "integer", "minimum": 1, "maximum": TASKS_MAX, "description": "the most tasks at once"},
        "retries": {
            "type": "integer",
            "minimum": 0,
            "maximum": RETRIES_MAX,
            "default": 0,
            "description": "after failures of its own; faults of the platform are not counted",
        },
        "time_limit": {
            "type": "string",
            "pattern": DURATION,
            "description": "of one attempt, such as 90s, 15m, 2h, 1d",
        },
        "disk": {
            "type": "string",
            "pattern": SIZE,
            "default": DISK_DEFAULT,
            "description": "what an attempt may keep in its work folder, inputs among it: 500M, 20G or 1T (MiB, GiB, "
            "TiB); what keeps more is ended, which is a failure of its own",
        },
        "market": {"enum": Job.Market.values, "default": "on_demand"},
        "max_price": {**_money, "description": "the most that a GPU-hour may cost; cheapest: what is cheap enough"},
        "reservation": {"type": "string", "maxLength": 32, "description": "run inside this reservation"},
        "deadline": {"type": "string", "description": "a moment such as 2026-12-01T18:00Z, or +6h from now"},
        "priority": {"type": "integer", "minimum": -PRIORITY_MAX, "maximum": PRIORITY_MAX, "default": 0},
        "needs": {
            "type": "array",
            "items": {"type": "string", "maxLength": 63},
            "uniqueItems": True,
            "maxItems": 100,
            "description": "names of jobs in this file, or ids of jobs, which have to succeed before",
        },
        "max_cost": {**_money, "description": "the most that the whole job may cost; needs a time limit"},
        "contract": {"type": "string", "pattern": r"^ctv_[a-z2-7]{20}$", "description": "pay by these terms instead"},
    },
}

FILE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "gpumarket job file",
    "description": "One job, or several under `jobs`, which may need each other.",
    "$defs": {"job": JOB},
    "oneOf": [
        {"$ref": "#/$defs/job"},
        {
            "type": "object",
            "required": ["jobs"],
            "additionalProperties": False,
            "properties": {
                "jobs": {"type": "array", "minItems": 1, "maxItems": JOBS_MAX, "items": {"$ref": "#/$defs/job"}}
            },
        },
    ],
}
