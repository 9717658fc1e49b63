"""What an evaluation is asked for: everything that `fvcore eval` takes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fvcore.experiments.config import PRINTED, Json, Memory, Numbers, Option
from fvcore.experiments.model_choice import ModelChoice
from fvcore.profile import MOST_SEED

TABLES = ("nshot", "layers", "tokens", "portability")


class EvaluationConfig(ModelChoice):
    """Portability and layers use the largest number of shots."""

    what: Annotated[Literal["nshot", "layers", "tokens", "portability", "all"], Option(positional=True)] = Field(
        description="nshot, layers, tokens, portability, or all of them."
    )
    dataset: str = Field(description="A JSON file of {input, output} rows, or a name to look up in --src.")
    src: Annotated[Path | None, Option("fv_src")] = Field(
        default=None, description="Checkout of the public reference; its datasets are read where they lie."
    )
    vector: Path | None = Field(default=None, description="The vector: .json (an artifact), .safetensors or .pt.")
    trials: Path | None = Field(default=None, description="Fixed trials to compute the vector from instead.")
    top_heads: Annotated[int, Option("n_top_heads")] = Field(
        default=10, ge=1, description="Heads in a vector computed from --trials."
    )
    control: list[Literal["random_heads", "gaussian"]] = Field(
        default=[],
        description="A vector to compare with, again and again: random_heads (with --trials) or gaussian.",
    )
    edit_layer: int | None = Field(
        default=None, description="Block at whose output the vector is added (default: a third of the depth)."
    )
    n_shots: Numbers = Field(default=(0, 1, 5, 10), description="Numbers of demonstrations, with commas.")
    n_questions: Annotated[int | None, Option("n_trials")] = Field(
        default=None, ge=1, description="The first so many questions of the split (default: all)."
    )
    split: Literal["test", "valid"] = Field(default="test", description="Split that questions come from.")
    test_split: float = Field(default=0.3, gt=0, lt=1, description="Share of the rows held out of the demonstrations.")
    seed: int = Field(default=42, ge=0, le=MOST_SEED, description="Of the split and of the draws.")
    filter: bool = Field(
        default=True, description="Only questions that the model gets right behind the most demonstrations."
    )
    nll: bool = Field(default=False, description="Score whole answers by likelihood.")
    generate: bool = Field(default=False, description="Score generated answers.")
    templates: Path | None = Field(default=None, description="YAML list of templates (default: the shipped ones).")
    n_tokens: int = Field(default=10, ge=1, description="Tokens shown of a vector.")
    alpha: float = Field(default=1.0, description="What the vector is multiplied with.")
    reference_profile: Literal["src", "todd_upstream"] = Field(
        default="src", description="src, or todd_upstream: a BOS text where the tokenizer adds none."
    )
    engine: Literal["fast", "exact", "screened"] = Field(
        default="fast",
        description="fast, where it holds for the model; exact; or screened, where a vector is computed.",
    )
    max_memory: Memory | None = Field(
        default=None, description="Memory that engine fast may take beside the weights, such as 8GiB."
    )
    out: Path | None = Field(
        default=None,
        description="Folder (default: reports/eval/<dataset>_<model>, of a path to a directory with a word of its own).",
    )
    as_json: Json = PRINTED

    @property
    def tables(self) -> frozenset[str]:
        return frozenset(TABLES if self.what == "all" else [self.what])

    @property
    def shots(self) -> list[int]:
        """Rising, each once."""
        return sorted(set(self.n_shots))
