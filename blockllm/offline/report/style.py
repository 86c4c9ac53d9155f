"""The page's style sheet: one column, light or dark as the reader's system is, no fonts loaded."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #fff; --ink: #1d2230; --soft: #5c6474; --rule: #dfe1e6;
  --own: #d9822b; --shared: #2f6db5; --pale: #a9c6e8; --delta: #2f9e6e; --heat: #2f6db5;
  --over: #fff; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12151c; --card: #1a1f29; --ink: #e8eaf0; --soft: #9aa3b4; --rule: #2d3442;
  --own: #f0a04b; --shared: #5b9be6; --pale: #34547c; --delta: #4cc491; --heat: #6aa9f2;
  --over: #0d1017; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: clamp(30px, 6vw, 54px); line-height: 1.08; letter-spacing: -.02em;
  margin: 14px 0 10px; text-wrap: balance; }
h1 em { font-style: normal; color: var(--shared); }
h2 { font-size: 22px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0 0 14px; color: var(--soft); max-width: 70ch; }
.lead { font-size: 18px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 14px;
  padding: 22px 20px; margin: 20px 0; }
.rows { display: grid; grid-template-columns: minmax(80px, max-content) 1fr max-content;
  gap: 7px 12px; align-items: center; margin: 12px 0; }
.rows > * { min-width: 0; }
.name { overflow-wrap: anywhere; max-width: 24ch; }
.value { text-align: right; font-variant-numeric: tabular-nums; }
.value small, .name small { color: var(--soft); display: block; line-height: 1.2; }
svg { display: block; } svg text { fill: var(--soft); font-size: 11.5px; }
svg text.over { fill: var(--over); } svg text.cell { fill: var(--ink); }
.axis { width: 100%; height: 16px; overflow: visible; }
.bar { width: 100%; height: 22px; background: none; } .strip { width: 100%; height: 26px; }
.own { fill: var(--own); } .shared { fill: var(--shared); } .pale { fill: var(--pale); }
.delta { fill: var(--delta); } .heat { fill: var(--heat); } .none { fill: var(--rule); }
.scroll { overflow-x: auto; margin: 12px 0; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.line.a { stroke: var(--shared); } .line.b { stroke: var(--own); } .line.c { stroke: var(--delta); }
.dot.a { fill: var(--shared); } .dot.b { fill: var(--own); } .dot.c { fill: var(--delta); }
.maps { display: grid; gap: 0 26px;
  grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr));
  gap: 26px; margin: 14px 0; }
.curves { width: 100%; max-width: 440px; height: auto; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 14px;
  margin: 6px 0 10px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
i.own, i.b { background: var(--own); } i.shared, i.a { background: var(--shared); }
i.pale { background: var(--pale); } i.delta, i.c { background: var(--delta); }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; } td.wrap { white-space: normal; min-width: 14ch; text-align: left; }
figure { margin: 18px 0; min-width: 0; } code { font-size: .92em; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { section { padding: 18px 14px; }
  .rows { grid-template-columns: 1fr max-content; gap: 2px 10px; }
  .rows { grid-auto-flow: dense; } .rows .name { max-width: none; }
  .rows svg { grid-column: 1 / -1; margin-bottom: 8px; } .rows .value { grid-column: 2; } }
"""
