"""`python -m cedkv_mvp --phase 2 --config FILE`."""

from fvcore.experiments.select_kv.cli import plan_main

plan_main()
