"""The plan's name of Select-KV: `python -m cedkv_mvp --phase 2` is `fvcore select-kv` with the plan's model and exit status."""
