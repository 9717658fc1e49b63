"""Where a model's parts are, by family: `blocks_path`, `attn_path_in_block`, `out_proj_path_in_attn`, `prepend_bos`, sizes."""

from fvcore.model.spec import MODEL_SPECS, ModelSpec
from fvcore.model.spec import spec_of as get_model_spec

__all__ = ["MODEL_SPECS", "ModelSpec", "get_model_spec"]
