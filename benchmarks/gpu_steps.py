"""What `gpu.sh` asks that no other script does: a shape to shrink, blocks under `torch.compile`, a device lost on the way.

    python benchmarks/gpu_steps.py shape | compiled | losing | lost-parity | lost-steps

Only what needs torch imports it: most of this starts other processes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fvcore import shipped
from fvcore.formats import read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fvcore.model.model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tiny-llama"
"""Trained, and its golden ships."""
BLOCKS = 4
"""Of a drawn model that are compiled, at most."""
SAID = "CUDA error: device-side assert triggered"

app = typer.Typer(add_completion=False)

Out = Annotated[Path, typer.Option()]


@app.command()
def shape(size: str, out: Path) -> None:
    """Write what `fvcore spec shrink` reads of a model of this size: its config, and a tokenizer."""
    from sweep_world import TOKENIZER, Size

    from fvcore.model.model import load_tokenizer

    Size.named(size).config().save_pretrained(out)
    load_tokenizer(TOKENIZER).save_pretrained(out)


# ---------------------------------------------------------------- blocks under torch.compile


@app.command()
def compiled(
    size: str, out: Out, device: str = "cuda", dtype: str = "fp32", compiler: str = "inductor", rounds: int = 5
) -> None:
    """One and ten prompts of 128 tokens through all blocks: compiled, and as the library has them, round after round."""
    import torch
    from sweep_world import Size, model
    from torch._dynamo import config

    of = Size.named(size)
    if not of.shipped:  # each block is compiled for itself, and all are alike
        of = of.model_copy(update={"n_layers": min(BLOCKS, of.n_layers)})
    with tempfile.TemporaryDirectory() as folder:
        of.config().save_pretrained(folder)
        lm = model(of, device, dtype, Path(folder))
    # A block that fell back would be timed as a compiled one.
    with config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True), torch.inference_mode():
        found = [_beside(lm, compiler, n_prompts, rounds) for n_prompts in (1, 10)]
    write_json(
        out,
        {"size": size, "dtype": dtype, "device": device, "blocks": lm.n_layers, "compiler": compiler, "found": found},
    )
    for one in found:
        typer.echo(
            f"{size}, {dtype}: {one['rows']} rows through {lm.n_layers} compiled blocks take {one['times']:.2f} times as long as without "
            f"({one['compiled_s']:.4g} s, {one['plain_s']:.4g} s), {one['apart']:.1e} apart, after {one['compiling_s']:.0f} s"
        )


def _beside(lm: LanguageModel, compiler: str, n_prompts: int, rounds: int) -> dict[str, Any]:
    import torch

    ids = torch.arange(128 * n_prompts, device=lm.device).view(n_prompts, 128) % lm.vocab_size
    for block in lm.blocks:
        block.compile(backend=compiler, dynamic=False)
    calls = [block._compiled_call_impl for block in lm.blocks]

    def run(compiled: bool) -> tuple[float, Tensor]:
        for block, call in zip(lm.blocks, calls, strict=True):
            block._compiled_call_impl = call if compiled else None
        start = time.perf_counter()
        hidden = (
            lm.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state.float().cpu()
        )  # waits for the device
        return time.perf_counter() - start, hidden

    _, plain = run(False)
    compiling_s, through = run(True)
    run(True)
    seconds = [[run(compiled)[0] for compiled in (False, True)] for _ in range(rounds)]
    plain_s, compiled_s = map(median, zip(*seconds, strict=True))
    return {
        "rows": ids.numel(),
        "plain_s": plain_s,
        "compiled_s": compiled_s,
        "times": compiled_s / plain_s,
        "compiling_s": compiling_s,
        "apart": float((through - plain).abs().max() / plain.abs().max()),
    }


# ---------------------------------------------------------------- a device that is lost


def lose(device: torch.device) -> NoReturn:
    """Raises RuntimeError: a kernel's index is out of bounds, and the process has no device any more.

    Where there is no GPU every operation on a weight raises from here on what it would there.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    if device.type == "cuda":
        torch.zeros(1, device=device)[torch.ones(1, dtype=torch.long, device=device)]
        torch.cuda.synchronize(device)

    class Gone(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(one, torch.nn.Parameter) for one in args):
                raise RuntimeError(SAID)
            return func(*args, **(kwargs or {}))

    Gone().__enter__()
    raise RuntimeError(SAID)


def losing_candidate(lm: Any, trials: Any, settings: Any) -> Any:
    """A candidate whose device is lost at the fourth key, behind its head effects."""
    from fvcore.pipeline import Pipeline

    class Loses(Pipeline):
        def top_heads(self, *inputs: Any) -> Any:
            super().top_heads(*inputs)
            lose(self.lm.device)

    return Loses(lm, trials, settings)


@app.command()
def losing(file: Path, words: list[str]) -> None:
    """`fvcore WORDS`, which loses its device in the first module that it runs once `file` is there."""
    from torch import nn

    from fvcore import cli

    def look(module: nn.Module, _: Any) -> None:
        weight = next(module.parameters(), None)
        if weight is not None and file.exists():
            lose(weight.device)

    nn.modules.module.register_module_forward_pre_hook(look)
    sys.argv = ["fvcore", *words]
    cli.main()


@app.command()
def lost_parity(out: Out, device: str = "cuda") -> None:
    """A parity run loses its device: it says so, keeps the verdicts that it has, and passes when it is run again."""
    trials = _with_trials(out)
    parity = ["pytest", "-m", "parity", "-q", "-p", "no:cacheprovider", trials, f"--fv-golden={ROOT / 'golden'}"]
    parity += [f"--fv-device={device}", "--fv-report-dir=reports"]
    _run(out, 1, *parity, "--fv-candidate=gpu_steps:losing_candidate")
    (path,) = out.glob("reports/**/src_vs_fv_diff_report.json")
    report = read_json(path)
    found = [check["status"] for check in report["checks"]]
    _require(found == ["PASS"] * 3 + ["ERROR"] + ["BLOCKED"] * 2, f"three keys are kept, two are blocked: {found}")
    _require(SAID in report["headline"], f"the run says what happened: {report['headline']}")
    _run(out, 0, *parity)
    _require(True, "run again, it passes")


@app.command()
def lost_steps(out: Out, device: str = "cuda") -> None:
    """A run of the production steps loses its device behind StepE: it says so, and goes on from there when it is run again."""
    steps = ["antonym", "run", f"--model={MODEL}", f"--trials={_with_trials(out)}", f"--device={device}", "--out=steps"]
    steps += ["--n-eval=4", "--no-pictures"]
    said = _run(out, 1, "gpu_steps", "losing", "steps/artifacts/fv_global_resid.pt", "--", *steps)
    _require(SAID in said, f"the run says {SAID!r}")
    said = _run(out, 0, "fvcore", *steps)
    kept = [step for step in ("sample", "stepd", "stepe") if f"{step}: already done" in said]
    _require(len(kept) == 3, f"run again, it goes on behind what was done: {', '.join(kept)}")


def _with_trials(folder: Path) -> str:
    """The name of the shipped trials in a new folder: in the project's own a run collects its tests."""
    trials = shipped.trials_of(MODEL, ROOT)
    assert trials is not None
    folder.mkdir(parents=True)
    (folder / trials.name).write_bytes(trials.read_bytes())
    return trials.name


def _run(folder: Path, status: int, module: str, *words: str) -> str:
    """What `python -m MODULE` says, all of which goes to the log; it must end with this status."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    _require(done.returncode == status, f"{module} ends with status {done.returncode}, expected {status}")
    return done.stdout


def _require(holds: bool, what: str) -> None:
    print(what if holds else f"expected, and not found: {what}", flush=True)
    if not holds:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
