"""Figures over rounds, the targets beside them, and the way through JSON."""

from benchmarks import report, results, scenarios, targets
from benchmarks.limit import Limit
from benchmarks.load import Load
from benchmarks.open_loop import OpenLoad
from benchmarks.payload import Shape
from benchmarks.results import ClosedSample, Failure, LimitSample, MemorySample, OpenSample, Results, Trial
from benchmarks.servers import NATIVE
from benchmarks.spread import ratios, spread

ONE = Shape("FP32", 1)
MB = 1_000_000


def load(rate):
    return Load(1000, rate, 250.0, 500.0, 900.0, 80.0)


def made():
    found = Results({"machine": "a"}, {"run": "b"}, {NATIVE: "1 instance", "KServe SDK": "gRPC"})
    for number, noise in enumerate((1.0, 0.5, 1.1)):
        found.limits += [LimitSample(number, "FP32", Limit(rows, 20_000 * noise, 75.0, 55.0)) for rows in (1, 64)]
        found.closed += [
            ClosedSample(number, NATIVE, ONE, in_flight, load(18_000 * noise)) for in_flight in (1, 8, 32, 128)
        ]
        found.closed.append(ClosedSample(number, "KServe SDK", ONE, 32, load(2_000 * noise)))
        opened = OpenLoad(12_000, 100, 1.0, 300.0, 2_000.0, 2_500.0, 3_000.0, 10.0, 20.0, 30.0, 80.0)
        found.opened.append(OpenSample(number, NATIVE, 0.7, opened))
        found.memory.append(MemorySample(number, NATIVE, 120 * MB, 1))
    found.trials.append(Trial("KServe SDK", "gRPC", None, "hangs"))
    found.failures.append(Failure("Ray Serve", "everything", "its installation failed"))
    found.add_extra(scenarios.START, 0.5)
    return found


def outcome(part):
    return next(item for item in targets.outcomes(made()) if part in item.measure)


def test_a_spread_is_the_median_and_the_extremes():
    assert spread([3.0, 1.0, 2.0]).text() == "2 (1-3)"
    assert spread([3.0]).text(1) == "3.0"


def test_ratios_are_taken_round_by_round():
    assert ratios([2.0, 8.0], [1.0, 4.0]) == [2.0, 2.0]


def test_results_survive_json(tmp_path):
    made().write(tmp_path / "run.json")
    assert results.read(tmp_path / "run.json") == made()


def test_noise_that_hits_a_whole_round_falls_out_of_the_share():
    share = outcome("one-row requests, 32 in flight: rows/s")
    assert (share.figure, share.met) == ("0.90 (0.90-0.90)", True)
    assert outcome("one-row requests, 128 in flight: rows/s").met is False


def test_peers_are_compared_and_missing_ones_are_not_judged():
    assert outcome("against KServe SDK").figure == "9.0 (9.0-9.0)x"
    ray = outcome("against Ray Serve")
    assert (ray.figure, ray.met) == ("not measured", None)


def test_differences_show_what_they_are_made_of():
    assert outcome("server CPU per one-row").figure == "25.0 us (80.0 - 55.0)"
    assert outcome("server CPU per one-row").met is False
    assert outcome("one request at a time").figure == "175 us (250 - 75)"


def test_the_report_names_what_failed_and_why():
    text = report.markdown(made())
    assert "- Ray Serve, everything: its installation failed" in text
    assert "failed: hangs" in text
    assert "| inferd native | 18,000 (9,000-19,800) |" in text


def test_memory_that_comes_to_its_size_early_has_not_grown():
    sizes = [80 * MB] * 10 + [100 * MB] * 80 + [100 * MB] * 10
    assert scenarios.growth(sizes) == 0
    assert scenarios.growth([MB * number for number in range(100)]) == 71 * MB
