"""THE TABLE of rules: code, name, what it finds, and the function that does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import kl_div, written
from .context import Context
from .finding import Hit

PAGE = "docs/check.md"


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        code: such as "KLB001".  name: in words.  why: what goes wrong, in a sentence or two.
        wrong, right: a line of each.  finds: hits in a file.  fixes: whether `--fix` mends (some of) them.
    """

    code: str
    name: str
    why: str
    wrong: str
    right: str
    finds: Callable[[Context], Iterator[Hit]]
    fixes: bool = False

    @property
    def link(self) -> str:
        """The section of the page about it.

        >>> RULES["KLB001"].link
        'docs/check.md#klb001-mean-over-the-classes'
        """
        return f"{PAGE}#{self.code.lower()}-{self.name.lower().replace(' ', '-')}"


TABLE = (
    Rule(
        "KLB001",
        "mean over the classes",
        'reduction="mean", the default, divides the sum by the number of elements: by the classes V as well as by the '
        "rows. The loss is KL/V, and its weight beside another loss depends on V.",
        "F.kl_div(log_q, p)",
        'F.kl_div(log_q, p, reduction="batchmean")      # kl(Probs(p), LogProbs(log_q)).mean()',
        kl_div.averages_over_classes,
    ),
    Rule(
        "KLB002",
        "batchmean of sequences",
        "batchmean divides by the size of the first axis. On (batch, time, classes) that leaves the sum over time: "
        "long batches weigh more, and padding counts.",
        'F.kl_div(log_q.view(B, T, V), p, reduction="batchmean")',
        "kl(Probs(p), LogProbs(log_q))[mask].mean()",
        kl_div.batchmean_of_sequences,
    ),
    Rule(
        "KLB003",
        "input without logarithm",
        "The first argument is read as log-probabilities. Probabilities or logits there give a number that is no "
        "divergence, often a negative one, without a word.",
        'F.kl_div(F.softmax(x, -1), p, reduction="batchmean")',
        'F.kl_div(F.log_softmax(x, -1), p, reduction="batchmean")',
        kl_div.input_without_log,
        fixes=True,
    ),
    Rule(
        "KLB004",
        "target and log target disagree",
        "The second argument is read as probabilities, or, with log_target=True, as log-probabilities. The other kind "
        "gives NaN or a number that is no divergence.",
        'F.kl_div(log_q, F.log_softmax(t, -1), reduction="batchmean")',
        'F.kl_div(log_q, F.log_softmax(t, -1), reduction="batchmean", log_target=True)',
        kl_div.target_in_logarithms,
        fixes=True,
    ),
    Rule(
        "KLB005",
        "arguments swapped",
        "kl_div(input, target) is KL(target‖input): the second argument is the reference. Found where the names say "
        "teacher and student, or where a function kl(p, q) hands them on in this order. Code that says that it means "
        "the reverse (a name with reverse, rkl, js, or both orders in one function) is left alone.",
        'F.kl_div(log_teacher, student, reduction="batchmean")',
        'F.kl_div(log_student, teacher, reduction="batchmean")      # kl(Probs(teacher), LogProbs(log_student)).mean()',
        kl_div.swapped,
    ),
    Rule(
        "KLB006",
        "temperature on one side",
        "Two distributions at different temperatures differ even where the models agree: the student learns the "
        "temperature.",
        "F.kl_div(F.log_softmax(s / T, -1), F.softmax(t, -1), ...)",
        "F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), ...) * T**2",
        kl_div.one_temperature,
    ),
    Rule(
        "KLB007",
        "temperature without its square",
        "Gradients of softened logits shrink with 1/T². Without the factor T² the weight between the soft and the hard "
        "loss changes with T (Hinton et al. 2015). Found where the term is added to another loss.",
        "a * kl_div(s / T, t / T) + (1 - a) * F.cross_entropy(s, y)",
        "a * kl_div(s / T, t / T) * T**2 + (1 - a) * F.cross_entropy(s, y)      # losses.Distillation",
        kl_div.no_square_of_temperature,
    ),
    Rule(
        "KLB008",
        "epsilon in a logarithm",
        "log(p + eps) changes every term, and where p is 0 the answer depends on eps alone: an infinite divergence "
        "reads as log(1/eps), a finite one is biased. From logits no epsilon is needed.",
        "(p * (torch.log(p + 1e-8) - torch.log(q + 1e-8))).sum(-1)",
        "kl(Probs(p), Probs(q))",
        written.epsilon_in_log,
        fixes=True,
    ),
    Rule(
        "KLB009",
        "logarithm of a softmax",
        "A softmax underflows to 0 at a logit gap of 104 in float32; its logarithm is -inf, and the gradient NaN. "
        "log_softmax is exact.",
        "torch.log(F.softmax(x, dim=-1))",
        "F.log_softmax(x, dim=-1)",
        written.log_of_softmax,
        fixes=True,
    ),
    Rule(
        "KLB010",
        "nan to num on a loss",
        "It hides the NaN that a zero or a broken input made. The gradient of what was replaced is NaN still, or 0, "
        "and the row leaves the training without a word.",
        'torch.nan_to_num(F.kl_div(log_q, p, reduction="none"))',
        "kl(Probs(p), LogProbs(log_q))      # finite wherever the mathematics is",
        written.hidden_nan,
    ),
    Rule(
        "KLB011",
        "size average and reduce",
        "Deprecated since PyTorch 1.0; `reduction` says it in one word.",
        "F.kl_div(log_q, p, size_average=False)",
        'F.kl_div(log_q, p, reduction="sum")',
        kl_div.old_options,
        fixes=True,
    ),
    Rule(
        "KLB012",
        "gaussian kl by hand",
        "The formula is right but loses its digits where the posterior is near the prior, and its mean is often taken "
        "over the latent axes too, which divides the KL by their number.",
        "-0.5 * torch.mean(1 + logvar - mu**2 - logvar.exp())",
        "losses.gaussian_kl(DiagonalGaussian(mu, logvar)).mean()",
        written.gaussian_by_hand,
    ),
    Rule(
        "KLB013",
        "k3 as a loss",
        "The estimator exp(r) - r - 1, r = log(reference/policy), has the value of KL(policy‖reference), but its "
        "gradient is that of KL(reference‖policy). Times the ratio policy/old policy it is right.",
        "loss = pg_loss + beta * (torch.exp(ref - logp) - (ref - logp) - 1)",
        'loss = pg_loss + beta * losses.PolicyKL(value="k3", gradient="k2")(...)',
        written.k3_as_loss,
    ),
    Rule(
        "KLB014",
        "root taken for a divergence",
        "scipy.spatial.distance.jensenshannon returns the Jensen-Shannon distance, the square root of the divergence.",
        "js_divergence = jensenshannon(p, q)",
        "js_divergence = jensenshannon(p, q) ** 2      # js(Probs(p), Probs(q))",
        written.root_as_divergence,
        fixes=True,
    ),
)
RULES = {rule.code: rule for rule in TABLE}
