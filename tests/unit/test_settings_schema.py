"""The JSON Schema for editors is of this version and tells the same as the loader; all our configurations pass both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config.settings import json_schema, load
from gateway.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "config"
FILES = [CONFIG / "gateway.yaml", *sorted((CONFIG / "examples").glob("*.yaml"))]


def test_the_file_is_up_to_date():
    assert json.loads((CONFIG / "schema.json").read_text()) == json_schema(), "run: gateway schema > config/schema.json"


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_our_configurations_pass_both(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
    load(path, os.environ, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "quues: {}",
        "queues: {a: {ack_timout: 1}}",
        "queues: {a: {max_deliveries: 0}}",
        "queues: {a: {max_deliveries: x}}",
        "queues: {a: {dedup: {}}}",
        "queues: {a: {on_exhausted: skp}}",
        "transports: {m: {type: mqtt, lsten: 1}}",
        "transports: {m: {type: nope}}",
        "transports: {m: {listen: 1}}",
        "routes: [{from: a}]",
        "log: {level: loud}",
        "admin: {port: 1}",
    ],
)
def test_both_refuse(text, tmp_path):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json_schema())
    (tmp_path / "gateway.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(tmp_path / "gateway.yaml", {})


def test_it_knows_the_users_own_keys(tmp_path):
    jsonschema.validate({"x-defaults": {"anything": [1]}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"y-defaults": {}}, json_schema())


def test_it_knows_secret_files_and_variables():
    value = {"users": {"a": {"password_hash_file": "x"}}, "queues": {"a": {"max_deliveries": "${N}"}}, "admin": False}
    jsonschema.validate(value, json_schema())
