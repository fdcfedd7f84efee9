"""The style sheet of a report, light and dark. It loads no other files."""

LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f7f9",
    "ink": "#1a1d21",
    "muted": "#5b636e",
    "grid": "#dfe3e8",
    "shadow": "#8a929e",
    "good": "#1a7f45",
    "bad": "#c02a2a",
    "unclear": "#8a6100",
    "series-0": "#2563c9",
    "series-1": "#c2570c",
    "series-2": "#1a7f45",
    "series-3": "#8b3fc4",
    "series-4": "#0b7f92",
    "series-5": "#b3246b",
    "series-6": "#6b6f1d",
    "series-7": "#5b636e",
}
DARK = {
    "page": "#14171b",
    "panel": "#1c2026",
    "ink": "#e8eaed",
    "muted": "#a2aab5",
    "grid": "#333a43",
    "shadow": "#59626e",
    "good": "#56c283",
    "bad": "#f07b72",
    "unclear": "#dfb04a",
    "series-0": "#6ea5f5",
    "series-1": "#f09a55",
    "series-2": "#56c283",
    "series-3": "#c190ee",
    "series-4": "#4cc0d2",
    "series-5": "#ee82b3",
    "series-6": "#c3c862",
    "series-7": "#a2aab5",
}
"""Colours by name. Plots use the same names (`svg.COLOURS`). Text has a contrast of at least 4.5 on page and panel."""


def _colours(values: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in values.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_colours(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1130px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 40px; }
main { padding-bottom: 64px; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; margin: 4px 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 56px 0 8px; padding-top: 20px; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 28px 0 8px; }
p { max-width: 70ch; margin: 8px 0; overflow-wrap: anywhere; }
.kind { color: var(--muted); font-size: 0.85rem; letter-spacing: 0.04em; margin: 0; }
.lead, .note, figcaption, caption { color: var(--muted); }
.note, figcaption, caption, .legend { font-size: 0.875rem; }
.verdict { border-left: 4px solid var(--muted); background: var(--panel); border-radius: 0 8px 8px 0;
  padding: 12px 18px; margin: 12px 0; overflow-wrap: anywhere; }
.verdict strong { display: block; font-size: 1.15rem; line-height: 1.35; }
.verdict p, .verdict li { margin: 4px 0 0; color: var(--muted); }
.verdict ul { margin: 4px 0 0; padding-left: 20px; }
.verdict details { margin: 4px 0 0; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict.unclear { border-color: var(--unclear); }
.mark-good { color: var(--good); font-weight: 600; }
.mark-bad { color: var(--bad); font-weight: 600; }
.mark-unclear { color: var(--unclear); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.facts div { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.facts dt { color: var(--muted); font-size: 0.8rem; }
.facts dd { margin: 0; font-size: 1.05rem; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
figure { margin: 16px 0; }
figcaption { max-width: 80ch; margin-top: 8px; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 20px 24px;
  align-items: start; }
.plot { display: block; width: 100%; height: auto; }
.plot text { font-family: inherit; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; color: var(--muted); margin: 4px 0 12px; }
.key { display: inline-block; width: 22px; height: 0; border-top: 3px solid; margin-right: 7px; vertical-align: 4px; }
.key.dashed { border-top-style: dashed; border-top-width: 2px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 200px), 1fr)); gap: 16px;
  align-items: start; max-width: 900px; }
.pictures.row { display: flex; overflow-x: auto; max-width: 100%; }
.pictures.row > div { flex: 1 0 min(42%, 190px); max-width: 290px; padding: 1px; }
.pictures.row > div:first-child { position: sticky; left: 0; z-index: 1; background: var(--page); }
.picture { margin: 0 0 12px; min-width: 0; }
.picture img { display: block; width: 100%; height: auto; border-radius: 4px; outline: 1px solid var(--grid); }
.board { background: repeating-conic-gradient(#cdcdcd 0 25%, #fff 0 50%) 0 0 / 16px 16px; }
img.colour-bar { display: inline-block; width: 110px; height: 10px; margin: 0 6px; vertical-align: middle; }
/* A shadow at each edge beyond which there is more: covers move with the content, shadows stay with the box. */
.scroll { overflow-x: auto; margin: 12px 0; max-width: 100%; background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 44px 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) right / 44px 100% no-repeat local,
  linear-gradient(to right, var(--shadow), transparent) left / 18px 100% no-repeat scroll,
  linear-gradient(to left, var(--shadow), transparent) right / 18px 100% no-repeat scroll; }
.scroll:focus-visible, .pictures.row:focus-visible { outline: 2px solid var(--series-0); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; line-height: 1.4; }
caption { text-align: left; padding-bottom: 6px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--grid); white-space: nowrap;
  font-weight: 400; vertical-align: top; }
thead th { color: var(--muted); font-size: 0.8rem; vertical-align: bottom; }
.number { text-align: right; }
.wrap { display: block; white-space: normal; min-width: 22em; max-width: 60em; }
.any { display: block; white-space: normal; min-width: 13em; overflow-wrap: anywhere; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--series-0); }
code, pre { font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--panel); border-radius: 8px; padding: 12px 16px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 480px) { header { padding-top: 20px; } h1 { font-size: 1.4rem; } h2 { margin-top: 40px; } }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
"""
)
