"""Station by station to nnsight: what `rewrite.py` computes is judged, and fvcore answers for what it does not do yet."""

import torch
from rewrite import Traced

from fvcore import Pipeline


class Rewrite(Pipeline):
    """Means, effects and the logits of an injection are the rewrite's."""

    @property
    def keys(self):
        return [trial.key for trial in self.trials.trials]

    def mean_activations(self, prompts, slot_map):
        traced, found = Traced(self.lm.hf), []
        for key in self.keys:
            heads = traced.heads(prompts[f"{key}/clean/input_ids"])
            words = {
                first: heads[:, :, first : last + 1].mean(2) for _, first, last in slot_map[f"{key}/clean/idx_avg"]
            }
            tokens = [token for token, _ in slot_map[f"{key}/clean/idx_map"]]
            found.append(torch.stack([words.get(token, heads[:, :, token]) for token in tokens], dim=2))
        return {"mean_activations": torch.stack(found).mean(0)}  # (layer, head, slot, d_head)

    def top_heads(self, prompts, slot_map, mean_activations):
        traced, means, n = Traced(self.lm.hf), mean_activations["mean_activations"][:, :, -1], self.settings.n_top_heads
        cie = torch.zeros(len(self.keys), *means.shape[:2])
        for at, key in enumerate(self.keys):
            ids, target = prompts[f"{key}/corrupted/input_ids"], prompts[f"{key}/target_id"]
            before = self.lm.logits(self.lm.ids(ids))[0, -1].softmax(-1)[target]
            for layer, head in self.lm.heads:
                after = traced.with_head(ids, layer, head, means[layer, head]).softmax(-1)[target]
                cie[at, layer, head] = after - before
        scores, order = cie.mean(0).flatten().sort(descending=True, stable=True)
        return {
            "cie": cie,
            "aie": cie.mean(0),
            "heads": [list(divmod(int(at), self.lm.n_heads)) for at in order[:n]],
            "scores": torch.tensor([round(float(score), 4) for score in scores[:n]], dtype=torch.float64),
        }

    def injection_output(self, prompts, fv_vector):
        leaves = super().injection_output(prompts, fv_vector)
        traced, layer = Traced(self.lm.hf), self.settings.layer_of(self.lm)
        for key in self.keys:
            ids = prompts[f"{key}/corrupted/input_ids"]
            logits = traced.with_vector(ids, layer, fv_vector["function_vector"])
            said = float(logits.log_softmax(-1)[prompts[f"{key}/target_id"]])
            leaves |= {f"{key}/with_logits": logits, f"{key}/with_logprob": said}
            leaves[f"{key}/delta_logprob"] = said - leaves[f"{key}/base_logprob"]
        return leaves


def pytest_fvparity_candidate(lm, trials, settings):
    return Rewrite(lm, trials, settings)
