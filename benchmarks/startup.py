"""CPU seconds of `sordino --help`, of the whole process, against an interpreter that does nothing.

python benchmarks/startup.py
"""

import resource
import statistics
import subprocess
import sys


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of one finished process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print the table."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "sordino --help": [sys.executable, "-m", "sordino.cli", "--help"],
    }
    rounds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(11):
        for name, command in commands.items():
            rounds[name].append(cpu_seconds(command))
    print("| command | CPU seconds, median of 11 | highest |")
    print("|---|---|---|")
    for name, seconds in rounds.items():
        print(f"| `{name}` | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
