# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The HTML page about a run: one file, no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vmtests.readiness import plain
from vmtests.results import Phase, PlanResult, RunResult, TestResult

_STYLE = """
:root { color-scheme: light dark;
  --page: light-dark(#ffffff, #16181c); --ink: light-dark(#1c1e21, #e4e6ea);
  --faint: light-dark(#5c6370, #9aa2b1); --line: light-dark(#d8dce3, #353a44);
  --box: light-dark(#f5f6f8, #1e2127); --good: light-dark(#1a7f37, #4cc26a);
  --bad: light-dark(#c62828, #ff7b72); --soft: light-dark(#9a6700, #d9a441);
  --bar: light-dark(#3f6fb5, #6f9fe0); }
body { background: var(--page); color: var(--ink); margin: 2rem auto; max-width: 68rem;
  padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 0; }
section { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
header { display: flex; gap: .8rem; align-items: baseline; flex-wrap: wrap; }
.faint { color: var(--faint); } .right { text-align: right; white-space: nowrap; }
.tag { font: 600 12px ui-monospace, monospace; padding: .1rem .5rem; border-radius: 99px;
  border: 1px solid currentcolor; }
.pass, .info { color: var(--good); } .fail, .error { color: var(--bad); }
.warn, .skip, .pending { color: var(--soft); }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td { padding: .15rem .5rem .15rem 0; vertical-align: top; }
.times td:nth-child(3) { width: 60%; }
.bar { background: var(--bar); height: .7rem; border-radius: 3px; margin-top: .4rem; }
details { border-top: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; display: flex; gap: .8rem; align-items: baseline; }
summary .right { margin-left: auto; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  overflow: auto; max-height: 32rem; font: 12.5px/1.45 ui-monospace, monospace; }
"""


def render(run: RunResult) -> str:
    """The page."""
    verdicts = "".join(f"<p>{_tag(plan.outcome)} {escape(plan.name)}</p>" for plan in run.plans)
    context = ", ".join(
        f"{key} {value if isinstance(value, str) else ' '.join(value)}"
        for key, value in run.context.items()
    )
    body = "".join(_plan(plan) for plan in run.plans)
    started = run.started.strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Booted tests: {run.outcome}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Booted tests: {_tag(run.outcome)}</h1>\n"
        f'<p class="faint">{started}, {run.seconds:.1f} s, {len(run.tests)} tests. '
        f"{escape(context)}</p>\n{verdicts}\n{body}</body></html>\n"
    )


def _tag(outcome: str) -> str:
    return f'<span class="tag {outcome}">{outcome}</span>'


def _plan(plan: PlanResult) -> str:
    verdict = f"verdict {plan.verdict}" if plan.verdict else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in plan.notes)
    parts = [
        f"<section><header>{_tag(plan.outcome)}<h2>{escape(plan.name)}</h2>"
        f'<span class="faint">{escape(plan.summary)}; starts from {plan.start}; '
        f"{plan.seconds:.1f} s</span><b>{verdict}</b></header>{notes}",
        _times(plan.phases),
        *(_test(test) for test in plan.tests),
    ]
    if plan.dossier:
        parts.append(_fold("<b>Dossier</b>", plan.dossier, opened=True))
    if plan.console:
        parts.append(_fold("<b>Console</b>", plain(plan.console)))
    return "".join(parts) + "</section>\n"


def _times(phases: Sequence[Phase]) -> str:
    longest = max((phase.seconds for phase in phases), default=0.0) or 1.0
    rows = "".join(
        f'<tr><td>{escape(phase.name)}</td><td class="right">{phase.seconds:.1f} s</td>'
        f'<td><div class="bar" style="width:{max(0.3, 100 * phase.seconds / longest):.1f}%">'
        "</div></td></tr>"
        for phase in phases
    )
    return f'<table class="times">{rows}</table>' if rows else ""


def _test(test: TestResult) -> str:
    notes = f'<span class="faint">{escape("; ".join(test.notes))}</span>' if test.notes else ""
    head = (
        f"{_tag(test.outcome)}<span>{escape(test.name)}</span>{notes}"
        f'<span class="right faint">{test.seconds:.1f} s</span>'
    )
    subs = "".join(
        f"<tr><td>{_tag(sub.outcome)}</td><td>{escape(sub.name)}</td></tr>"
        for sub in test.subresults
    )
    before = f'<p class="faint">{escape(test.summary)}</p>' if test.summary else ""
    if subs:
        before += f"<table>{subs}</table>"
    if len(test.phases) > 1:
        before += _times(test.phases)
    return _fold(head, plain(test.output) or "(no output)", before, opened=test.outcome.is_bad)


def _fold(head: str, text: str, before: str = "", *, opened: bool = False) -> str:
    state = " open" if opened else ""
    return f"<details{state}><summary>{head}</summary>{before}<pre>{escape(text)}</pre></details>\n"
