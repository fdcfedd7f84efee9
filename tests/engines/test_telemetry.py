"""Telemetry of the backends' packages: off. A run leaves nothing in the home folder or among temporary files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD_AND_RUN = """
import sys
from pathlib import Path
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
import numpy as np

backend, model = sys.argv[1:]
toy = Contract("toy", "", (TensorSpec("x", ("n",), "float32", ""),), (TensorSpec("y", ("n",), "float32", ""),))
engine = load_engine(backend, Path(model), toy)
print(engine.run({"x": np.ones(2, np.float32)})["y"])
engine.close()
print("openvino_telemetry" in sys.modules)
"""


@pytest.mark.process
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_run_leaves_no_file_elsewhere(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "toy", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 23)]
    model = tmp_path / "toy.onnx"
    model.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString())
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    ignored = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")  # each of them would switch some of it off
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), "XDG_CACHE_HOME": ""}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN, backend, str(model)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["[-1.", "-1.]", "False"], done.stderr
    assert [*home.rglob("*"), *temporary.rglob("*")] == []
