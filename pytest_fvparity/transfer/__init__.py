"""M7: what holds on the antonyms holds on every q_id of a relation run.

Two suites a q_id. `parity` compares the candidate with the reference, on the trials that the run froze, by the six check
keys; it needs a golden of those trials. `transfer` compares the files that the run wrote with what the stations give.
"""

SUITE = "transfer"
