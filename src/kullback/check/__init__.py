"""`kullback check PATH...`: finds misuse of KL in Python code, without running it.

| file | holds |
| --- | --- |
| `names`, `algebra` | what names and literals say |
| `values` | what is known of an expression's value |
| `calls` | what PyTorch's functions make of values |
| `flow` | the walk through a file, in the order it runs in |
| `context` | what rules may ask |
| `kl_div`, `written` | the rules, one function each |
| `rules` | the table of them |
| `checking` | texts, files and folders; `# noqa` |
| `fixes`, `formats`, `command` | `--fix`; text, JSON and SARIF; the sub-command |
"""

from .checking import Checked, check_paths, check_source, chosen
from .finding import Edit, Finding
from .fixes import fixed
from .rules import RULES, Rule

__all__ = ["RULES", "Checked", "Edit", "Finding", "Rule", "check_paths", "check_source", "chosen", "fixed"]
