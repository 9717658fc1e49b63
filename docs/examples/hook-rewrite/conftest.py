"""The rewrite under the six check keys: what it computes, under the names that the checks know."""

import torch
from rewrite import Hooked, effects, terms, written

from fvcore import Pipeline


class Rewrite(Pipeline):
    """Prompts and slots are fvcore's; every number is the rewrite's."""

    @property
    def hooked(self):
        return Hooked(self.lm.hf)

    @property
    def keys(self):
        return [trial.key for trial in self.trials.trials]

    def mean_activations(self, prompts, slot_map):
        found = []
        for key in self.keys:
            heads = self.hooked.heads(prompts[f"{key}/clean/input_ids"])
            words = {
                first: heads[:, :, first : last + 1].mean(2) for _, first, last in slot_map[f"{key}/clean/idx_avg"]
            }
            tokens = [token for token, _ in slot_map[f"{key}/clean/idx_map"]]
            found.append(torch.stack([words.get(token, heads[:, :, token]) for token in tokens], dim=2))
        return {"mean_activations": torch.stack(found).mean(0)}  # (layer, head, slot, d_head)

    def top_heads(self, prompts, slot_map, mean_activations):
        means, n = mean_activations["mean_activations"][:, :, -1], self.settings.n_top_heads
        asked = [(prompts[f"{key}/corrupted/input_ids"], prompts[f"{key}/target_id"]) for key in self.keys]
        cie = torch.stack([effects(self.hooked, ids, target, means) for ids, target in asked])
        scores, order = cie.mean(0).flatten().sort(descending=True, stable=True)
        return {
            "cie": cie,
            "aie": cie.mean(0),
            "heads": [list(divmod(int(at), self.lm.n_heads)) for at in order[:n]],
            "scores": torch.tensor([round(float(score), 4) for score in scores[:n]], dtype=torch.float64),
        }

    def fv_vector(self, mean_activations, top_heads):
        rows = terms(self.hooked, mean_activations["mean_activations"][:, :, -1], top_heads["heads"])
        return {"function_vector": rows.sum(0), "norm": float(rows.sum(0).norm()), "head_terms": rows}

    def injection_output(self, prompts, fv_vector):
        leaves = {}
        for key in self.keys:
            asked = [prompts[f"{key}/{leaf}"] for leaf in ("corrupted/input_ids", "corrupted/answer_ids", "target_id")]
            base, steered = self.answered(*asked, None), self.answered(*asked, fv_vector["function_vector"])
            leaves |= {f"{key}/base_{leaf}": value for leaf, value in base.items()}
            leaves |= {f"{key}/with_{leaf}": value for leaf, value in steered.items()}
            leaves |= {f"{key}/target_id": asked[-1], f"{key}/delta_logprob": steered["logprob"] - base["logprob"]}
        return leaves

    def answered(self, ids, answer, target, vector):
        """Of the next token, of the whole answer, and greedily; with a vector or without."""
        layer, last = self.settings.layer_of(self.lm), len(ids) - 1

        def logits(ids, tokens=slice(last, None)):
            return self.hooked.logits(ids) if vector is None else self.hooked.with_vector(ids, layer, vector, tokens)

        now, following = logits(ids)[-1], logits([*ids, *answer], [last])[last:-1].log_softmax(-1)
        return {
            "logits": now,
            "logprob": float(now.log_softmax(-1)[target]),
            "nll": -float(following[range(len(answer)), answer].mean()),
            "generated": written(logits, ids),
        }


def pytest_fvparity_candidate(lm, trials, settings):
    return Rewrite(lm, trials, settings)
