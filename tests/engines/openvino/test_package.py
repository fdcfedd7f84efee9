"""The one `Core` of a process: signals are handled after engines are freed in any order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.contract import Contract

pytest.importorskip("openvino")
pytestmark = pytest.mark.process

INTERRUPT = """
import json
import signal
import sys
from pathlib import Path
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.backends import load_engine

signal.signal(signal.SIGINT, signal.default_int_handler)
model, contract = Path(sys.argv[1]), Contract.from_json(json.loads(sys.argv[2]))
if sys.argv[3] == "closed":
    first, second = (load_engine("openvino", model, contract, threads=1) for _ in range(2))
    first.close()
    second.close()
else:
    engine = load_engine("openvino", model, contract, threads=1)
    engine = load_engine("openvino", model, contract, threads=1)  # the first is freed when the second is there
    engine.close()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("way", ["closed", "replaced"])
def test_ctrl_c_after_the_older_engine_was_freed_first(step_model: Path, step_contract: Contract, way: str) -> None:
    words = [sys.executable, "-c", INTERRUPT, step_model, json.dumps(step_contract.to_json()), way]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
