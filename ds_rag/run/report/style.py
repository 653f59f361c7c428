"""The look of the report, and its script: filters of the questions, and what is unfolded for printing. Both stand in
the page itself."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --dim: #5b6574;
        --line: #e2e6ec; --good: #0b7a54; --bad: #b93a08; --mark: #fff1b8; --bar: #3b82f6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #1b2028; --text: #e6e9ee; --dim: #a3adbb; --line: #2c333e;
          --good: #34d399; --bad: #fb923c; --mark: #5a4a12; --bar: #60a5fa; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 19px; } h3 { margin: 14px 0 4px; font-size: 15px; }
.dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 20px; }
.lead { margin: 8px 0 0; overflow-wrap: anywhere; }
.verdict { margin-top: 20px; border-left: 6px solid var(--dim); }
.verdict.better { border-left-color: var(--good); } .verdict.worse { border-left-color: var(--bad); }
.verdict > p:first-child { margin-top: 0; font-size: 18px; font-weight: 600; }
.verdict ul { margin: 4px 0 0; padding-left: 20px; } .verdict li { margin: 3px 0; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; }
.facts b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 6px; }
img { width: 100%; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: var(--dim); padding-bottom: 6px; }
th, td { text-align: left; vertical-align: top; padding: 7px 9px 7px 0; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0; } th { color: var(--dim); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code, td.code { font: 13px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; } details > summary { overflow-wrap: anywhere; }
details.card { margin-top: 12px; }
.tools { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 12px; }
.tools button, .tools input { font: inherit; font-size: 14px; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 12px; }
.tools button[aria-pressed=true] { border-color: var(--bar); font-weight: 600; }
.tools input { flex: 1; min-width: 160px; }
.question { margin-bottom: 10px; } .question summary { font-weight: 600; }
.tag { display: inline-block; min-width: 62px; font-size: 13px; font-weight: 600; }
.tag.fixed, .tag.right { color: var(--good); } .tag.broken, .tag.wrong { color: var(--bad); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 0 24px; }
.sides ol { margin: 0; padding-left: 22px; } .sides li { margin: 0 0 10px; overflow-wrap: anywhere; }
.sides li p { margin: 2px 0 0; font-size: 14px; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 2px; }
meter { width: 60px; height: 10px; vertical-align: middle; }
.label { display: inline-block; min-width: 110px; margin-right: 8px; color: var(--dim); }
.answers p { margin: 4px 0; overflow-wrap: anywhere; }
.settings td:first-child { white-space: nowrap; }
@media screen and (max-width: 600px) { .card { padding: 12px; } td, th { padding: 6px 4px; font-size: 13px; } }
@media print { :root { --page: #fff; } body { font-size: 12px; } main { padding: 0; max-width: none; }
  .tools { display: none; } .card { break-inside: avoid; }
  .question { break-inside: auto; padding: 5px 12px; margin-bottom: 4px; } .scroll { break-inside: auto; }
  h2 { break-after: avoid; } .grid { grid-template-columns: 1fr 1fr; } }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('.question')], buttons = [...document.querySelectorAll('.tools button')];
const box = document.querySelector('.tools input'), left = document.querySelector('#left');
function show() {
  const on = buttons.find(b => b.getAttribute('aria-pressed') === 'true').dataset.state, text = box.value.toLowerCase();
  for (const c of cards)
    c.hidden = !((on === 'all' || c.dataset.state === on) && c.textContent.toLowerCase().includes(text));
  left.textContent = cards.filter(c => !c.hidden).length + ' shown';
}
for (const button of buttons) button.addEventListener('click', () => {
  for (const b of buttons) b.setAttribute('aria-pressed', b === button);
  show();
});
if (box) box.addEventListener('input', show);
const wanted = buttons.find(b => '#' + b.dataset.state === location.hash);  /* report.html#wrong */
if (wanted) wanted.click();
let opened = [];
addEventListener('beforeprint', () => {
  /* questions, and the settings left at their defaults: as they are unfolded */
  opened = [...document.querySelectorAll('details:not([open]):not(.question):not(.defaults)')];
  for (const d of opened) d.open = true;
});
addEventListener('afterprint', () => { for (const d of opened) d.open = false; });
"""


def security_policy() -> str:
    """What a browser lets this page do: its own style, its one script, its own pictures, and nothing else, so that no
    text of a row could load or run anything even if it were not escaped."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
