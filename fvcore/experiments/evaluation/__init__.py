"""What a function vector does for a task: accuracies, curves over layers, tokens, other templates.

`tasks` reads the data, `draws` asks the questions, `bench` puts them to a model through `asking`, `likelihood` and
`generation`; `nshot`, `layers`, `portability` and `decoding` are the evaluations; `report` writes what they found.
"""
