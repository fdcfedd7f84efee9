"""`qwen-image inspect`: a description of a checkpoint or a bundle."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError, is_memory, one_line
from qwen_image_engine.engines.plans.cards import find_card
from qwen_image_engine.engines.tensorrt.build.summary import ProfileSummary
from qwen_image_engine.runtime.bundle.accounts import read_account
from qwen_image_engine.runtime.bundle.files import check_graphs
from qwen_image_engine.runtime.bundle.manifest import Manifest, is_bundle, read_manifest
from qwen_image_engine.runtime.cli.shared.bundle_lines import bundle_lines
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import (
    add_weight_arguments,
    open_checkpoint,
    refuse_weight_arguments,
    weight_sources,
)
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.output_files import add_report_argument
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.system.files import with_home
from qwen_image_engine.runtime.system.text import size_text, table

if TYPE_CHECKING:
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.lora.adapter import Adapter

SUMMARY = "what a checkpoint or a bundle is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("subject", metavar="CHECKPOINT|BUNDLE", help="folder, or a checkpoint's name in the hub cache")
    parser.add_argument(
        "--check", action="store_true", help="hold the graphs of a bundle for TensorRT or CUDA against what those need"
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="count the kernels of a bundle's plans and the bytes that they move, from the compiler's accounts",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="with --kernels: estimate times on this card from its data sheet, such as rtx-5090; nothing is timed",
    )
    add_report_argument(parser)
    add_weight_arguments(parser)


def execute(options: argparse.Namespace) -> VerbResult:
    """Describe a checkpoint or a bundle from its JSON files and headers, check its graphs, or count its kernels.

    The exit code is 1 if `export` would refuse the checkpoint, or if a graph breaks a rule.

    Raises:
        UsageError: `--check` or `--kernels` is given for a checkpoint, or flags that change weights for a bundle; flags
            contradict each other; or there is no such card.
        QwenImageError: the checkpoint or the bundle cannot be read, or with `--kernels` has no plan or account.
    """
    folder = with_home(options.subject)
    _check_flags(options)
    if options.kernels:
        refuse_weight_arguments(options, "--kernels reads the plans of a bundle")
        return _kernels(folder, options)
    if not is_bundle(folder):
        if options.check:
            raise UsageError(f"--check: {folder} is no bundle; its graphs are what is checked")
        return _checkpoint(open_checkpoint(options.subject, options))
    refuse_weight_arguments(options, f"{folder} is a bundle, whose weights are what they are")
    return _graphs(folder) if options.check else _bundle(folder)


def _check_flags(options: argparse.Namespace) -> None:
    if options.check and options.kernels:
        raise UsageError("--check and --kernels: give one of them")
    for flag in ("gpu", "report"):
        if getattr(options, flag) is not None and not options.kernels:
            raise UsageError(f"--{flag} of inspect is for kernels; add --kernels")


def _kernels(folder: Path, options: argparse.Namespace) -> VerbResult:
    from qwen_image_engine.runtime.tools.kernels.count import count_kernels
    from qwen_image_engine.runtime.tools.kernels.text import lines_of
    from qwen_image_engine.runtime.tools.report.folder import check_report, write_report

    if not is_bundle(folder):
        raise UsageError(f"--kernels: {folder} is no bundle; its plans are what is counted")
    card = None if options.gpu is None else find_card(options.gpu, "")
    if options.report:
        check_report(options.report)
    found = count_kernels(folder, card)
    if options.report:
        write_report(found, options.report)
    return VerbResult(found.to_json(), list(lines_of(found)))


def _graphs(folder: Path) -> VerbResult:
    """Check every graph with `tensorrt_rules`; for CUDA, with the rules that both targets share.

    The exit code is 1 if a graph breaks a rule.

    Raises:
        UsageError: the bundle is for a target without rules.
        QwenImageError: a package of the extra `export` is missing, or a graph holds something that no export holds.
    """
    with export_packages():
        import onnx_ir as ir

        from qwen_image_engine.export.checks.rule import Expected
        from qwen_image_engine.export.checks.tensorrt_rules import broken_rules
        from qwen_image_engine.export.targets import TARGETS
    manifest = read_manifest(folder)
    target = TARGETS.get((manifest.target, manifest.precision))
    if target is None or target.rules is None:
        raise UsageError(f"--check: {folder} is for {manifest.target}, and the rules are those of TensorRT and CUDA")
    rules = tuple(target.rules())
    check_graphs(folder, manifest)
    broken = {}
    for name, entry in manifest.components.items():
        model = folder / entry.model
        try:
            graph = ir.load(model)
        except Exception as error:  # protobuf's, and whatever onnx_ir meets in what it has read
            if is_memory(error):
                raise
            raise QwenImageError(f"{name}: {model} is damaged ({one_line(error)}); export the bundle again") from error
        broken[name] = broken_rules(graph, Expected.of(manifest, name), rules)
    document = {
        "kind": "check",
        "path": str(folder),
        "rules": list(rules),
        "broken": {name: [asdict(item) for item in found] for name, found in broken.items()},
    }
    lines = [
        *(
            f"{'✗' if found else '✓'} {name}" + (f": {len(found)} broken" if found else "")
            for name, found in broken.items()
        ),
        *(f"  {name}: {item}" for name, found in broken.items() for item in found),
        f"{len(rules)} rules: {', '.join(rules)}",
    ]
    return VerbResult(document, lines, int(any(broken.values())))


def _checked(checkpoint: "Checkpoint") -> tuple[str | None, list[str]]:
    """Return the reason for which `plan` and `export` refuse the checkpoint, None if they take it, and lines on it."""
    try:
        with export_packages():
            from qwen_image_engine.export.bundle.request import check_checkpoint
    except QwenImageError as error:
        return None, ["", f"not checked whether it can be exported: {error}"]
    try:
        check_checkpoint(checkpoint)
    except QwenImageError as error:
        return str(error), ["", f"✗ it cannot be exported: {error}"]
    return None, []


def _checkpoint(checkpoint: "Checkpoint") -> VerbResult:
    fault, verdict = _checked(checkpoint)
    ignored = checkpoint.ignored_keys()
    networks = [
        {
            "network": item.name,
            "class": item.layout.class_name,
            "tensors": len(item.tensors),
            "parameters": item.parameters,
            "bytes": item.nbytes,
            "dtypes": item.dtypes,
            "files": [file.name for file in item.files],
            "keys_that_change_nothing": list(ignored[item.name]),
        }
        for item in checkpoint.components.values()
    ]
    grid = ScheduleConfig.from_json(
        checkpoint.scheduler,
        checkpoint.index.get("sample_sigmas"),
        str(checkpoint.folder / "scheduler" / "scheduler_config.json"),
    ).sample_sigmas
    document = {
        "kind": "checkpoint",
        "name": checkpoint.name,
        "path": str(checkpoint.folder),
        "licence": checkpoint.licence(),
        **weight_sources(checkpoint),
        "config_sha256": checkpoint.config_sha256(),
        "fixed_sigmas": grid,
        "networks": networks,
        "fault": fault,
    }
    rows = [("network", "class", "stored as", "tensors", "parameters", "bytes")]
    rows += [
        (
            item.name,
            item.layout.class_name,
            "+".join(item.dtypes),
            str(len(item.tensors)),
            f"{item.parameters:,}",
            size_text(item.nbytes),
        )
        for item in checkpoint.components.values()
    ]
    lines = [
        f"checkpoint {checkpoint.name} in {checkpoint.folder}",
        *([f"transformer {checkpoint.transformer_file}"] if checkpoint.transformer_file else []),
        *(line for adapter in checkpoint.adapters for line in _adapter_lines(adapter)),
        f"attention {checkpoint.transformer.attention}",
        f"licence {checkpoint.licence()}",
        f"configuration sha256 {checkpoint.config_sha256()}",
        f"schedule {f'fixed, {len(grid)} steps' if grid else 'any number of steps'}",
        "",
        *table(rows, right=(3, 4, 5)),
        "",
        "keys of config.json that change nothing here:",
        *(f"  {network}: {', '.join(keys) or 'none'}" for network, keys in ignored.items()),
        *verdict,
    ]
    return VerbResult(document, lines, 0 if fault is None else 1)


def _adapter_lines(adapter: "Adapter") -> list[str]:
    factors = adapter.factors
    own = f"{factors[0]:g}" if len(factors) == 1 else f"{factors[0]:g} to {factors[-1]:g}"
    return [
        f"lora {adapter.file.path} at {adapter.file.scale:g}",
        f"  keys: {' and '.join(adapter.writers)}; {len(adapter.updates)} weights of rank "
        f"{', '.join(map(str, adapter.ranks))}",
        f"  its own scale: {own}, stated {adapter.scale_from}",
        *([f"  left out: {adapter.text_encoder_keys} keys of a text encoder"] if adapter.text_encoder_keys else []),
    ]


def _bundle(folder: Path) -> VerbResult:
    manifest = read_manifest(folder)
    accounts, faults = _accounts(folder, manifest)
    document = {
        "kind": "bundle",
        "path": str(folder),
        "bytes": manifest.bytes,
        **manifest.to_json(),
        "accounts": {name: [asdict(profile) for profile in found] for name, found in accounts.items()},
        "faults": faults,
    }
    return VerbResult(document, bundle_lines(folder, manifest, accounts, faults))


def _accounts(folder: Path, manifest: Manifest) -> tuple[dict[str, tuple[ProfileSummary, ...]], list[str]]:
    """Return the compiler's account by plan, and what is wrong with accounts that cannot be read."""
    accounts, faults = {}, []
    for plan in (plan for plans in manifest.plans.values() for plan in plans):
        try:
            accounts[plan.file] = read_account(folder, manifest, plan)
        except QwenImageError as error:
            faults.append(str(error))
    return accounts, faults
