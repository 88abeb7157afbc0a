"""Pieces of an HTML page: bars, tables, embedded pictures, and the one style sheet.

Knows nothing of scores; `report` puts the pieces together. Names and records are escaped here; table cells are HTML
already.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image


def bar(name: str, share: float, number: str, kind: str = "") -> str:
    """Three cells of a ``bars`` grid: a name, a bar of ``share`` (clipped to ``[0, 1]``), and its number as text."""
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<span class="name {kind}">{escape(name)}</span><span class="track"><i class="fill {kind}" '
        f'style="width:{width:.1f}%"></i></span><span class="value {kind}">{escape(number)}</span>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table of HTML cells; columns that are empty throughout are left out, those in ``numeric`` align right."""
    right = set(numeric)
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=num' if at in right else ''}>{cells[at]}</{tag}>" for at in kept)

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(image: Image.Image, words: str) -> str:
    """A picture embedded as PNG; small ones keep their pixels when enlarged."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="pixels"' if max(image.size) <= 128 else ""
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img{kind} {size} alt="{escape(words)}" src="data:image/png;base64,{content}">'


def tree(record: Mapping[str, object]) -> str:
    """A nested record as a definition list, without what does not apply (``None``, empty mappings)."""
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{_leaf(value)}</dd>"
        for name, value in record.items()
        if value not in (None, {})
    )
    return f"<dl>{rows}</dl>"


def _leaf(value: object) -> str:
    if isinstance(value, Mapping):
        return tree({str(name): item for name, item in value.items()})
    return escape(str(value))


def verdict(correct: bool | None) -> str:
    """A tick, a cross, or nothing where nobody judged."""
    if correct is None:
        return ""
    return '<b class="right" title="right">✓</b>' if correct else '<b class="wrong" title="wrong">✗</b>'


def duration(seconds: float) -> str:
    """Seconds for a reader: ``8.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#23262b;--soft:#6a6f78;--rule:#e4e1dc;--track:#efece7;
--own:#2b6f94;--other:#b9b4ab;--right:#2e7d4f;--wrong:#b3382c;
--c0:#2b6f94;--c1:#c05b2e;--c2:#4c8a57;--c3:#8a5a9e;--c4:#b58a1b;--c5:#5d6770}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--card:#1d2024;--ink:#e6e4e0;--soft:#9aa0a8;--rule:#30343a;
--track:#2a2e33;--own:#6bb1d6;--other:#666c75;--right:#6fc08d;--wrong:#e5796d;
--c0:#6bb1d6;--c1:#e88f63;--c2:#7fbf8b;--c3:#bb90cf;--c4:#dcb652;--c5:#a2abb5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
font-variant-numeric:tabular-nums}
header,main{max-width:1080px;margin:auto;padding:0 24px}
header{padding-top:56px}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;margin:0 0 8px}
h2{font-size:1.25rem;letter-spacing:-.01em;margin:0 0 16px}
h3{font-size:.95rem;font-weight:600;margin:0 0 8px}
p{margin:0 0 14px;max-width:72ch}
small{font-weight:400;color:var(--soft)}
.lead{color:var(--soft);font-size:1.05rem;max-width:none}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:20px;padding-bottom:14px;border-bottom:1px solid var(--rule)}
nav a{color:var(--soft);text-decoration:none;font-size:.9rem}
nav a:hover{color:var(--ink);text-decoration:underline}
section{padding:36px 0 4px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:16px;margin-bottom:18px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;
display:flex;flex-direction:column}
.card h3{color:var(--soft);margin:0}
.number{font-size:2.3rem;line-height:1.2;font-weight:650;letter-spacing:-.02em;margin:2px 0 12px}
.number small{font-size:1rem;margin-left:5px;letter-spacing:0}
.note{font-size:.84rem;line-height:1.4;color:var(--soft);margin:auto 0 0;padding-top:14px}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:6px 12px;align-items:center;font-size:.86rem}
.bars.wide{max-width:680px;margin-bottom:18px}
.bars .name,.bars .value{color:var(--soft)}
.bars .value{text-align:right}
.bars .own{color:var(--ink);font-weight:600}
.track{display:block;height:8px;border-radius:4px;background:var(--track);overflow:hidden}
.fill{display:block;height:100%;border-radius:4px;background:var(--other)}
.wide .fill,.fill.own{background:var(--own)}
details{border-top:1px solid var(--rule);font-size:.86rem}
details:last-child{border-bottom:1px solid var(--rule)}
summary{cursor:pointer;padding:9px 2px;color:var(--soft)}
details>dl{padding:4px 2px 16px 18px}
.card details{margin-top:12px;border-bottom:0}
.card details dl{grid-template-columns:1fr;gap:0}
.card details dd{margin-bottom:5px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin-bottom:18px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;font-weight:500;color:var(--soft);font-size:.84rem}
th,td{padding:8px 18px 8px 0;border-bottom:1px solid var(--rule);vertical-align:middle}
th:last-child,td:last-child{padding-right:0}
.num{text-align:right}
td:has(img){width:82px}
td img{width:64px;height:auto;max-width:none}
.range{display:inline-block;position:relative;width:150px;height:8px;border-radius:4px;background:var(--track);
vertical-align:middle;margin-right:12px}
.range i{position:absolute;top:0;bottom:0;border-radius:4px}
.band{background:var(--own);opacity:.45}
.range .tick{width:3px;margin-left:-1.5px;top:-3px;bottom:-3px;background:var(--own)}
.ends{color:var(--soft);font-size:.84rem;white-space:nowrap}
img{display:block;max-width:100%;height:auto;border-radius:4px}
.pixels{image-rendering:pixelated}
figure{margin:0}
figcaption{font-size:.84rem;line-height:1.4;color:var(--soft);margin-top:6px}
.pairs,.samples{display:grid;gap:20px 16px;grid-template-columns:repeat(auto-fill,minmax(136px,1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(228px,1fr))}
.pairs figure{display:grid;grid-template-columns:1fr 1fr;gap:4px}
.pairs figcaption{grid-column:1/-1;margin-top:2px}
.pairs img,.samples img{width:100%}
.right,.wrong{margin-right:6px}
.judged{position:relative}
.judged b{position:absolute;right:5px;top:5px;margin:0;width:1.4em;height:1.4em;border-radius:50%;
background:var(--card);font-size:.85rem;line-height:1.4em;text-align:center}
.right{color:var(--right)}
.wrong{color:var(--wrong)}
.chart{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px 18px;margin-bottom:16px}
#curves,#codes{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:0 16px}
#curves h2,#codes h2{grid-column:1/-1}
svg{display:block;width:100%;height:auto}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0 0;padding:0;
font-size:.84rem;color:var(--soft)}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:7px;vertical-align:middle}
@media print{body{background:#fff}section{break-inside:avoid}nav{display:none}}
"""
