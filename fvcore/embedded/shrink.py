"""A small model of a large one's architecture and tokenizer, its weights drawn by a seed; the large one's are never read.

A random model must not hide faults. Biases are drawn and norms differ from one. And an indirect effect is a change of a
probability: of a vocabulary of 150,000 drawn alike, none has one worth changing. So the first coordinate of the residual
stream is the same for every token, and nothing writes to it but the embedding: what leaves the last block always has it,
and the rows of answers are larger there, so that the answers share most of the probability.

Numbers are drawn as integers and scaled by products and sums alone, which every processor rounds alike: the bytes are the
same wherever it is done.
"""

import math
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from fvcore import shipped
from fvcore.embedded.random_models import of_config
from fvcore.embedded.small_config import RULES, small_config
from fvcore.formats import FormatError, make_folder, read_json, writing
from fvcore.model.anatomy import stated
from fvcore.model.model import LanguageModel, ModelError, config_on_disk, load_tokenizer, tokenizer_digest
from fvcore.trials.fixed import read_pairs
from fvcore.trials.sampled import read_trials

Numbers = npt.NDArray[np.float32]

GAIN, ROW, NOISE = 1.2, 1.6, 0.2
"""Sizes: of what a matrix makes of ones; of a token's row; of biases, and of norms around one."""
FIRST, ANSWER = 2.4, 6.0
"""The first coordinate of every token's row, and how much more of it an answer's has."""


def shrink(model: str, out: Path, answers_of: Path, n_layers: int | None = None, seed: int = 0) -> LanguageModel:
    """Write the small model of `model` to the new folder `out`, and give it as loaded from memory.

    model: a shipped model, a directory (config.json and tokenizer files are enough) or a hub id in the local cache.
    answers_of: fixed trials, or a raw dataset, whose answers it holds likely; ten make effects a hundred times as large as
    a dataset of thousands.
    Raises ModelError where `model` is no causal language model that the library knows, or its class takes no small sizes.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FormatError(f"{out}: is there already; expected a folder to be made: another --out, or take it away")
    logging.disable_progress_bar()
    config, tokenizer = config_on_disk(model), load_tokenizer(model)
    hf = of_config(_causal(small_config(config, n_layers)), seed)
    draw(hf, answers_in(answers_of, tokenizer), seed)
    lm = LanguageModel.wrap(hf, tokenizer, out.name, out)
    make_folder(out.absolute().parent)
    with writing(out), tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name[:50]}.") as scratch:
        made = Path(scratch) / "made"
        try:
            hf.save_pretrained(made)
        except SafetensorError as error:  # so it calls what the system says, too
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(made)
        if tokenizer_digest(load_tokenizer(str(made))) != lm.tokenizer_sha:
            raise ModelError(
                f"the tokenizer of {model!r} is another one when it is saved and read again; use its own directory"
            )
        made.rename(out)
    return lm


def _causal(config: Any) -> Any:
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type!r} is no causal language model of this library; expected a decoder of text alone"
        )
    return config


def answers_in(path: Path, tokenizer: Any) -> list[int]:
    """The first tokens of the answers that a file of trials, or of pairs, asks for."""
    rows = read_json(shipped.file(path))
    if not (isinstance(rows, list) and all(isinstance(row, dict) and "input" in row for row in rows)):
        return sorted({trial.target_id for trial in read_trials(path).trials})
    asked = [(f"Q: {pair.input}\nA:", f" {pair.output}") for pair in read_pairs(path, without_empty=True)]
    ids = [(tokenizer(question).input_ids, tokenizer(question + answer).input_ids) for question, answer in asked]
    return sorted({token for before, after in ids for token in after[len(before) :][:1]})


def draw(hf: nn.Module, answers: Sequence[int], seed: int) -> None:
    """Give every parameter of a model, whose own values are what its class begins with, other ones."""
    model: Any = hf
    tokens = [
        module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    ]
    tables = [module.weight for module in hf.modules() if isinstance(module, nn.Embedding)]
    d_model = model.config.hidden_size
    for name, parameter in hf.named_parameters():
        of = np.random.default_rng([seed, zlib.crc32(name.encode())])
        numbers = (of.random(tuple(parameter.shape), dtype=np.float32) * 2 - 1) * np.float32(math.sqrt(3))
        for axis in (axis for axis, size in enumerate(numbers.shape) if size == d_model):
            np.moveaxis(numbers, axis, 0)[0] = 0
        if numbers.ndim == 1:
            numbers = parameter.detach().numpy() + numbers * np.float32(NOISE)
        elif any(parameter is one for one in tokens):
            numbers = _rows(numbers, answers) * np.float32(_scale(model.config))
        elif any(parameter is one for one in tables):
            numbers *= np.float32(ROW / math.sqrt(numbers.shape[1]))
        else:
            numbers *= np.float32(GAIN / math.sqrt(math.sqrt(math.prod(numbers.shape[-2:]))))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(numbers))


def _rows(numbers: Numbers, answers: Sequence[int]) -> Numbers:
    rows = numbers * np.float32(ROW / math.sqrt(numbers.shape[1]))
    rows[:, 0] = FIRST
    rows[list(answers), 0] += np.float32(ANSWER)
    return rows


def _scale(config: Any) -> float:
    """What logits are divided by, so that they come out as in other models."""
    said = {name: stated(config, name) for name in RULES["logits"]}
    return math.prod(float(value) ** int(-RULES["logits"][name]) for name, value in said.items() if value)
