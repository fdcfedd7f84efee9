"""The CI recipe for three systems, which has not run: it starts by hand alone, and what it names exists."""

import re
from typing import Any

import yaml

from qwen_image_engine.runtime.cli.main import VERBS
from tests.support.paths import ROOT

FILE = ROOT / ".github" / "workflows" / "systems.yml"


def test_the_recipe_names_what_exists_and_says_that_it_has_not_run() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "IT HAS NOT RUN YET" in text
    recipe: dict[Any, Any] = yaml.safe_load(text)
    assert recipe[True] == "workflow_dispatch"  # YAML 1.1 reads the key "on" as a boolean
    job = recipe["jobs"]["systems"]
    assert [name.partition("-")[0] for name in job["strategy"]["matrix"]["os"]] == ["ubuntu", "macos", "windows"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    paths = [path for command in commands for path in re.findall(r"(?:tests|reference)/\S+", command)]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    verbs = [command.split()[1] for command in commands if command.startswith("qwen-image")]
    assert {"doctor", "export", "run", "verify"} == set(verbs) <= VERBS.keys()
