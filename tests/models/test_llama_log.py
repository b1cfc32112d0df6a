"""The log of a run of llama.cpp, as its printf lines write it."""

import pytest

from kullback._errors import BadInput
from kullback.models import llama_log
from kullback.models.llama_log import CHUNK, TITLES, Printed
from kullback.models.statistics import KLD_PERCENTILES, PROBABILITY_PERCENTILES

HEAD = """main: build = 4242 (050fc7f3)
kl_divergence: 0.51 seconds per pass - ETA 0.02 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1       6.4071 ±    0.0391       0.02752 ±    0.00071       0.03127 ±    0.00024     4.519 ±  0.031 %    89.5 ±  0.06 %
   2       7.0000 ±    0.5000      -0.01000 ±    0.00200       0.04000 ±    0.00100     5.000 ±  0.100 %    90.0 ±  0.50 %
"""  # noqa: E501
PERPLEXITY = """
====== Perplexity statistics ======
Mean PPL(Q)                   :   6.407115 ±   0.039119
Mean PPL(base)                :   6.233160 ±   0.037828
Cor(ln(PPL(Q)), ln(PPL(base))):  99.34%
Mean ln(PPL(Q)/PPL(base))     :   0.027525 ±   0.000705
Mean PPL(Q)/PPL(base)         :   1.027907 ±   0.000725
Mean PPL(Q)-PPL(base)         :   0.173955 ±   0.004661
"""
DIVERGENCE = """
====== KL divergence statistics ======
Mean    KLD:   0.031273 ±   0.000238
Maximum KLD:   3.298338
99.9%   KLD:   1.093390
99.0%   KLD:   0.273446
95.0%   KLD:   0.100000
90.0%   KLD:   0.080000
Median  KLD:   0.012345
10.0%   KLD:   0.000123
 5.0%   KLD:   0.000012
 1.0%   KLD:  -0.000003
 0.1%   KLD:  -0.000013
Minimum KLD:  -0.000025
"""
PROBABILITY = """
====== Token probability statistics ======
Mean    Δp: -0.596 ± 0.014 %
Maximum Δp: 58.034%
99.9%   Δp: 23.420%
99.0%   Δp: 11.001%
95.0%   Δp:  5.000%
90.0%   Δp:  2.000%
75.0%   Δp:  0.100%
Median  Δp: -0.001%
25.0%   Δp: -0.200%
10.0%   Δp: -3.000%
 5.0%   Δp: -7.000%
 1.0%   Δp: -20.000%
 0.1%   Δp: -44.000%
Minimum Δp: -96.100%
RMS Δp    :  4.519 ± 0.031 %
Same top p: 89.506 ± 0.060 %
llama_perf_context_print:        load time =    1234.56 ms
"""
WHOLE = HEAD + PERPLEXITY + DIVERGENCE + PROBABILITY


def test_every_printed_number_is_read_under_the_name_of_our_statistic():
    log = llama_log.parse(WHOLE)
    assert tuple(log.blocks) == TITLES
    assert log["Mean PPL(Q)"] == Printed(6.407115, 0.039119, "")
    assert log["Cor(ln(PPL(Q)), ln(PPL(base)))"] == Printed(99.34, None, "%")
    assert log["Mean PPL(Q)-PPL(base)"] == Printed(0.173955, 0.004661, "")
    assert log["Mean KLD"] == Printed(0.031273, 0.000238, "")
    assert log["0.1% KLD"] == Printed(-0.000013, None, "")
    assert log["Mean Δp"] == Printed(-0.596, 0.014, "%")
    assert log["5.0% Δp"] == Printed(-7.0, None, "%")
    assert log["RMS Δp"] == Printed(4.519, 0.031, "%")
    assert log["Same top p"] == Printed(89.506, 0.060, "%")
    assert [len(block) for block in log.blocks.values()] == [
        6,
        3 + len(KLD_PERCENTILES),
        5 + len(PROBABILITY_PERCENTILES),
    ]


def test_lines_of_chunks_are_read_in_order():
    chunks = llama_log.parse(WHOLE).chunks
    assert len(chunks) == 2
    assert tuple(chunks[0]) == CHUNK
    assert chunks[1] == {
        "Mean PPL(Q)": Printed(7.0, 0.5, ""),
        "Mean ln(PPL(Q)/PPL(base))": Printed(-0.01, 0.002, ""),
        "Mean KLD": Printed(0.04, 0.001, ""),
        "RMS Δp": Printed(5.0, 0.1, "%"),
        "Same top p": Printed(90.0, 0.5, "%"),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1 over utf-8", "ascii"])
def test_a_terminal_that_lost_the_letters_changes_no_number(tmp_path, encoding):
    raw = {
        "utf-8": WHOLE.encode(),
        "utf-16": WHOLE.encode("utf-16"),
        "latin-1 over utf-8": WHOLE.encode().decode("latin-1").encode(),
        "ascii": WHOLE.replace("±", "+/-").encode("ascii", "replace"),
    }[encoding]
    (tmp_path / "log").write_bytes(raw)
    assert llama_log.read(tmp_path / "log") == llama_log.parse(WHOLE)


def test_lines_with_a_time_before_them_are_read():
    stamped = "".join(f"0.01.234.567 I {line}\n" for line in WHOLE.splitlines())
    assert llama_log.parse(stamped) == llama_log.parse(WHOLE)


def test_numbers_that_are_none_are_read_as_such():
    log = llama_log.parse(WHOLE.replace("4.519 ± 0.031 %\nSame", "0.000 ±  -nan %\nSame").replace("3.298338", "inf"))
    assert log["RMS Δp"].error != log["RMS Δp"].error
    assert log["Maximum KLD"].value == float("inf")


def test_a_run_that_was_cut_short_says_so():
    with pytest.raises(BadInput, match="has 2 lines of chunks but no statistics"):
        llama_log.parse(HEAD)


def test_a_log_of_something_else_says_what_is_wanted():
    with pytest.raises(BadInput, match="has no 'Perplexity statistics'"):
        llama_log.parse("hello\n")


def test_a_block_that_is_missing_is_named():
    with pytest.raises(BadInput, match="has no 'Token probability statistics'"):
        llama_log.parse(HEAD + PERPLEXITY + DIVERGENCE)


def test_two_runs_in_one_log_are_refused():
    line = WHOLE.count("\n") + 2
    with pytest.raises(BadInput, match=f"line {line} begins a second 'Perplexity statistics'"):
        llama_log.parse(WHOLE + PERPLEXITY)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="none: cannot be read"):
        llama_log.read(tmp_path / "none")
