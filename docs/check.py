"""Write the sections of docs/check.md, one a rule, from the table of rules: python docs/check.py"""

import textwrap
from pathlib import Path

from kullback.check import RULES, Rule

PAGE = Path(__file__).parent / "check.md"
BEGIN, END = "<!-- rules: made by docs/check.py -->", "<!-- end of rules -->"


def section(rule: Rule) -> str:
    wrong, _, _ = rule.wrong.partition("      # ")
    right, _, ours = rule.right.partition("      # ")
    code = [f"{wrong}  # wrong", right] + (
        [f"{ours}  # the same in kullback"] if ours.startswith(("kl(", "js(")) else []
    )
    if ours and not ours.startswith(("kl(", "js(")):
        code[-1] += f"  # {ours}"
    fixes = "`--fix` mends it where the softmax, the option or the call stands in one place." if rule.fixes else ""
    return "\n".join(
        [
            f"### {rule.code} {rule.name}",
            "",
            textwrap.fill(f"{rule.why} {fixes}".strip(), 120, break_long_words=False, break_on_hyphens=False),
            "",
            "```py",
            *code,
            "```",
            "",
        ]
    )


def sections() -> str:
    return "\n".join(section(rule) for rule in RULES.values())


def with_rules(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{sections()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_rules(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
