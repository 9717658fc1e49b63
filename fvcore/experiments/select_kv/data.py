"""What Select-KV asks: demonstrations with queries that need them (ON), and prompts that do not (OFF)."""

from typing import Any

from fvcore.experiments.select_kv import key_value, off_prompts, relations
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.tokens import Demo as Demo
from fvcore.experiments.select_kv.tokens import OffSample as OffSample
from fvcore.experiments.select_kv.tokens import OnSample as OnSample
from fvcore.experiments.select_kv.tokens import require_fast
from fvcore.model.tokenizer import BosFacts


def on_samples(settings: Phase2, tokenizer: Any) -> list[OnSample]:
    """As many as were asked for; the same for the same settings. Raises OnTaskInvalid where there are none such."""
    require_fast(tokenizer)
    source = relations.on_samples if settings.data.on.source == "relation" else key_value.samples
    return source(settings, tokenizer)


def off_samples(settings: Phase2, tokenizer: Any) -> list[OffSample]:
    """As many as were asked for; the same for the same settings. Raises OnTaskInvalid where there are none such."""
    require_fast(tokenizer)
    source = relations.off_samples if settings.data.off.source == "relation" else off_prompts.samples
    return source(settings, tokenizer)


def sink_ids(settings: Phase2, tokenizer: Any) -> tuple[int, ...]:
    """The BOS that stands before every condition, or nothing."""
    asked = settings.tokenization.add_bos
    if not (BosFacts.of(tokenizer).adds_bos if asked == "auto" else asked):
        return ()
    if tokenizer.bos_token_id is None:
        from fvcore.experiments.config import ConfigError

        raise ConfigError("tokenization.add_bos: expected a tokenizer with a BOS token, found one without; use false")
    return (int(tokenizer.bos_token_id),)
