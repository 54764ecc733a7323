"""How the page of a LayerRanking looks: one sheet of styles for phones and desktops, light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f3f6f8; --ink: #14202b; --grey: #52606d; --line: #d5dde3;
  --critical: #0c5a8f; --middle: #92a5b4; --kept: #5b6f80; --redundant: #d6dee4; --band: #e3eaf0;
  --c0: #0072b2; --c1: #c24e00; --c2: #00805d; --c3: #a8437f; --chain: #b97900;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10171d; --panel: #19222a; --ink: #e8eef2; --grey: #a3b2be; --line: #33414c;
    --critical: #62b5ea; --middle: #7d92a3; --kept: #7d92a3; --redundant: #46545f; --band: #202c36;
    --c0: #5db8ee; --c1: #ff965c; --c2: #35cfa1; --c3: #eaa0cb; --chain: #f2c14e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { margin: .2rem 0 .8rem; max-width: 48rem; }
.grey, caption, .legend, dt { color: var(--grey); }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: 0; }
dl div { display: flex; gap: .45rem; }
dd { margin: 0; font-weight: 600; }
.wide { overflow-x: auto; max-width: 100%; margin-bottom: 1rem; }
.whole { white-space: nowrap; }
.wide:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; }
caption { text-align: left; padding: 0 0 .4rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(100%, 100vw - 2rem); }
th { font-weight: 600; text-align: right; padding: .3rem .6rem; vertical-align: bottom; }
td { text-align: right; padding: .3rem .6rem; white-space: nowrap; }
th[scope=row] {
  position: sticky; left: 0; z-index: 1; background: var(--paper); text-align: left; white-space: nowrap;
  vertical-align: middle; padding-left: 0;
}
.plain td, .plain tbody th { border-top: 1px solid var(--line); }
.plain th:first-child { text-align: left; padding-left: 0; }
.heat td, .heat thead th { text-align: center; min-width: 3.8rem; }
.heat thead th:first-child { text-align: left; padding-left: 0; }
.heat th[scope=row] { white-space: normal; min-width: 7rem; max-width: 9rem; line-height: 1.25; }
.heat td { padding: .2rem .05rem; border: 1px solid var(--paper); line-height: 1.2; border-radius: 4px; }
.heat b { display: block; font-size: 1.05rem; }
.heat td span { display: block; font-size: .69rem; }
.heat td[class] { border-bottom: .6rem solid var(--paper); background-clip: padding-box; }
.heat .critical { background: var(--critical); color: var(--paper); }
.heat .middle { background: var(--panel); color: var(--ink); }
.heat .redundant { color: var(--grey); }
.taus td, .taus thead th { text-align: center; }
.taus td { min-width: 2.9rem; padding: .25rem .1rem; border: 1px solid var(--paper); border-radius: 4px; }
.tall thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .2rem .6rem; }
.tall thead th:first-child { writing-mode: horizontal-tb; transform: none; }
.taus thead th:first-child { text-align: left; padding-left: 0; }
.bar { display: flex; width: 11rem; height: .9rem; border-radius: 3px; overflow: hidden; background: var(--panel); }
.bar i { display: block; height: 100%; }
.bar .critical, .key.critical { background: var(--critical); }
.bar .middle, .key.middle { background: var(--middle); }
.bar .redundant, .key.redundant { background: var(--redundant); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; vertical-align: -.05rem; }
.order { display: flex; flex-wrap: wrap; gap: .25rem; list-style: none; padding: 0; margin: .2rem 0 .8rem; }
.order li { min-width: 2.1rem; text-align: center; border-radius: 4px; padding: .1rem .3rem; font-weight: 600; }
.order .critical { background: var(--critical); color: var(--paper); }
.order .middle { background: var(--panel); }
.order .redundant { box-shadow: inset 0 0 0 1px var(--line); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.two > * { min-width: 0; }
svg { display: block; width: 100%; min-width: 25rem; height: auto; }
svg text { fill: var(--grey); font-size: 11px; }
svg .tick { stroke: var(--line); }
svg .band { fill: var(--band); }
svg .best { stroke: var(--ink); stroke-width: 2; }
svg .median { stroke: var(--grey); stroke-width: 1.5; stroke-dasharray: 2 4; }
svg .consensus { stroke: var(--ink); stroke-width: 1.3; stroke-dasharray: 7 3; }
svg .other { stroke: var(--grey); stroke-width: .8; opacity: .6; }
svg polyline { fill: none; }
svg .chain { fill: var(--chain); }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
svg .own { stroke: var(--own); stroke-width: 1.6; }
svg .dot { fill: var(--own); }
svg .dot.consensus, svg .dot.best { fill: var(--ink); stroke: none; }
svg .dot.other { fill: var(--grey); stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .84rem; list-style: none; padding: 0; }
.legend svg { display: inline-block; width: 1.6rem; min-width: 0; height: .7rem; margin-right: .35rem; }
.cells td, .cells thead th { text-align: center; min-width: 1.9rem; padding: .15rem; }
.cells td { border: 1px solid var(--paper); border-radius: 4px; background: var(--panel); }
.cells td.kept { background: var(--kept); color: var(--paper); }
.cells td.new { background: var(--critical); color: var(--paper); font-weight: 700; }
.cells td.note { background: none; padding: .15rem .7rem; text-align: right; }
"""
