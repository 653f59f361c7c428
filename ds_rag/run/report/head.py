"""The first screen of the report: what was trained on what, whether it helped, what held it back, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ds_rag.run.metrics_file import is_number
from ds_rag.run.report.parts import dict_of, escape, list_of, number

KINDS = ("better", "worse")  # of a verdict, that have a colour


def lead_html(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Sentences: models, objective, rows, passages, held-out questions; when, with which version, on what."""
    about = dict_of(results.get("about"))
    if not config and not about:
        return ""
    known = dict_of(about.get("models"))
    names = [name for name in ("retriever", "generator") if not known or name in known]
    models = [model_text(name, config, dict_of(known.get(name))) for name in names]
    lines = [f"Trained with <b>{escape(config.get('objective', '?'))}</b>: {' and '.join(filter(None, models))}."]
    counts = {
        "rows": f"rows of {source(config, 'train_data')}",
        "passages": f"passages of {source(config, 'corpus', 'the rows')}",
        "held_out": "held-out questions" + (f" of {source(config, 'eval_data')}" if config.get("eval_data") else ""),
    }
    if is_number(about.get("added")) and about["added"]:
        counts["passages"] += f" and {about['added']:,} that only the held-out rows have"
    numbers = [f"{about[key]:,} {text}" for key, text in counts.items() if is_number(about.get(key))]
    if numbers:
        lines.append(f"{', '.join(numbers)}.")
    ended = [f"Finished {escape(about['finished'])}" if "finished" in about else ""]
    ended += [f"ds_rag {escape(results['ds_rag'])}" if "ds_rag" in results else ""]
    ended += [f"{escape(name)} {escape(version)}" for name, version in dict_of(about.get("libraries")).items()]
    if "device" in about:
        ended.append(f"{escape(about.get('ranks', 1))} x {escape(about['device'])}")
    if any(ended):
        lines.append(f'<span class="dim">{", ".join(filter(None, ended))}.</span>')
    return "".join(f'<p class="lead">{line}</p>' for line in lines)


def model_text(name: str, config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    given = config.get(name)
    if not given:
        return ""
    size = f"{about['parameters'] / 1e6:,.1f}M parameters" if is_number(about.get("parameters")) else ""
    learns = "" if "trained" not in about else "trained" if about["trained"] else "frozen"
    part, whole = number(about.get("trained_parameters")), number(about.get("parameters"))
    if part and whole and part < whole / 2:  # adapters
        learns = f"{part / 1e6:,.2f}M of them trained"
    beside = ", ".join(filter(None, (size, learns)))
    return f"{name} <code>{escape(given)}</code>{f' ({beside})' if beside else ''}"


def source(config: Mapping[str, Any], key: str, otherwise: str = "the built-in almanac") -> str:
    given = config.get(key)
    if given in (None, "builtin"):
        return "the built-in almanac" if config.get("train_data") == "builtin" else otherwise
    return f"<code>{escape(given)}</code>"


def verdict_html(results: Mapping[str, Any]) -> str:
    found = dict_of(results.get("verdict"))
    lines = [escape(line) for line in list_of(found.get("lines"))]
    if not lines:
        return ""
    kind = found.get("kind") if found.get("kind") in KINDS else ""
    said = "".join(f"<p>{line[:1].upper()}{line[1:]}.</p>" for line in lines)
    said += listed("What held it back", [escape(line) for line in list_of(found.get("held_back"))])
    steps = [step for step in list_of(found.get("next")) if isinstance(step, Sequence) and len(step) == 2]
    said += listed("Next", [f"<code>{escape(command)}</code> {escape(purpose)}" for command, purpose in steps])
    return f'<div class="card verdict {kind}" id="verdict" role="region" aria-label="verdict">{said}</div>'


def listed(title: str, lines: Sequence[str]) -> str:
    return f"<h3>{title}</h3><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else ""


def facts_html(metrics: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """Steps, time, throughput, memory."""
    train = [line for line in metrics if line.get("kind") == "train"]

    def values(key: str) -> list[float]:
        return sorted(n for line in train if (n := number(line.get(key))) is not None)

    facts: dict[str, str] = {}
    steps = number(results.get("steps")) or max((line["step"] for line in train), default=0)
    facts["steps"] = f"{steps:,.0f}"
    if (seconds := number(results.get("seconds"))) is not None:
        facts["time"] = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.1f} min"
    for key, label in (("tokens_per_s", "tokens / s (median)"), ("queries_per_s", "questions / s (median)")):
        if found := values(key):
            middle = found[len(found) // 2]
            facts[label] = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
    if found := values("memory_gb"):
        facts["peak memory"] = f"{found[-1]:.2f} GB"
    if (waited := number(results.get("refresh_stall_fraction"))) is not None:
        facts["waiting for the index"] = f"{waited:.1%}"
    if skipped := sum(values("skipped")):
        facts["skipped steps"] = f"{skipped:,.0f}"
    cells = "".join(f'<div><b>{value}</b><span class="dim">{key}</span></div>' for key, value in facts.items())
    return f'<div class="card facts">{cells}</div>'
