"""What the commands share. It knows nothing of divergences, and imports nothing of kullback but its errors.

| file | holds |
| --- | --- |
| `extras` | naming the extra that is missing |
| `ending` | how a command ends: one line and exit code 2 for bad input, 130 when it is stopped |
| `files` | files that appear whole or not at all, run folders, strict JSON |
| `numbers` | mean and standard error, and how they are written |
| `terminal` | tables and pairs on standard output, on a terminal that has only ASCII too |
| `pictures` | SVG that reads on light and on dark ground, in which names are text |
| `page` | the HTML page that needs no other file |
| `progress` | a bar on a terminal, a line now and then elsewhere |
"""
