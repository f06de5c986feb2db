"""The result of a benchmark as a page for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Result = dict[str, Any]


def report(result: Result) -> str:
    """The whole page, in Markdown."""
    parts = [
        _head(result), _models(result["models"], result["ratios"]), _loaders(result["loaders"]),
        _shards(result["shards"]), _retrieval(result["retrieval"]), _ray(result["ray"]),
    ]  # fmt: skip
    if "recbole" in result:
        parts.insert(2, _recbole(result["recbole"]))
    return "\n\n".join(parts) + "\n"


def number(value: float | None) -> str:
    """Three significant digits, whole and with separators from 1,000 on; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _head(result: Result) -> str:
    machine, data = result["machine"], result["data"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    content = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in data["content"].items())
    gpu = "" if machine.get("device", "cpu") == "cpu" else f"{machine['device']} (CUDA {machine['cuda']}), "
    rows = [
        ("command", f"`{result['command']}`"),
        ("date", result["date"]),
        ("hardware", f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB"),
        ("load before", f"{result['load_before']:.2f} (1 minute); another program on these cores slows every figure"),
        ("threads", str(result["threads"])),
        ("revision", result["git"]),
        ("versions", f"Python {machine.get('python', '?')}, {versions}"),
        (
            "data",
            f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions, "
            f"{data['train_rows']:,} training rows, L = {data['max_length']}; {content}",
        ),
        ("recipe", f"{result['recipe']}, engine torch"),
        ("figures", f"medians of {result['repeats']} repeats (3 where one takes long) after a warm-up"),
    ]
    return f"# Benchmark, {result['date'][:10]}\n\n" + table(("", ""), rows)


def _models(models: Result, ratios: Result) -> str:
    columns: dict[str, Callable[[Result], str]] = {
        "parameters": lambda m: f"{m['parameters']:,}",
        "batch": lambda m: f"{m['batch_size']} {m['precision']}",
        "training rows/s": lambda m: number(m["training"]["rows_per_s"]),
        "CPU s/epoch": lambda m: number(m["training"]["epoch_cpu_s"]),
        "wall s/epoch": lambda m: number(m["training"]["epoch_wall_s"]),
        "ms/step": lambda m: number(1e3 * m["training"]["step"]["wall_s"]),
        "steps timed": lambda m: _steps(m["training"]),
        "loader share": lambda m: f"{m['step']['loader_share']:.1%}",
        "content share": lambda m: f"{m['step']['content_share']:.1%}",
        "kernels/step": lambda m: number(m["step"]["kernel_launches"]),
        "evaluation users/s": lambda m: number(m["evaluation"]["users_per_s"]),
        "peak MiB": lambda m: _memory(m["memory"]),
    }
    lines = [(f"| {name} | " + _or_reason(model, columns.values())) for name, model in models.items()]
    header = "| model | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1)
    ways = [
        f"- {name}: " + ", ".join(f"{way} {number(users)}" for way, users in model["evaluation"]["ways"].items())
        for name, model in models.items()
        if "evaluation" in model and len(model["evaluation"]["ways"]) > 1
    ]
    compared = [
        f"- {name}: {number(ratio['wall_s'])} times the wall and {number(ratio['cpu_s'])} times the CPU time of a step"
        for name, ratio in ratios.items()
    ]
    notes = (
        "A window of consecutive steps is timed where a whole epoch does not fit the budget, and the epoch is reckoned "
        "from its rows. *loader share*: making the batches; *content share*: gathering item content; both with the "
        "device made to finish each. *peak*: of the model's own process, training / all, its start (Python, torch) "
        "included; on a GPU also what torch allocated there. Evaluation ranks the whole catalogue exactly, with and "
        "without the history masked, by the first way of encoding users."
    )
    extra = "".join(
        f"\n\n{title}\n{chr(10).join(lines_)}"
        for title, lines_ in (("Evaluation users/s by way of encoding:", ways), ("MealRec over TedRec:", compared))
        if lines_
    )
    return f"## Models\n\n{header}\n" + "\n".join(lines) + f"\n\n{notes}{extra}"


def _or_reason(model: Result, columns: Iterable[Callable[[Result], str]]) -> str:
    if "training" not in model:
        return reason(model) + " |"
    return " | ".join(column(model) for column in columns) + " |"


def _steps(training: Result) -> str:
    return f"{training['step']['repeats']} x {training['measured_steps']} (epoch: {training['epoch_steps']})"


def _memory(memory: Result) -> str:
    shown = f"{number(memory['training']['rss_mb'])} / {number(memory['all']['rss_mb'])}"
    if "cuda_mb" in memory["all"]:
        shown += f", GPU {number(memory['training']['cuda_mb'])} / {number(memory['all']['cuda_mb'])}"
    return shown


def _recbole(recbole: Result) -> str:
    title = "## SASRec against RecBole 1.2.1\n\n"
    if "cpu_ratio" not in recbole:
        return title + reason(recbole)
    doubts = [
        text
        for wrong, text in (
            (not recbole["same_data"], "the datasets differ"),
            (not recbole["same_threads"], "the numbers of threads differ"),
            (len(set(recbole["batch_sizes"])) > 1, f"batch sizes differ ({recbole['batch_sizes']})"),
        )
        if wrong
    ]
    rows = [
        ("MealRec's SASRec", number(recbole["ours_cpu_s"]), number(recbole["ours_wall_s"])),
        ("RecBole's SASRec", number(recbole["recbole_cpu_s"]), number(recbole["recbole_wall_s"])),
        ("ratio", number(recbole["cpu_ratio"]), number(recbole["ours_wall_s"] / recbole["recbole_wall_s"])),
    ]
    base = f"RecBole measured {recbole['recbole_measured']} on {recbole['recbole_cpu']}, anomaly mode off."
    doubt = f" **Not comparable: {', '.join(doubts)}.**" if doubts else " Same rows, batch size and threads."
    return title + table(("", "CPU s/epoch", "wall s/epoch"), rows) + f"\n\n{base}{doubt}"


def _loaders(loaders: Result) -> str:
    title = "## Loaders\n\n"
    if "resident" not in loaders:
        return title + reason(loaders)
    rows = [
        (name, number(found["rows_per_s"]), number(found["rows_with_content_per_s"]))
        if "rows_per_s" in found else (name, reason(found), "-")
        for name, found in loaders.items()
    ]  # fmt: skip
    note = "Batches of 2,048; content: what MealRec over TedRec reads for them. Files are in the page cache."
    return title + table(("placement", "rows/s", "rows/s with content"), rows) + "\n\n" + note


def _shards(shards: Result) -> str:
    title = "## Shards\n\n"
    if "items" not in shards:
        return title + reason(shards)
    rows = [
        (kind, *(number(found[key]) for key in ("megabytes", "write_mb_per_s", "read_mb_per_s")))
        for kind, found in shards.items()
    ]
    note = "To and from the page cache; reading checks every header and the checksum."
    return title + table(("kind", "MB", "write MB/s", "read MB/s"), rows) + "\n\n" + note


def _retrieval(retrieval: Result) -> str:
    title = "## Top-k: FAISS against exact\n\n"
    if "exact" not in retrieval:
        return title + reason(retrieval)
    names = {"exact": "torch, exact", "flat": "FAISS flat", "ivf": "FAISS ivf", "hnsw": "FAISS hnsw"}
    rows = []
    for kind, name in names.items():
        found = retrieval[kind]
        shown = (
            (number(found["users_per_s"]), f"{found['recall@20']:.4f}", number(found.get("build_s")), found["device"])
            if "users_per_s" in found else (reason(found), "-", "-", "-")
        )  # fmt: skip
        rows.append((name, *shown))
    note = (
        f"Top {retrieval['k']} of {retrieval['items']:,} items of width {retrieval['width']} for "
        f"{retrieval['users']:,} users; vectors of a SASRec after {retrieval['trained_steps']} steps of training."
    )
    return title + table(("ranked by", "users/s", "recall@20", "build s", "on"), rows) + "\n\n" + note


def _ray(ray: Result) -> str:
    title = "## Start of a Ray run\n\n"
    if "first_step_s" not in ray:
        return title + reason(ray)
    return title + (
        f"{ray['first_step_s']:.1f} s from `cluster.ray_train.fit` to the first step of its one worker, "
        f"{ray['whole_call_s']:.1f} s until the call is back (median of {ray['repeats']})."
    )


def reason(result: Result) -> str:
    """Why there is no figure."""
    return f"failed: {result['failed']}" if "failed" in result else str(result.get("missing", "not measured"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
