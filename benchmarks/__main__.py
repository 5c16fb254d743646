"""`python -m benchmarks`: the full run, `--quick`, a report of an earlier run, or its copy for the documentation."""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from benchmarks import idle, limit, load, machine, model, plan, plots, report, results, servers
from benchmarks.payload import Payloads
from benchmarks.process import Failed
from benchmarks.results import Failure, Results, without_places
from benchmarks.rounds import Rounds, say
from benchmarks.scenarios import Scenarios
from benchmarks.servers import Server

_LATEST = "latest"
_ALL = "everything"
_BUSY = 0.5
_DOCUMENTS = servers.ROOT / "docs" / "benchmarks"
_TRAINED = "fashion-mnist/1/model.onnx"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures inferd, its limit and its peers."
    )
    parser.add_argument("--quick", action="store_true", help="inferd and the limit only, in under 3 minutes")
    parser.add_argument("--rounds", type=int, default=3, help="times that every server is measured")
    parser.add_argument("--seconds", type=float, help="seconds of each measurement (1.5; quick: 0.7)")
    parser.add_argument(
        "--soak", type=float, help="seconds of sustained full load (30; quick: 10; the target asks for 600)"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only servers whose name contains this (repeatable)"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where everything is kept and written")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("demo-output/repository"),
        help=f"a trained {_TRAINED} here is compared with the model that is measured",
    )
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing: write this run's report and plots"
    )
    parser.add_argument("--publish", action="store_true", help="copy the report, plots and JSON into docs/benchmarks/")
    return parser


def main() -> int:
    """Returns the exit status: 1 where inferd itself could not be measured."""
    arguments = _parser().parse_args()
    # Ending it from outside must end what it started too, through every `finally`. SIGINT as well: a shell's background
    # jobs inherit that it is ignored. nohup's wish is respected.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    folder: Path = arguments.folder
    try:
        if arguments.report:
            _write(results.read(arguments.report), folder)
        elif not (arguments.publish and len(sys.argv) == 2):
            found = _measure(arguments, folder)
            _write(found, folder)
            if arguments.publish:
                _publish(folder)
            return int(any(item.server.startswith("inferd") and item.what != _ALL for item in found.failures))
        if arguments.publish:
            _publish(folder)
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


def _measure(arguments: argparse.Namespace, folder: Path) -> Results:
    load.require_h2load()
    begin = time.monotonic()
    idle.raise_file_limit()
    seconds = arguments.seconds or (0.7 if arguments.quick else 1.5)
    soak = arguments.soak or (10.0 if arguments.quick else 30.0)
    planned = (plan.quick if arguments.quick else plan.full)(arguments.rounds, seconds, soak)
    if (average := machine.busy()) > _BUSY:
        say(f"this machine is busy (load average {average:.1f}): expect noise")
    repository = folder / "repository"
    model.write_repository(repository)
    payloads = Payloads(folder / "payloads", repository)
    found = Results(machine.describe(), _settings(arguments, seconds, average))
    _compare_model(found, repository, arguments.repository / _TRAINED)
    rounds = Rounds(planned, found, payloads, repository, folder / "logs")
    own, absent = servers.ours(repository)
    bare, no_echo = servers.echoes()
    chosen = [*own, *bare]
    for name, reason in {**absent, **no_echo}.items():
        found.failures.append(Failure(name, _ALL, without_places(reason)))
    if not arguments.quick:
        candidates, missing = servers.peers(repository, folder)
        for name, reason in missing.items():
            rounds.failed(name, _ALL, reason)
        wanted = {name: settings for name, settings in candidates.items() if _wanted(arguments, name)}
        chosen += rounds.best_settings(wanted)
    chosen = [server for server in chosen if _wanted(arguments, server.name)]
    found.servers = {server.name: server.setting for server in chosen}
    _run(planned, rounds, chosen, found, payloads, folder)
    found.settings["took"] = f"{(time.monotonic() - begin) / 60:.1f} minutes"
    return found


def _run(
    planned: plan.Plan, rounds: Rounds, chosen: list[Server], found: Results, payloads: Payloads, folder: Path
) -> None:
    scenarios = Scenarios(planned, found, payloads, folder)
    if not chosen:
        raise Failed("no server is left to measure")
    for number in range(planned.rounds):
        rounds.run(number, chosen)
        if number < planned.scenario_rounds:
            say(f"round {number + 1}: scenarios")
            try:
                scenarios.run_round()
            except Failed as failure:
                rounds.failed("inferd", f"scenarios, round {number + 1}", str(failure))
        found.write(folder / f"{_LATEST}.json")  # what is there so far, should the rest be cut off
    say(f"soak of {planned.soak_seconds:g} s")
    try:
        scenarios.soak()
    except Failed as failure:
        rounds.failed("inferd", "soak", str(failure))


def _compare_model(found: Results, repository: Path, trained: Path) -> None:
    text = "the reference CNN with random weights, on which speed does not depend"
    if trained.is_file():
        ratio = limit.compare(model.model_file(repository, "UINT8"), trained, 0.5)
        text += f"; a run of 64 rows takes {ratio:.2f} of the trained export's time"
    found.settings["model"] = text


def _settings(arguments: argparse.Namespace, seconds: float, average: float) -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "run": f"{'quick' if arguments.quick else 'full'}, {arguments.rounds} rounds, {seconds:g} s a measurement; "
        f"load average at the start {average:.1f}",
        "load": f"h2load, 1 thread, at most {load.CONNECTIONS} connections that share what is in flight "
        "(HTTP/1.1: a connection each); server and load on the same cores",
        "files": f"{os.cpu_count()} CPUs seen; open file limit raised to the system's",
    }


def _wanted(arguments: argparse.Namespace, name: str) -> bool:
    return not arguments.only or any(part.lower() in name.lower() for part in arguments.only)


def _write(found: Results, folder: Path) -> None:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    for name in (stamp, _LATEST):
        found.write(folder / f"{name}.json")
    (folder / f"{_LATEST}.md").write_text(report.markdown(found))
    plots.draw(found, folder / f"{_LATEST}-plots")
    print("\n".join(report.target_lines(found)))
    for item in found.failures:
        print(f"not measured: {item.server}, {item.what}: {item.reason}")
    print(f"\nwrote {folder / _LATEST}.json, {folder / _LATEST}.md and {folder / _LATEST}-plots/")


def _publish(folder: Path) -> None:
    source = folder / f"{_LATEST}.md"
    if not source.is_file():
        raise Failed(f"there is no {source}: run the benchmarks first")
    _DOCUMENTS.mkdir(parents=True, exist_ok=True)
    pictures = "".join(f"\n![{name}]({name})\n" for name in plots.NAMES)
    (_DOCUMENTS / "README.md").write_text(source.read_text() + "\n## Plots\n" + pictures)
    shutil.copy(folder / f"{_LATEST}.json", _DOCUMENTS / "results.json")
    for name in plots.NAMES:
        shutil.copy(folder / f"{_LATEST}-plots" / name, _DOCUMENTS / name)
    print(f"copied to {_DOCUMENTS.relative_to(servers.ROOT)}/")


if __name__ == "__main__":
    sys.exit(main())
