"""Which model a run is of, how it is loaded, and how many threads it computes in: the same options for every experiment."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fvcore import exits
from fvcore.experiments.config import Config, ConfigError, Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from fvcore.model.model import LanguageModel

SMALL = 10_000_000  # parameters


class ModelChoice(Config):
    """The options of `model.load`, each with its environment variable."""

    model: Annotated[str, Option("model_name", env="FV_MODEL")] = Field(
        default="", description="Shipped model, directory or cached hub id."
    )
    spec: Annotated[str | None, Option("model_spec", env="FV_MODEL_SPEC")] = Field(
        default=None, description="Registered spec, alias or YAML file (default: found)."
    )
    device: Annotated[str | None, Option(env="FV_DEVICE")] = Field(
        default=None, description="cpu, cuda, cuda:K or auto (default: the spec's, else cpu)."
    )
    dtype: Annotated[str | None, Option(env="FV_DTYPE")] = Field(
        default=None, description="fp32, fp16 or bf16 (default: the spec's, else fp32)."
    )
    quant: Annotated[str | None, Option(env="FV_QUANT")] = Field(
        default=None, description="none, 8bit or 4bit (default: the spec's, else none); auto is what nobody asked for."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: all cores).")

    def require_possible(self) -> None:
        """That the model is there and has the layer asked for, by its config.json."""
        from fvcore.model import on_disk

        if not self.model or getattr(self, "steps", ()) == ("heatmap",):  # no model is loaded
            return
        on_disk.folder_of(self.model)
        if isinstance(layer := getattr(self, "edit_layer", None), int):
            on_disk.require_layer(self.model, layer)

    def loader(self, seed: int) -> Callable[[], LanguageModel]:
        """What loads the model, wherever it is called; plain values, so that it can be sent anywhere."""
        if not self.model:
            raise ConfigError("--model: name a shipped model, a directory or a cached hub id (or set FV_MODEL)")
        quant = None if self.quant == "auto" else self.quant
        return partial(_load, self.model, self.device, self.dtype, seed=seed, spec=self.spec, quant=quant)

    def load(self, seed: int) -> LanguageModel:
        """The model in this process, in as many threads as were asked for; what is doubtful about it is printed."""
        import torch

        from fvcore.model.model import doubts, untested_in

        lm = self.loader(seed)()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        untested = (f"{what}: {now} (tested: {was})" for what, (was, now) in untested_in(lm).items())
        exits.note(*doubts(lm), *untested, err=True)
        return lm


def _load(*how: Any, **more: Any) -> LanguageModel:
    from fvcore.model import model as models

    with warnings.catch_warnings():  # what is doubtful is told by `load`
        warnings.simplefilter("ignore", models.ModelWarning)
        return models.load(*how, **more)


def one_thread_if_small(lm: LanguageModel) -> None:
    """Compute in one thread where products are too short to be worth sharing, and on the CPU.

    Threads that wait for one another on cores that others need too made a run over the shipped file five times as long. And
    a small model's numbers then depend on no machine's number of cores.
    """
    import torch

    if lm.device.type == "cpu" and sum(p.numel() for p in lm.hf.parameters()) < SMALL:
        torch.set_num_threads(1)
