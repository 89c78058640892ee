"""Exports: what the lab recorded, in the files of other tools.

`gather` reads runs, one writer a format writes them: `tensorboard`, `mlflow`, `wandb`, and
`tabular` for CSV and Parquet. `huggingface` and `lightning` are the other direction: a Trainer that logs into a run.
Nothing is imported here, so that a callback does not pay for the writers.
"""
