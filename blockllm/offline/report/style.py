"""The page's style sheet: one column, light or dark as the reader's system is, no fonts loaded."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #fff; --ink: #1d2230; --soft: #5c6474; --rule: #dfe1e6;
  --own: #d9822b; --shared: #2f6db5; --pale: #a9c6e8; --delta: #2f9e6e; --heat: #2f6db5;
  --over: #fff; --shade: #0003; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12151c; --card: #1a1f29; --ink: #e8eaf0; --soft: #9aa3b4; --rule: #2d3442;
  --own: #f0a04b; --shared: #5b9be6; --pale: #34547c; --delta: #4cc491; --heat: #6aa9f2;
  --over: #0d1017; --shade: #000a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: clamp(30px, 6vw, 54px); line-height: 1.08; letter-spacing: -.02em;
  margin: 14px 0 10px; text-wrap: balance; }
h1 em { font-style: normal; white-space: nowrap; color: var(--shared); }
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
.scroll { overflow-x: auto; margin: 12px 0; background:
  linear-gradient(to right, var(--card) 30%, transparent) left / 44px 100% local no-repeat,
  linear-gradient(to left, var(--card) 30%, transparent) right / 44px 100% local no-repeat,
  linear-gradient(to right, var(--shade), transparent) left / 16px 100% no-repeat,
  linear-gradient(to left, var(--shade), transparent) right / 16px 100% no-repeat; }
.hint { display: none; font-size: 13px; margin: 8px 0 -8px; }
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
.group { border-top: 1px solid var(--rule); margin-top: 12px; padding-top: 10px; }
.group > summary { font-size: 17px; color: var(--ink); overflow-wrap: anywhere; }
.group > p { margin-top: 10px; } .group > h3, section > h3 { margin-top: 22px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
td { white-space: nowrap; } td.wrap { white-space: normal; min-width: 14ch; text-align: left; }
figure { margin: 18px 0; min-width: 0; } code { font-size: .92em; }
footer { color: var(--soft); font-size: 13px; }
.hint.always { display: block; }
@media (max-width: 1080px) { .hint.wide { display: block; } }
@media (max-width: 780px) { .hint.middle { display: block; } }
@media (max-width: 580px) { .hint.narrow { display: block; } }
@media (max-width: 560px) { section { padding: 18px 14px; }
  .rows { grid-template-columns: 1fr max-content; gap: 2px 10px; }
  .rows { grid-auto-flow: dense; } .rows .name { max-width: none; }
  .rows svg { grid-column: 1 / -1; margin-bottom: 8px; } .rows .value { grid-column: 2; } }
"""
