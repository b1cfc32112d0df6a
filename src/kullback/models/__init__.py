"""Two language models compared token by token: `kullback compare`."""
