"""Opening checkpoints: names in the hub cache, hashes, licence, memory."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.hub_cache import hub_cache
from tests.support.edit_checkpoint import edit_json, write_header


def fill_cache(cache: Path, folder: Path, name: str = "some-org/some.model") -> Path:
    """The hub's layout: blobs named by content, a snapshot of relative symlinks, refs/main."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.parent.relative_to(repository).parts))) / "blobs" / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return repository


def test_by_name_from_the_hub_cache(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_checkpoint(dtype="bfloat16", max_shard_size="500KB")
    repository = fill_cache(tmp_path / "hub", folder)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    by_name = Checkpoint.open("some-org/some.model")
    by_path = Checkpoint.open(folder)
    assert by_name.name == "some-org/some.model"
    assert by_path.name == folder.name
    assert by_name.config_sha256() == by_path.config_sha256()
    assert by_name.weights_sha256() == by_path.weights_sha256()
    for info in by_name.components["transformer"].tensors.values():
        assert info.file.parent == (repository / "blobs").resolve()
        assert not info.file.is_symlink()
    for name in by_path.components["text_encoder"].tensors:
        linked, stored = (opened.components["text_encoder"].read(name) for opened in (by_name, by_path))
        assert torch.equal(linked, stored)

    (repository / "refs/main").unlink()
    with pytest.raises(QwenImageError, match=r"no main revision.*snapshots: 0123abcd.*hf download some-org"):
        Checkpoint.open("some-org/some.model")
    with pytest.raises(QwenImageError, match=r"other/model: neither a folder nor .* hf download other/model"):
        Checkpoint.open("other/model")


def test_cache_folder_follows_the_hub_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert hub_cache() == tmp_path / "x/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "~/h")
    assert hub_cache() == tmp_path / "h/hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "c"))
    assert hub_cache() == tmp_path / "c"


def test_hashes(copied: Callable[..., Path], random_checkpoint: Callable[..., Path]) -> None:
    original = Checkpoint.open(random_checkpoint(max_shard_size="500KB"))
    folder = copied(max_shard_size="500KB")
    same = Checkpoint.open(folder)
    seen: list[int] = []
    assert same.weights_sha256(seen.append) == original.weights_sha256()
    assert sum(seen) == sum(file.stat().st_size for part in same.components.values() for file in part.files)
    assert same.config_sha256() == original.config_sha256()
    assert Checkpoint.open(random_checkpoint()).config_sha256() == original.config_sha256()

    edit_json(folder / "scheduler/scheduler_config.json", "shift", value=2.0)
    changed = Checkpoint.open(folder)
    assert changed.config_sha256() != original.config_sha256()
    assert changed.weights_sha256() == original.weights_sha256()
    with same.components["vae"].files[-1].open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert Checkpoint.open(folder).weights_sha256() != original.weights_sha256()


@pytest.mark.parametrize(
    ("readme", "licence_file", "expected"),
    [
        (
            "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n# x\n",
            "Text",
            "qwen-research",
        ),
        ("---\r\ntags:\r\n- a\r\nlicense: apache-2.0\r\n---\r\n", None, "apache-2.0"),
        ('---\nlicense:\n- "mit"\n---\n', None, "mit"),
        ("# No front matter\nlicense: mit\n", "\n# Qwen RESEARCH LICENSE\n...", "Qwen RESEARCH LICENSE"),
        (None, "Some Licence\n", "Some Licence"),
        (None, "\n \n", "unknown"),
        (None, None, "unknown"),
    ],
)
def test_licence(copied: Callable[..., Path], readme: str | None, licence_file: str | None, expected: str) -> None:
    folder = copied(licence=None)
    if readme is not None:
        (folder / "README.md").write_bytes(readme.encode())
    if licence_file is not None:
        (folder / "LICENSE").write_text(licence_file)
    assert Checkpoint.open(folder).licence() == expected


@pytest.mark.process
def test_opening_a_large_checkpoint_reads_headers_only(copied: Callable[..., Path]) -> None:
    """A sparse 40 GB weight file: opening it takes no memory for its bytes, and no torch."""
    folder = copied()
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    size = 40 << 30
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    write_header(path, {"img_in.weight": entry}, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    script = (
        "import resource, sys\n"
        "from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(Checkpoint.open(sys.argv[1]).components['transformer'].nbytes)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    nbytes, grown_kib, with_torch = done.stdout.split()
    assert int(nbytes) == size
    assert int(grown_kib) < 32 * 1024  # headers and tables of three small components; the file is 40 GB
    assert with_torch == "False"
