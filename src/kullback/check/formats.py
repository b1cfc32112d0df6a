"""How findings are printed: for people, as JSON, as SARIF 2.1.0."""

from typing import Any
from urllib.parse import quote

from .checking import Checked
from .finding import Finding
from .rules import TABLE, Rule

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def line(one: Finding) -> str:
    """One finding, for people and for editors that read file:line:column."""
    return f"{one.path}:{one.line}:{one.column}: {one.code} {one.message}; write {one.instead}"


def summary(checked: Checked) -> str:
    """The last line."""
    number = len(checked.findings)
    found = "no findings" if not number else f"{number} finding{'s' * (number != 1)}"
    mended = sum(bool(one.edits) for one in checked.findings)
    files = f"{checked.files} file{'s' * (checked.files != 1)}"
    return f"{found} in {files}" + (f"; --fix mends {mended}" if mended else "")


def document(checked: Checked, version: str) -> dict[str, Any]:
    """For programs."""
    return {
        "version": version,
        "files": checked.files,
        "errors": list(checked.errors),
        "findings": [
            {
                "code": one.code,
                "path": one.path,
                "line": one.line,
                "column": one.column,
                "end_line": one.end_line,
                "end_column": one.end_column,
                "message": one.message,
                "instead": one.instead,
                "fixable": bool(one.edits),
                "link": _link(one),
            }
            for one in checked.findings
        ],
    }


def sarif(checked: Checked, version: str) -> dict[str, Any]:
    """A SARIF 2.1.0 log (OASIS standard): what code hosts and editors show beside the code."""
    index = {rule.code: i for i, rule in enumerate(TABLE)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "kullback check",
                        "semanticVersion": version,
                        "rules": [
                            {
                                "id": rule.code,
                                "name": "".join(map(str.capitalize, rule.name.split())),
                                "shortDescription": {"text": rule.name[0].upper() + rule.name[1:]},
                                "fullDescription": {"text": rule.why},
                                "help": {"text": explanation(rule)},
                                "defaultConfiguration": {"level": "warning"},
                            }
                            for rule in TABLE
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "invocations": [
                    {
                        "executionSuccessful": not checked.errors,
                        "toolExecutionNotifications": [
                            {"level": "error", "message": {"text": error}} for error in checked.errors
                        ],
                    }
                ],
                "results": [_result(one, index[one.code]) for one in checked.findings],
            }
        ],
    }


def _result(one: Finding, index: int) -> dict[str, Any]:
    return {
        "ruleId": one.code,
        "ruleIndex": index,
        "level": "warning",
        "message": {"text": f"{one.message}; write {one.instead}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(one.path.replace("\\", "/"))},
                    "region": {
                        "startLine": one.line,
                        "startColumn": one.column,
                        "endLine": one.end_line,
                        "endColumn": one.end_column,
                    },
                }
            }
        ],
    }


def _link(one: Finding) -> str:
    return next(rule.link for rule in TABLE if rule.code == one.code)


def explanation(rule: Rule) -> str:
    """What `--explain` prints."""
    mends = "mends this where it is safe" if rule.fixes else "leaves this alone"
    return "\n".join(
        [
            f"{rule.code}: {rule.name}",
            "",
            rule.why,
            "",
            f"wrong  {rule.wrong}",
            f"right  {rule.right}",
            "",
            f"--fix {mends}. More: {rule.link}",
        ]
    )
