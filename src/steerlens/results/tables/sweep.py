"""The table of a sweep's jobs, which is a CSV file for spreadsheets."""

from __future__ import annotations

from steerlens.results.table import Column, Table

SWEEP = Table(
    file="sweep.csv",
    about="One row per job of a sweep: what it was, and its main numbers, empty where the job has "
    "none. After `state` comes a column for each setting in which jobs differ.",
    keys=("job",),
    columns={
        "job": Column("string", "The job's folder in the sweep's."),
        "state": Column("string", "`done`, `failed`, `left out`, `running` or `died`."),
        "n_features": Column("int64", "How many features it has scored."),
        "output_score_median": Column("double", "Median output score S_out of its features."),
        "output_features": Column("double", "Share of them with S_out of at least 0.1."),
        "null_output_features": Column("double", "The same share of random directions."),
        "input_score_median": Column("double", "Median input score S_in."),
        "hybrid_ratio": Column(
            "double",
            "Share of the features with both scores of at least 0.1, beside the share that "
            "independent scores would give.",
        ),
        "success_20": Column("double", "Mean success@20 of the features at their best factors."),
        "perplexity": Column("double", "Mean perplexity of these texts."),
        "payoff": Column(
            "double", "Success of the features with S_out of at least 0.1 / that of all."
        ),
        "payoff_within_layers": Column(
            "double", "The same beside as many features of each of their layers."
        ),
        "objective": Column("double", "What `objective=` asks for."),
        "seconds": Column("double", "How long the job took."),
        "reason": Column("string", "Why the job has failed or was left out."),
    },
)
"""One row per job."""
