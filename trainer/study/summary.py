"""What `mealrec study` says before the first trial, of costs, and after the last one, of results."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.cores import usable_cores
from trainer.durations import in_words
from trainer.evaluation.config import CRITERION
from trainer.evaluation.report import text_table
from trainer.study.choose import Choice, choices
from trainer.study.record import StudyRecord, failure, trial_state
from trainer.study.trials import Trial


def costs_table(trials: Sequence[Trial], parallel: int | None) -> str:
    """What the trials will cost on this machine, by part. Measures some steps of each system."""
    import torch

    from trainer.study.costs import STEPS, Cost, measure

    at_once = parallel or torch.cuda.device_count() or usable_cores()
    torch.set_num_threads(max(1, usable_cores() // at_once))
    runs = [trial for trial in trials if trial.run == trial.name]
    costs = measure(runs)
    rows = [["part", "trials", "runs", "hours of runs", "disk at the end"]]

    def row(name: str, some: Sequence[Trial], own: Sequence[Cost]) -> list[str]:
        hours, size = sum(cost.seconds for cost in own) / 3600, sum(cost.final_bytes for cost in own) / 1e6
        return [name, f"{len(some):,}", f"{len(own):,}", f"{hours:.2f}", f"{size:,.0f} MB"]

    for part in dict.fromkeys(trial.part for trial in trials):
        some = [trial for trial in trials if trial.part == part]
        rows.append(row(part, some, [costs[trial.name] for trial in some if trial.name in costs]))
    rows.append(row("all", trials, list(costs.values())))
    together = sum(costs[trial.name].seconds for trial in runs if not trial.alone) / at_once
    alone = sum(costs[trial.name].seconds for trial in runs if trial.alone)
    peak = max((cost.peak_bytes for cost in costs.values()), default=0) * at_once / 1e6
    return (
        f"{text_table(rows)}\n\n{at_once} at once: at most {in_words(together + alone)}, by {STEPS} measured steps of "
        "each system, if every run trains for all its epochs (early stopping ends most runs sooner), and "
        "numbers in a grid cost alike;\n"
        f"{peak:,.0f} MB more disk while it runs"
    )


def summary(study: StudyRecord) -> str:
    """What became of the trials, part by part, what validation chose, and why trials failed."""
    rows = [["part", "trials", "finished", "stopped", "failed"]]
    failed: dict[str, str] = {}
    for part in study.parts:
        some = study.of_part(part.name)
        states = [trial_state(study.run_folder(trial), part.test == "all") for trial in some]
        rows.append(
            [part.name, str(len(some)), *(str(states.count(each)) for each in ("finished", "stopped", "failed"))]
        )
        failed |= {
            trial.name: failure(study.run_folder(trial))
            for trial, state in zip(some, states, strict=True)
            if state == "failed"
        }
    lines = ["", text_table(rows)]
    lines += [_chosen(choice) for choice in choices(study)]
    lines += [f"failed: {name}: {why}" for name, why in failed.items()]
    return "\n".join(lines)


def _chosen(choice: Choice) -> str:
    left = f", {choice.unfinished} without a result" if choice.unfinished else ""
    return (
        f"{choice.part}, {choice.dataset}: validation chose {choice.trials[0].label} ({CRITERION} {choice.value:.4f}) "
        f"among {choice.of}{left}; {choice.trials[0].run} holds its test figures"
    )
