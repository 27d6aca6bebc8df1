"""The files for `ray up`, against the schema and the defaults of the Ray that would read them."""

import re
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT


@pytest.fixture(params=["aws", "gcp"])
def config(request) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{request.param}.yaml").read_text())


def test_ray_takes_the_file_and_refuses_a_misspelt_one(config):
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(config | {"idle_timeout_minuts": 1}))


def test_the_head_holds_no_worker_and_the_rest_are_spot_gpus_between_bounds(config):
    prepared = prepare_config(config)
    head = prepared["available_node_types"].pop(prepared["head_node_type"])
    assert (head["resources"], head["max_workers"]) == ({"CPU": 0}, 0)
    assert "--num-cpus=0" in prepared["head_start_ray_commands"][-1]
    for name, group in prepared["available_node_types"].items():
        assert 0 <= group["min_workers"] <= group["max_workers"] <= prepared["max_workers"], name
        node = group["node_config"]
        if prepared["provider"]["type"] == "aws":
            assert node["InstanceMarketOptions"] == {"MarketType": "spot"}, name
            assert node["InstanceType"][0] in "gp", name
        else:
            assert node["scheduling"]["provisioningModel"] == "SPOT", name
            accelerators = node.get("guestAccelerators", [{"acceleratorCount": 8}])  # a2 has its own
            assert group["resources"]["GPU"] == accelerators[0]["acceleratorCount"], name
    assert prepared["available_node_types"]["gpu-spot"]["max_workers"] > 0


def test_ray_wants_a_token_everywhere_and_the_dashboard_is_on_loopback(config):
    prepared = prepare_config(config)
    assert "--env=RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]
    assert "--address=$RAY_HEAD_IP:6379" in prepared["worker_start_ray_commands"][-1]


def test_nodes_prove_who_they_are_by_the_machine_and_no_key_is_in_the_file(config):
    identity = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[config["provider"]["type"]]
    for node in config["available_node_types"].values():
        assert node["node_config"][identity]
    text = yaml.safe_dump(config)
    assert not re.search(r"(TOKEN|SECRET_ACCESS_KEY|ACCESS_KEY_ID)=|AKIA|PRIVATE KEY", text)
    (secret,) = config["initialization_commands"]
    file = re.search(r"> (\S+)$", secret)
    assert file
    assert f"--env-file={file[1]}" in config["docker"]["run_options"]
    assert secret.startswith("umask 077")


def test_what_is_installed_is_the_image_alone(config):
    prepared = prepare_config(config)
    commands = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    assert [prepared[name] for name in commands] == [[], [], []]
    assert re.fullmatch(r"\S+/\S+:[\d.]+", prepared["docker"]["image"])
