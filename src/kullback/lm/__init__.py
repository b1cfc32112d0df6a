"""Commands of language models: `kullback lm distill`, `kullback lm cache`."""
