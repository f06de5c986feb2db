"""The result of benchmarks/gpu.py as a page for people."""

from __future__ import annotations

from typing import Any

from bench_report import number, table

Result = dict[str, Any]

#: seconds of an epoch and of an evaluation of MealRec on TedRec in the paper's Table 3, on an A100
_PAPER = {"small": (1.87, 2.31), "big": (24.94, 22.08)}


def page(result: Result) -> str:
    """The whole page, in Markdown."""
    rows = [
        ("command", f"`{result['command']}`"), ("date", result["date"]),
        ("hardware", f"{result['device']}, CUDA {result['cuda']}, torch {result['torch']}"),
    ]  # fmt: skip
    parts = [f"# On a GPU, {result['date'][:10]}\n\n" + table(("", ""), rows)]
    for name, found in result["parts"].items():
        body = _FORMS[name](found) if "failed" not in found and "missing" not in found else ""
        parts.append(f"## {_TITLES[name]}\n\n" + (body or found.get("failed") or found.get("missing", "")))
    return "\n\n".join(parts) + "\n"


def _check(found: Result) -> str:
    wrong = found["wrong"]
    verdict = "\n".join(f"- **wrong**: {each}" for each in wrong) if wrong else "Nothing is wrong."
    figures = [(key, _shown(value)) for key, value in found.items() if key != "wrong"]
    return verdict + ("\n\n" + table(("", ""), figures) if figures else "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value) or "none"
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.1e}"
    return str(value)


def _graphs(found: Result) -> str:
    systems = {key: row for key, row in found.items() if key != "wrong"}
    how = [key for key in next(iter(systems.values()), {}) if key.startswith("ms ")]
    rows = [
        (name, *(number(row[key]) for key in how), _shown(max(row["weights"], row["losses"])), _shown(row["said"]))
        for name, row in systems.items()
    ]
    header = ("system", *how, "difference", "said")
    return _check({"wrong": found["wrong"]}) + "\n\n" + table(header, rows)


def _epochs(found: Result) -> str:
    rows = []
    for key, row in found.items():
        size, name, precision = key.split(" ")
        evaluations = {way.split(" ", 1)[1]: s for way, s in row.items() if way.startswith("evaluation_s")}
        paper = _PAPER.get(size, (None, None))[0] if name == "mealrec-tedrec" else None
        rows.append((
            size, name, precision, f"{row['measured']} of {row['steps']}", number(row["epoch_s"]), number(paper),
            number(1e3 * row["epoch_s"] / row["steps"]), number(row.get("gpu_ms")), str(row.get("launches", "-")),
            number(row.get("peak_mib")), ", ".join(f"{number(s)} ({way})" for way, s in evaluations.items()),
        ))  # fmt: skip
    header = (
        "size", "system", "precision", "steps timed", "s/epoch", "paper, A100", "ms/step", "of it GPU ms",
        "launches/step", "peak MiB", "evaluation s (way)",
    )  # fmt: skip
    evaluation = ", ".join(f"{size} {seconds[1]} s" for size, seconds in _PAPER.items())
    return table(header, rows) + f"\n\nThe paper's evaluation of MealRec on TedRec takes: {evaluation}."


def _compilers(found: Result) -> str:
    rows = [(key, number(row["step_ms"]) if "step_ms" in row else row["error"]) for key, row in found.items()]
    return table(("step", "ms"), rows)


def _loop(found: Result) -> str:
    rows = [
        (size, *(", ".join(number(s) for s in row[key]) for key in ("train_s", "valid_s", "commit_s")))
        for size, row in found.items()
    ]
    return table(("size", "training s, by epoch", "validation s", "checkpoint s"), rows)


def _catalogue(found: Result) -> str:
    rows = [
        (items, row["error"], "-", "-", "-") if "error" in row else
        (items, *(number(row.get(key)) for key in ("step_ms fp32", "step_ms tf32", "train_peak_gib", "rank_s")))
        for items, row in found.items()
    ]  # fmt: skip
    header = ("items", "ms/step fp32", "ms/step tf32", "peak GiB", "s to rank 2,048 users")
    return table(header, rows)


_TITLES = {
    "parity": "The same loss and gradient as the CPU in float64", "systems": "Every system in every precision",
    "guard": "A step that is not finite", "determinism": "Twice the same, and resumed the same",
    "graphs": "Steps as CUDA graphs", "waits": "Waits of the host in a step",
    "epochs": "Epochs and evaluation", "placements": "Where content is",
    "compilers": "What a compiler or a graph gives", "loop": "The training loop", "catalogue": "Large catalogues",
}  # fmt: skip
_FORMS = {
    **dict.fromkeys(("parity", "systems", "guard", "determinism", "waits", "placements"), _check), "graphs": _graphs,
    "epochs": _epochs, "compilers": _compilers, "loop": _loop, "catalogue": _catalogue,
}  # fmt: skip
