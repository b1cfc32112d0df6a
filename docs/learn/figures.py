"""Draw the pictures of these pages into docs/images: `python docs/learn/figures.py`.

Each picture shows the variables of its page, left by running the page's own examples, so that picture and
text cannot disagree. The files are the same at every run.
"""

import contextlib
import doctest
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kullback.kit.files import write_bytes
from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, drawn

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"
LIGHT_BLUE, LIGHT_ORANGE = "#7fb8df", "#dba36c"


def variables_of(page: str) -> dict[str, Any]:
    """What the examples of a page leave behind."""
    text = (HERE / page).read_text(encoding="utf-8")
    source = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for example in doctest.DocTestParser().get_examples(source):
            if example.exc_msg is None:
                exec(compile(example.source, page, "single"), names)
    return names


def news_desk(figure: Figure) -> None:
    """Page 1: the two mixes, and the first paper's bill under both codes."""
    page = variables_of("1-entropy-and-coding.md")
    subjects = ["politics", "sport", "enter-\ntainment"]
    at = np.arange(3)
    mix, bill = figure.subplots(1, 2)
    for shift, shares, colour, label in (
        (-0.2, page["first"], BLUE, "first, p"),
        (0.2, page["second"], ORANGE, "second, q"),
    ):
        mix.bar(at + shift, shares.numpy(), 0.38, color=colour, label=label)
    mix.set(title="Share of the stories", ylabel="share", xticks=at, xticklabels=subjects)
    mix.set_ylim(0, 0.75)
    mix.legend(loc="upper center", ncols=2)

    shades = [BLUE, LIGHT_BLUE, INK]
    for row, lengths in enumerate((page["own"], page["other"])):
        start = 0.0
        for subject, cost, shade in zip(subjects, (page["first"] * lengths).tolist(), shades, strict=True):
            bill.barh(row, cost, 0.5, left=start, color=shade)
            bill.text(
                start + cost / 2,
                row,
                subject,
                ha="center",
                va="center",
                color="white" if shade != LIGHT_BLUE else "black",
                fontsize=9,
            )
            start += cost
        bill.text(start, row + 0.3, f"{start:.3f}", ha="right", va="bottom")
    bill.set(
        title="First paper: mean bits a story",
        yticks=[0, 1],
        yticklabels=["own\ncode", "second\npaper's"],
        ylim=(-0.5, 1.7),
    )
    own, other = ((page["first"] * lengths).sum().item() for lengths in (page["own"], page["other"]))
    bill.annotate(
        "", (own, 0.5), (other, 0.5), arrowprops={"arrowstyle": "<->", "color": ORANGE, "shrinkA": 0, "shrinkB": 0}
    )
    bill.text(own - 0.04, 0.5, f"KL(p‖q) = {other - own:.3f}", ha="right", va="center", color=ORANGE)
    bill.plot([own, own], [0, 0.62], color=ORANGE, linewidth=0.8)
    bill.plot([other, other], [0.38, 1], color=ORANGE, linewidth=0.8)
    bill.set_xlim(0, 1.85)


def direction(figure: Figure) -> None:
    """Page 2: the target, and the Gaussians fitted in both directions."""
    page = variables_of("2-kl-and-its-direction.md")
    x, bell = page["x"].numpy(), page["bell"]
    step = x[1] - x[0]
    target = page["target"].numpy() / step  # as a density
    covering, seeking = figure.subplots(1, 2)

    def draw(axes: Axes, title: str, fits: list[tuple[tuple[float, float, float], str, str]]) -> None:
        axes.fill_between(x, target, color=INK, alpha=0.25, linewidth=0, label="target p")
        for (mean, width, value), colour, line in fits:
            axes.plot(
                x, bell(mean, width).numpy() / step, line, color=colour, linewidth=2, label=f"q, KL = {value:.3f}"
            )
        axes.set(title=title, xlim=(-7, 7), ylim=(0, 0.68), xlabel="x", ylabel="density")
        axes.legend(loc="upper right", fontsize=10)

    draw(covering, "min KL(p‖q): covers both modes", [(page["forward"], BLUE, "-")])
    draw(seeking, "min KL(q‖p): settles on one", [(page["left"], ORANGE, "-"), (page["right"], GREEN, "--")])


def digits(figure: Figure) -> None:
    """Page 3: the relative error of F.kl_div and of kl as the true value shrinks."""
    page = variables_of("3-cross-entropy.md")
    axes = figure.subplots()
    axes.loglog(page["truths"], page["usual_error"], "s-", color=ORANGE)
    axes.loglog(page["truths"], page["our_error"], "o-", color=BLUE)
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.text(max(page["truths"]), 1.3, "as large as the value itself", ha="left", va="bottom", color=INK, fontsize=10)
    axes.set(
        xlabel="true KL of a row (nats)",
        ylabel="relative error",
        title="Worst relative error of 64 rows, 32,000 classes, float32",
    )
    axes.invert_xaxis()
    for errors, colour, name in ((page["usual_error"], ORANGE, "F.kl_div"), (page["our_error"], BLUE, "kullback.kl")):
        axes.annotate(
            name, (page["truths"][1], errors[1]), xytext=(0, 9), textcoords="offset points", color=colour, ha="right"
        )


def temperature(figure: Figure) -> None:
    """Page 4: a teacher at four temperatures, and the gradient with and without T²."""
    page = variables_of("4-distillation.md")
    temperatures, norms, teacher = page["temperatures"], page["norms"], page["teacher"]
    soft, gradient = figure.subplots(1, 2)
    at = np.arange(teacher.numel())
    for k, (T, colour) in enumerate(zip(temperatures, [BLUE, LIGHT_BLUE, LIGHT_ORANGE, ORANGE], strict=True)):  # noqa: N806
        soft.bar(at + 0.2 * (k - 1.5), torch.softmax(teacher / T, -1).numpy(), 0.19, color=colour, label=f"T = {T:.0f}")
    soft.set(
        title="A teacher's probabilities",
        xlabel="class",
        ylabel="probability",
        xticks=at,
        xticklabels=[str(i) for i in at.tolist()],
    )
    soft.legend()
    gradient.loglog(temperatures, norms, "s-", color=ORANGE, label="gradient norm")
    gradient.loglog(
        temperatures, [n * T * T for n, T in zip(norms, temperatures, strict=True)], "o-", color=BLUE, label="norm × T²"
    )
    gradient.set(title="Gradient of KL to the student", xlabel="temperature T")
    gradient.set(ylabel="norm, mean over the rows")
    gradient.set_xticks(temperatures, [f"{T:.0f}" for T in temperatures])
    gradient.minorticks_off()
    gradient.legend(loc="lower left")


FIGURES: dict[str, Callable[[Figure], None]] = {
    "news-desk.svg": news_desk,
    "direction.svg": direction,
    "digits.svg": digits,
    "temperature.svg": temperature,
}


def draw_all(folder: Path) -> list[str]:
    """Draw every picture into `folder`; the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        write_bytes(folder / name, drawn(draw, size=(8, 3.4), of="distill"))
    return list(FIGURES)


if __name__ == "__main__":
    print(*draw_all(IMAGES))
