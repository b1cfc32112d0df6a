"""stand-in"""
from . import table
def fill(found):
    for name in found.plan.names:
        c = table.Columns(found.tokens(name))
        found.candidates[name] = {"kl": {"mean": {"value": float(c["kl"].mean())}}}
def of_scores(scores, level):
    return {"kl": {"mean": {"value": float(scores.kl.mean())}}}
def write_report(found): pass
