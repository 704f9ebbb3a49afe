"""How much of the code each stage depends on: its cone, the modules that it imports, directly or through others.

    python -m benchmarks.cones              one line a stage
    python -m benchmarks.cones train        and the modules of one stage with their lines

A change of a file in a stage's cone makes DVC run that stage again; `tests/test_architecture.py` keeps the cone of
`train` at a quarter of the code at most.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "train", "evaluate", "plot")


@cache
def imports(file: Path) -> frozenset[Path]:
    """The project's modules that a file imports, apart from imports for types and those of a program alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    apart = ("__main__", "TYPE_CHECKING")
    tree.body = [
        part
        for part in tree.body
        if not (isinstance(part, ast.If) and any(name in ast.dump(part.test) for name in apart))
    ]
    imported: set[Path] = set()
    for node in ast.walk(tree):
        names = [f"{node.module}.{name.name}" for name in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            place = ROOT / name.replace(".", "/")
            candidates = [place.with_suffix(".py"), place.parent.with_suffix(".py")]
            candidates += [place / "__init__.py", place.parent / "__init__.py"]
            imported |= {file for file in candidates if file.is_file() and "detector" in file.relative_to(ROOT).parts}
    return frozenset(imported)


def cone(start: Path) -> set[Path]:
    """`start` and all modules that it imports, directly or through others, apart from empty files."""
    reached, ahead = set(), [start]
    while ahead:
        file = ahead.pop()
        if file not in reached:
            reached.add(file)
            ahead += imports(file)
    return {file for file in reached if file.stat().st_size}


def product() -> list[Path]:
    """All files of the code: the stages and what they are made of."""
    return sorted(file for folder in ("detector", "stages") for file in (ROOT / folder).rglob("*.py"))


def lines(files) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def share(stage: str) -> float:
    """The part of all lines that the stage's cone holds, 0 to 1."""
    return lines(cone(ROOT / "stages" / f"{stage}.py")) / lines(product())


def main() -> None:
    print(f"{lines(product()):,} lines in {len(product())} files")
    for stage in STAGES:
        print(f"{stage:10s}{share(stage):5.0%}")
    for stage in sys.argv[1:]:
        for file in sorted(cone(ROOT / "stages" / f"{stage}.py")):
            print(f"{lines([file]):6,}  {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
