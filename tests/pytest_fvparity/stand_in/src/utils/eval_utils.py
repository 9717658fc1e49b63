"""What an answer is."""
# ruff: noqa: F403

from .intervention_utils import *
from .model_utils import *
from .prompt_utils import *


def get_answer_id(query, answer, tokenizer):
    """The tokens by which the prompt grows when the answer is appended."""
    return tokenizer(query + answer).input_ids[len(tokenizer(query).input_ids) :]
