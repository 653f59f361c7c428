"""The page to try a server: one question at a time, its answer, and the passages with their documents. It loads nothing
but answers, from this server alone."""

from __future__ import annotations

import base64
import hashlib
import html

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --dim: #5b6574; --line: #e2e6ec; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #1b2028; --text: #e6e9ee; --dim: #a3adbb; --line: #2c333e; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 32px 16px 64px; }
h1 { font-size: 22px; margin: 0 0 16px; overflow-wrap: anywhere; }
form { display: flex; gap: 8px; }
input, button { font: inherit; padding: 10px 14px; border: 1px solid var(--line); border-radius: 10px; color: inherit;
  background: var(--card); }
input { flex: 1; min-width: 0; } button { cursor: pointer; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 18px; margin-top: 16px; }
article h2 { font-size: 16px; margin: 0 0 6px; } article p { margin: 0 0 8px; overflow-wrap: anywhere; }
.answer { font-size: 18px; } .dim { color: var(--dim); font-size: 14px; } ol { margin: 8px 0 0; padding-left: 22px; }
li { margin-bottom: 8px; overflow-wrap: anywhere; }
"""

SCRIPT = """
const form = document.querySelector('form'), box = document.querySelector('input');
const list = document.querySelector('#answers');
function add(parent, tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
}
form.addEventListener('submit', async event => {
  event.preventDefault();
  const question = box.value.trim(), button = document.querySelector('button');
  if (!question) return;
  button.disabled = true;
  const card = document.createElement('article');
  list.prepend(card);
  add(card, 'h2', question);
  const answer = add(card, 'p', '...', 'answer');
  try {
    const reply = await fetch('/v1/chat/completions', { method: 'POST', headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ messages: [{ role: 'user', content: question }] }) });
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error.message);
    const choice = found.choices[0];
    answer.textContent = choice.message.content || '(no answer)';
    if (choice.finish_reason === 'length') add(card, 'p', 'cut at the most tokens', 'dim');
    const sources = add(card, 'ol', '');
    for (const s of found.sources) {
      const item = add(sources, 'li', '');
      const where = [s.document, s.place].filter(Boolean).join(', ') || s.id;
      add(item, 'div', where + '  (prior ' + s.prior.toFixed(2) + ')', 'dim');
      add(item, 'div', s.text);
    }
    box.value = '';
  } catch (error) { answer.textContent = String(error.message || error); }
  button.disabled = false;
  box.focus();
});
"""

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def page(model: str) -> str:
    name = html.escape(model)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
        '<form><input aria-label="question" placeholder="a question" autofocus maxlength="4000">'
        '<button type="submit">Ask</button></form>\n'
        f'<div id="answers" aria-live="polite"></div>\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )
