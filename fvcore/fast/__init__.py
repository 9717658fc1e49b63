"""Engine `fast`: a prompt that runs once, and every variant of its last tokens as one more row."""
