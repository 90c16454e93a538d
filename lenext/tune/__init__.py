"""Search for the settings that suit the data best: each trial is a training run, Optuna proposes what it tries."""
