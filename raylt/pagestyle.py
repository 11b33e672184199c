"""How the report looks: on a bright screen, on a dark one, and on paper.

Charts are drawn on white, so they lie on a white card in the dark. Grids of samples are scaled up pixel by pixel.
"""

STYLE = """
:root { --ink: #1c1d20; --paper: #fff; --line: #d9dade; --soft: #f4f5f7; --dim: #6f727a; --bad: #a40000; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: pre; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.front, td.decided { font-weight: 600; }
tr.dim, td.undecided, figcaption, p.caption { color: var(--dim); }
p.caption { margin: 1rem 0 .3rem; }
p.caption + .scroll { margin-top: 0; }
p.failed { color: var(--bad); }
figure { margin: 1rem 0; }
figcaption { font-size: 13px; line-height: 1.35; }
img { max-width: 100%; height: auto; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem; }
.grids figure { margin: 0; width: 160px; }
.grids img { width: 160px; image-rendering: pixelated; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 13px; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e5e9; --paper: #16171a; --line: #393b41; --soft: #212328; --dim: #9b9ea8; --bad: #ff9087; }
  .chart img { background: #fff; padding: .5rem; border-radius: .4rem; box-sizing: border-box; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 9.5pt; max-width: none; margin: 0; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .35rem; }
  figure, table, tr, .scroll { break-inside: avoid; }
  h2, h3, p.caption { break-after: avoid; }
  thead { display: table-header-group; }
  .chart img { max-height: 120mm; }
  pre { white-space: pre-wrap; font-size: 7.5pt; overflow: visible; }
}
"""
