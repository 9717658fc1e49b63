"""What a function vector does for a task: accuracies, curves over layers, tokens, other templates.

`config` says what is asked for; `data` reads the task and draws the questions; `vectors` gets the vector; `compute` puts
questions to a model, `scores` marks the answers; `run` makes the tables, `report` writes and draws them.
"""
