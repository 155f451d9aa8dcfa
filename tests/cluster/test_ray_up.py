"""What `ray up` is given: valid by Ray's own schema, closed, and of a size that does not change under a run."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.cluster.documents import ROOT

AWS = yaml.safe_load((ROOT / "cluster/ray_up/aws.yaml").read_text(encoding="utf-8"))


def test_the_file_is_valid_by_the_schema_of_ray():
    ray = pytest.importorskip("ray")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(AWS, schema)
    with pytest.raises(jsonschema.ValidationError, match="head_node_typ"):
        jsonschema.validate({**AWS, "head_node_typ": "head"}, schema)


def test_the_head_takes_no_work_and_workers_do_not_come_and_go():
    types = AWS["available_node_types"]
    assert types[AWS["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != AWS["head_node_type"]]
    assert all(kind["min_workers"] == kind["max_workers"] for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) == AWS["max_workers"]


def test_every_ray_is_started_with_a_token_that_stands_in_no_command():
    starts = [
        c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in AWS[key] if "ray start" in c
    ]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ray start ") for command in starts)
    assert AWS["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "RAY_AUTH_TOKEN" not in json.dumps(AWS)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert all("--metrics-export-port=8080" in command for command in starts)


def test_the_image_is_named_by_digest():
    assert re.fullmatch(r"[\w./-]+/moaa-ray@sha256:[0-9a-f]{64}", AWS["docker"]["image"])
